"""A toy model, and the service that runs it in this process; each module has its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tests.support.serving_model import write_model
from tests.support.serving_process import in_process
from tumorseg.inference.predictor import Predictor


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def predictor(model: Path) -> Predictor:
    return Predictor(model)


@pytest.fixture(scope="module")
def client(model: Path) -> Iterator[TestClient]:
    with in_process(model) as client:
        yield client
