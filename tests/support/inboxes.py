"""A repository with a batch in its inbox, and what a take-in must leave of both."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.conftest import CocoFolder
from tests.support.retraining import git, make_repository, masks, phantom_batch, sections, variables
from tests.support.samples import contents
from tumorseg.importers import inbox, intake


def picture(seed: int, size=(80, 64)) -> np.ndarray:
    """Smooth noise that no other seed's resembles; uint8 of (height, width)."""
    coarse = np.random.default_rng(seed).integers(0, 255, (8, 8), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))


class Batch(CocoFolder):
    """A batch with all its slices in train/."""

    def add(self, name: str, pixels: np.ndarray, box=(10, 10, 20, 20), **entry) -> None:
        boxes = [box] if box else []
        number = super().add("train", name, boxes, pixels.shape[::-1], pixels)
        self.documents["train"]["images"][number] |= entry


@pytest.fixture(scope="module")
def template(phantom, tmp_path_factory) -> Path:
    """A repository with a batch in its inbox: eight good slices and two that must stay out."""
    root = make_repository(tmp_path_factory.mktemp("template") / "repository", phantom)
    folder = phantom_batch(root / "inbox" / "monday", 8, seed=7)
    document = json.loads((folder / "_annotations.coco.json").read_text())
    (test_slice, *_) = sorted((phantom / "test").glob("*.jpg"))
    shutil.copy(test_slice, folder / "sneaked.jpg")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    for name in ("sneaked.jpg", "broken.jpg"):
        entry = {"id": len(document["images"]), "file_name": name, "width": 96, "height": 96}
        document["images"].append(entry)
    (folder / "_annotations.coco.json").write_text(json.dumps(document))
    (folder / "unlisted.png").write_bytes(b"a picture that no JSON lists")
    return root


@pytest.fixture
def repository(template, tmp_path, monkeypatch) -> Path:
    root = tmp_path / "repository"
    shutil.copytree(template, root, symlinks=True)
    monkeypatch.chdir(root)
    for name, value in variables(root).items():
        monkeypatch.setenv(name, value)
    return root


def take_all(root: Path) -> list[intake.Taken]:
    """What the flow does with an inbox."""
    parts = sections(root)
    intake.recover(parts[2])
    for batch in inbox.batches(Path("inbox"), 0)[0]:
        intake.take_in(batch, *parts)
    return intake.taken_in()


def check_taken(root: Path, template: Path) -> None:
    """Everything is as a take-in must leave it, however it came to its end."""
    before, new = {}, masks(template / "inbox" / "monday")
    for split in ("train", "valid", "test"):
        before |= {f"{split}/{k}": v for k, v in masks(template / "data" / split).items()}
    after = {}
    for split in ("train", "valid", "test"):
        after |= {f"{split}/{k}": v for k, v in masks(root / "data" / split).items()}
    assert before.items() <= after.items()
    joined = {k.split("/")[1]: v for k, v in after.items() if k not in before}
    assert joined == {k: v for k, v in new.items() if k.startswith("new7")} and len(joined) == 8
    assert contents(root / "data" / "test") == contents(template / "data" / "test")
    (aside,) = (root / "quarantine").iterdir()
    lines = (aside / "quarantine.csv").read_text().splitlines()
    assert len(lines) == 4 and lines[0] == "batch,name,reason,why"
    assert {line.split(",")[1]: line.split(",")[2] for line in lines[1:]} == {
        "sneaked.jpg": "test_duplicate",
        "broken.jpg": "unusable",
        "unlisted.png": "unreadable",
    }
    # What was refused can be mended and put back; all of a batch of which a part was not read.
    assert masks(aside)["sneaked.jpg"] == new["sneaked.jpg"]
    assert contents(aside / "original") == contents(template / "inbox" / "monday")
    assert list((root / "inbox").iterdir()) == []
    assert not list(root.glob(".data*")) and not git(root, "status", "--porcelain")
    log = git(root, "log", "--format=%s").splitlines()
    assert len(log) == 2 and log[0].startswith("New data: batch ")
    assert git(root, "show", "--format=", "--name-only", "HEAD").split() == ["data.dvc"]
    (taken,) = intake.taken_in()
    assert (taken.slices, taken.train + taken.valid) == (11, 8)
    assert taken.before != taken.after == intake.version()


@pytest.fixture
def quick(monkeypatch) -> None:
    """`dvc add` and `dvc status` in no time, for tests that do them often."""

    def digest() -> str:
        found = hashlib.md5()
        for name, content in sorted(contents(Path("data")).items()):
            found.update(name.encode() + content)
        return found.hexdigest()

    def dvc(*words: str) -> str:
        assert words == ("add", "data")
        record = yaml.safe_load(Path("data.dvc").read_text())
        record["outs"][0]["md5"] = digest()
        Path("data.dvc").write_text(yaml.safe_dump(record))
        return ""

    monkeypatch.setattr(intake, "dvc", dvc)
    monkeypatch.setattr(intake, "refuse_to_lose", lambda data: None)
