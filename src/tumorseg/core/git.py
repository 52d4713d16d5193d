"""Commits of single files, which leave other changes of the working tree alone."""

import subprocess
from collections.abc import Sequence

from tumorseg.core.errors import InputError, StageError

# Used where git finds no identity, such as in a container.
NOBODY = ("-c", "user.name=tumorseg", "-c", "user.email=tumorseg@localhost")


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)


def git(*arguments: str) -> str:
    """Runs git here and returns what it printed.

    Raises:
        StageError: It failed; git's message is printed.
    """
    done = _run(*arguments)
    if done.returncode:
        print(done.stderr.strip() or done.stdout.strip())
        raise StageError("git failed; its message is in the log")
    return done.stdout


def has_commits() -> bool:
    """Whether there is a git repository here, and a commit in it."""
    return not _run("rev-parse", "--quiet", "--verify", "HEAD").returncode


def committed(path: str) -> str | None:
    """A file's text in the last commit; None where it is not in there."""
    done = _run("show", f"HEAD:./{path}")
    return None if done.returncode else done.stdout


def refuse_changed(path: str) -> None:
    """Raises InputError if a file differs from the last commit, or this is no repository."""
    if _run("rev-parse", "--is-inside-work-tree").stdout.strip() != "true":
        raise InputError("new data versions need a git repository: `git init` and commit first")
    if git("status", "--porcelain", "--", path):
        raise InputError(
            f"{path}: differs from the last commit: keep that change with `git add {path} && git "
            f"commit {path}`, or undo it with `git checkout {path} && dvc checkout {path}`"
        )


def commit(paths: Sequence[str], message: str) -> str | None:
    """Commits files, and of folders what git does not ignore; all else stays as it is, staged too.

    Returns:
        The commit, or None where nothing differed.

    Raises:
        StageError: git refused, such as by a hook.
    """
    new = _listed(paths, "ls-files", "--others", "--exclude-standard")
    changed = new | _listed(paths, "diff", "--name-only", "--relative", "HEAD")
    if not changed:
        return None
    if new:
        git("add", "--", *sorted(new))
    identity = NOBODY if _run("var", "GIT_COMMITTER_IDENT").returncode else ()
    git(*identity, "commit", "--quiet", "--only", "-m", message, "--", *sorted(changed))
    return git("rev-parse", "HEAD").strip()


def _listed(paths: Sequence[str], *command: str) -> set[str]:
    return set(git(*command, "-z", "--", *paths).split("\0")) - {""}
