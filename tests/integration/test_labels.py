import json
import subprocess
import sys

import pytest

from tumorseg.core import environment
from tumorseg.core.errors import InputError
from tumorseg.data import coco
from tumorseg.data.labels import compare_labels, table, use_labels


@pytest.fixture
def outlines(coco_folder, tmp_path):
    """Labels of the images of `coco_folder`: each box made half as wide, in one image elsewhere."""
    coco_folder.add("train", "a.png", [(10, 10, 20, 20)])
    coco_folder.add("train", "b.png")
    coco_folder.add("train", "c.png", [(10, 10, 20, 20)])
    coco_folder.write()
    folder = tmp_path / "outlines"
    for split, document in coco_folder.documents.items():
        changed = json.loads(json.dumps(document))
        for annotation in changed["annotations"]:
            x, y, w, h = annotation["bbox"]
            if annotation["image_id"] == 2:
                x += 40
            annotation |= {"bbox": [x, y, w / 2, h], "segmentation": []}
        (folder / split).mkdir(parents=True)
        (folder / split / coco.ANNOTATIONS).write_text(json.dumps(changed))
    return folder


def test_labels_are_judged_by_others(coco_folder, outlines) -> None:
    figures = compare_labels(outlines, coco_folder.root)
    assert figures["test"]["mean_dice"] == pytest.approx(2 / 3, abs=1e-4)
    assert figures["train"]["mean_dice"] == pytest.approx((2 / 3 + 1 + 0) / 3, abs=1e-4)
    assert "| train | 3 |" in table(figures)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("file_name", "z.png", "a.png, 80×64, and 1 others"),
        ("width", 81, "a.png, 80×64, and 1 others"),
    ],
)
def test_labels_of_other_images_are_refused(coco_folder, outlines, key, value, message) -> None:
    path = outlines / "train" / coco.ANNOTATIONS
    document = json.loads(path.read_text())
    document["images"][0][key] = value
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match=message):
        compare_labels(outlines, coco_folder.root)


def test_new_labels_become_a_version_and_unrecorded_ones_are_kept(
    coco_folder, outlines, monkeypatch
) -> None:
    root = coco_folder.root.parent
    coco_folder.documents["train"]["images"][1]["group"] = "P1"
    coco_folder.write()
    monkeypatch.chdir(root)
    for name, value in environment.defaults(root).items():
        monkeypatch.setenv(name, value)
    for command in (["init", "-q", "--no-scm"], ["add", "-q", "data"]):
        subprocess.run([sys.executable, "-m", "dvc", *command], check=True)
    before = (root / "data.dvc").read_text()
    use_labels(outlines)
    for split in coco.SPLITS:
        new = json.loads((outlines / split / coco.ANNOTATIONS).read_text())
        if split == "train":  # what is known of an image is no label, and stays
            new["images"][1]["group"] = "P1"
        assert json.loads((root / "data" / split / coco.ANNOTATIONS).read_text()) == new
    assert (root / "data.dvc").read_text() != before
    (root / "data" / "train" / "extra.txt").write_text("not recorded")
    with pytest.raises(InputError, match="would be lost"):
        use_labels(outlines)


@pytest.mark.real_data
@pytest.mark.slow
def test_what_a_perfect_model_of_the_real_boxes_could_reach(real_data) -> None:
    figures = compare_labels(real_data.with_name("brain-tumor-outlines"), real_data)
    assert figures["test"]["mean_dice"] == pytest.approx(0.55, abs=0.015)
