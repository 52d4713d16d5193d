"""Fuzzing: damaged files through the decoders, and schemathesis against the service's OpenAPI.

`python benchmarks/fuzz.py` damages good files of every kind that the service reads, so many cases
(`--cases`) from one seed, decodes each and writes the answer where that works; anything but a
refusal with a sentence is a failure, and the file is kept. Then it starts the service with a toy
network and lets schemathesis (a package of its own: `pip install schemathesis`) send what the
OpenAPI allows and forbids. A failure is an answer from 500 up, except 503, which is how a full
queue answers; a status, a kind of content, a header or a body other than the OpenAPI says; and a
request that the OpenAPI forbids and the service takes.

Two of its checks cannot pass and are not asked for. `positive_data_acceptance`: no schema tells
bytes that are a picture from bytes that are none. `negative_data_rejection` of `/upload`: the
superseded app's clients look for "No file part" in an answer with status 200.
"""

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

from common import head, row, serve

from tests.support.fuzz_inputs import check, inputs
from tests.support.serving_model import write_model
from tumorseg.core import environment
from tumorseg.inference.predictor import load_info

KEPT = Path(".state/fuzz")
_SCHEMATHESIS = """
[checks]
enabled = false
status_code_conformance.enabled = true
content_type_conformance.enabled = true
response_headers_conformance.enabled = true
response_schema_conformance.enabled = true
negative_data_rejection.enabled = true
unsupported_method.enabled = true

[checks.not_a_server_error]
enabled = true
expected-statuses = ["2xx", "3xx", "4xx", "503"]

[[operations]]
include-path = "/upload"
checks.negative_data_rejection.enabled = false
"""


def decoders(cases: int, seed: int, model: Path) -> bool:
    """Damages files and decodes them; prints a table of what came of each kind.

    Args:
        cases: How many.
        seed: Of all random draws.
        model: A model folder, named in the DICOM SEG files.

    Returns:
        Whether every file was used or refused with a sentence.
    """
    info, begun = load_info(model), time.monotonic()
    outcomes: dict[str, Counter[str]] = {}
    failures = 0
    warnings.simplefilter("ignore")  # the readers' own, about damage
    stream = inputs(seed)
    for number in range(cases):
        kind, data = next(stream)
        try:
            outcome = check(data, info)
        except AssertionError as error:
            KEPT.mkdir(parents=True, exist_ok=True)
            kept = KEPT / f"{seed}-{number}"
            kept.write_bytes(data)
            print(f"{kind}, kept as {kept}: {error}", file=sys.stderr)
            outcome, failures = "**failed**", failures + 1
        outcomes.setdefault(kind, Counter())[outcome] += 1
    columns = sorted({outcome for found in outcomes.values() for outcome in found})
    head("damaged", *columns, numbers=len(columns))
    for kind, found in outcomes.items():
        row(kind, *(found[column] for column in columns))
    print(f"\n{cases} files, seed {seed}, {time.monotonic() - begun:.0f} s: {failures} failures")
    return not failures


def openapi(model: Path, examples: int, seed: int) -> bool:
    """Runs schemathesis against a service of its own.

    Args:
        model: The model folder to serve.
        examples: Requests for each operation and phase, at most.
        seed: Of all random draws.

    Returns:
        Whether every answer was as the OpenAPI says.
    """
    if importlib.util.find_spec("schemathesis") is None:
        print("schemathesis is not installed: `pip install schemathesis`", file=sys.stderr)
        return False
    beside = Path(sys.executable).with_name("schemathesis")
    command = [str(beside) if beside.exists() else shutil.which("schemathesis") or "schemathesis"]
    with serve(model) as server, tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "schemathesis.toml")
        config.write_text(_SCHEMATHESIS)
        command += ["--config-file", str(config)]
        command += ["run", f"{server.url}/docs.json", "--url", server.url]
        command += ["--max-examples", str(examples)]
        command += ["--seed", str(seed), "--request-timeout", "60", "--no-color"]
        done = subprocess.run(command, cwd=folder, env=os.environ, check=False)
        alive = server.process.poll() is None
    print(f"\nschemathesis ended with status {done.returncode}; the service is", end=" ")
    print("still there" if alive else "gone")
    return done.returncode == 0 and alive


def main() -> None:
    """Reads the options, fuzzes; the exit status is 1 after any failure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=3000, help="damaged files; 0: none")
    parser.add_argument("--examples", type=int, default=100, help="of schemathesis; 0: none")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    environment.set_up()
    with tempfile.TemporaryDirectory(prefix="tumorseg-fuzz-") as scratch:
        model, fine = write_model(Path(scratch, "model")), True
        if chosen.cases:
            fine = decoders(chosen.cases, chosen.seed, model)
        if chosen.examples:
            fine = openapi(model, chosen.examples, chosen.seed) and fine
    sys.exit(not fine)


if __name__ == "__main__":
    main()
