import hashlib
import json
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image

from tests import samples
from tests.conftest import REPOSITORY
from tests.test_dataset import contents
from tumorseg import cli, coco, dataset
from tumorseg.errors import InputError
from tumorseg.importers import Options, detect, dicom, dicom_image, import_folder, nifti, plan
from tumorseg.manifest import build_manifest
from tumorseg.params import ValidateParams, load_params


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


@every_sample
def test_masks_survive(imported, title: str) -> None:
    sample, written, summary = imported(title)
    assert summary.kind == samples.SAMPLES[title][0]
    assert summary.images == len(sample.truth)
    worst = samples.least_iou(sample, written)
    assert worst >= 0.98 if "polygons" in title else worst == 1.0


@every_sample
def test_what_is_written_is_consistent(imported, title: str, tmp_path) -> None:
    sample, written, summary = imported(title)
    split_of: dict[str, set[str]] = {}
    written_documents = documents(written)
    for split, document in written_documents.items():
        assert document["categories"] == written_documents["train"]["categories"]
        assert len(document["images"]) == summary.slices[split] > 0
        files = {path.name for path in (written / split).iterdir()} - {coco.ANNOTATIONS}
        assert files == {image["file_name"] for image in document["images"]}
        for image in document["images"]:
            assert image.get("group") == sample.groups[image["file_name"]]
            split_of.setdefault(image.get("group") or image["file_name"], set()).add(split)
    assert all(len(splits) == 1 for splits in split_of.values())
    if "polygons" not in title:  # which is copied, with ids that repeat between splits
        for key in ("images", "annotations"):
            ids = [each["id"] for doc in written_documents.values() for each in doc[key]]
            assert len(ids) == len(set(ids))
    section = load_params(ValidateParams, REPOSITORY / "params.yaml")
    table = build_manifest(written, section, tmp_path / "small.npy", tmp_path / "scan.db")
    assert table["problem"].isna().all()


@every_sample
def test_the_plan_is_what_is_done_later_and_writes_nothing(imported, title: str, tmp_path) -> None:
    sample, _, summary = imported(title)
    before = contents(sample.folder)
    assert plan(sample.folder, options=sample.options) == summary
    assert contents(sample.folder) == before


def test_the_plan_decodes_no_image(imported, monkeypatch) -> None:
    def never(*arguments, **keywords):
        raise AssertionError("decoded")

    monkeypatch.setattr(nifti, "_greys", never)
    monkeypatch.setattr(dicom_image, "_values", never)
    monkeypatch.setattr(dicom, "open_pixels", never)
    monkeypatch.setattr("tumorseg.importers.mask_folder.to_grey", never)
    for title in ("NIfTI pairs, axial", "DICOM SEG", "LGG-like tif pairs"):
        sample = imported(title)[0]
        assert plan(sample.folder).images == len(sample.truth)
    split = imported("images/ and masks/")[0]
    monkeypatch.setattr("tumorseg.importers.mask_folder.read_mask", never)  # the split is known
    assert plan(split.folder).images == len(split.truth)


def test_a_folder_with_the_layout_is_copied_byte_for_byte(imported, coco_folder) -> None:
    sample, written, _ = imported("COCO splits, polygons")
    assert contents(written) == contents(sample.folder)
    mine = coco_folder.write()  # without an image in train
    (mine / "train" / "unlisted file.jpg").write_bytes(b"kept")
    import_folder(mine, mine.with_name("out"))
    assert contents(mine.with_name("out")) == contents(mine)


def test_coco_annotations_and_images_are_copied_untouched(imported) -> None:
    sample, written, summary = imported("COCO JSON, run lengths")
    source = json.loads((sample.folder / "export.json").read_text())
    found = documents(written).values()
    copied = [each for document in found for each in document["annotations"]]
    assert sorted(copied, key=lambda each: each["id"]) == source["annotations"]
    assert all(document["licenses"] == source["licenses"] for document in found)
    pictures = {path.name: path.read_bytes() for path in (sample.folder / "images").iterdir()}
    for path in (p for split in coco.SPLITS for p in (written / split).glob("scan*")):
        assert path.read_bytes() == pictures[path.name.replace("-", " ")]
    assert any("not known" in doubt for doubt in summary.doubts)


@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
def test_volumes_are_shown_as_radiologists_see_them(axis: str, tmp_path) -> None:
    sample = samples.nifti_pairs(tmp_path / "source", axis)
    summary = import_folder(sample.folder, tmp_path / "data", options=Options(axis=axis))
    assert summary.categories == ["label 1", "label 4"]
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


def test_dicom_pixels_are_windowed_inverted_and_nameless(imported) -> None:
    sample, written, summary = imported("DICOM SEG")
    assert summary.categories == ["core", "whole tumour"] and summary.spacing == (0.5, 0.7)
    names = sorted(sample.truth)
    group = [hashlib.sha256(f"ID{k}".encode()).hexdigest()[:12] for k in range(3)]
    windowed, inverted, plain = (next(n for n in names if g in n and "0003" in n) for g in group)
    stored = {pydicom.dcmread(p).SOPInstanceUID: p for p in sample.folder.rglob("*") if p.is_file()}
    slices = [pydicom.dcmread(path) for path in stored.values()]
    (source,) = (
        s
        for s in slices
        if s.PatientID == "ID0" and s.get("ImagePositionPatient", [0, 0, 0])[2] == 12
    )
    expected = np.clip((source.pixel_array - 999.5) / 1999 + 0.5, 0, 1) * 255
    image, pixels = entry(written, windowed)
    assert np.abs(pixels - expected).max() <= 1
    assert image["spacing_mm"] == [0.5, 0.7] and image["slice_number"] == 3
    assert (entry(written, inverted)[1][0] == 255).all()  # the first row is stored as 0
    assert (entry(written, plain)[1][0] == 0).all() and entry(written, plain)[1].max() == 255
    for path, data in contents(written).items():
        for secret in (b"Doe", b"ID0", b"ID1", b"ID2", b"P0"):
            assert secret not in data or path.suffix == ".png"
    assert list(summary.skipped.values()) == ["is in a series that no segmentation refers to"]


def test_a_missing_mask_is_named_and_skipped(tmp_path) -> None:
    samples.lgg_pairs(tmp_path)
    missing = next(tmp_path.rglob("*_2_mask.tif"))
    missing.unlink()
    summary = plan(tmp_path)
    picture = missing.with_name(missing.name.replace("_mask", ""))
    assert summary.skipped == {picture: "has no mask"} and summary.images == 23
    assert f"{picture}: has no mask" in str(summary)


def test_numbered_images_are_no_patient(tmp_path) -> None:
    """image_1, image_2, … must not all be taken for one patient, nor pass without a word."""
    for number in range(10):
        for ending in ("", "_mask"):
            Image.new("L", (8, 8), number).save(tmp_path / f"image_{number}{ending}.png")
    summary = plan(tmp_path)
    assert summary.groups == 0 and "one patient may be in two splits" in summary.doubts[0]


def test_a_set_that_is_there_twice_keeps_patients_on_one_side(tmp_path) -> None:
    samples.lgg_pairs(tmp_path / "kaggle_3m")
    samples.lgg_pairs(tmp_path / "again" / "kaggle_3m")
    summary = plan(tmp_path)
    assert summary.groups == 6 and summary.images == 48
    assert "24 names occur more than once" in summary.doubts[0]


def test_memory_does_not_grow_with_the_number_of_slices(tmp_path) -> None:
    peaks = []
    for count in (4, 24):
        folder = tmp_path / str(count)
        folder.mkdir()
        for number in range(count):
            picture = Image.fromarray(samples.noise(number, (400, 400)))
            picture.save(folder / f"p{number}_1.bmp")
            picture.save(folder / f"p{number}_1_mask.bmp")
        tracemalloc.start()
        import_folder(folder, tmp_path / f"{count}-data")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # The masks are noise, whose run lengths go to the JSON file: 65 kB a slice.
    assert peaks[1] - peaks[0] < 20 * 400 * 400


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
    return r"case2.nii.gz: has shape \(26, 22, 9, 4\), not three axes"


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
    return "P2/series/1: cannot be read"


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


def test_arguments_are_checked(imported, tmp_path) -> None:
    folder = imported("LGG-like tif pairs")[0].folder
    with pytest.raises(InputError, match="nowhere: is no folder"):
        detect(tmp_path / "nowhere")
    with pytest.raises(InputError, match="nowhere: is no folder"):
        plan(tmp_path / "nowhere", "nifti")
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


def test_use_imports_under_data(imported, tmp_path, monkeypatch) -> None:
    recorded = []
    monkeypatch.setattr(dataset, "dvc", lambda *arguments: recorded.append(arguments) or "")
    monkeypatch.chdir(tmp_path)
    sample, written, summary = imported("DICOM SEG")
    assert dataset.use(sample.folder, kind="dicom") == summary
    assert contents(tmp_path / "data") == contents(written)
    assert recorded == [("add", "data")] and [p.name for p in tmp_path.iterdir()] == ["data"]


def test_a_dry_run_says_what_would_happen(imported, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    sample, _, summary = imported("BraTS, sagittal")
    cli.data_use(sample.folder, dry_run=True, axis="sagittal")
    assert capsys.readouterr().out.strip() == str(summary)
    assert "slices      train 26, valid 26, test 26" in str(summary)
    assert list(tmp_path.iterdir()) == []
