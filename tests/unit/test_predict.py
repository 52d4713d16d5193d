"""`tumorseg predict`: which files, which names, which masks, and what is said."""

import json
import zipfile
from pathlib import Path

import httpx
import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image

from tests.support.made_volumes import dicom_bytes, series
from tests.support.serving_model import disc, encode, write_model
from tests.unit.test_client import ANSWER, Service
from tumorseg.core.errors import InputError
from tumorseg.inference.predict import Local, Remote, choose, plan, predict, run, table
from tumorseg.inference.predictor import Predictor

PNG = encode(Image.fromarray(disc()))
JPEG = encode(Image.fromarray(disc()), "JPEG", quality=95)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def local(model) -> Local:
    return Local(model)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def names(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def test_a_picture_s_mask_is_the_predictor_s(tmp_path, local, model, capsys) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    assert run([tmp_path / "a.png"], None, local, overwrite=False)
    expected = Predictor(model).segment(disc())
    assert np.array_equal(pixels(tmp_path / "a_mask.png") == 255, expected.mask)
    printed = capsys.readouterr().out
    assert "| 1 |" in printed and f"| {expected.area_px} |" in printed
    digest = Predictor(model).info.digest
    assert printed.endswith(f"\n\nmodel: version 3, sha256 {digest[:12]}\n")
    assert names(tmp_path) == {"a.png", "a_mask.png"}


def test_the_threshold_counts(tmp_path, model) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    areas = []
    for threshold in (0.01, 0.99999):
        ((_, found),) = predict(
            plan([tmp_path / "a.png"]), choose(model, None, threshold), overwrite=True
        )
        areas.append(found.area_px)
    assert areas[0] > areas[1]


def test_masks_go_to_the_output_folder_with_their_folders(tmp_path, local) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    for name in ("x/a.png", "y/a.png", "b.png", ".hidden/c.png"):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_bytes(PNG)
    (data / "notes.txt").write_text("no picture")
    assert run([data], out, local, overwrite=False)
    assert names(out) == {"x/a_mask.png", "y/a_mask.png", "b_mask.png"}


def test_equal_stems_do_not_share_a_mask(tmp_path, local) -> None:
    for name in ("a.png", "a.jpg", "other/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(PNG if name.endswith("png") else JPEG)
    paths = [tmp_path / name for name in ("a.png", "a.jpg", "other/a.png")]
    assert run(paths, tmp_path / "out", local, overwrite=False)
    assert names(tmp_path / "out") == {"a.png_mask.png", "a.jpg_mask.png", "a.png-2_mask.png"}


def test_masks_of_an_earlier_run_are_not_segmented(tmp_path, local) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    for _ in range(2):
        assert run([tmp_path], None, local, overwrite=True)
    assert names(tmp_path) == {"a.png", "a_mask.png"}


def test_what_is_there_is_not_overwritten_unasked(tmp_path, local, capsys) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "a_mask.png").write_bytes(b"drawn by hand")
    assert not run([tmp_path], None, local, overwrite=False)
    assert "is there already: give --output FOLDER or --overwrite" in capsys.readouterr().err
    assert (tmp_path / "a_mask.png").read_bytes() == b"drawn by hand"


def test_an_input_is_never_overwritten(tmp_path, local, capsys) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "a_mask.png").write_bytes(PNG)
    paths = [tmp_path / "a.png", tmp_path / "a_mask.png"]
    assert not run(paths, None, local, overwrite=True)
    assert (tmp_path / "a_mask.png").read_bytes() == PNG
    assert "is an input" in capsys.readouterr().err
    assert (tmp_path / "a_mask_mask.png").exists()  # the other one went on


def test_failures_are_a_sentence_each_and_the_rest_goes_on(tmp_path, local, capsys) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "b.png").write_bytes(PNG[: len(PNG) // 2])
    (tmp_path / "c.jpg").write_bytes(b"")
    assert not run([tmp_path], None, local, overwrite=False)
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        str(tmp_path / "b.png"),
        str(tmp_path / "c.jpg"),
    ]
    assert "damaged" in lines[0] and "empty" in lines[1]
    assert "a.png" in printed.out and "b.png" not in printed.out
    assert names(tmp_path) == {"a.png", "a_mask.png", "b.png", "c.jpg"}


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path, local, capsys) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "out").write_text("a file")
    assert not run([tmp_path / "a.png"], tmp_path / "out", local, overwrite=False)
    (line,) = capsys.readouterr().err.splitlines()
    assert "out" in line


def test_what_does_not_exist_is_told(tmp_path) -> None:
    with pytest.raises(InputError, match=r"nowhere.png: does not exist"):
        plan([tmp_path / "nowhere.png"])
    with pytest.raises(InputError, match="nothing to segment"):
        plan([tmp_path])


def test_nifti_in_is_nifti_out_on_the_same_grid(tmp_path, local) -> None:
    affine = np.array([[-2.0, 0, 0, 5], [0, 0, 3, 6], [0, 1.5, 0, 7], [0, 0, 0, 1]])
    volume = np.stack([disc(40, 48)] * 20, axis=-1).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(volume, affine), tmp_path / "scan.nii.gz")
    ((_, found),) = predict(plan([tmp_path]), local)
    mask = nibabel.load(tmp_path / "scan_mask.nii.gz")
    assert mask.shape == volume.shape and np.allclose(mask.affine, affine)
    filled = int((np.asarray(mask.dataobj) > 0).sum())
    assert found.area_px == filled > 0
    assert found.size == f"{filled * 2 * 3 * 1.5:.0f} mm³"


def write_series(folder: Path, count: int = 4) -> None:
    """Writes a DICOM series without suffixes, as scanners' exports have them."""
    folder.mkdir()
    for number, dataset in enumerate(series(count=count)):
        (folder / f"IM{number}").write_bytes(dicom_bytes(dataset))


def test_the_dicom_files_of_a_folder_are_one_series(tmp_path, local, capsys) -> None:
    write_series(tmp_path / "T1")
    assert run([tmp_path], None, local, overwrite=False)
    seg = pydicom.dcmread(tmp_path / "T1" / "T1_seg.dcm")
    assert seg.Modality == "SEG" and "| 4 |" in capsys.readouterr().out


def test_a_zip_of_a_series_is_one_file(tmp_path, local) -> None:
    write_series(tmp_path / "T1")
    with zipfile.ZipFile(tmp_path / "case.zip", "w") as archive:
        for path in sorted((tmp_path / "T1").iterdir()):
            archive.write(path, path.name)
    assert run([tmp_path / "case.zip"], tmp_path / "out", local, overwrite=False)
    assert names(tmp_path / "out") == {"case_seg.dcm"}


def test_a_picture_goes_through_the_service(tmp_path, capsys) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    service = Service(httpx.Response(200, json=ANSWER | {"area_mm2": 31.125}))
    assert run([tmp_path], None, Remote(service.client()), overwrite=False)
    assert "31.1 mm²" in capsys.readouterr().out
    assert (pixels(tmp_path / "a_mask.png") == 255).any()
    assert b"a.png" not in service.requests[0].content  # names may be patients'


def test_a_volume_goes_through_the_service(tmp_path) -> None:
    (tmp_path / "a.nii.gz").write_bytes(b"\x1f\x8bvolume")
    headers = {
        "Content-Type": "application/gzip",
        "X-Model-Version": "3",
        "X-Model-Digest": "0" * 64,
        "X-Warnings": json.dumps(["odd"]),
    }
    service = Service(httpx.Response(200, headers=headers, content=b"mask"))
    ((_, found),) = done = list(predict(plan([tmp_path]), Remote(service.client())))
    assert service.requests[0].url.path == "/segment/volume"
    assert (tmp_path / "a_mask.nii.gz").read_bytes() == b"mask" and found.slices is None
    assert "| – | – | – | – | odd |" in table(done)
    assert table(done).endswith("model: version 3, sha256 000000000000")


def test_a_refusal_of_the_service_is_a_sentence(tmp_path, capsys) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    body = {"error": "The API key is missing.", "request_id": "r3"}
    service = Service(httpx.Response(401, json=body))
    assert not run([tmp_path], None, Remote(service.client()), overwrite=False)
    assert "The API key is missing. (request r3)" in capsys.readouterr().err


def test_a_service_has_its_own_threshold() -> None:
    with pytest.raises(InputError, match="--threshold"):
        choose(None, "http://localhost:1", 0.3)


def test_an_address_that_is_none_is_one_sentence() -> None:
    with pytest.raises(InputError, match=r"--url: .* is no address"):
        choose(None, "http://a:b", None)


def test_warnings_come_with_the_table(tmp_path, model) -> None:
    (tmp_path / "a|b.png").write_bytes(encode(Image.fromarray(np.full((64, 64), 9, np.uint8))))
    from tests.support.phantom_slices import phantoms
    from tumorseg.monitoring.ood import describe

    known = describe(phantoms(12, 0)[0], phantoms(4, 1)[0])
    done = list(predict(plan([tmp_path]), Local(write_model(tmp_path / "m", inputs=known))))
    assert "uniform" in table(done) and "a\\|b.png" in table(done)
