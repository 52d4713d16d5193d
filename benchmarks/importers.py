"""How exactly masks survive each importer: `python benchmarks/importers.py` prints the table."""

import sys
import tempfile
from pathlib import Path


def main() -> None:
    """Builds each sample, imports it, and compares what is read back with what was built."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.samples import SAMPLES, least_iou
    from tumorseg.importers import import_folder

    print("| importer | sample | slices | groups | IoU min |\n|---|---|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as scratch:
        for number, (title, (kind, build)) in enumerate(SAMPLES.items()):
            sample = build(Path(scratch, f"{number}-source"))
            written = Path(scratch, f"{number}-written")
            summary = import_folder(sample.folder, written, options=sample.options)
            assert summary.kind == kind
            groups = summary.groups or "not known"
            worst = f"{least_iou(sample, written):.4f}"
            print(f"| {kind} | {title} | {summary.images} | {groups} | {worst} |")


if __name__ == "__main__":
    main()
