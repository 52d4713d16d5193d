"""Importing: how exactly masks survive, and what comes of malformed inputs.

`python benchmarks/importers.py` imports each sample and compares what is read back with what was
built. `python benchmarks/importers.py malformed` examines each malformed input in a process of its
own, so that a crash in a library or a loop without end is counted rather than suffered; the exit
status is 1 after any of these, or a traceback.
"""

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
from common import REPOSITORY, head, row

from tests.support.malformed import CASES, in_words, prepare
from tests.support.samples import SAMPLES, least_iou
from tumorseg.core.params import ValidateParams, load_params
from tumorseg.importers import import_folder

LIMIT = 60  # seconds
MEMORY = 8 * 2**30  # bytes of address space beyond what a process starts with
BAD = ("traceback", "hang", "crash")


def exactness() -> None:
    """Prints a row a sample: how well its masks are found again."""
    head("importer", "sample", "slices", "groups", "IoU min", numbers=3)
    with tempfile.TemporaryDirectory() as scratch:
        for number, (title, (kind, build)) in enumerate(SAMPLES.items()):
            sample = build(Path(scratch, f"{number}-source"))
            written = Path(scratch, f"{number}-written")
            summary = import_folder(sample.folder, written, options=sample.options)
            assert summary.kind == kind
            groups = summary.groups or "not known"
            row(kind, title, summary.images, groups, f"{least_iou(sample, written):.4f}")


def malformed() -> bool:
    """Prints a row an input and totals; whether each gave a finding, a sentence or a use."""
    params = load_params(ValidateParams, REPOSITORY / "params.yaml")
    params = params.model_copy(update={"min_side": 32})
    context = multiprocessing.get_context("fork")  # the libraries are imported once
    totals: Counter[str] = Counter()
    head("input", "outcome", "seconds")
    for case in CASES:
        reader, writer = context.Pipe(duplex=False)
        begun = time.monotonic()
        process = context.Process(target=_examine, args=(case, params, writer))
        process.start()
        writer.close()
        outcome = _outcome(process, reader)
        totals[outcome.split(":")[0]] += 1
        shown = outcome.replace("|", "\\|").replace("\n", " ")
        shown = shown if len(shown) <= 160 else f"{shown[:159]}…"
        row(case.name, shown, f"{time.monotonic() - begun:.1f}")
    print(
        f"\n{len(CASES)} cases: {totals['finding']} findings, {totals['error']} one-line errors, "
        f"{totals['oddity']} usable and noted as odd, {totals['usable']} usable; "
        + ", ".join(f"{totals[kind]} {kind}{'e' * (kind == 'crash')}s" for kind in BAD)
    )
    return not any(totals[kind] for kind in BAD)


def _examine(case: object, params: object, writer: Connection) -> None:
    limit = psutil.Process().memory_info().vms + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch, "data")
        prepare(data, case)
        try:
            writer.send(in_words(data, params, Path(scratch, "scratch")))
        except Exception:  # to be counted is the point
            writer.send(f"traceback: {traceback.format_exc().splitlines()[-1]}")


def _outcome(process: multiprocessing.context.ForkProcess, reader: Connection) -> str:
    answered = reader.poll(LIMIT)
    try:
        outcome = reader.recv() if answered else f"hang: no answer in {LIMIT} s"
    except EOFError:  # it ended without an answer
        outcome = None
    if not answered:
        process.kill()
    process.join()
    return outcome or f"crash: ended with status {process.exitcode}"


def main() -> None:
    """Prints the table that is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", choices=("exactness", "malformed"), default="exactness")
    if parser.parse_args().what == "exactness":
        exactness()
    else:
        sys.exit(not malformed())


if __name__ == "__main__":
    main()
