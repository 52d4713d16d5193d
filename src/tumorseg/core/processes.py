"""Processes that can be told from later ones of the same number, and their orderly end."""

import socket

import psutil

GRACE_SECONDS = 10.0


def tag(process: psutil.Process | None = None) -> str:
    """One word for a process of this host, by default this one: `process:HOST:PID:STARTED`."""
    process = process or psutil.Process()
    return f"process:{socket.gethostname()}:{process.pid}:{process.create_time():.0f}"


def find(word: str) -> psutil.Process | None:
    """The running process of this host that a tag names; None where it has ended, or is no tag."""
    match word.split(":"):
        case ["process", host, pid, started] if host == socket.gethostname() and pid.isdigit():
            try:
                process = psutil.Process(int(pid))
                alive = process.status() != psutil.STATUS_ZOMBIE
            except psutil.NoSuchProcess:
                return None
            # The number may be another process's by now; a second is left for a clock that was set.
            return process if alive and abs(process.create_time() - float(started)) <= 1 else None
    return None


def is_dead(word: str) -> bool:
    """Whether a word is the tag of a process of this host that has ended."""
    mine = word.startswith(f"process:{socket.gethostname()}:") and word.count(":") == 3
    return mine and find(word) is None


def end_tree(process: psutil.Process) -> None:
    """Ends a process and all its children: SIGTERM, and SIGKILL where that is not enough."""
    try:
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for end in (psutil.Process.terminate, psutil.Process.kill):
        for member in family:
            try:
                end(member)
            except psutil.NoSuchProcess:
                continue
        _, family = psutil.wait_procs(family, GRACE_SECONDS)
