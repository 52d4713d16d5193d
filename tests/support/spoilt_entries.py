"""Names, sizes and ids that no image can have, and labels that cannot be drawn."""

import json
import math
import os
from typing import Any

from tests.support.spoiling import (
    ANNOTATION,
    ENTRY,
    HEIGHT,
    IMAGE,
    USABLE,
    WIDTH,
    Case,
    Outcome,
    Spot,
    finding,
    odd,
)

NAN, INF = math.nan, math.inf
HUGE = json.loads("1e308")


def entry(**values: Any):
    return lambda spot: spot.image.update(values)


def listed_as(name: str):
    """The JSON gives another name; {name} is the file's."""

    def spoil(spot: Spot) -> None:
        spot.image["file_name"] = name.format(name=spot.name)

    return spoil


def renamed(name: str):
    """The file and the JSON have another name."""

    def spoil(spot: Spot) -> None:
        spot.path.rename(spot.folder / name)
        spot.image["file_name"] = name

    return spoil


def not_utf8(spot: Spot) -> None:
    os.rename(os.fsencode(spot.path), os.fsencode(spot.folder) + b"/caf\xe9.png")


def again(**changes: Any):
    """The image is listed a second time."""
    return lambda spot: spot.document["images"].append(spot.image | changes)


def same_id(spot: Spot) -> None:
    (spot.folder / f"twin-{spot.name}").write_bytes(spot.path.read_bytes()[:-9])
    spot.document["images"].append(spot.image | {"file_name": f"twin-{spot.name}"})


def lost(wrong: str, path: str, phrase: str = "") -> Outcome:
    """What the JSON names cannot be used, and so the file is listed nowhere."""
    return Outcome({path: (wrong, phrase), IMAGE: ("unlisted", "is not listed")})


LONG = "long" * 1500 + ".png"
ENTRIES = [
    Case("name that is not UTF-8", not_utf8, Outcome({
        IMAGE: ("missing_file", ""), "train/caf\\udce9.png": ("unlisted", "not UTF-8")})),
    Case("line break in the name", renamed("a\nb.png"),
         Outcome({"train/a\\nb.png": ("bad_name", "control")})),
    Case("accents, blanks and emoji in the name", renamed("Kopf – Größe 🧠.png")),
    Case("name of 6000 letters", listed_as(LONG), lost("unreadable", f"train/{LONG}", "too long")),
    Case("absolute path", listed_as("/etc/hostname"),
         lost("outside", "train//etc/hostname", "leads out")),
    Case("../ in the path", listed_as("../../{name}"),
         lost("outside", "train/../../{name}", "leads out")),
    Case("./ before the name", listed_as("./{name}")),
    Case("a number for a name", entry(file_name=5), lost("bad_entry", ENTRY, "file_name")),
    Case("listed twice", again(id=10**6), finding("listed_twice", "more than once")),
    Case("two images with one id", same_id, finding(
        "duplicate_id", "shares its id", duplicate_id="train/twin-{name}")),
    *(Case(f"width {width!r}", entry(width=width), finding("size_mismatch", "its JSON says"))
      for width in (0, -80, 1e12)),
    *(Case(f"width {width!r}", entry(width=width), finding("bad_entry", "its width: "))
      for width in ("wide", 80.5, NAN, None)),
    *(Case(f"width {width!r}", entry(width=width)) for width in ("80", 80.0)),
    *(Case(f"image's id {value!r}", entry(id=value), Outcome({
        IMAGE: ("bad_entry", "its id"), ANNOTATION: ("orphan_annotation", "")}))
      for value in (None, True, [1])),
    Case("slice number 1e30", entry(slice_number=1e30), finding("bad_entry", "slice_number")),
    Case("spacing NaN", entry(spacing_mm=[NAN, 1]), finding("bad_entry", "its spacing")),
    Case("a word for a fold", entry(fold="A"), finding("bad_entry", "its fold")),
    Case("a list for a group", entry(group=["p"]), finding("bad_entry", "its group")),
]  # fmt: skip


def label(**values: Any):
    return lambda spot: spot.annotation.update(values)


def polygon(*points: Any):
    return label(segmentation=[list(points)])


def run_lengths(counts: Any, size: Any = (HEIGHT, WIDTH)):
    """Run lengths instead of the polygon."""
    shape = {"size": list(size), "counts": counts}
    return label(segmentation=shape)


def box(*values: Any):
    return label(segmentation=[], bbox=list(values))


def only(spot: Spot, *dropped: str) -> None:
    for key in dropped:
        del spot.annotation[key]


def same_annotation_id(spot: Spot) -> None:
    spot.document["annotations"].append(dict(spot.annotation))


def zigzag(spot: Spot) -> None:
    spot.annotation["segmentation"] = [[0, 0, 80, 64] * 20_000]


def orphan(value: Any) -> Case:
    name = f"annotation's image {value!r}"
    expected = finding("orphan_annotation", "not listed under", ANNOTATION)
    return Case(name, label(image_id=value), expected)


def bad(phrase: str) -> Outcome:
    return finding("bad_annotation", phrase)


TOTAL = HEIGHT * WIDTH
FAR, SUM, TEXT = bad("finite coordinates"), bad("do not add up"), bad("damaged")
LABELS = [
    *map(orphan, (10**9, None, [1], True, "gone")),
    Case("annotation's id twice", same_annotation_id, odd("duplicate_annotation_id")),
    *(Case(f"coordinate {value!r}", polygon(5, 5, value, 8, 20, 30), FAR)
      for value in (NAN, INF, HUGE, 1e9, 2**31)),
    Case("negative coordinates", polygon(-9, -9, 30, 8, 20, 30), odd("out_of_frame")),
    Case("polygon of 2 points", polygon(1, 1, 20, 20), bad("three points")),
    Case("polygon not in a list", label(segmentation=[5, 5, 30, 8, 20, 30]), bad("plain list")),
    Case("text for a segmentation", label(segmentation="all"), bad("neither a list")),
    Case("neither segmentation nor box", lambda s: only(s, "segmentation", "bbox"),
         bad("its bbox is no plain list")),
    Case("box alone", box(10, 10, 20, 20)),
    *(Case(f"box {values}", box(*values), bad(phrase)) for values, phrase in (
        ((10, 10, NAN, 5), "finite"), ((10, 10, 20), "x, y, width"), ((10, 10, -5, 5), "below 0"),
        (("10", "10", "5", "5"), "plain list"), ((1e308, 1e308, 1e308, 5), "finite"))),
    Case("polygon out of the frame", polygon(200, 200, 220, 200, 210, 230),
         odd("empty_label", "out_of_frame")),
    Case("polygon that crosses itself", polygon(10, 10, 40, 40, 40, 10, 10, 40),
         odd("self_intersection")),
    Case("polygon of 40 000 strokes", zigzag, bad("longer than")),
    Case("500 boxes without area", label(segmentation=[[k / 9, 5] * 3 for k in range(500)]),
         odd("empty_label")),
    Case("run lengths of another size", run_lengths([81], (9, 9)), bad("run lengths are for")),
    Case("negative run", run_lengths([100, -50, TOTAL - 50]), SUM),
    Case("runs that stop short", run_lengths([100, 50]), SUM),
    Case("runs that wrap around", run_lengths([2**32, TOTAL]), SUM),
    Case("half a run", run_lengths([100.5, TOTAL - 100.5]), bad("whole numbers")),
    Case("packed runs of garbage", run_lengths("\x01\xff garbage"), TEXT),
    Case("packed runs cut short", run_lengths("o" * 9), TEXT),
    Case("packed run of 60 bits", run_lengths("o" * 11 + "0"), TEXT),
    Case("no category", lambda s: only(s, "category_id"), USABLE),
]  # fmt: skip
