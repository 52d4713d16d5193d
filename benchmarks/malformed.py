"""What comes of malformed inputs: `python benchmarks/malformed.py` prints the table.

Each input is examined in a process of its own, so that a crash in a library or a loop without end
is counted rather than suffered. The exit status is 1 after any of these, or a traceback.
"""

import multiprocessing
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path

LIMIT = 60  # seconds
MEMORY = 8 * 2**30  # bytes of address space beyond what a process starts with
BAD = ("traceback", "hang", "crash")


def main() -> None:
    """Examines every case and prints a line on each, then totals."""
    root = Path(__file__).parents[1]
    sys.path.insert(0, str(root))
    from tests.malformed import CASES
    from tumorseg.core.params import ValidateParams, load_params

    params = load_params(ValidateParams, root / "params.yaml").model_copy(update={"min_side": 32})
    context = multiprocessing.get_context("fork")  # the libraries are imported once
    totals: Counter[str] = Counter()
    print("| input | outcome | seconds |\n|---|---|--:|")
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
        print(f"| {case.name} | {shown} | {time.monotonic() - begun:.1f} |", flush=True)
    print(
        f"\n{len(CASES)} cases: {totals['finding']} findings, {totals['error']} one-line errors, "
        f"{totals['oddity']} usable and noted as odd, {totals['usable']} usable; "
        + ", ".join(f"{totals[kind]} {kind}{'e' * (kind == 'crash')}s" for kind in BAD)
    )
    sys.exit(any(totals[kind] for kind in BAD))


def _examine(case: object, params: object, writer: Connection) -> None:
    import resource
    import traceback

    from tests.malformed import in_words, prepare

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
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
    except EOFError:  # it went without a word
        outcome = None
    if not answered:
        process.kill()
    process.join()
    return outcome or f"crash: ended with status {process.exitcode}"


if __name__ == "__main__":
    main()
