import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from tests.support.samples import contents
from tumorseg.core.errors import InputError
from tumorseg.data.phantom import make_phantom, random_slice, template_sections

COUNTS = {"train": 24, "valid": 3, "test": 2}
SIZE = 128


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom") / "data"
    make_phantom(folder, counts=COUNTS, size=SIZE)
    return folder


def annotations(folder: Path, split: str) -> dict[str, Any]:
    return json.loads((folder / split / "_annotations.coco.json").read_text())


def test_layout_is_that_of_a_coco_export(phantom: Path) -> None:
    assert [path.name for path in phantom.parent.iterdir()] == ["data"]  # no scratch left behind
    assert {path.name for path in phantom.iterdir()} == set(COUNTS)
    names = []
    for split, count in COUNTS.items():
        coco = annotations(phantom, split)
        assert set(coco) == {"info", "licenses", "categories", "images", "annotations"}
        assert [image["id"] for image in coco["images"]] == list(range(count))
        assert [a["id"] for a in coco["annotations"]] == list(range(len(coco["annotations"])))
        listed = {image["file_name"] for image in coco["images"]}
        assert listed == {path.name for path in (phantom / split).glob("*.jpg")}
        for name in listed:
            grey = cv2.imread(str(phantom / split / name), cv2.IMREAD_UNCHANGED)
            assert grey.shape == (SIZE, SIZE)
        names += sorted(listed)
    assert not any(name[0].isdigit() for name in names)
    numbers = [int(name.removesuffix(".jpg").split("_")[1]) for name in names]
    assert sorted(numbers) == list(range(1, sum(COUNTS.values()) + 1))


def test_annotations_lie_inside_the_image(phantom: Path) -> None:
    for split in COUNTS:
        coco = annotations(phantom, split)
        tumours = {category["id"] for category in coco["categories"]} - {0}
        for entry in coco["annotations"]:
            left, top, width, height = entry["bbox"]
            points = np.concatenate([np.reshape(p, (-1, 2)) for p in entry["segmentation"]])
            assert entry["category_id"] in tumours
            assert points.min() >= 0
            assert points.max() <= SIZE
            np.testing.assert_allclose(points.min(axis=0), (left, top), atol=0.01)
            np.testing.assert_allclose(points.max(axis=0), (left + width, top + height), atol=0.01)
            assert 0 < entry["area"] <= width * height * 1.1


def test_polygons_rasterise_onto_the_drawn_tumours(phantom: Path) -> None:
    coco = COCO(str(phantom / "train" / "_annotations.coco.json"))
    sections = template_sections()
    for k in range(8):
        seed = np.random.SeedSequence(0, spawn_key=(0, k))
        _, _, tumours = random_slice(np.random.default_rng(seed), sections, SIZE)
        entries = coco.loadAnns(coco.getAnnIds(k))
        assert len(entries) <= 2
        assert sum((mask.astype(int) for _, mask in tumours), np.zeros((SIZE, SIZE))).max() <= 1
        assert [entry["area"] for entry in entries] == [mask.sum() for _, mask in tumours]
        for entry, (_, mask) in zip(entries, tumours, strict=True):
            raster = coco.annToMask(entry) > 0
            overlap = (raster & mask).sum() / (raster | mask).sum()
            assert overlap >= (0.95 if mask.sum() > 150 else 0.8)


def test_a_slice_depends_on_the_seed_and_not_on_how_many_there_are(
    phantom: Path, tmp_path: Path
) -> None:
    whole = set(contents(phantom).values())
    make_phantom(tmp_path / "fewer", counts={"valid": 2}, size=SIZE)
    fewer = contents(tmp_path / "fewer" / "valid")
    del fewer["_annotations.coco.json"]
    assert len(fewer) == 2 and set(fewer.values()) < whole
    make_phantom(tmp_path / "other", seed=1, counts={"valid": 2}, size=SIZE)
    assert not set(contents(tmp_path / "other" / "valid").values()) & whole


def test_existing_folder_is_refused_and_left_untouched(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(InputError, match="exists"):
        make_phantom(tmp_path, counts={"train": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
