import numpy as np
import pytest

from tumorseg.data import coco
from tumorseg.data.shapes import box_fill

BLOB = np.zeros((64, 80), bool)
BLOB[10:30, 20:50] = True
BLOB[30:40, 30:40] = True


def test_annotations_pair_by_image_id_not_by_position(coco_folder) -> None:
    coco_folder.add("train", "a.png", [(0, 0, 10, 10)])
    coco_folder.add("train", "b.png")
    coco_folder.add("train", "c.png", [(20, 20, 10, 10), (40, 40, 10, 10)])
    coco_folder.documents["train"]["annotations"].reverse()
    images = coco.read_split(coco_folder.write() / "train")
    found = {i.file_name: sorted(a["bbox"][0] for a in i.annotations) for i in images}
    assert found == {"a.png": [0], "b.png": [], "c.png": [20, 40]}


def test_several_annotations_are_united_and_none_is_empty() -> None:
    boxes = [{"bbox": [0, 0, 10, 10]}, {"bbox": [20, 20, 10, 10]}]
    image = coco.LabelledImage("a.png", 80, 64, boxes)
    mask = coco.decode(coco.image_rle(image), 64, 80)
    assert mask.sum() == 200
    assert mask[:10, :10].all() and mask[20:30, 20:30].all()
    empty = coco.LabelledImage("b.png", 80, 64)
    assert not coco.decode(coco.image_rle(empty), 64, 80).any()


def test_box_fill_tells_rectangles_from_outlines() -> None:
    square = {"segmentation": [[0, 0, 10, 0, 10, 10, 0, 10, 0, 0]]}
    triangle = {"segmentation": [[0, 0, 10, 0, 10, 10]]}
    runs = {"segmentation": {"size": [64, 80], "counts": coco.encode(BLOB)}}
    for annotation, fill in ((square, 1.0), (triangle, 0.5), (runs, 700 / 900)):
        rle = coco.annotation_rle(annotation, 64, 80)
        assert box_fill(annotation, rle) == pytest.approx(fill)
