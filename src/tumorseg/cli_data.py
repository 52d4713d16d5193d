"""The `tumorseg data` commands: put a data set in place."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tumorseg.core import environment
from tumorseg.data import dataset

if TYPE_CHECKING:  # the readers of NIfTI and DICOM take seconds to import
    from tumorseg.importers import Summary

app = typer.Typer(no_args_is_help=True, help="Put a data set under data/, tracked by DVC.")


@app.command("use")
def use(
    folder: Path,
    format_: Annotated[
        str, typer.Option("--format", help="auto, coco, masks, nifti or dicom.")
    ] = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would happen.")] = False,
    axis: Annotated[
        str,
        typer.Option(
            help="Slices of volumes: axial, coronal, sagittal, or auto (axial unless another "
            "axis is by far the coarsest, as the service cuts them)."
        ),
    ] = "auto",
    slices: Annotated[
        str, typer.Option(help="Slices of volumes: all, tumour (labelled ones) or every:N.")
    ] = "all",
    modality: Annotated[
        str | None, typer.Option(help="Which of a patient's volumes, such as t1ce or 0001.")
    ] = None,
) -> None:
    """Import FOLDER (COCO, images with masks, NIfTI, or DICOM with SEG) to data/."""
    from tumorseg.importers import Options, plan

    kind = None if format_ == "auto" else format_
    options = Options(axis=axis, slices=slices, modality=modality)
    if dry_run:
        print(plan(folder, kind, options))
    else:
        _report(dataset.use(folder, kind=kind, options=options))


@app.command("labels")
def labels(
    folder: Path,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only compare.")] = False,
) -> None:
    """Put the COCO labels in FOLDER's train/, valid/ and test/ on the same images."""
    from tumorseg.data import labels

    print("the present labels, judged by those of", folder)
    print(labels.table(labels.compare_labels(folder, Path("data"))))
    print("A perfect model of the present labels would reach these figures, judged by the others.")
    if not dry_run:
        labels.use_labels(folder)
        print("data/ now has the other labels, recorded in data.dvc.")
        print("next: `make run`; `dvc metrics diff` and `dvc plots diff` show what it changed;")
        print("      `git add data.dvc dvc.lock reports && git commit` keeps it as a version")


@app.command("phantom")
def phantom(
    seed: Annotated[int, typer.Option(help="Another seed makes other images.")] = 0,
) -> None:
    """Make the phantom set anew and put it under data/."""
    from tumorseg.data.phantom import make_phantom

    _from_scratch(lambda folder: make_phantom(folder, seed=seed))


@app.command("pull")
def pull() -> None:
    """Fetch the data version that data.dvc names from DVC's remote."""
    dataset.pull()


@app.command("kaggle")
def kaggle() -> None:
    """Download the published brain-tumour set from Kaggle and put it under data/."""
    _report(dataset.use(dataset.download_from_kaggle()))


def _from_scratch(make: Callable[[Path], None]) -> None:
    with tempfile.TemporaryDirectory(dir=environment.STATE) as scratch:
        folder = Path(scratch, "data")
        make(folder)
        _report(dataset.use(folder))


def _report(summary: "Summary") -> None:
    print(summary)
    print(f"data/ now holds {summary.images} images, recorded in data.dvc.")
    print("next: `make run`; then `git commit data.dvc` keeps this version")
