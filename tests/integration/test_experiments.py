import pytest
import yaml

from tests.conftest import REPOSITORY
from tumorseg.core import experiments
from tumorseg.core.errors import InputError
from tumorseg.core.params import SECTIONS, load_params

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


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("train.nope=3", "has no key train.nope"),
        ("nope=3", "has no key nope"),
        ("train.seeds.x=3", "has no key train.seeds.x"),
        ("+train.common.x=3", "has no key"),
        ("train.seeds=[0,", "is no value"),
        ("train.common.epochs=abc", r"with these values: train\.common\.epochs: .*integer"),
        ("drift.alpha=2", r"drift\.alpha"),
    ],
)
def test_wrong_changes_are_found_before_dvc_begins(change, said, monkeypatch, capsys) -> None:
    monkeypatch.chdir(REPOSITORY)
    with pytest.raises(InputError, match=said):
        experiments.command("two_cores", [change])
    assert not capsys.readouterr().out


def test_so_are_wrong_params(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(FILES[1].read_text().replace("  inbox: inbox", "  in: x"))
    with pytest.raises(InputError, match=r"^params\.yaml: retrain\.inbox: missing"):
        experiments.command(None, [])


def test_dvc_is_told_what_differs(monkeypatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    assert experiments.command(None, []) == ["repro"]
    told = experiments.command("two_cores", ["train.seeds=[7]"])
    assert told[:5] == ["exp", "run", "--force", "--name", "two_cores"]
    assert told[-2:] == ["--set-param", "train.seeds=[7]"]
    assert told.count("--set-param") == len(experiments.load("two_cores")) + 1
