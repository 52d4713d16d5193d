"""Processes, their tags, and their end."""

import os
import subprocess
import sys

import psutil
import pytest

from tumorseg.core import processes

SLEEP = "import time; time.sleep(600)"


def test_a_process_lives_until_it_ends_whether_or_not_anybody_took_note_of_it() -> None:
    child = subprocess.Popen([sys.executable, "-c", SLEEP])
    tag = processes.tag(psutil.Process(child.pid))
    assert processes.find(tag).pid == child.pid and not processes.is_dead(tag)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert processes.is_dead(tag)  # a zombie
    child.wait()
    assert processes.is_dead(tag) and processes.find(tag) is None


def test_one_that_has_the_number_of_an_ended_one_is_another() -> None:
    before, _, started = processes.tag().rpartition(":")
    assert not processes.is_dead(f"{before}:{started}")
    assert processes.is_dead(f"{before}:{int(started) - 60}")


@pytest.mark.parametrize(
    "tag", ["process:elsewhere:1:0", "nightly", "", "process", "process:h:boot:1:0"]
)
def test_of_another_machine_s_and_of_other_tags_nothing_is_known(tag: str) -> None:
    assert not processes.is_dead(tag) and processes.find(tag) is None


def test_a_process_ends_with_all_its_children() -> None:
    code = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {SLEEP!r}])"
    parent = psutil.Popen([sys.executable, "-c", code])
    while not parent.children():
        assert parent.poll() is None
    (child,) = parent.children()
    processes.end_tree(parent)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    assert parent.poll() is not None
    processes.end_tree(parent)  # again is no error
