import hashlib
import json
from pathlib import Path

import h5py
import numpy as np
import pydicom
import pytest
from PIL import Image
from scipy.io import savemat

from tests.conftest import REPOSITORY
from tests.support import samples
from tests.support.made_volumes import zipped
from tests.support.samples import contents
from tumorseg import cli
from tumorseg.core.errors import InputError
from tumorseg.core.params import ValidateParams, load_params
from tumorseg.data import coco
from tumorseg.data.manifest import build_manifest
from tumorseg.imaging.decode import decode
from tumorseg.importers import Options, detect, dicom, import_folder, plan


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory):
    """Each sample by its title: the sample, what was written, the summary."""
    done = {}

    def get(title: str):
        if title not in done:
            root = tmp_path_factory.mktemp("sample")
            sample = samples.SAMPLES[title][1](root / "source")
            summary = import_folder(sample.folder, root / "data", options=sample.options)
            done[title] = sample, root / "data", summary
        return done[title]

    return get


def documents(written: Path) -> dict[str, dict]:
    return {s: json.loads((written / s / coco.ANNOTATIONS).read_text()) for s in coco.SPLITS}


def entry(written: Path, name: str) -> tuple[dict, np.ndarray]:
    for split, document in documents(written).items():
        for image in document["images"]:
            if image["file_name"] == name:
                with Image.open(written / split / name) as picture:
                    return image, np.asarray(picture)
    raise AssertionError(name)


every_sample = pytest.mark.parametrize("title", samples.SAMPLES)


@pytest.mark.parametrize("title", samples.SAMPLES)
def test_masks_survive_and_what_is_written_is_consistent(imported, title: str, tmp_path) -> None:
    sample, written, summary = imported(title)
    assert summary.kind == samples.SAMPLES[title][0]
    assert summary.images == len(sample.truth)
    worst = samples.least_iou(sample, written)
    assert worst >= 0.98 if "polygons" in title else worst == 1.0
    split_of: dict[str, set[str]] = {}
    written_documents = documents(written)
    for split, document in written_documents.items():
        assert document["categories"] == written_documents["train"]["categories"]
        assert len(document["images"]) == summary.splits.count(split) > 0
        files = {path.name for path in (written / split).iterdir()} - {coco.ANNOTATIONS}
        assert files == {image["file_name"] for image in document["images"]}
        for image in document["images"]:
            assert image.get("group") == sample.groups[image["file_name"]]
            split_of.setdefault(image.get("group") or image["file_name"], set()).add(split)
    assert all(len(splits) == 1 for splits in split_of.values())
    section = load_params(ValidateParams, REPOSITORY / "params.yaml")
    table = build_manifest(written, section, tmp_path / "small.npy")
    assert table["problem"].isna().all()
    before = contents(sample.folder)
    assert str(plan(sample.folder, options=sample.options)) == str(summary)
    assert contents(sample.folder) == before


def test_a_folder_with_the_layout_is_copied_byte_for_byte(coco_folder) -> None:
    for split in ("valid", "test"):
        coco_folder.documents[split]["images"][0]["group"] = "one patient"
    mine = coco_folder.write()  # without an image in train
    (mine / "train" / "unlisted file.jpg").write_bytes(b"kept")
    summary = import_folder(mine, mine.with_name("out"))
    assert contents(mine.with_name("out")) == contents(mine)
    assert [path.name for path in summary.source.skipped] == ["unlisted file.jpg"]
    assert "patients are in several splits of the source (1 times)" in str(summary)


def test_coco_annotations_and_images_are_copied(imported) -> None:
    sample, written, summary = imported("COCO JSON, run lengths")
    source = json.loads((sample.folder / "export.json").read_text())
    found = documents(written).values()

    def shapes(annotations) -> list[str]:
        ids = {"id", "image_id", "category_id"}
        plain = [{k: v for k, v in each.items() if k not in ids} for each in annotations]
        return sorted(map(str, plain))

    copied = [each for document in found for each in document["annotations"]]
    assert shapes(copied) == shapes(source["annotations"])
    assert all(document["licenses"] == source["licenses"] for document in found)
    assert all(image["license"] == 1 for document in found for image in document["images"])
    pictures = {path.name: path.read_bytes() for path in (sample.folder / "images").iterdir()}
    for path in (p for split in coco.SPLITS for p in (written / split).glob("scan*")):
        assert path.read_bytes() == pictures[path.name.replace("-", " ")]
    assert "so one may be in two splits" in str(summary)


@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
def test_volumes_are_shown_as_radiologists_see_them(axis: str, tmp_path) -> None:
    sample = samples.nifti_pairs(tmp_path / "source", axis)
    summary = import_folder(sample.folder, tmp_path / "data", options=Options(axis=axis))
    assert summary.source.categories == ["label 1", "label 4"]
    # The spot is on the right, in front and on top: upper left in each, on the last slices.
    volume, _ = samples.head(1)
    number = volume.shape[("sagittal", "coronal", "axial").index(axis)] - 2
    image, pixels = entry(tmp_path / "data", f"case1_{axis}_{number:04d}.png")
    bright = np.argwhere(pixels == 255)
    assert (bright.max(axis=0) < 5).all() and len(bright) >= 9
    row_column = {"axial": [1.1, 0.9], "coronal": [3.0, 0.9], "sagittal": [3.0, 1.1]}
    assert image["spacing_mm"] == pytest.approx(row_column[axis])
    assert image["slice_number"] == number
    # One scale a volume: equal intensities are equal grey values in all its slices.
    shown = samples.displayed(volume, axis, number)
    low, high = np.percentile(volume, [0.5, 99.5])
    expected = np.clip((shown - low) / (high - low), 0, 1) * 255
    assert np.abs(pixels - expected).max() <= 0.51


def test_the_service_reads_the_same_slices(imported, tmp_path) -> None:
    """Also of volumes with thick slices, where nobody names an axis."""
    sample, written, _ = imported("DICOM SEG")
    for number in range(3):
        files = (sample.folder / f"P{number}" / "series").iterdir()
        group = hashlib.sha256(f"ID{number}".encode()).hexdigest()[:12]
        study = decode(zipped([path.read_bytes() for path in files]))
        for place, grey in enumerate(study.slices):
            name = f"patient-{group}_series-{number + 1}_{place:04d}.png"
            image, pixels = entry(written, name)
            assert np.array_equal(pixels, grey)
            assert tuple(image["spacing_mm"]) == study.spacing
    folder = tmp_path / "thick"
    for case in range(3):
        intensities, labels = samples.head(case, (9, 22, 26))
        for ending, volume in (("", intensities), ("_seg", labels)):
            path = folder / f"case{case}{ending}.nii.gz"
            samples.save_nifti(path, volume, "PIR", spacing=(5.0, 0.9, 1.1))
    import_folder(folder, tmp_path / "data")
    study = decode((folder / "case1.nii.gz").read_bytes())
    assert len(study.slices) == 9
    for place, grey in enumerate(study.slices):
        image, pixels = entry(tmp_path / "data", f"case1_sagittal_{place:04d}.png")
        assert np.array_equal(pixels, grey)
        assert image["spacing_mm"] == pytest.approx(study.spacing, abs=1e-4)


def test_slices_and_modality_are_chosen(imported, tmp_path) -> None:
    sample, written, _ = imported("nnU-Net, coronal")
    folder = sample.folder
    tumour = [name for name, masks in sample.truth.items() if masks]
    assert plan(folder, options=Options("coronal", "tumour")).images == len(tumour)
    assert plan(folder, options=Options("coronal", "every:5")).images == 3 * 5
    assert entry(written, tumour[0])[1].max() > 0  # channel 0000 is empty
    import_folder(folder, tmp_path / "data", options=Options("coronal", "tumour", "0000"))
    assert entry(tmp_path / "data", tumour[0])[1].max() == 0


def test_visits_of_a_patient_stay_together(tmp_path) -> None:
    intensities, labels = samples.head(0, (18, 12, 4))
    for case in ("00001-000", "00001-001", "00002-000", "00003-000"):
        stem = f"BraTS-GLI-{case}"
        samples.save_nifti(tmp_path / stem / f"{stem}-t1c.nii.gz", intensities, "RAS")
        samples.save_nifti(tmp_path / stem / f"{stem}-seg.nii.gz", labels, "RAS")
    assert plan(tmp_path).groups == 3


def test_dicom_files_lose_their_names(imported) -> None:
    _, written, summary = imported("DICOM SEG")
    assert summary.source.categories == ["core", "whole tumour"]
    assert "spacing     0.50 to 0.70 mm" in str(summary)
    for path, data in contents(written).items():
        for secret in (b"Doe", b"ID0", b"ID1", b"ID2", b"P0"):
            assert secret not in data or path.endswith(".png")
    assert list(summary.source.skipped.values()) == [
        "is in a series that no segmentation refers to"
    ]


def test_matlab_slices_keep_everything_but_their_window(imported, tmp_path) -> None:
    sample, written, _ = imported("MATLAB v7.3")
    section = load_params(ValidateParams, REPOSITORY / "params.yaml")
    table = build_manifest(written, section, tmp_path / "small.npy")
    table = table.assign(name=table["path"].str.rpartition("/")[2]).sort_values("name")
    assert table["fold"].tolist() == [1, 1, 2, 2, 2, 3, 1, 1]
    assert table["slice_number"].tolist() == list(range(1, 9))
    for row in table.itertuples():
        (category, mask), *_ = sample.truth[row.name].items()
        assert np.array_equal(coco.decode(row.mask_rle, row.height, row.width), mask)
        assert row.categories == (category if mask.any() else "")
        stored = samples.noise(row.slice_number, mask.shape) * 40.0 - 500
        low, high = np.percentile(stored, [0.5, 99.5])
        expected = np.clip((stored - low) / (high - low), 0, 1) * 255
        assert np.abs(entry(written, row.name)[1] - expected).max() <= 0.51


def test_folds_may_be_in_an_older_file_and_do_without(tmp_path) -> None:
    folder = samples.matlab_slices(tmp_path / "source").folder
    found = [np.array([[1], [2], [3]]), np.array([[1], [1.5]])]
    for values, folds, skipped in zip(found, ([1, 2, 3], []), ([], ["cvind.mat"]), strict=True):
        savemat(folder / "cvind.mat", {"cvind": values})
        source = plan(folder).source
        assert [r.entry["fold"] for r in source.records if r.entry] == folds
        assert [path.name for path in source.skipped] == skipped


IMAGE, MASK = np.zeros((20, 24), np.int16), np.zeros((20, 24), np.uint8)
SLICE = samples.cjdata(IMAGE, MASK, 1.0, "7")
# What is wrong with a MATLAB file, and words of the reason for which it is left out.
UNUSABLE = {
    "another format": (lambda path: path.write_bytes(b"MATLAB 5.0 MAT-file" * 9), "is no HDF5"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:3000]), "cannot be read"),
    "a bad label": (SLICE | samples.cjdata(IMAGE, MASK, 4.0, "7"), "label that is not 1, 2 or 3"),
    "two labels": (SLICE | {"cjdata/label": np.array([1.0, 2.0])}, "label that is not 1, 2 or 3"),
    "another size": (SLICE | {"cjdata/tumorMask": MASK.T}, "24×20 and 20×24"),
    "a volume": (SLICE | {"cjdata/image": np.zeros((20, 24, 3))}, "not one size"),
    "no patient": (SLICE | {"cjdata/PID": np.zeros(2, np.uint16)}, "empty PID"),
    "no mask": ({k: v for k, v in SLICE.items() if "Mask" not in k}, "has no cjdata.tumorMask"),
    "another struct": ({"data": IMAGE}, "has no cjdata.image"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_an_unusable_matlab_file_is_skipped_with_the_reason(name: str, tmp_path) -> None:
    folder = samples.matlab_slices(tmp_path / "source").folder
    change, reason = UNUSABLE[name]
    path = folder / "brainTumorDataPublic_1-5" / "3.mat"
    if callable(change):
        change(path)
    else:
        samples.save_matlab(path, **change)
    summary = import_folder(folder, tmp_path / "data")
    assert [p.name for p in summary.source.skipped] == ["3.mat"] and summary.images == 7
    assert reason in summary.source.skipped[path] and str(path) in str(summary)


def test_matlab_files_that_lead_elsewhere_or_are_there_twice_are_skipped(tmp_path) -> None:
    folder = samples.matlab_slices(tmp_path / "source").folder
    samples.save_matlab(tmp_path / "other.mat", **SLICE)
    path = folder / "brainTumorDataPublic_1-5" / "3.mat"
    with h5py.File(path, "a") as file:
        del file["cjdata/image"]
        file["cjdata/image"] = h5py.ExternalLink(str(tmp_path / "other.mat"), "cjdata/image")
    copy = folder / "copy" / "4.mat"
    copy.parent.mkdir()
    copy.write_bytes((folder / "brainTumorDataPublic_1-5" / "4.mat").read_bytes())
    (folder / "brainTumorDataPublic_9-12.zip").touch()
    skipped = {path.name: why for path, why in plan(folder).source.skipped.items()}
    assert "refers to another file" in skipped["3.mat"]
    assert skipped["4.mat"] == "is slice 4 once more"
    assert "unpack it" in skipped["brainTumorDataPublic_9-12.zip"] and len(skipped) == 3


def test_a_series_that_is_no_stack_is_skipped_with_the_reason(tmp_path) -> None:
    samples.dicom_series(tmp_path)
    path = tmp_path / "P1" / "series" / "2"
    dataset = pydicom.dcmread(path)
    del dataset.ImagePositionPatient
    dataset.save_as(path)
    source = dicom.read(tmp_path, Options())
    assert len(source.records) == 10 and "lack ImagePositionPatient" in source.skipped[path]


def test_what_has_no_fitting_mask_is_named_and_skipped(tmp_path) -> None:
    samples.lgg_pairs(tmp_path)
    missing, narrow = sorted(tmp_path.rglob("*_2_mask.tif"))[:2]
    missing.unlink()
    Image.new("L", (47, 48)).save(narrow)
    summary = plan(tmp_path)
    lone, wide = (path.with_name(path.name.replace("_mask", "")) for path in (missing, narrow))
    assert summary.source.skipped.keys() == {lone, wide} and summary.images == 22
    assert f"{lone}: has no mask" in str(summary)
    assert f"{narrow}: is 47×48, but {wide} is 48×48" in str(summary)


def test_numbered_images_are_no_patient(tmp_path) -> None:
    """image_1, image_2, … must not all be taken for one patient, nor pass without a word."""
    for number in range(10):
        for ending in ("", "_mask"):
            Image.new("L", (8, 8), number).save(tmp_path / f"image_{number}{ending}.png")
    summary = plan(tmp_path)
    assert summary.groups == 0 and "so one may be in two splits" in str(summary)


def test_arguments_are_checked(imported, tmp_path) -> None:
    folder = imported("LGG-like tif pairs")[0].folder
    with pytest.raises(InputError, match="nowhere: is no folder"):
        detect(tmp_path / "nowhere")
    with pytest.raises(InputError, match="--format tiff: must be one of auto, coco, masks"):
        plan(folder, "tiff")
    with pytest.raises(InputError, match="exists already"):
        import_folder(folder, tmp_path)
    for kind in ("coco", "nifti", "dicom"):
        with pytest.raises(InputError, match=folder.name):
            plan(folder, kind)
    with pytest.raises(InputError, match="--axis oblique"):
        Options(axis="oblique")
    for slices in ("tumor", "every:0", "every:", "every:-2"):
        with pytest.raises(InputError, match="--slices"):
            Options(slices=slices)


def test_a_dry_run_says_what_would_happen(imported, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    sample, _, summary = imported("BraTS, sagittal")
    cli.data_use(sample.folder, dry_run=True, axis="sagittal")
    assert capsys.readouterr().out.strip() == str(summary)
    assert "slices      train 26, valid 26, test 26" in str(summary)
    assert list(tmp_path.iterdir()) == []
