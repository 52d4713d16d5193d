"""The frames of one DICOM file, decoded within bounds."""

from io import BytesIO
from typing import Any

from numpy.typing import NDArray
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels import get_decoder, pixel_array
from pydicom.uid import (
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    RLELossless,
)

from tumorseg.imaging.decode import MAX_SCANS, Rejected, has_many_scans

_MAX_RLE = 4 * 1024 * 1024  # bytes of a frame: it may unpack to 64 times as much


def frames_in(dataset: Dataset) -> int:
    """How many frames a file says it has; 1 where it says nothing."""
    return int(dataset.get("NumberOfFrames") or 1)


def frames(dataset: Dataset) -> NDArray[Any]:
    """Decodes the frames of a file, whose size the caller has checked.

    Args:
        dataset: With its pixel data, which this takes out of it: they are not needed again.

    Returns:
        The stored values, shape (frames, H, W).

    Raises:
        Rejected: 415 if they are compressed in a way that cannot be read here, 400 if they are
            not what the header says.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        decoder = None
    if decoder is None or not decoder.is_available:
        known = f" ({syntax.name})" if syntax.is_transfer_syntax else ""
        raise Rejected(
            415,
            f"The DICOM image is compressed in a way that is not read here{known}: export it "
            "uncompressed.",
        )
    if syntax.is_compressed:
        _check_compressed(dataset, syntax)
    values = pixel_array(dataset)
    del dataset.PixelData
    shape = (frames_in(dataset), int(dataset.Rows), int(dataset.Columns))
    return values.reshape(shape)


def _check_compressed(dataset: Dataset, syntax: str) -> None:
    """Compares each frame's own header with the file's: a decoder would believe the former."""
    wanted = (int(dataset.Columns), int(dataset.Rows))
    extended = None
    if "ExtendedOffsetTable" in dataset:
        extended = (dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths)
    found = generate_frames(
        dataset.PixelData, number_of_frames=frames_in(dataset), extended_offsets=extended
    )
    for frame in found:
        if syntax == RLELossless:
            if len(frame) > _MAX_RLE:
                raise Rejected(413, "The DICOM image is too large for RLE: export it uncompressed.")
        elif _size(frame, syntax) != wanted:
            raise Rejected(400, "The DICOM image is damaged: export it again and resend it.")
        elif syntax in JPEGTransferSyntaxes and has_many_scans(frame):
            raise Rejected(
                413, f"The DICOM image has more than {MAX_SCANS} scans: export it uncompressed."
            )


def _size(frame: bytes, syntax: str) -> tuple[int, int]:
    """The width and height that a compressed frame states."""
    if syntax in JPEGLSTransferSyntaxes:
        # Installed with highdicom, and what pydicom decodes JPEG-LS with.
        from _CharLS import read_header  # type: ignore[import-not-found]

        found = read_header(frame)
        return found["width"], found["height"]
    reader = JpegImageFile if syntax in JPEGTransferSyntaxes else Jpeg2KImageFile
    with reader(BytesIO(frame)) as image:
        return image.size
