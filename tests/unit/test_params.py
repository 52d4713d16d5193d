from pathlib import Path

import pytest
import yaml

from tests.conftest import REPOSITORY
from tumorseg.core.errors import InputError
from tumorseg.core.params import SECTIONS, AugmentParams, TrainParams, load_params


@pytest.fixture
def document() -> dict:
    return yaml.safe_load((REPOSITORY / "params.yaml").read_text())


def load(document: object, folder: Path) -> TrainParams:
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(document))
    return load_params(TrainParams, path)


def test_repository_params_are_valid() -> None:
    for section in SECTIONS.values():
        assert isinstance(load_params(section, REPOSITORY / "params.yaml"), section)


def test_stages_sections_and_modules_share_their_names() -> None:
    stages = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
    assert set(SECTIONS) == set(stages) | {"retrain", "drift", "segment", "crossvalidate"}
    for name in SECTIONS:
        assert (REPOSITORY / "pipelines" / f"{name}.py").exists()
        if name in stages:
            assert stages[name]["cmd"].startswith(f"python -m pipelines.{name}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["train"]["unet"].update(chanels=[4, 8]), "train.unet.chanels: unknown key"),
        (lambda d: d["train"]["unet"].update(stem=4), "train.unet.stem: is called space_to_depth"),
        (lambda d: d["train"]["common"].update(epochs="many"), "train.common.epochs: .*'many'"),
        (lambda d: d["train"]["common"].pop("epochs"), "train.common.epochs: missing"),
        (lambda d: d["train"].update(seeds=[1, 1]), "train.seeds: .*must differ"),
        (lambda d: d["train"]["common"].update(devices=3), "multiple of devices × nodes"),
        (lambda d: d["train"]["common"].update(micro_batch_size=3), "multiple of micro_batch_size"),
        (lambda d: d["evaluate"].update(threshold="best"), "evaluate.threshold"),
        (lambda d: d["crossvalidate"].update(folds=1), "crossvalidate.folds"),
        (lambda d: d["augment"].update(image_size=100), "augment.image_size: .*multiple of 16"),
        (lambda d: d.update(trian={}), "trian: unknown section"),
        (lambda d: d.pop("evaluate"), "evaluate: missing section"),
        (lambda d: d.update(drift=None), "drift: missing section"),
        (lambda d: d["split"].update(method="grouped"), "split.method: is called guessed since"),
        (lambda d: d["validate"].update(name_pattern="x"), r"named groups \(\?P<number>…"),
        (lambda d: d["segment"].update(scheduler="tcp://a"), r"scheduler: .* \(got 'tcp://a'\)"),
        (lambda d: d["train"]["common"].update(bce_weight=0, dice_weight=0), "must not both be 0"),
        (
            lambda d: d["train"]["common"].update(learning_rate=float("inf")),
            "learning_rate: .*finite",
        ),
        (lambda d: d["retrain"].update(inbox="data/new"), "inbox and data must be two"),
        (lambda d: d["retrain"].update(quarantine="./inbox"), "inbox and quarantine must be two"),
    ],
)
def test_a_wrong_key_is_named(document: dict, tmp_path: Path, change, message: str) -> None:
    change(document)
    with pytest.raises(InputError, match=message):
        load(document, tmp_path)


@pytest.mark.parametrize("text", ["a: [", "just words", ""])
def test_what_is_no_mapping_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"params\.yaml"):
        load_params(AugmentParams, path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_params(AugmentParams, tmp_path / "params.yaml")
