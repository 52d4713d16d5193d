"""An archive for tests, segmented in this process."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import REPOSITORY
from tests.support.made_volumes import dicom_bytes, series
from tests.support.serving_model import disc, encode, write_model
from tumorseg.core.params import SegmentParams, load_params
from tumorseg.inference import archive
from tumorseg.inference.archive import Work, chunks, opened, segment_chunk, summarise

PARAMS = load_params(SegmentParams, REPOSITORY / "params.yaml")


@pytest.fixture
def work(tmp_path) -> Work:
    """Five pictures in two folders, a DICOM series and an empty file."""
    root = tmp_path / "archive"
    for number in range(5):
        path = root / f"p{number % 2}" / f"s{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(Image.fromarray(np.roll(disc(), 9 * number, axis=1))))
    (root / "series").mkdir()
    for number, dataset in enumerate(series(count=4)):
        (root / "series" / f"IM{number}.dcm").write_bytes(dicom_bytes(dataset))
    (root / "bad.jpg").write_bytes(b"")
    return Work.of(root, tmp_path / "out", write_model(tmp_path / "model"), PARAMS)


def masks(folder: Path) -> dict[str, bytes]:
    """The masks by their names; without those that are being written, which begin with a dot."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("[!.]*_mask.*"))
    }


def do_all(work: Work) -> dict:
    with opened(work) as (jobs, known):
        left = [job for job in jobs if work.name(job) not in known]
        for some in chunks(left, 2):
            known |= {row.path: row for row in segment_chunk(work, some)}
        summarise(work.output, [known[work.name(job)] for job in jobs])
    return known


def counted(monkeypatch) -> list[str]:
    """Names of what is segmented from now on."""
    seen: list[str] = []
    real = archive.predict

    def predict(jobs, *args, **kwargs):
        seen.extend(Path(job.name).name for job in jobs)
        return real(jobs, *args, **kwargs)

    monkeypatch.setattr(archive, "predict", predict)
    return seen
