"""The service under measurement: load, SIGTERM, sessions, latency; a Markdown table each.

`python benchmarks/service.py load` sends 10 000 mixed requests, 64 at once, a fifth of them
malformed, and checks each answer against its own picture or volume. `sigterm` ends the service
under load, while some uploads break off.
`sessions` has two browsers upload at once, 200 rounds. `latency` compares one picture over HTTP
with the bare network, and the service with an app of the superseded shape. Each starts the service
itself: the packaged champion, a model folder (`--model`), or a toy network (`--phantom`). The exit
status is 1 where a promise is broken.

Clients and service share the machine's cores, so the figures are of both.
"""

import argparse
import asyncio
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import loads
import sigterm
from latency import measure
from served import serve
from sessions import sessions
from spoilt_requests import corpus

from tests.serving_model import write_model
from tumorseg.cli import PACKAGED
from tumorseg.core import environment
from tumorseg.core.errors import InputError
from tumorseg.inference.predict import packaged_model
from tumorseg.inference.predictor import Predictor

KEPT = Path(".state/load.log")


def choose(chosen: argparse.Namespace, scratch: Path) -> tuple[Path, str | None]:
    """The model folder, and the bento's tag where the packaged champion is served.

    Raises:
        InputError: There is no packaged champion.
    """
    if chosen.phantom:
        return write_model(scratch / "model"), None
    if chosen.model:
        return chosen.model, None
    if not PACKAGED.exists():
        raise InputError(f"{PACKAGED}: is missing; type `make run`, or give --model or --phantom")
    tag = json.loads(PACKAGED.read_text())["tag"]
    return packaged_model(tag), tag


def under_load(chosen: argparse.Namespace, model: Path, tag: str | None) -> bool:
    """Runs `load`, `sigterm` or `sessions`; returns whether all went well."""
    mix = loads.Mix(Predictor(model), corpus() if chosen.what == "load" else [])
    with serve(model, tag) as server:
        if chosen.what == "load":
            tally, seconds = asyncio.run(loads.load(server, mix, chosen.count or 10_000))
            print(loads.load_table(tally, chosen.count or 10_000, seconds))
            if tally.wrong.total():
                KEPT.parent.mkdir(exist_ok=True)
                shutil.copy(server.log, KEPT)
                print(f"\nthe service's log: {KEPT}")
            return not tally.wrong.total()
        if chosen.what == "sigterm":
            text, fine = sigterm.sigterm(server, mix)
        else:
            text, fine = sessions(server, mix.pictures, chosen.count or 200)
    print(text)
    return fine


def main() -> None:
    """Reads the options and measures one thing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("load", "sigterm", "sessions", "latency"))
    parser.add_argument("--model", type=Path, help="a folder with model.onnx and model.json")
    parser.add_argument("--phantom", action="store_true", help="a toy network, quick to make")
    parser.add_argument("--count", type=int, help="requests, rounds or pictures")
    parser.add_argument("--weights", type=Path, help="latency: the model's weights.safetensors")
    chosen = parser.parse_args()
    environment.set_up()
    os.environ |= environment.SILENT
    try:
        with tempfile.TemporaryDirectory(prefix="tumorseg-bench-") as scratch:
            if chosen.what == "latency":
                model, tag = (None, None) if chosen.phantom else choose(chosen, Path(scratch))
                fine = measure(model, tag, chosen.weights, chosen.count or 60, Path(scratch))
            else:
                fine = under_load(chosen, *choose(chosen, Path(scratch)))
    except InputError as error:
        sys.exit(str(error))
    sys.exit(not fine)


if __name__ == "__main__":
    main()
