"""Processes found by their mark or tag."""

import os
import sys

import psutil
import pytest

from tumorseg.core import processes

SLEEP = "import time; time.sleep(600)"


def test_marked_processes_end_though_their_parent_was_killed(tmp_path) -> None:
    mark = str(tmp_path)
    code = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {SLEEP!r}])"
    environment = os.environ | {processes.VARIABLE: mark}
    parent = psutil.Popen([sys.executable, "-c", code], env=environment)
    while not parent.children():
        assert parent.poll() is None
    (child,) = parent.children()
    assert {one.pid for one in processes.marked(mark)} == {parent.pid, child.pid}
    parent.kill()
    parent.wait()
    processes.end_marked(mark)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    assert processes.marked(mark) == []


def test_a_tag_tells_the_dead_from_the_living() -> None:
    before, _, started = processes.tag().rpartition(":")
    assert not processes.is_dead(f"{before}:{started}")
    assert processes.is_dead(f"{before}:{int(started) - 60}")  # another one with that number
    child = psutil.Popen([sys.executable, "-c", SLEEP])
    host = before.split(":")[1]
    tag = f"process:{host}:{child.pid}:{child.create_time():.0f}"
    assert not processes.is_dead(tag)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert processes.is_dead(tag)  # a zombie
    child.wait()
    assert processes.is_dead(tag)


@pytest.mark.parametrize("word", ["process:elsewhere:1:0", "nightly", ""])
def test_nothing_is_known_of_another_machine_and_of_other_tags(word: str) -> None:
    assert not processes.is_dead(word)
