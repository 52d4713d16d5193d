"""Patients from a CSV file: which slice gets which, and what is said of the others."""

import json
import shutil
from pathlib import Path

import pytest

from tests.conftest import CocoFolder
from tests.support import samples
from tests.support.samples import contents
from tumorseg.core.errors import InputError
from tumorseg.data import coco
from tumorseg.importers import import_folder, plan


@pytest.fixture
def layout(tmp_path) -> Path:
    """A folder with the layout; v.png has a group of its own, what is in `extra` must stay."""
    folder = CocoFolder(tmp_path / "mine")
    for number in (7, 8, 12):
        folder.add("train", f"00{number}_jpg.rf.a{number}.png", [(5, 5, 20, 20)])
    folder.add("valid", "v.png", [(5, 5, 20, 20)])
    folder.add("test", "7b.png", [(5, 5, 20, 20)])
    folder.documents["valid"]["images"][0] |= {"group": "old", "extra": [1.5, "ü"]}
    folder.documents["valid"]["licenses"] = [{"id": 1, "name": "CC"}]
    return folder.write()


def table(folder: Path, *rows: str, head: str = "slice,patient") -> Path:
    path = folder.parent / "patients.csv"
    path.write_text("\n".join([head, *rows, ""]))
    return path


def groups(layout: Path) -> dict[str, str | None]:
    """File name → group, of all images."""
    documents = (json.loads((layout / s / coco.ANNOTATIONS).read_text()) for s in coco.SPLITS)
    return {i["file_name"]: i.get("group") for each in documents for i in each["images"]}


@pytest.mark.parametrize(
    "rows",
    [
        ["7,P1", "8,P1", "12,P2", "v,P3"],
        ["0007,P1", "08,P1", "012,P2", "v.png,P3"],
        [
            "train/007_jpg.rf.a7.png,P1",
            "008_jpg.rf.a8,P1",
            "0012_jpg.rf.a12.PNG,P2",
            "data\\valid\\v.jpg,P3",
            "test/7b,P1",
        ],
    ],
    ids=["numbers", "numbers with zeros", "names"],
)
def test_numbers_and_names_find_their_slices(layout, rows) -> None:
    """With or without folder and suffix, and files and the rest of the JSON stay as they were."""
    out, given = layout.with_name("out"), table(layout, *rows, "999,P9")
    summary = import_folder(layout, out, groups=given)
    names = ("007_jpg.rf.a7.png", "008_jpg.rf.a8.png", "0012_jpg.rf.a12.png", "v.png", "7b.png")
    assert groups(out) == dict(zip(names, ("P1", "P1", "P2", "P3", "P1"), strict=True))
    before, after = contents(layout), contents(out)
    assert before.keys() == after.keys()
    for name in before:
        if not name.endswith(coco.ANNOTATIONS):
            assert before[name] == after[name]
        else:
            old, new = json.loads(before[name]), json.loads(after[name])
            for image in (*old["images"], *new["images"]):
                image.pop("group", None)
            assert old == new
    for words in (
        "patients    3",
        "patients.csv names 5 of 5 slices, and 1 that are not here",
        "1 slices had another patient in the source",
        "in several splits of the source (1 times): 0 of 1 slices of valid, 1 of 1 slices of test",
    ):
        assert words in str(summary)
    shutil.rmtree(out)
    assert str(plan(layout, groups=given)) == str(summary) and not out.exists()


def test_who_is_not_in_the_file_stays_as_it_is(layout) -> None:
    summary = import_folder(layout, layout.with_name("out"), groups=table(layout, "12,P2"))
    assert set(groups(layout.with_name("out")).values()) == {None, "P2", "old"}
    assert (
        "does not name 007_jpg.rf.a7.png, 008_jpg.rf.a8.png, v.png, …; the patient of 3 slices is "
        "not known" in str(summary)
    )


def test_slices_without_splits_are_divided_by_them(tmp_path) -> None:
    """Also volumes; files keep names that begin with the number, which says where a slice lies."""
    folder = CocoFolder(tmp_path / "mine")
    for number in range(1, 13):
        folder.add("train", f"{number}.png", [(5, 5, 20, 20)])
    shutil.move(folder.write() / "train", tmp_path / "one")
    given = table(tmp_path / "one", *(f"{number},P{number % 4}" for number in range(1, 13)))
    import_folder(tmp_path / "one", tmp_path / "out", groups=given)
    assert groups(tmp_path / "out") == {f"{n}.png": f"P{n % 4}" for n in range(1, 13)}
    for split in coco.SPLITS:
        own = {path.stem for path in (tmp_path / "out" / split).glob("*.png")}
        held = {int(name) % 4 for name in own}
        assert own == {str(n) for n in range(1, 13) if n % 4 in held}

    samples.nifti_pairs(tmp_path / "volumes")
    names = {record.name for record in plan(tmp_path / "volumes").source.records}
    volumes = sorted({name.rsplit("_", 2)[0] for name in names})
    rows = [f"{name}.nii.gz,Q{place}" for place, name in enumerate(volumes)]
    summary = plan(tmp_path / "volumes", groups=table(tmp_path / "volumes", *rows))
    found = {r.name.rsplit("_", 2)[0]: r.group for r in summary.source.records}
    assert found == {name: f"Q{place}" for place, name in enumerate(volumes)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"slice,patient\n7,P1\n007_jpg.rf.a7.png,P2\n", r"007_jpg.rf.a7.png the patients P1, P2"),
        (b"slice,patient\n7,P1\n7,P2\n", "the patients P1, P2; keep one"),
        (b"slice;patient\n7;P1\n", "two column names, .* and has the line 'slice;patient'"),
        (b"slice,patient,sex\n7,P1,f\n", "has the line 'slice,patient,sex'"),
        (b"slice,patient\n7,\n", "has the line '7,'"),
        (b"7,P1\n8,P1\n", "needs a line of two column names"),
        (b"slice,patient\n", "lacks one of these"),
        (b"", "lacks one of these"),
        (b"slice,patient\n99,P1\n", "none of its lines names a slice; .* such as 0012_jpg"),
        (b"slice,patient\n7,\xff\xfe\n", "cannot be read .* save it as CSV in UTF-8"),
        (None, "cannot be read .No such file"),
    ],
)
def test_a_file_that_does_not_fit_is_one_sentence(layout, text, words) -> None:
    path = layout.parent / "patients.csv"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(InputError, match=rf"patients\.csv: .*{words}"):
        import_folder(layout, layout.with_name("out"), groups=path)
    assert not layout.with_name("out").exists()
