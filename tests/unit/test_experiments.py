"""Sets of experiments.yaml and changes on the command line become arguments of DVC."""

from pathlib import Path

import pytest
import yaml

from tests.conftest import REPOSITORY
from tumorseg.core import experiments
from tumorseg.core.errors import InputError

SETS = yaml.safe_load((REPOSITORY / "experiments.yaml").read_text())


@pytest.fixture(autouse=True)
def in_repository(monkeypatch) -> None:
    monkeypatch.chdir(REPOSITORY)


@pytest.mark.parametrize("name", SETS)
def test_every_set_is_valid_and_treats_both_networks_alike(name: str) -> None:
    arguments = experiments.command(name, ["train.seeds=[7]"])
    assert arguments[:5] == ["exp", "run", "--force", "--name", name]
    assert arguments[-2:] == ["--set-param", "train.seeds=[7]"]
    assert arguments.count("--set-param") == len(SETS[name]) + 1
    params = yaml.safe_load(Path("params.yaml").read_text())
    for change in arguments[6::2]:
        experiments.apply(change, params)
    assert params["train"]["unet"] == params["train"]["attention_unet"]
    assert params["train"]["seeds"] == [7]


def test_one_set_after_another_leaves_nothing_of_the_one_before() -> None:
    assert len({frozenset(values) for values in SETS.values()}) == 1


def test_without_changes_dvc_reproduces() -> None:
    assert experiments.command(None, []) == ["repro"]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("huge", "train.seeds=[1]", r"no set 'huge'; it has .*two_cores"),
        (None, "train.seeds", "KEY=VALUE"),
        (None, "train.nope=3", "train.nope=3: must be KEY=VALUE, a key of params.yaml"),
        (None, "train.seeds.x=3", "must be KEY=VALUE"),
        (None, "train.seeds=[0,", "must be KEY=VALUE"),
        (None, "train.common.epochs=abc", r"with these values: train\.common\.epochs: .*integer"),
    ],
)
def test_wrong_changes_are_found_before_dvc_begins(name, change, message, capsys) -> None:
    with pytest.raises(InputError, match=message):
        experiments.command(name, [change])
    assert not capsys.readouterr().out
