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


def test_ids_stay_unique_and_categories_go_by_name() -> None:
    present = {
        "info": {"kept": True},
        "categories": [{"id": 4, "name": "glioma"}, {"id": 9, "name": "meningioma"}],
        "images": [{"id": "text", "file_name": "a"}, {"id": 3, "file_name": "b"}],
        "annotations": [{"id": 70, "image_id": 3, "category_id": 9}],
    }
    document = coco.Document(present)
    labels = [("meningioma", {"id": 1, "image_id": 1, "category_id": 1, "note": "mine"})]
    document.add({"id": 1, "file_name": "c"}, [*labels, ("metastasis", {})])
    assert present["images"][2:] == [{"id": 4, "file_name": "c"}]
    assert present["annotations"][1:] == [
        {"id": 71, "image_id": 4, "category_id": 9, "note": "mine"},
        {"id": 72, "image_id": 4, "category_id": 10},
    ]
    assert present["categories"][2:] == [{"id": 10, "name": "metastasis", "supercategory": "none"}]
    assert present["info"] == {"kept": True}
