"""Small data sets in the formats that people have, with the truth they were built from."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import highdicom
import nibabel
import numpy as np
import pydicom
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentDescription
from highdicom.sr.coding import CodedConcept
from nibabel import orientations
from PIL import Image
from pycocotools import mask as rle_tools
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from tumorseg.importers import Options


@dataclass
class Sample:
    """A built folder: output file name → category → mask, and output file name → patient."""

    folder: Path
    truth: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    groups: dict[str, str | None] = field(default_factory=dict)
    options: Options = field(default_factory=Options)


def contents(folder: Path) -> dict[str, bytes]:
    """All files under a folder by their relative paths."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def disc(shape, row: float, column: float, radius: float) -> np.ndarray:
    """Pixels of which at least half lies in a disc; coordinates from the image's outer corner."""
    fine = 8
    rows, columns = np.indices([n * fine for n in shape]) / fine + 0.5 / fine
    inside = (rows - row) ** 2 + (columns - column) ** 2 <= radius**2
    return inside.reshape(shape[0], fine, shape[1], fine).mean(axis=(1, 3)) >= 0.5


def noise(seed: int, shape) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, shape, np.uint8)


def runs(mask: np.ndarray) -> list[int]:
    """Uncompressed run lengths: columns first, beginning with the zeros."""
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    lengths = np.diff([0, *edges, flat.size]).tolist()
    return [0, *lengths] if flat[0] else lengths


def coco_single(root: Path) -> Sample:
    """One JSON with images/: run lengths of both kinds, several, none; JPEG and PNG."""
    sample, shape = Sample(root), (40, 56)
    (root / "images").mkdir(parents=True)
    images, annotations = [], []
    for number in range(12):
        name = f"scan {number}.{'jpg' if number % 2 else 'png'}"
        Image.fromarray(noise(number, shape)).save(root / "images" / name)
        masks = [
            disc(shape, 15 + number, 20 + 5 * k, 6.3 + k) for k in range((2, 1, 1, 0)[number % 4])
        ]
        for k, mask in enumerate(masks):
            packed = rle_tools.encode(np.asfortranarray(mask.astype(np.uint8)))
            counts = packed["counts"].decode() if (number + k) % 2 else runs(mask)
            annotations.append(
                {
                    "id": 100 + len(annotations),
                    "image_id": 7 * number,
                    "category_id": 3 + k,
                    "segmentation": {"size": list(shape), "counts": counts},
                    "iscrowd": int(isinstance(counts, list)),
                    "note": "mine",
                }
            )
        size = {"height": shape[0], "width": shape[1]}
        images.append({"id": 7 * number, "file_name": name, "license": 1} | size)
        new = name.replace(" ", "-")
        sample.truth[new] = dict(zip(("glioma", "meningioma"), masks, strict=False))
        sample.groups[new] = None
    document = {
        "licenses": [{"id": 1, "name": "CC BY 4.0"}],
        "categories": [{"id": 3, "name": "glioma"}, {"id": 4, "name": "meningioma"}],
        "images": images,
        "annotations": annotations,
    }
    (root / "export.json").write_text(json.dumps(document))
    return sample


def coco_polygons(root: Path) -> Sample:
    """The project's layout with polygons: one, several, several parts, none."""
    sample, shape = Sample(root), (120, 140)
    for split in ("train", "valid", "test"):
        (root / split).mkdir(parents=True)
        document = {"categories": [{"id": 1, "name": "tumour"}], "images": [], "annotations": []}
        for number in range(4):
            name = f"{split}{number}.png"
            Image.fromarray(noise(number, shape)).save(root / split / name)
            circles = [(60, 45, 30.3), (65, 110, 22.4)][: (1, 2, 2, 0)[number]]
            angles = np.linspace(0, 2 * np.pi, 120, endpoint=False)
            polygons = [
                np.stack([c + r * np.cos(angles), row + r * np.sin(angles)], 1).ravel().tolist()
                for row, c, r in circles
            ]
            shapes = [polygons] if number == 2 else [[polygon] for polygon in polygons]
            for segmentation in shapes:
                entry = {"id": len(document["annotations"]), "image_id": number, "category_id": 1}
                document["annotations"].append(
                    entry | {"segmentation": segmentation, "bbox": [0, 0, 9, 9], "iscrowd": 0}
                )
            size = {"height": shape[0], "width": shape[1]}
            document["images"].append({"id": number, "file_name": name} | size)
            masks = [disc(shape, *circle) for circle in circles]
            sample.truth[name] = {"tumour": np.any(masks, axis=0)} if masks else {}
            sample.groups[name] = None
        (root / split / "_annotations.coco.json").write_text(json.dumps(document))
    return sample


def lgg_pairs(root: Path) -> Sample:
    """A folder a patient with NAME.tif in colours and NAME_mask.tif, as in the LGG set."""
    sample, shape = Sample(root), (48, 48)
    for patient in range(6):
        name = f"TCGA_CS_49{patient}_19960909"
        (root / name).mkdir(parents=True)
        for number in range(1, 5):
            mask = disc(shape, 20 + patient, 24, 3.7 * (number - 1))
            Image.fromarray(noise(number, (*shape, 3))).save(root / name / f"{name}_{number}.tif")
            picture = Image.fromarray(mask.astype(np.uint8) * 255)
            picture.save(root / name / f"{name}_{number}_mask.tif")
            sample.truth[f"{name}_{number}.png"] = {"tumour": mask}
            sample.groups[f"{name}_{number}.png"] = name
    return sample


def parallel_folders(root: Path) -> Sample:
    """images/ and masks/ under train, val and test; masks of 1, palette, RGBA and JPEG."""
    sample, shape = Sample(root), (40, 36)
    for split in ("train", "val", "test"):
        for part in ("images", "masks"):
            (root / split / part).mkdir(parents=True)
        for number in range(4):
            stem = f"{split}-{number}"
            mask = disc(shape, 20, 18, 4.0 * number)
            if number == 3:  # JPEG keeps blocks of 8 × 8 exactly
                mask = np.kron(noise(3, (5, 5)) > 128, np.ones((8, 8), bool))[:, :36]
            Image.fromarray(noise(number, shape)).save(root / split / "images" / f"{stem}.bmp")
            picture = Image.fromarray(mask.astype(np.uint8) * (1, 1, 255, 255)[number])
            if number == 1:
                picture.putpalette([0, 0, 0, 200, 30, 30])
            if number == 2:
                colours = np.dstack([np.asarray(picture)] * 3 + [np.full(shape, 255, np.uint8)])
                picture = Image.fromarray(colours)
            suffix = "jpg" if number == 3 else "png"
            picture.save(root / split / "masks" / f"{stem}.{suffix}")
            sample.truth[f"{stem}.png"] = {"tumour": mask}
            sample.groups[f"{stem}.png"] = None
    return sample


def head(seed: int, shape=(26, 22, 9)) -> tuple[np.ndarray, np.ndarray]:
    """Intensities and labels 0, 1 and 4 in canonical order (right, anterior, superior)."""
    i, j, k = np.indices(shape)
    away = np.sqrt((i - 15 - seed % 3) ** 2 + (j - 9) ** 2 + (2 * (k - 4)) ** 2)
    labels = np.where(away < 3, 4, np.where(away < 5.5, 1, 0)).astype(np.int16)
    intensities = noise(seed, shape) * 3.0 + 400 * (labels > 0)
    # A bright spot on the right, in front and on top shows how slices are displayed.
    intensities[-4:-1, -4:-1, -3:] = 4000
    return intensities, labels


def save_nifti(path: Path, values, order: str, spacing=(0.9, 1.1, 3.0), turn=7.0) -> None:
    """Stores canonical values in another order of the voxels and turned by degrees."""
    angle = np.deg2rad(turn)
    rotation = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag(spacing)
    affine[:3, 3] = (-20, -30, 5)
    canonical = orientations.axcodes2ornt("RAS")
    change = orientations.ornt_transform(canonical, orientations.axcodes2ornt(order))
    stored = orientations.apply_orientation(values, change)
    affine = affine @ orientations.inv_ornt_aff(change, values.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(stored, affine), path)


def displayed(volume: np.ndarray, axis: str, number: int) -> np.ndarray:
    """A canonical slice as displayed, written out axis by axis."""
    if axis == "axial":  # rows to posterior, columns to the patient's left
        return volume[::-1, ::-1, number].T
    if axis == "coronal":  # rows to inferior, columns to the patient's left
        return volume[::-1, number, ::-1].T
    return volume[number, ::-1, ::-1].T  # rows to inferior, columns to posterior


def _expect(sample: Sample, subject: str, labels: np.ndarray) -> None:
    axis = sample.options.axis
    for number in range(labels.shape[("sagittal", "coronal", "axial").index(axis)]):
        plane = displayed(labels, axis, number)
        name = f"{subject}_{axis}_{number:04d}.png"
        sample.truth[name] = {f"label {v}": plane == v for v in (1, 4) if (plane == v).any()}
        sample.groups[name] = subject


def nifti_pairs(root: Path, axis: str = "axial") -> Sample:
    """X.nii.gz and X_seg.nii.gz, voxels in various orders, turned, spacing 0.9 × 1.1 × 3 mm."""
    sample = Sample(root, options=Options(axis=axis))
    for seed, order in enumerate(("RAS", "LPS", "PIR", "SAL")):
        intensities, labels = head(seed)
        save_nifti(root / f"case{seed}.nii.gz", intensities.astype(np.float32), order)
        save_nifti(root / f"case{seed}_seg.nii.gz", labels, order)
        _expect(sample, f"case{seed}", labels)
    return sample


def nifti_nnunet(root: Path) -> Sample:
    """imagesTr/ with two channels and labelsTr/, coronal slices."""
    sample = Sample(root, options=Options(axis="coronal", modality="0001"))
    for seed in range(3):
        intensities, labels = head(seed)
        name = f"BRATS_{seed:03d}"
        save_nifti(root / "imagesTr" / f"{name}_0000.nii.gz", 0 * intensities, "LAS")
        save_nifti(root / "imagesTr" / f"{name}_0001.nii.gz", intensities, "LAS")
        save_nifti(root / "labelsTr" / f"{name}.nii.gz", labels.astype(np.uint8), "LAS")
        _expect(sample, name, labels)
    return sample


def nifti_brats(root: Path) -> Sample:
    """A folder a patient with flair, t1, t1ce, t2 and seg; sagittal slices of the t1ce."""
    sample = Sample(root, options=Options(axis="sagittal"))
    for seed in range(3):
        intensities, labels = head(seed)
        name = f"BraTS20_Training_{seed:03d}"
        volumes = dict.fromkeys(("flair", "t1", "t2"), 0 * intensities)
        for ending, values in (volumes | {"t1ce": intensities, "seg": labels * 1.0}).items():
            save_nifti(root / name / f"{name}_{ending}.nii", values, "LPS", turn=0)
        _expect(sample, name, labels)
    return sample


def mr_slice(patient: str, study: str, series: str, number: int, pixels, **extra):
    """A dataset of one MR slice, 0.5 × 0.7 mm, 4 mm apart."""
    slice_ = pydicom.Dataset()
    slice_.file_meta = pydicom.dataset.FileMetaDataset()
    slice_.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    slice_.SOPClassUID, slice_.SOPInstanceUID = MRImageStorage, generate_uid()
    slice_.file_meta.MediaStorageSOPClassUID = MRImageStorage
    slice_.file_meta.MediaStorageSOPInstanceUID = slice_.SOPInstanceUID
    slice_.PatientID, slice_.PatientName = patient, "Doe^Jane"
    slice_.PatientBirthDate, slice_.PatientSex = "19700101", "F"
    slice_.StudyInstanceUID, slice_.SeriesInstanceUID = study, series
    slice_.FrameOfReferenceUID = generate_uid(entropy_srcs=[study])
    slice_.StudyID, slice_.StudyDate, slice_.StudyTime = "1", "20200101", "120000"
    slice_.AccessionNumber, slice_.ReferringPhysicianName = "", ""
    slice_.PositionReferenceIndicator = ""
    slice_.Modality, slice_.Manufacturer, slice_.SeriesNumber = "MR", "made", 1
    slice_.InstanceNumber = 50 - number  # against the direction of the stack
    slice_.ImageType = ["ORIGINAL", "PRIMARY"]
    slice_.ImagePositionPatient = [-10, -12, 4.0 * number]
    slice_.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    slice_.PixelSpacing, slice_.SliceThickness = [0.5, 0.7], 4
    slice_.Rows, slice_.Columns = pixels.shape
    slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
    slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit = 16, 12, 11
    slice_.PixelRepresentation = 0
    slice_.PixelData = pixels.astype(np.uint16).tobytes()
    for keyword, value in extra.items():
        setattr(slice_, keyword, value)
    return slice_


def segment(number: int, label: str) -> SegmentDescription:
    return SegmentDescription(
        segment_number=number,
        segment_label=label,
        segmented_property_category=CodedConcept("49755003", "SCT", "Abnormal structure"),
        segmented_property_type=CodedConcept("108369006", "SCT", "Neoplasm"),
        algorithm_type=SegmentAlgorithmTypeValues.MANUAL,
    )


def segmentation(sources, masks: np.ndarray, labels) -> Segmentation:
    """A DICOM SEG of masks, shape (slices, H, W, labels)."""
    return Segmentation(
        source_images=sources,
        pixel_array=masks.astype(np.uint8),
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[segment(k, label) for k, label in enumerate(labels, start=1)],
        series_instance_uid=generate_uid(),
        series_number=9,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="made",
        manufacturer_model_name="made",
        software_versions="1",
        device_serial_number="1",
    )


def dicom_series(root: Path) -> Sample:
    """Three patients, 12-bit MR of 5 slices with a SEG of two overlapping segments each.

    The first has a window, the second MONOCHROME1 and rescaling, the third percentiles and a
    second series that no SEG refers to.
    """
    import hashlib

    sample, shape, labels = Sample(root), (40, 32), ("core", "whole tumour")
    extras = [
        {"WindowCenter": [1000, 40], "WindowWidth": [2000, 80]},
        {"PhotometricInterpretation": "MONOCHROME1", "RescaleSlope": 2, "RescaleIntercept": -7},
        {},
    ]
    for patient, extra in enumerate(extras):
        folder = root / f"P{patient}" / "series"
        folder.mkdir(parents=True)
        study, series = generate_uid(), generate_uid()
        sources, masks = [], np.zeros((5, *shape, 2), bool)
        group = hashlib.sha256(f"ID{patient}".encode()).hexdigest()[:12]
        for number in range(5):
            if 0 < number < 4:
                masks[number, ..., 0] = disc(shape, 18, 14, 2.5 + number)
                masks[number, ..., 1] = disc(shape, 18, 16, 6.5 + number)
            pixels = noise(number, shape) * 8 + np.uint16(1000) * masks[number, ..., 1]
            pixels[0] = 0
            slice_ = mr_slice(f"ID{patient}", study, series, number, pixels, **extra)
            slice_.save_as(folder / f"{(number * 7) % 5}", enforce_file_format=True)
            sources.append(slice_)
            name = f"patient-{group}_series-{patient + 1}_{number:04d}.png"
            sample.truth[name] = {
                label: masks[number, ..., k]
                for k, label in enumerate(labels)
                if masks[number].any()
            }
            sample.groups[name] = group
        segmentation(sources, masks, labels).save_as(root / f"P{patient}" / "seg.dcm")
    other = mr_slice("ID2", study, generate_uid(), 0, noise(9, shape))
    other.save_as(root / "P2" / "other.dcm", enforce_file_format=True)
    return sample


def save_matlab(path: Path, **variables: np.ndarray) -> None:
    """Writes a MATLAB v7.3 file; names may lead into a struct, as `cjdata/image`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, values in variables.items():
            # Columns first, so that HDF5 has the transpose.
            file.create_dataset(name, data=np.atleast_2d(values).T, compression="gzip")
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file")


def cjdata(image: np.ndarray, mask: np.ndarray, label: float, patient: str) -> dict:
    """The variables of one slice of the brain tumor dataset."""
    found = {"image": image, "tumorMask": mask, "label": label, "tumorBorder": np.arange(8.0)}
    found["PID"] = np.array([list(map(ord, patient))], np.uint16)
    return {f"cjdata/{key}": values for key, values in found.items()}


def matlab_slices(root: Path) -> Sample:
    """N.mat in two folders, one with an empty mask, patients with letters, and cvind.mat."""
    sample = Sample(root)
    names = ("meningioma", "glioma", "pituitary")
    patients = ("100360", "100360", "MR040241", "MR040241A", "MR040241B", "MR051052", "98", "98")
    for number, patient in enumerate(patients, start=1):
        shape = (40, 48) if number < 5 else (32, 32)
        image = noise(number, shape).astype(np.int16) * 40 - 500
        mask = disc(shape, 12 + number, 20, 8.3 if number != 2 else 0)
        label = number % 3
        folder = root / ("brainTumorDataPublic_1-5" if number < 6 else "brainTumorDataPublic_6-8")
        variables = cjdata(image, mask.astype(np.uint8), label + 1.0, patient)
        save_matlab(folder / f"{number}.mat", **variables)
        sample.truth[f"slice_{number:04d}.png"] = {names[label]: mask}
        joined = "MR040241" if patient.startswith("MR04") else patient
        sample.groups[f"slice_{number:04d}.png"] = joined
    save_matlab(root / "cvind.mat", cvind=np.array([[1, 1, 2, 2, 2, 3, 1, 1]]).T * 1.0)
    return sample


SAMPLES: dict[str, tuple[str, Callable[[Path], Sample]]] = {
    "COCO JSON, run lengths": ("coco", coco_single),
    "COCO splits, polygons": ("coco", coco_polygons),
    "LGG-like tif pairs": ("masks", lgg_pairs),
    "images/ and masks/": ("masks", parallel_folders),
    "NIfTI pairs, axial": ("nifti", nifti_pairs),
    "nnU-Net, coronal": ("nifti", nifti_nnunet),
    "BraTS, sagittal": ("nifti", nifti_brats),
    "DICOM SEG": ("dicom", dicom_series),
    "MATLAB v7.3": ("matlab", matlab_slices),
}


def least_iou(sample: Sample, written: Path) -> float:
    """The least IoU of a slice, or of a category in it, as read back from a written data set.

    Raises:
        AssertionError: Slices or categories are missing, or there are others.
    """
    from tumorseg.data import coco

    ious = []
    names = []
    for split in coco.SPLITS:
        document = json.loads((written / split / coco.ANNOTATIONS).read_text())
        labels = {category["id"]: category["name"] for category in document["categories"]}
        for image in coco.read_split(written / split):
            names.append(image.file_name)
            shape = (image.height, image.width)
            with Image.open(written / split / image.file_name) as picture:
                assert picture.size == shape[::-1]
            truth = {k: m for k, m in sample.truth[image.file_name].items() if m.any()}
            found: dict[str, np.ndarray] = {}
            for annotation in image.annotations:
                mask = rle_tools.decode(coco.annotation_rle(annotation, *shape)).astype(bool)
                label = labels[annotation["category_id"]]
                found[label] = found.get(label, False) | mask
            assert found.keys() == truth.keys(), image.file_name
            union = coco.decode(coco.image_rle(image), *shape)
            everything = np.any([np.zeros(shape, bool), *truth.values()], axis=0)
            ious += [iou(union, everything), *(iou(found[k], truth[k]) for k in truth)]
    assert sorted(names) == sorted(sample.truth)
    return min(ious)


def iou(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union; 1 if both are empty."""
    return float((one & other).sum() / max((one | other).sum(), 1)) if (one | other).any() else 1.0
