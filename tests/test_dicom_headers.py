"""Headers that would grow when they are parsed are refused while they are bytes."""

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian

from tests.made_volumes import dicom_bytes, enhanced, series, series_zip
from tumorseg.imaging import dicom
from tumorseg.imaging.decode import decode
from tumorseg.imaging.study import Rejected

NUMBERS = b"1\\" * 5000  # half a KiB each once they are parsed
LUT = 0x00283000
WINDOW = 0x00281050


def plain(tag: int, kind: str, value: object) -> Dataset:
    (dataset,) = series(count=1)
    dataset.add_new(tag, kind, value)
    return dataset


def implicit(tag: int, value: bytes) -> Dataset:
    """Such files do not say of what kind a value is, and any may be long."""
    dataset = plain(tag, "UN", value)
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    return dataset


def empty_items(count: int) -> list[Dataset]:
    return [Dataset() for _ in range(count)]


def table(kind: str, value: object) -> Dataset:
    item = Dataset()
    item.LUTDescriptor = [4096, 0, 16]
    item.add_new(0x00283006, kind, value)
    return plain(LUT, "SQ", [item])


def window_of_a_frame() -> Dataset:
    made = enhanced()
    made.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    group = Dataset()
    group.add_new(WINDOW, "UN", NUMBERS)
    made.PerFrameFunctionalGroupsSequence[3].FrameVOILUTSequence = [group]
    return made


def named_syntax() -> bytes:
    """The file's first elements are read before all others, and stay."""
    (dataset,) = series(count=1)
    dataset.file_meta.add_new(0x00020100, "UI", "1.2")
    data = dicom_bytes(dataset)
    place = data.index(b"\x02\0\0\x01UI")
    return data[:place] + b"\x02\0\0\x01DS\x10\x27" + NUMBERS + data[place + 12 :]


BOMBS = {
    "window": lambda: dicom_bytes(implicit(WINDOW, NUMBERS)),
    "identifier": lambda: dicom_bytes(implicit(0x0020000E, NUMBERS)),
    "number of frames": lambda: dicom_bytes(implicit(0x00280008, NUMBERS)),
    "character set": lambda: dicom_bytes(implicit(0x00080005, NUMBERS)),
    "element of the file itself": named_syntax,
    "empty items": lambda: dicom_bytes(plain(LUT, "SQ", empty_items(40_000))),
    "table of text": lambda: dicom_bytes(table("UC", NUMBERS.decode())),
    "long table": lambda: dicom_bytes(table("OW", bytes(300_000))),
    "window of a frame": lambda: dicom_bytes(window_of_a_frame()),
    "private values of a frame": lambda: dicom_bytes(scanner(5, 1_100_000, 0)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_what_would_grow_is_refused(name):
    with pytest.raises(Rejected, match="headers are too long") as error:
        decode(BOMBS[name]())
    assert error.value.status == 413


@pytest.mark.parametrize("undefined", [False, True], ids=["length known", "up to a delimiter"])
@pytest.mark.parametrize("tag", [LUT, 0x00091001], ids=["wanted", "passed over"])
def test_items_are_counted_over_all_files(monkeypatch, tag, undefined):
    datasets = series()
    for dataset in datasets:
        dataset.add_new(tag, "SQ", empty_items(300))
        dataset[tag].is_undefined_length = undefined
    monkeypatch.setattr(dicom, "_MAX_ITEMS", 1000)
    assert decode(dicom_bytes(datasets[0]))
    with pytest.raises(Rejected, match="headers are too long"):
        decode(series_zip(datasets))


def scanner(frames: int, private: int, protocol: int) -> Dataset:
    """A multi-frame file with so many bytes of private values a frame and for all of them."""
    made = enhanced(order=range(frames) if frames < 6 else [0] * frames)
    for number, group in enumerate(made.PerFrameFunctionalGroupsSequence):
        group.PlanePositionSequence[0].ImagePositionPatient = [-10, -12, 4.0 * number]
        group.add_new(0x00211001, "OB", bytes(private))
    made.SharedFunctionalGroupsSequence[0].add_new(0x00211001, "OB", bytes(protocol))
    return made


@pytest.mark.parametrize("undefined", [False, True])
def test_long_headers_of_scanners_are_read(undefined):
    made = scanner(512, 7000, 300_000)
    for keyword in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        made[keyword].is_undefined_length = undefined
    assert len(decode(dicom_bytes(made)).slices) == 512


def test_a_modality_table_is_applied():
    for kind, value in (
        ("US", list(range(4095, -1, -1))),
        ("OW", np.arange(4095, -1, -1, dtype="<u2").tobytes()),
    ):
        shown = decode(dicom_bytes(table(kind, value))).slices[0]
        assert (
            np.abs(
                shown.astype(int) - (255 - decode(dicom_bytes(series(count=1)[0])).slices[0])
            ).max()
            <= 1
        )
