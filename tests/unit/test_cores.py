"""How many threads run the network."""

import onnxruntime
import pytest

from tests.support.serving_model import write_model
from tumorseg.inference import predictor


@pytest.mark.parametrize(("asked", "given"), [(0, 5), (3, 3)])
def test_the_network_gets_all_cores_or_as_many_threads_as_asked(
    tmp_path, monkeypatch, asked, given
) -> None:
    seen = []

    def session(data: bytes, options: onnxruntime.SessionOptions, **more: object):
        seen.append(options.intra_op_num_threads)
        return made(data, options, **more)

    made = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    monkeypatch.setattr(predictor, "cpu_count", lambda: 5)
    predictor.Predictor(write_model(tmp_path), asked)
    assert seen == [given]
