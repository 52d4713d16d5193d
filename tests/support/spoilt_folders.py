"""JSON files that are not COCO, and folders in which something is missing."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.spoiling import HEALTHY, USABLE, Case, Outcome, error
from tumorseg.data import coco

TRAIN = f"train/{coco.ANNOTATIONS}"
FORMLESS = r"train/_annotations\.coco\.json: is not valid JSON"
NOT_COCO = r"train/_annotations\.coco\.json: is not COCO"


def text(change: Callable[[str], str | bytes]):
    """Changes the text of the train split's JSON."""

    def spoil(data: Path) -> None:
        changed = change((data / TRAIN).read_text())
        (data / TRAIN).write_bytes(changed if isinstance(changed, bytes) else changed.encode())

    return spoil


def document(**values: Any):
    return text(lambda old: json.dumps(json.loads(old) | values))


def without_categories(old: str) -> str:
    return json.dumps({k: v for k, v in json.loads(old).items() if k != "categories"})


def in_place(make: Callable[[Path], Any]):
    def spoil(data: Path) -> None:
        (data / TRAIN).unlink()
        make(data / TRAIN)

    return spoil


def emptied(*splits: str):
    """The splits list nothing and hold nothing."""

    def spoil(data: Path) -> None:
        for split in splits:
            shutil.rmtree(data / split)
            (data / split).mkdir()
            empty = {"images": [], "annotations": [], "categories": []}
            (data / split / coco.ANNOTATIONS).write_text(json.dumps(empty))

    return spoil


def broken(*splits: str):
    def spoil(data: Path) -> None:
        for split in splits:
            for path in (data / split).glob("*.png"):
                path.write_bytes(b"")

    return spoil


def all_empty(*splits: str) -> Outcome:
    chosen = [path for path in HEALTHY if path.split("/")[0] in splits]
    return Outcome({path: ("unreadable", "neither JPEG nor PNG") for path in chosen})


def split_is_a_link_out(data: Path) -> None:
    (data / "train").rename(data.parent / "outside")
    (data / "train").symlink_to(data.parent / "outside")


def refused(name: str, spoil: Callable[[Path], Any], phrase: str, **options: Any) -> Case:
    """A case in which validate and the importer say the same."""
    return Case(name, spoil, error(phrase), imports=phrase, **options)


OUTSIDE = Outcome({path: ("outside", "leads out") for path in HEALTHY[:3]})
MISSING = r"train/_annotations\.coco\.json: is missing"
LINK = "is a link that leads out of"
SOME = "has slices in test, valid"
PIPE, SPECIAL = "is no regular file", "is neither a file nor a folder"
FOLDERS = [
    refused("the JSON is a list", text(lambda old: f"[{old}]"), NOT_COCO),
    refused("the JSON is cut short", text(lambda old: old[: len(old) // 2]), FORMLESS),
    refused("the JSON has bytes of no encoding", text(lambda old: old.encode() + b"\xff"),
            FORMLESS),
    refused("the JSON is 200 000 levels deep", text(lambda old: "[" * 200_000), FORMLESS),
    refused("a number of 5000 digits", text(lambda old: old[:-1] + ', "x": 1' + "0" * 5000 + "}"),
            FORMLESS),
    refused("categories are an object", document(categories={"id": 1}), NOT_COCO),
    Case("UTF-8 with byte-order mark", text(lambda old: b"\xef\xbb\xbf" + old.encode())),
    Case("UTF-16", text(lambda old: old.encode("utf-16"))),
    Case("no categories", text(without_categories)),
    Case("no JSON", in_place(lambda path: None), error(MISSING), imports=SOME),
    Case("the JSON is a folder", in_place(Path.mkdir), error(PIPE), imports=SOME),
    Case("the JSON is a pipe", in_place(os.mkfifo), error(PIPE), imports=SPECIAL),
    Case("no folder test", lambda data: shutil.rmtree(data / "test"),
         error("is missing"), imports="has slices in train, valid"),
    Case("test is empty", emptied("test"), USABLE),
    Case("nothing anywhere", emptied(*coco.SPLITS), error("lists no image at all"),
         imports="holds no slice"),
    Case("test has no usable image", broken("test"), all_empty("test")),
    Case("no usable image anywhere", broken(*coco.SPLITS), all_empty(*coco.SPLITS)),
    Case("a link to the folder above", lambda data: (data / "train" / "up").symlink_to(".."),
         imports=SPECIAL),
    Case("train is a link out", split_is_a_link_out, OUTSIDE, imports=LINK),
]  # fmt: skip
