"""Processes and their names."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from tumorseg.core.processes import Process, process


def test_a_process_lives_until_it_ends_whether_or_not_anybody_took_note_of_it() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    named = process(child.pid)
    assert named.lives() and process().lives()
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert named.lives() is False  # a zombie
    assert process(child.pid).lives() is False
    child.wait()
    assert named.lives() is False


def test_one_that_has_the_number_of_an_ended_one_is_another() -> None:
    mine = process()
    assert replace(mine, began=mine.began + "0").lives() is False
    assert replace(mine, boot="an earlier one").lives() is False


def test_of_another_machine_nothing_is_known() -> None:
    assert replace(process(), host="elsewhere").lives() is None


def test_its_tag_names_it() -> None:
    assert Process.tagged(process().tag) == process()


@pytest.mark.parametrize(
    "tag", ["process:x", "None", "nightly", "", "process:h:b:x:1", "a:h:b:1:1", "process:h:b:1:1:1"]
)
def test_other_tags_name_none(tag: str) -> None:
    assert Process.tagged(tag) is None
