"""What a user gets wrong: one sentence each, and nothing left behind."""

import json
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image

from tests import samples
from tests.test_dataset import contents
from tumorseg.core.errors import InputError
from tumorseg.data import coco
from tumorseg.importers import Options, import_folder


def _lgg(folder: Path) -> Path:
    samples.lgg_pairs(folder)
    return next(folder.rglob("*_3_mask.tif"))


def mistake_nothing(folder: Path) -> str:
    folder.mkdir()
    return "looked for coco: .*masks: .*nifti: .*dicom: "


def mistake_several_formats(folder: Path) -> str:
    samples.lgg_pairs(folder)
    samples.nifti_pairs(folder / "more")
    return "could be masks or nifti; .*--format"


def mistake_mask_of_another_size(folder: Path) -> str:
    mask = _lgg(folder)
    Image.new("L", (47, 48)).save(mask)
    return f"{mask.name}: is 47×48, but .*is 48×48"


def mistake_truncated_image(folder: Path) -> str:
    image = Path(str(_lgg(folder)).replace("_mask", ""))
    image.write_bytes(image.read_bytes()[:3000])
    return f"{image.name}: cannot be read"


def mistake_most_masks_missing(folder: Path) -> str:
    samples.lgg_pairs(folder)
    for path in folder.rglob("*_[134]_mask.tif"):
        path.unlink()
    return "18 of 24 images have no mask, such as .*_1.tif"


def mistake_two_patients(folder: Path) -> str:
    samples.lgg_pairs(folder)
    for patient in "2345":
        shutil.rmtree(folder / f"TCGA_CS_49{patient}_19960909")
    return "has only 2 patients"


def mistake_no_test_split(folder: Path) -> str:
    samples.parallel_folders(folder)
    shutil.rmtree(folder / "test")
    return "has nothing for test"


def mistake_coco_split_without_json(folder: Path) -> str:
    samples.coco_polygons(folder)
    (folder / "test" / coco.ANNOTATIONS).unlink()
    return f"test/{coco.ANNOTATIONS}: is missing"


def mistake_coco_is_broken(folder: Path) -> str:
    samples.coco_polygons(folder)
    (folder / "test" / coco.ANNOTATIONS).write_text("{")
    return f"test/{coco.ANNOTATIONS}: is not valid JSON"


def edit_coco(folder: Path, change) -> None:
    samples.coco_single(folder)
    document = json.loads((folder / "export.json").read_text())
    change(document)
    (folder / "export.json").write_text(json.dumps(document))


def mistake_coco_without_owner(folder: Path) -> str:
    edit_coco(folder, lambda document: document["annotations"][0].update(image_id=999))
    return r"export.json: annotation 100 refers to image 999"


def mistake_coco_image_twice(folder: Path) -> str:
    edit_coco(folder, lambda document: document["images"][1].update(id=0))
    return "export.json: two images share an id"


def mistake_coco_leaves_the_folder(folder: Path) -> str:
    edit_coco(folder, lambda document: document["images"][1].update(file_name="../x.png"))
    return "../x.png lies outside"


def mistake_coco_images_missing(folder: Path) -> str:
    samples.coco_single(folder)
    for path in list((folder / "images").iterdir())[:8]:
        path.unlink()
    return "export.json: lists 12 images, and 8 are missing"


def mistake_coco_splits_without_any_image(folder: Path) -> str:
    samples.coco_polygons(folder)
    for split in coco.SPLITS:
        for path in (folder / split).iterdir():
            if path.name != coco.ANNOTATIONS:
                path.unlink()
    return "holds none of them.*`tumorseg data labels`"


def mistake_two_coco_files(folder: Path) -> str:
    samples.coco_single(folder)
    shutil.copy(folder / "export.json", folder / "old.json")
    return "exactly one COCO JSON and has export.json, old.json"


def mistake_label_shape(folder: Path) -> str:
    samples.nifti_pairs(folder)
    samples.save_nifti(folder / "case1_seg.nii.gz", samples.head(1)[1][:-1], "RAS")
    return r"case1_seg.nii.gz: has shape \(25, 22, 9\), but .*case1.nii.gz has \(26, 22, 9\)"


def mistake_label_affine(folder: Path) -> str:
    samples.nifti_pairs(folder)
    samples.save_nifti(folder / "case1_seg.nii.gz", samples.head(1)[1], "RAS", turn=9)
    return "case1_seg.nii.gz: lies elsewhere than .*case1.nii.gz"


def mistake_four_axes(folder: Path) -> str:
    import nibabel

    samples.nifti_pairs(folder)
    series = nibabel.Nifti1Image(np.zeros((26, 22, 9, 4), np.float32), np.eye(4))
    nibabel.save(series, folder / "case2.nii.gz")
    return "case2.nii.gz: The NIfTI file has 4 axes, not three"


def mistake_labels_not_whole(folder: Path) -> str:
    samples.nifti_pairs(folder)
    samples.save_nifti(folder / "case0_seg.nii.gz", samples.head(0)[1] / 3, "RAS")
    return "case0_seg.nii.gz: has values that are no labels"


def mistake_truncated_volume(folder: Path) -> str:
    samples.nifti_pairs(folder)
    path = folder / "case3.nii.gz"
    path.write_bytes(path.read_bytes()[:2000])
    return "case3.nii.gz: cannot be read"


def mistake_several_modalities(folder: Path) -> str:
    samples.nifti_brats(folder)
    for path in list(folder.rglob("*_t1ce.nii")):
        path.unlink()
    return r"_seg.nii: belongs to several volumes \(flair, t1, t2\); choose one with --modality"


def mistake_volumes_without_labels(folder: Path) -> str:
    samples.nifti_pairs(folder)
    for path in list(folder.glob("case[012]_seg.nii.gz")):
        path.unlink()
    return "3 volumes stand alone and 1 have labels .*case0.nii.gz, which has no label volume"


def mistake_no_dicom_seg(folder: Path) -> str:
    samples.dicom_series(folder)
    for path in list(folder.rglob("seg.dcm")):
        path.unlink()
    return "has DICOM files but no DICOM SEG"


def mistake_seg_of_other_images(folder: Path) -> str:
    samples.dicom_series(folder)
    shutil.rmtree(folder / "P1" / "series")
    return "P1/seg.dcm: refers to no image that is here"


def mistake_seg_on_another_grid(folder: Path) -> str:
    samples.dicom_series(folder)
    for path in (folder / "P1" / "series").iterdir():
        moved = pydicom.dcmread(path)
        moved.ImagePositionPatient[0] += 3
        moved.save_as(path)
    return "P1/seg.dcm: lies on another pixel grid than .*P1/series/"


def mistake_dicom_pixels_missing(folder: Path) -> str:
    samples.dicom_series(folder)
    broken = pydicom.dcmread(folder / "P2" / "series" / "1")
    del broken.PixelData
    broken.save_as(folder / "P2" / "series" / "1")
    return "P2/series/1: The DICOM file holds no image"


def mistake_options_without_volumes(folder: Path) -> Options:
    samples.lgg_pairs(folder)
    return Options(axis="coronal")


MISTAKES = {k: v for k, v in globals().items() if k.startswith("mistake_")}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_one_sentence_and_leaves_nothing_behind(name: str, tmp_path) -> None:
    message = MISTAKES[name](tmp_path / "source")
    options = None
    if isinstance(message, Options):
        options, message = message, "source: is masks; --axis"
    before = contents(tmp_path / "source")
    with pytest.raises(InputError, match=message) as error:
        import_folder(tmp_path / "source", tmp_path / "data", options=options)
    assert len(str(error.value).splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    assert contents(tmp_path / "source") == before
