"""What cannot be used is refused with one sentence, within limits, and no value is printed."""

import gzip
import logging
import warnings
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from pydicom import config
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian

from tests.support.fuzz_inputs import check, inputs
from tests.support.made_volumes import dicom_bytes, enhanced, series, series_zip, zipped
from tests.support.serving_model import write_model
from tests.support.spoilt_volumes import FILE, NII, REJECTED, ZIP
from tumorseg.imaging import decode as decoding
from tumorseg.imaging import dicom, study
from tumorseg.imaging.decode import decode
from tumorseg.imaging.seg import seg_file
from tumorseg.imaging.study import Rejected
from tumorseg.inference.predictor import load_info


@pytest.mark.parametrize("name", REJECTED)
def test_unusable_files_are_refused_with_one_sentence(name, caplog, capfd):
    data, status, words = REJECTED[name]
    with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.DEBUG):
        warnings.simplefilter("always")
        with pytest.raises(Rejected) as error:
            decode(data)
    assert (error.value.status, words in error.value.sentence) == (status, True), error.value
    assert error.value.sentence.endswith(".")
    texts = [error.value.sentence, *(str(each.message) for each in caught), caplog.text]
    assert not any("SECRET" in each or "Doe" in each for each in (*texts, *capfd.readouterr()))


def test_invalid_values_are_not_printed(tmp_path, monkeypatch, caplog, capfd, recwarn):
    """pydicom and highdicom warn of values that break the standard, and quote them."""
    monkeypatch.setattr(config.settings, "writing_validation_mode", config.IGNORE)
    wrong = dict.fromkeys(("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime"), "SECRET")
    wrong |= {"PatientName": "SECRET7=" * 30, "PatientID": "SECRET" * 20, "StudyID": "SECRET\\S"}
    data = dicom_bytes(series(count=1, **wrong)[0])
    caplog.clear()
    with caplog.at_level(logging.DEBUG):
        found = decode(data)
        seg_file(found, [found.slices[0] > 99], load_info(write_model(tmp_path)))
    texts = [caplog.text, *capfd.readouterr(), *(str(each.message) for each in recwarn)]
    assert not any("SECRET" in text for text in texts)


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


@pytest.mark.parametrize("data", [ZIP, NII, FILE], ids=["zip", "NIfTI", "DICOM"])
def test_volumes_have_limits_of_voxels_and_bytes(monkeypatch, data):
    monkeypatch.setattr(study, "MAX_VOXELS", 1000)
    with pytest.raises(Rejected, match="million voxels"):
        decode(data)
    monkeypatch.setattr(decoding, "MAX_VOLUME_BYTES", 1000)
    with pytest.raises(Rejected, match="256 MiB"):
        decode(data)


NUMBERS = "\\".join(["1"] * 5000)


def implicit(tag: int) -> Dataset:
    """A file that does not state its values' types, with a long one."""
    (dataset,) = series(count=1)
    dataset.add_new(tag, "UN", NUMBERS.encode())
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    return dataset


def empty_items(undefined: bool) -> list[Dataset]:
    datasets = series()
    for dataset in datasets:
        dataset.add_new(0x00091001, "SQ", [Dataset() for _ in range(300)])
        dataset[0x00091001].is_undefined_length = undefined
    return datasets


def private_elements() -> Dataset:
    (dataset,) = series(count=1)
    for number in range(5000):
        dataset.add_new(0x00091000 + number, "SH", "a")
    return dataset


@pytest.mark.parametrize(
    ("limit", "value", "make"),
    [
        ("_MAX_PARTS", 5000, lambda: dicom_bytes(implicit(0x00281050))),
        ("_MAX_PARTS", 5000, lambda: dicom_bytes(private_elements())),
        ("_MAX_PARTS", 5000, lambda: series_zip(empty_items(False))),
        ("_MAX_PARTS", 5000, lambda: series_zip(empty_items(True))),
        ("_MAX_READ", 5000, lambda: dicom_bytes(implicit(0x00281050))),
        ("_MAX_HEADER", 5000, lambda: dicom_bytes(implicit(0x00281050))),
        ("_MAX_PARSED_AT_ONCE", 1024, lambda: dicom_bytes(implicit(0x00080005))),
    ],
    ids=["window", "elements", "items", "items without length", "bytes read",
         "bytes of a header", "character set"],
)  # fmt: skip
def test_headers_that_take_too_much_are_refused(monkeypatch, limit, value, make):
    monkeypatch.setattr(dicom, limit, value)
    assert decode(FILE)
    with pytest.raises(Rejected, match="headers are too long") as error:
        decode(make())
    assert error.value.status == 413


def test_long_headers_of_scanners_are_read():
    """Private values in each group, and a protocol for all frames."""
    made = enhanced(order=[0] * 128)
    for number, group in enumerate(made.PerFrameFunctionalGroupsSequence):
        group.PlanePositionSequence[0].ImagePositionPatient = [-10, -12, 4.0 * number]
        group.add_new(0x00211001, "OB", bytes(28_000))
    made.SharedFunctionalGroupsSequence[0].add_new(0x00211001, "OB", bytes(300_000))
    made["PerFrameFunctionalGroupsSequence"].is_undefined_length = True
    assert len(decode(dicom_bytes(made)).slices) == 128


def test_no_damage_escapes_as_another_exception(tmp_path):
    info = load_info(write_model(tmp_path))
    outcomes: Counter[str] = Counter()
    for number, (kind, data) in enumerate(islice(inputs(seed=0), 150)):
        try:
            outcomes[check(data, info)] += 1
        except AssertionError as error:
            raise AssertionError(f"{kind}, input {number} of seed 0: {error}") from error
    assert outcomes["used"] > 5 and outcomes["400"] > 25


def test_a_modality_table_is_applied():
    (dataset,) = series(count=1)
    table = Dataset()
    table.LUTDescriptor = [4096, 0, 16]
    table.add_new(0x00283006, "OW", np.arange(4095, -1, -1, dtype="<u2").tobytes())
    dataset.ModalityLUTSequence = [table]
    shown, plain = (decode(data).slices[0].astype(int) for data in (dicom_bytes(dataset), FILE))
    assert np.abs(shown - (255 - plain)).max() <= 1
