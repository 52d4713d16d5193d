"""`tumorseg predict`: which files, which names, which masks, and what is said."""

import zipfile
from functools import partial
from pathlib import Path

import httpx
import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image

from tests.support.made_volumes import dicom_bytes, series
from tests.support.mock_service import ANSWER, VOLUME_HEADERS, Service
from tests.support.serving_model import disc, encode, write_model
from tumorseg.core.errors import InputError
from tumorseg.inference.predict import (
    Found,
    Local,
    Segmenter,
    choose,
    plan,
    predict,
    run,
    segment_remotely,
    table,
)
from tumorseg.inference.predictor import Predictor

PNG = encode(Image.fromarray(disc()))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def local(model) -> Segmenter:
    return Local(model).segment


def remote(*answers: httpx.Response) -> tuple[Service, Segmenter]:
    service = Service(*answers)
    return service, partial(segment_remotely, service.client())


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def names(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("threshold", [None, 0.01])
def test_a_picture_s_mask_is_the_predictor_s(tmp_path, model, capsys, threshold) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    assert run([tmp_path / "a.png"], None, choose(model, None, threshold), overwrite=False)
    predictor = Predictor(model)
    expected = predictor.segment(disc(), threshold)
    assert np.array_equal(pixels(tmp_path / "a_mask.png") == 255, expected.mask)
    printed = capsys.readouterr().out
    assert "| 1 |" in printed and f"| {expected.area_px} |" in printed
    assert printed.endswith(f"\n\nmodel: version 3, sha256 {predictor.info.digest[:12]}\n")
    assert names(tmp_path) == {"a.png", "a_mask.png"}


def test_masks_go_to_the_output_folder_each_with_its_own_name(tmp_path) -> None:
    for name in ("x/a.png", "y/a.png", "b.png", "b.jpg", ".hidden/c.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(PNG)
    out = tmp_path / "out"
    found = {str(job.target("").relative_to(out)) for job in plan([tmp_path], out)}
    assert found == {"x/a", "y/a", "b.png", "b.jpg"}
    paths = [tmp_path / name for name in ("b.png", "x/a.png", "y/a.png")]
    assert [job.target("").name for job in plan(paths, out)] == ["b", "a.png", "a.png-2"]


def test_masks_are_replaced_only_if_asked_and_never_segmented(tmp_path, local, capsys) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "a_mask.png").write_bytes(b"drawn by hand")
    assert not run([tmp_path], None, local, overwrite=False)
    assert "is there already: give --output FOLDER or --overwrite" in capsys.readouterr().err
    assert (tmp_path / "a_mask.png").read_bytes() == b"drawn by hand"
    for _ in range(2):
        assert run([tmp_path], None, local, overwrite=True)
    assert names(tmp_path) == {"a.png", "a_mask.png"}


def test_an_input_is_never_overwritten(tmp_path, local, capsys) -> None:
    for name in ("a.png", "a_mask.png"):
        (tmp_path / name).write_bytes(PNG)
    assert not run([tmp_path / "a.png", tmp_path / "a_mask.png"], None, local, overwrite=True)
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
    assert [Path(line.split(":")[0]).name for line in lines] == ["b.png", "c.jpg"]
    assert "damaged" in lines[0] and "empty" in lines[1]
    assert "a.png" in printed.out and "b.png" not in printed.out
    assert names(tmp_path) == {"a.png", "a_mask.png", "b.png", "c.jpg"}


def test_missing_paths_and_empty_folders_are_refused(tmp_path) -> None:
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
    assert found.volume_mm3 == filled * 2 * 3 * 1.5


def test_the_dicom_files_of_a_folder_are_one_series_and_so_is_a_zip(
    tmp_path, local, capsys
) -> None:
    folder, zipped = tmp_path / "T1", tmp_path / "case.zip"
    folder.mkdir()
    for number, dataset in enumerate(series(count=4)):  # without suffixes, as scanners export
        (folder / f"IM{number}").write_bytes(dicom_bytes(dataset))
    with zipfile.ZipFile(zipped, "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, path.name)
    assert run([folder, zipped], tmp_path / "out", local, overwrite=False)
    assert names(tmp_path / "out") == {"T1_seg.dcm", "case_seg.dcm"}
    assert pydicom.dcmread(tmp_path / "out" / "T1_seg.dcm").Modality == "SEG"
    assert capsys.readouterr().out.count("| 4 |") == 2


def test_a_picture_goes_through_the_service(tmp_path, capsys) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    service, segmenter = remote(httpx.Response(200, json=ANSWER | {"area_mm2": 31.125}))
    assert run([tmp_path], None, segmenter, overwrite=False)
    assert "31.1 mm²" in capsys.readouterr().out
    assert (pixels(tmp_path / "a_mask.png") == 255).any()
    assert b"a.png" not in service.requests[0].content  # names may be patients'


def test_a_volume_goes_through_the_service(tmp_path) -> None:
    (tmp_path / "a.nii.gz").write_bytes(b"\x1f\x8bvolume")
    service, segmenter = remote(httpx.Response(200, headers=VOLUME_HEADERS, content=b"mask"))
    done = list(predict(plan([tmp_path]), segmenter))
    assert service.requests[0].url.path == "/segment/volume"
    assert (tmp_path / "a_mask.nii.gz").read_bytes() == b"mask"
    assert "| – | – | – | – | odd |" in table(done)
    assert table(done).endswith("model: version 3, sha256 000000000000")


def test_refusals_of_the_service_and_wrong_options_are_a_sentence(tmp_path, capsys) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    body = {"error": "The API key is missing.", "request_id": "r3"}
    assert not run([tmp_path], None, remote(httpx.Response(401, json=body))[1], overwrite=False)
    assert "The API key is missing. (request r3)" in capsys.readouterr().err
    with pytest.raises(InputError, match="--threshold"):
        choose(None, "http://localhost:1", 0.3)
    with pytest.raises(InputError, match=r"--url: .* is no address"):
        choose(None, "http://a:b", None)


def test_the_table_has_warnings_and_escapes_names(tmp_path) -> None:
    (tmp_path / "a|b.png").write_bytes(PNG)
    found = Found(b"", "_mask.png", warnings=["The slice is uniform."], model=("3", "0" * 64))
    printed = table([(job, found) for job in plan([tmp_path])])
    assert "a\\|b.png" in printed and "uniform" in printed
