"""Masks back on the grid of the volume they were found in: DICOM SEG and NIfTI files.

A segmentation holds a frame for every slice of the source, also where nothing was found: an empty
frame says that the slice was looked at, and the stack is the source's own from end to end.
"""

import gzip
from collections.abc import Callable
from dataclasses import replace
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
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    io_orientation,
    ornt_transform,
)
from numpy.typing import NDArray
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian
from pydicom.valuerep import DA, TM

from tumorseg.imaging.display import from_planes
from tumorseg.imaging.nifti import cut_across
from tumorseg.imaging.preprocess import Mask
from tumorseg.imaging.series import Stack
from tumorseg.imaging.study import (
    Rejected,
    Study,
    damage_rejected,
    is_distance,
    silence_readers,
)

USE = "Research use only"
# pydicom finds damage only when it is asked for a value, and highdicom refuses a source for many
# reasons, which it puts in terms of its own arguments.
_BROKEN = (
    "The DICOM headers break the standard, so that no segmentation can refer to them: export the "
    "original series."
)
# Type 2 in the standard: empty where the source does not know them.
_PATIENT_AND_STUDY = [
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate"),
    *("StudyTime", "AccessionNumber", "ReferringPhysicianName"),
]
_NEEDED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "Modality")
_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")


class NamedModel(Protocol):
    """What a segmentation says about the model that made it.

    Attributes:
        name: Of the registered model.
        version: In the registry.
        architecture: Of the network.
        digest: SHA-256 of the model's file, hexadecimal.
    """

    name: str
    version: str
    architecture: str
    digest: str


def check(study: Study, output: str, model: NamedModel) -> None:
    """Refuses a volume, before masks are computed, of which no answer could be written.

    Args:
        study: Of kind `nifti` or `dicom`.
        output: `seg` or `nifti`.
        model: The model that will be named.

    Raises:
        Rejected: As `nifti_file` or `seg_file` would.
    """
    if output == "nifti":
        if study.kind == "dicom":
            _affine(study.source)
        return
    with damage_rejected(_BROKEN):
        _check(study.source)
    if study.source.frames is None:  # what is left to refuse, a slice alone tells
        source = replace(study.source, datasets=study.source.datasets[:1])
        study = replace(study, slices=study.slices[:1], source=source)
    seg_file(study, [np.zeros(grey.shape, bool) for grey in study.slices], model)


def nifti_file(study: Study, masks: list[Mask]) -> bytes:
    """Writes masks as a NIfTI file on the grid of the source.

    Of a NIfTI source, affine, qform, sform, their codes, units and the order of the voxels are its
    own; its free texts are not kept, since they may name a patient. Of a DICOM source, voxels are
    in the order of columns, rows and slices, and the sform is in scanner coordinates.

    Args:
        study: Of kind `nifti` or `dicom`.
        masks: bool, shape (H, W), one a slice of the study.

    Returns:
        A .nii.gz file of 0 and 1, uint8.

    Raises:
        Rejected: 400 if the slices of a DICOM source do not lie evenly, or it does not say.
    """
    planes = np.stack(masks).astype(np.uint8)
    answer = _from_dicom(study, planes) if study.kind == "dicom" else _as_sent(study, planes)
    answer.header["cal_min"], answer.header["cal_max"] = 0, 1
    answer.header["descrip"] = f"tumorseg: {USE.lower()}".encode()
    # Time stamps would make equal answers differ.
    return gzip.compress(answer.to_bytes(), compresslevel=4, mtime=0)


def _affine(source: Stack) -> NDArray[np.float64]:
    if source.affine is None:
        raise Rejected(
            400,
            "The DICOM slices are not known to lie evenly (position, orientation, spacing and "
            "thickness), which NIfTI needs: export the original series, or ask for `seg`.",
        )
    return source.affine


def _from_dicom(study: Study, planes: NDArray[np.uint8]) -> Any:
    affine = _affine(study.source)
    answer = Nifti1Image(planes.transpose(2, 1, 0), affine)
    answer.set_sform(affine, code="scanner")
    answer.header.set_xyzt_units("mm")
    return answer


def _as_sent(study: Study, planes: NDArray[np.uint8]) -> Any:
    image = study.source
    canonical = from_planes(planes, cut_across(image.affine))
    back = ornt_transform(axcodes2ornt("RAS"), io_orientation(image.affine))
    header = image.header.copy()
    header.set_data_dtype(np.uint8)
    voxels = apply_orientation(canonical, back).reshape(image.shape)
    return type(image)(voxels, image.affine, header)


def seg_file(study: Study, masks: list[Mask], model: NamedModel) -> bytes:
    """Writes masks as a binary DICOM segmentation that refers to the source.

    Args:
        study: Of kind `dicom`.
        masks: bool, shape (H, W), one a slice of the study.
        model: The model that found them.

    Returns:
        A DICOM file.

    Raises:
        Rejected: 400 if the source does not say where its slices lie, or lacks what a
            segmentation must refer to.
    """
    silence_readers()
    source = study.source
    planes = np.stack(masks).astype(np.uint8)
    if source.frames is not None:
        planes = planes[np.argsort(source.frames)]
    with damage_rejected(_BROKEN):
        _check(source)
        first = _completed(source.datasets[0], study.thickness)
        return _segmentation([first, *source.datasets[1:]], planes, model)


def _check(source: Stack) -> None:
    headers = source.datasets
    if not source.located or any("FrameOfReferenceUID" not in header for header in headers):
        raise Rejected(
            400,
            "The DICOM file does not say where its slices lie (position, orientation, spacing and "
            "frame of reference), which a segmentation needs: export the original series.",
        )
    # highdicom takes no more than one file of a kind that may hold several frames.
    if len(headers) > 1 and "SharedFunctionalGroupsSequence" in headers[0]:
        raise Rejected(
            400,
            "A segmentation cannot refer to several files of an enhanced kind: send the series as "
            "one multi-frame file.",
        )
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID", "SOPClassUID"):
        if len({str(header.get(keyword)) for header in headers}) > 1:
            raise Rejected(
                400, "The slices are not of one study and kind: send one series as it was exported."
            )
    if any(not header.get(keyword) for header in headers for keyword in _NEEDED):
        raise Rejected(
            400, "The DICOM file lacks what a segmentation must refer to: export it again."
        )


def _completed(header: Any, thickness: float | None) -> Any:
    """The header with all that the answer copies from it: present, and empty where invalid."""
    checks: dict[str, Callable[[str], Any]] = {
        "PatientBirthDate": DA,
        "StudyDate": DA,
        "StudyTime": TM,
        "PatientSex": ("", "M", "F", "O").index,
    }
    whole = header[:]  # copy() would share the elements with the source, which may be asked again
    for keyword in _PATIENT_AND_STUDY:
        value = whole.get(keyword)
        try:
            checks.get(keyword, str)(value if isinstance(value, str) else str(value or ""))
        except ValueError:
            value = None
        if value is None:
            setattr(whole, keyword, "")
    # Files of frames have theirs in the groups. Some scanners write 0 for what they do not know.
    shared = whole.get("SharedFunctionalGroupsSequence") or []
    measures = [each for group in shared for each in group.get("PixelMeasuresSequence") or []]
    for part in (whole, *measures):
        if not is_distance(part.get("SliceThickness") or 0):
            part.SliceThickness = thickness
    _decode(whole)
    return whole


def _decode(header: Any) -> None:
    """Turns names to UTF-8, since highdicom refuses some character sets that scanners use."""
    # There are no names in the functional groups, which can be long.
    groups = [header.pop(keyword, None) for keyword in _GROUPS]
    header.decode()
    for element in filter(None, groups):
        header[element.tag] = element
    # A new element, since the old one is the source's own, too.
    header.add_new("SpecificCharacterSet", "CS", "ISO_IR 192")


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
