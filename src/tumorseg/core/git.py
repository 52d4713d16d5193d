"""Commits of what a retraining made, and of nothing else that somebody has in the works."""

import os
import subprocess
from collections.abc import Sequence

from tumorseg.core.errors import InputError, StageError

# Used where git knows nobody, such as in a container.
NOBODY = {"user.name": "tumorseg", "user.email": "tumorseg@localhost"}
OVERRULED_BY = {
    "user.name": ("GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME"),
    "user.email": ("GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"),
}


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)


def git(*arguments: str) -> str:
    """Runs git here and returns what it printed.

    Raises:
        StageError: It failed; git's own words are printed before.
    """
    done = _run(*arguments)
    if done.returncode:
        words = done.stderr.strip() or done.stdout.strip()
        print(words)
        command = next(word for word in arguments if not word.startswith(("-", "user.")))
        raise StageError(f"git {command} failed; its own words are in the log")
    return done.stdout


def in_repository() -> bool:
    """Whether the current folder is in a git repository's working tree."""
    return _run("rev-parse", "--is-inside-work-tree").stdout.strip() == "true"


def has_commits() -> bool:
    """Whether there is a git repository here, and a commit in it."""
    return not _run("rev-parse", "--quiet", "--verify", "HEAD").returncode


def committed(path: str) -> str | None:
    """A file's text in the last commit; None where it is not in there."""
    done = _run("show", f"HEAD:./{path}")
    return None if done.returncode else done.stdout


def refuse_changed(path: str) -> None:
    """Raises InputError if a file differs from the last commit, or this is no repository."""
    if not in_repository():
        raise InputError(
            "this is no git repository, so that a new data version could not be recorded: "
            "`git init` and commit first"
        )
    if git("status", "--porcelain", "--", path):
        raise InputError(
            f"{path}: differs from the last commit, and new data would be mixed with that change: "
            f"keep it with `git add {path} && git commit {path}`, or undo it with "
            f"`git checkout {path} && dvc checkout {path}`"
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
    git(*_identity(), "commit", "--quiet", "--only", "-m", message, "--", *sorted(changed))
    return git("rev-parse", "HEAD").strip()


def _listed(paths: Sequence[str], *command: str) -> set[str]:
    return set(git(*command, "-z", "--", *paths).split("\0")) - {""}


def _identity() -> list[str]:
    missing = [
        f"{key}={value}"
        for key, value in NOBODY.items()
        if _run("config", key).returncode
        and not all(name in os.environ for name in OVERRULED_BY[key])
    ]
    return [word for setting in missing for word in ("-c", setting)]
