"""What a user gets wrong: one sentence each, and nothing left behind."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from tests.support import samples
from tests.support.samples import contents
from tumorseg.core.errors import InputError
from tumorseg.importers import Options, import_folder

Change = Callable[[Path], Any]


def remove(pattern: str) -> Change:
    """Removes the files and folders of these names, wherever they lie."""

    def change(folder: Path) -> None:
        for path in list(folder.rglob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def cut(pattern: str, length: int) -> Change:
    def change(folder: Path) -> None:
        path = next(folder.rglob(pattern))
        path.write_bytes(path.read_bytes()[:length])

    return change


def volume(name: str, values: np.ndarray, turn: float = 7.0) -> Change:
    """Writes another volume in the place of one."""
    return lambda folder: samples.save_nifti(folder / name, values, "RAS", turn=turn)


def moved(folder: Path) -> None:
    """The images lie 3 mm beside where they were."""
    for path in (folder / "P1" / "series").iterdir():
        dataset = pydicom.dcmread(path)
        dataset.ImagePositionPatient[0] += 3
        dataset.save_as(path)


LGG, COCO = samples.lgg_pairs, samples.coco_single
NIFTI, BRATS, DICOM = samples.nifti_pairs, samples.nifti_brats, samples.dicom_series
LABELS = samples.head(1)[1]
# What is built, what is changed in it, and words of the sentence about it.
MISTAKES: dict[str, tuple[Change, Change, str]] = {
    "nothing": (Path.mkdir, bool, "looked for coco: .*masks: .*nifti: .*dicom: .*matlab: "),
    "several formats": (
        LGG,
        lambda f: NIFTI(f / "more"),
        "could be masks or nifti; .*--format",
    ),
    "a truncated image": (LGG, cut("*_3.tif", 3000), "_3.tif: cannot be read"),
    "most masks missing": (
        LGG,
        remove("*_[134]_mask.tif"),
        "18 of 24 images have no mask, such as .*_1.tif",
    ),
    "two patients": (LGG, remove("TCGA_CS_49[2345]_19960909"), "has only 2 patients"),
    "no test split": (
        samples.parallel_folders,
        remove("test"),
        "has slices in train, valid, and none in the other splits",
    ),
    "most images missing": (
        COCO,
        remove("scan [0-7].*"),
        "lists 12 images, and 8 cannot be used, such as scan 0.png, which .*`tumorseg data labels`",
    ),
    "two COCO files": (
        COCO,
        lambda f: shutil.copy(f / "export.json", f / "old.json"),
        "exactly one COCO JSON and has export.json, old.json",
    ),
    "labels of another shape": (
        NIFTI,
        volume("case1_seg.nii.gz", LABELS[:-1]),
        r"case1_seg.nii.gz: has shape \(25, 22, 9\) and .*case1.nii.gz has \(26, 22, 9\)",
    ),
    "labels elsewhere": (
        NIFTI,
        volume("case1_seg.nii.gz", LABELS, turn=9),
        "case1_seg.nii.gz: .*or it lies elsewhere",
    ),
    "labels that are not whole": (
        NIFTI,
        volume("case0_seg.nii.gz", samples.head(0)[1] / 3),
        "case0_seg.nii.gz: has values that are no labels",
    ),
    "a truncated volume": (NIFTI, cut("case3.nii.gz", 2000), "case3.nii.gz: cannot be read"),
    "several modalities": (
        BRATS,
        remove("*_t1ce.nii"),
        r"_seg.nii: belongs to several volumes \(flair, t1, t2\); choose one with --modality",
    ),
    "volumes without labels": (
        NIFTI,
        remove("case[012]_seg.nii.gz"),
        "3 volumes stand alone and 1 have labels .*case0.nii.gz, which has no label volume",
    ),
    "no segmentation": (DICOM, remove("seg.dcm"), "has DICOM files but no DICOM SEG"),
    "a segmentation of other images": (
        DICOM,
        lambda f: shutil.rmtree(f / "P1" / "series"),
        "P1/seg.dcm: refers to no image that is here",
    ),
    "a segmentation on another grid": (
        DICOM,
        moved,
        "P1/seg.dcm: lies on another pixel grid than .*P1/series/",
    ),
    "cut pixels": (DICOM, cut("P2/series/1", 2500), "P2/series/1: cannot be read"),
    "archives": (
        Path.mkdir,
        lambda f: (f / "brainTumorDataPublic_1-766.zip").touch(),
        r"holds only archives, such as .*1-766\.zip; unpack them",
    ),
    "no usable MATLAB file": (
        Path.mkdir,
        lambda f: (f / "1.mat").write_bytes(b"MATLAB 5.0"),
        r"holds no slice that can be imported \(.*1.mat: is no HDF5 file; .*-v7.3",
    ),
    "options without volumes": (LGG, bool, "source: is masks; --axis"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_one_sentence_and_leaves_nothing_behind(name: str, tmp_path) -> None:
    build, change, message = MISTAKES[name]
    build(tmp_path / "source")
    change(tmp_path / "source")
    options = Options(axis="coronal") if "options" in name else None
    before = contents(tmp_path / "source")
    with pytest.raises(InputError, match=message) as error:
        import_folder(tmp_path / "source", tmp_path / "data", options=options)
    assert len(str(error.value).splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    assert contents(tmp_path / "source") == before
