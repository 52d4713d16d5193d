"""Masks as DICOM SEG and NIfTI files on the grid of the volume they were found in.

A segmentation has a frame for every slice of the source: an empty one where nothing was found.
"""

import gzip
from collections.abc import Callable
from io import BytesIO
from typing import Any, Protocol

import highdicom
import numpy as np
from highdicom.seg import (
    SegmentAlgorithmTypeValues,
    Segmentation,
    SegmentationTypeValues,
    SegmentDescription,
)
from nibabel.nifti1 import Nifti1Image
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform
from numpy.typing import NDArray
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian
from pydicom.valuerep import DA, TM

from tumorseg.imaging.display import from_planes
from tumorseg.imaging.nifti import cut_across
from tumorseg.imaging.preprocess import Mask
from tumorseg.imaging.series import Stack
from tumorseg.imaging.study import Rejected, Study, damage_rejected, is_distance, silence_readers

USE = "Research use only"
_NOT_REFERABLE = (
    "No DICOM segmentation can refer to these images, since their headers lack or break what it "
    "needs (identifiers, frame of reference, position, orientation and spacing, in single-frame "
    "files or one multi-frame file): export the original series."
)
# Type 2 in the standard: empty where the source does not know them.
_PATIENT_AND_STUDY = (
    "PatientID PatientName PatientBirthDate PatientSex StudyID StudyDate StudyTime "
    "AccessionNumber ReferringPhysicianName"
)
_NEEDED = (
    "StudyInstanceUID SeriesInstanceUID SOPInstanceUID SOPClassUID FrameOfReferenceUID Modality"
)


class NamedModel(Protocol):
    """What a segmentation names of its model: `digest` is the SHA-256 of the file, hexadecimal."""

    name: str
    version: str
    architecture: str
    digest: str


def check(study: Study, output: str) -> None:
    """Checks a volume, before masks are computed, for what its answer needs.

    Args:
        study: Of kind `nifti` or `dicom`.
        output: `seg` or `nifti`.

    Raises:
        Rejected: As `nifti_file` or `seg_file` would.
    """
    if output == "seg":
        with damage_rejected(_NOT_REFERABLE):
            headers = study.source.datasets
            present = all(header.get(keyword) for header in headers for keyword in _NEEDED.split())
            if not (study.source.located and present):
                raise Rejected(400, _NOT_REFERABLE)
    elif study.kind == "dicom" and study.source.affine is None:
        raise Rejected(
            400,
            "The DICOM slices are not known to lie evenly (position, orientation, spacing and "
            "thickness), which NIfTI needs: export the original series, or ask for `seg`.",
        )


def nifti_file(study: Study, masks: list[Mask]) -> bytes:
    """Writes masks as a NIfTI file on the grid of the source.

    Of a NIfTI source, affine, qform, sform, their codes, units and the order of the voxels are its
    own; its free texts are not kept, since they may name a patient. Of a DICOM source, voxels are
    in the order of columns, rows and slices, and the sform is in scanner coordinates.

    Args:
        study: Of kind `nifti` or `dicom`.
        masks: bool, shape (H, W), one per slice of the study.

    Returns:
        A .nii.gz file of 0 and 1, uint8.

    Raises:
        Rejected: 400 if the slices of a DICOM source are not known to be evenly spaced.
    """
    check(study, "nifti")
    planes, source = np.stack(masks).astype(np.uint8), study.source
    if study.kind == "dicom":
        answer = Nifti1Image(planes.transpose(2, 1, 0), source.affine)
        answer.set_sform(source.affine, code="scanner")
        answer.header.set_xyzt_units("mm")
    else:
        canonical = from_planes(planes, cut_across(source.affine))
        back = ornt_transform(axcodes2ornt("RAS"), io_orientation(source.affine))
        header = source.header.copy()
        header.set_data_dtype(np.uint8)
        voxels = apply_orientation(canonical, back).reshape(source.shape)
        answer = type(source)(voxels, source.affine, header)
    answer.header["cal_min"], answer.header["cal_max"] = 0, 1
    answer.header["descrip"] = f"tumorseg: {USE.lower()}".encode()
    # Time stamps would make equal answers differ.
    return gzip.compress(answer.to_bytes(), compresslevel=4, mtime=0)


def seg_file(study: Study, masks: list[Mask], model: NamedModel) -> bytes:
    """Writes masks as a binary DICOM segmentation that refers to the source.

    Args:
        study: Of kind `dicom`.
        masks: bool, shape (H, W), one per slice of the study.
        model: The model that found them.

    Returns:
        A DICOM file.

    Raises:
        Rejected: 400 if the source lacks positions or identifiers that a segmentation needs.
    """
    silence_readers()
    source: Stack = study.source
    planes = np.stack(masks).astype(np.uint8)
    if len(source.datasets) == 1:  # a file of several frames has them in its own order
        planes = planes[np.argsort(source.order)]
    check(study, "seg")
    # highdicom has many reasons to refuse a source, which it states in terms of its arguments.
    with damage_rejected(_NOT_REFERABLE):
        first = _completed(source.datasets[0], study.thickness)
        return _segmentation([first, *source.datasets[1:]], planes, model)


def _completed(header: Any, thickness: float | None) -> Any:
    """The header with all that the answer copies from it: present, and empty if invalid."""
    checks: dict[str, Callable[[str], Any]] = {
        "PatientBirthDate": DA,
        "StudyDate": DA,
        "StudyTime": TM,
        "PatientSex": ("", "M", "F", "O").index,
    }
    whole = header[:]  # copy() would share the elements with the source, which may be used again
    for keyword in _PATIENT_AND_STUDY.split():
        value = whole.get(keyword)
        try:
            checks.get(keyword, str)(value if isinstance(value, str) else str(value or ""))
        except ValueError:
            value = None
        if value is None:
            setattr(whole, keyword, "")
    # Multi-frame files have it in their groups. Some scanners write 0 if they do not know it.
    shared = whole.get("SharedFunctionalGroupsSequence") or []
    measures = [each for group in shared for each in group.get("PixelMeasuresSequence") or []]
    for part in (whole, *measures):
        if not is_distance(part.get("SliceThickness") or 0):
            part.SliceThickness = thickness
    # UTF-8, since highdicom refuses some character sets; the source keeps its own element.
    whole.decode()
    whole.add_new("SpecificCharacterSet", "CS", "ISO_IR 192")
    return whole


def _segmentation(headers: list[Any], planes: NDArray[np.uint8], model: NamedModel) -> bytes:
    version = f"{model.version} ({model.architecture})"
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=model.name,
        family=codes.DCM.ArtificialIntelligence,
        version=version,
        source="tumorseg",
        parameters={"SHA-256 of the model": model.digest, "use": USE.lower()},
    )
    tumour = SegmentDescription(
        segment_number=1,
        segment_label="Brain tumour",
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Neoplasm,
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
        anatomic_regions=[codes.SCT.Brain],
    )
    answer = Segmentation(
        source_images=headers,
        pixel_array=planes,
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=[tumour],
        series_instance_uid=highdicom.UID(),
        series_number=9000,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="tumorseg",
        manufacturer_model_name=model.name,
        software_versions=version,
        device_serial_number=model.digest[:16],
        content_label="TUMOUR",
        content_description=f"{USE}: brain tumour found by a model",
        series_description=f"{USE}: brain tumour",
        omit_empty_frames=False,
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
    file = BytesIO()
    answer.save_as(file, enforce_file_format=True)
    return file.getvalue()
