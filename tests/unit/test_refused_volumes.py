"""What cannot be used is refused with one sentence, within bounds, and told to nobody else."""

import gc
import gzip
import logging
import subprocess
import sys
import warnings
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from pydicom import config
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian

from tests.conftest import REPOSITORY
from tests.support.fuzz_inputs import check, inputs
from tests.support.made_volumes import dicom_bytes, enhanced, series, series_zip, zipped
from tests.support.serving_model import write_model
from tests.support.spoilt_volumes import FILE, NII, REJECTED, ZIP
from tumorseg.imaging import decode as decoding
from tumorseg.imaging import dicom, study
from tumorseg.imaging.decode import decode
from tumorseg.imaging.study import Rejected
from tumorseg.inference.predictor import load_info


@pytest.mark.parametrize("name", REJECTED)
def test_what_cannot_be_used_gets_one_sentence(name, caplog, capfd):
    data, status, words = REJECTED[name]
    with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.DEBUG):
        warnings.simplefilter("always")
        with pytest.raises(Rejected) as error:
            decode(data)
    assert (error.value.status, words in error.value.sentence) == (status, True), error.value
    assert error.value.sentence.endswith(".")
    told = [error.value.sentence, *(str(each.message) for each in caught), caplog.text]
    assert not any("SECRET" in each or "Doe" in each for each in (*told, *capfd.readouterr()))


@pytest.mark.parametrize(
    "name", ["cut DICOM", "JPEG Lossless", "cut zip", "cut .nii.gz", "two axes"]
)
def test_what_was_refused_is_not_kept(name):
    data = REJECTED[name][0]
    gc.collect()  # what other tests left
    held = sys.getrefcount(data)
    for _ in range(3):
        with pytest.raises(Rejected):
            decode(data)
    gc.collect()
    assert sys.getrefcount(data) == held


def test_bombs_are_counted_while_they_are_unpacked(monkeypatch):
    monkeypatch.setattr(decoding, "MAX_UNPACKED", 1 << 20)
    for data in (
        zipped([FILE, FILE[:200] + bytes(2 << 20)]),
        zipped([bytes(600_000)] * 2),
        gzip.compress(NII + bytes(1 << 20)),
    ):
        with pytest.raises(Rejected, match="unpacked") as error:
            decode(data)
        assert error.value.status == 413


def test_a_volume_has_its_own_limits(monkeypatch):
    monkeypatch.setattr(study, "MAX_VOXELS", 1000)
    for data in (ZIP, NII, FILE):
        with pytest.raises(Rejected, match="million voxels"):
            decode(data)
    monkeypatch.setattr(decoding, "MAX_VOLUME_BYTES", 1000)
    for data in (ZIP, NII, FILE):
        with pytest.raises(Rejected, match="256 MiB"):
            decode(data)


def test_headers_of_millions_of_elements_are_refused(monkeypatch):
    monkeypatch.setattr(dicom, "_MAX_ELEMENTS", 1000)
    (dataset,) = series(count=1)
    assert decode(dicom_bytes(dataset))
    for number in range(1000):
        dataset.add_new(0x00091000 + number, "SH", "a")
    with pytest.raises(Rejected, match="too long"):
        decode(dicom_bytes(dataset))


@pytest.mark.parametrize("limit", ["_MAX_READ", "_MAX_HEADER"])
def test_headers_of_many_bytes_are_refused(monkeypatch, limit):
    monkeypatch.setattr(dicom, limit, 2500)
    assert decode(FILE)
    (dataset,) = series(
        count=1, WindowCenter=[1] * 500, WindowWidth=[2] * 500, ImageType=["A"] * 500
    )
    with pytest.raises(Rejected, match="too long"):
        decode(dicom_bytes(dataset))


QUIET = """
import sys, logging, warnings
logging.basicConfig(level=logging.DEBUG)
warnings.simplefilter("always")
from tumorseg.imaging.decode import decode
from tumorseg.imaging.seg import seg_file
from tumorseg.inference.predictor import load_info
from tests.support.serving_model import write_model
from pathlib import Path
study = decode(Path(sys.argv[1]).read_bytes())
seg_file(study, [plane > 99 for plane in study.slices], load_info(write_model(Path(sys.argv[2]))))
"""


def test_doubtful_values_are_not_printed(tmp_path, monkeypatch):
    """pydicom and highdicom warn of values that break the standard, and quote them."""
    monkeypatch.setattr(config.settings, "writing_validation_mode", config.IGNORE)
    wrong = {
        "PatientName": "SECRET7=" * 30,
        "PatientID": "SECRET" * 20,
        "PatientBirthDate": "SECRET",
        "PatientSex": "SECRET",
        "StudyDate": "SECRET",
        "StudyTime": "SECRET",
        "AccessionNumber": "SECRET" * 9,
        "StudyID": "SECRET\\SECRET",
    }
    (tmp_path / "one.dcm").write_bytes(dicom_bytes(series(count=1, **wrong)[0]))
    done = subprocess.run(
        [sys.executable, "-c", QUIET, tmp_path / "one.dcm", tmp_path / "model"],
        capture_output=True, text=True, check=False, cwd=REPOSITORY,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "SECRET" not in done.stdout + done.stderr


def test_no_damage_escapes_as_another_exception(tmp_path, recwarn):
    info = load_info(write_model(tmp_path))
    outcomes: Counter[str] = Counter()
    for number, (kind, data) in enumerate(islice(inputs(seed=0), 600)):
        try:
            outcomes[check(data, info)] += 1
        except AssertionError as error:
            raise AssertionError(f"{kind}, input {number} of seed 0: {error}") from error
    assert outcomes["used"] > 20 and outcomes["400"] > 100
    # Files that other tests left open are closed, and warned of, at any time.
    told = [w for w in recwarn if w.category is not ResourceWarning]
    assert not [f"{w.filename}: {w.message}" for w in told]


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
def test_items_are_counted_over_all_files(monkeypatch, undefined):
    datasets = series()
    for dataset in datasets:
        dataset.add_new(0x00091001, "SQ", empty_items(300))
        dataset[0x00091001].is_undefined_length = undefined
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
