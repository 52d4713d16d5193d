import pytest
import yaml

from tests.conftest import REPOSITORY
from tumorseg import experiments
from tumorseg.errors import InputError
from tumorseg.params import SECTIONS, load_params

FILES = (REPOSITORY / "experiments.yaml", REPOSITORY / "params.yaml")


def put(document: dict, change: str) -> None:
    """Sets one `key=value`, as DVC does."""
    key, _, value = change.partition("=")
    *parents, last = key.split(".")
    for parent in parents:
        document = document[parent]
    document[last] = yaml.safe_load(value)


@pytest.mark.parametrize("name", yaml.safe_load(FILES[0].read_text()))
def test_every_set_gives_valid_params(name: str, tmp_path) -> None:
    document = yaml.safe_load(FILES[1].read_text())
    changes = experiments.load(name, *FILES)
    for change in changes:
        put(document, change)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(document))
    for section in SECTIONS:
        load_params(section, tmp_path / "params.yaml")
    assert document["train"]["unet"] == document["train"]["attention_unet"]  # equal treatment
    assert changes


def test_unknown_sets_and_keys_are_named(tmp_path, monkeypatch) -> None:
    with pytest.raises(InputError, match=r"no set 'huge'; it has .*two_cores"):
        experiments.load("huge", *FILES)
    (tmp_path / "e.yaml").write_text("mine: {train.common.epoch: 3}")
    with pytest.raises(InputError, match=r"mine: .*no key train.common.epoch"):
        experiments.load("mine", tmp_path / "e.yaml", FILES[1])
    monkeypatch.chdir(REPOSITORY)
    with pytest.raises(InputError, match="KEY=VALUE"):
        experiments.command(None, ["train.seeds"])


def test_dvc_is_told_what_differs(monkeypatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    assert experiments.command(None, []) == ["repro"]
    told = experiments.command("two_cores", ["train.seeds=[7]"])
    assert told[:5] == ["exp", "run", "--force", "--name", "two_cores"]
    assert told[-2:] == ["--set-param", "train.seeds=[7]"]
    assert told.count("--set-param") == len(experiments.load("two_cores")) + 1
