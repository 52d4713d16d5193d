"""The `tumorseg` command: import data, run the pipeline, compare, serve and predict."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tumorseg.core import environment, experiments
from tumorseg.core.environment import PACKAGED
from tumorseg.core.errors import InputError
from tumorseg.core.params import PackageParams, RegisterParams, load_params
from tumorseg.core.prefect_server import mlflow_ui, prefect_server
from tumorseg.data import dataset

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, rich_markup_mode=None)
data_app = typer.Typer(no_args_is_help=True, help="Put a data set under data/, tracked by DVC.")
app.add_typer(data_app, name="data")

if TYPE_CHECKING:  # MLflow and the readers of NIfTI and DICOM take seconds to import
    from tumorseg.importers import Summary

METRICS = Path("reports/metrics.json")


def main() -> None:
    """Runs the command; a user's mistake or a full disk ends it with one sentence and status 1."""
    try:
        app()
    except InputError as error:
        sys.exit(f"tumorseg: {error}")
    except OSError as error:
        sys.exit(f"tumorseg: {error}; mend that (a full disk: make room), and type the same again")


@app.callback()
def _begin(context: typer.Context) -> None:
    if context.invoked_subcommand != "predict":  # which works anywhere if its model is named
        _check_in_repository()
    environment.set_up()


def _check_in_repository() -> None:
    if not Path("dvc.yaml").exists():
        raise InputError("there is no dvc.yaml here: change to the repository's root")


@app.command()
def run(
    experiment: Annotated[
        str | None,
        typer.Option(help="A set of experiments.yaml, run as a DVC experiment of that name."),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="KEY=VALUE on top of the set; both are written into params.yaml."
        ),
    ] = None,
) -> None:
    """Pull the data, run what is out of date, and end with the comparison table."""
    command = experiments.command(experiment, changes or [])
    with prefect_server() as url:
        print(f"Prefect: {url.removesuffix('/api')}", flush=True)
        if not Path("data").exists():
            dataset.pull()
        code, times = reproduce(command)
    if code:
        sys.exit("tumorseg run: a stage failed; its message is above, and nothing after it ran")
    table()
    bento = json.loads(PACKAGED.read_text())
    print(f"\nserved model: {bento['tag']} (version {bento['version']})")
    print(f"time: {times}")
    print("reports: reports/report.html (comparison), reports/audit.html (data), reports/*.png")
    print("next: `make serve` (http://localhost:3000), `make ui` (MLflow and Prefect),")
    print("      `.venv/bin/tumorseg data use FOLDER` for your own images, then `make run` again")


def reproduce(command: list[str]) -> tuple[int, str]:
    """Runs a `dvc` command; returns its exit status, and the wall time of each stage as a text."""
    begins = {"dvc": time.monotonic()}
    with subprocess.Popen(
        [sys.executable, "-m", "dvc", *command],
        stdout=subprocess.PIPE,  # standard error stays a terminal, for the progress bar
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            if match := re.match(r"Running stage '(.+)'", line):
                begins[match[1]] = time.monotonic()
    ends = [*list(begins.values())[1:], time.monotonic()]
    laps = [f"{name} {end - begins[name]:.0f} s" for name, end in zip(begins, ends, strict=True)]
    return process.returncode, ", ".join(laps)


@app.command()
def table() -> None:
    """Print the comparison on the test split."""
    import pandas as pd

    from tumorseg.evaluation.results import summary

    if not METRICS.exists():
        raise InputError(f"{METRICS}: is missing; type `make run` first")
    strata = pd.read_csv(METRICS.with_name("strata.csv"))
    print("\n" + summary(json.loads(METRICS.read_text()), strata))


@app.command()
def ui() -> None:
    """Show the MLflow and Prefect pages until Ctrl-C."""
    from tumorseg.registry.runs import page

    runs = page(load_params(RegisterParams).experiment)
    with prefect_server() as prefect, mlflow_ui() as mlflow:
        print(f"MLflow   {mlflow}{runs}\nPrefect  {prefect.removesuffix('/api')}")
        print("Ctrl-C ends both.")
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # or both would live on
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            print()


@app.command()
def serve(
    host: Annotated[
        str, typer.Option(help="Address to listen on; beyond this machine only with a key set.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 3000,
) -> None:
    """Serve the champion, packaged first where the bento holds another model."""
    from tumorseg.registry.bento import ensure_current_bento
    from tumorseg.serving.keys import check_reach

    check_reach(host)
    packaged = ensure_current_bento()
    defaults = environment.SERVING | {"TUMORSEG_STATISTICS": str(environment.STATISTICS.resolve())}
    os.environ |= defaults | os.environ
    for name in environment.TRAINING:  # the service gives memory back
        os.environ.pop(name, None)
    command = [sys.executable, "-m", "bentoml", "serve", packaged["tag"], "--host", host]
    # A client that does not read its answer must not keep a stopping service.
    command += ["--port", str(port), "--timeout-graceful-shutdown", "135"]
    os.execv(sys.executable, command)


@app.command()
def predict(
    files: Annotated[
        list[Path], typer.Argument(help="JPEG, PNG, DICOM, NIfTI or zip files, or folders.")
    ],
    output: Annotated[
        Path | None, typer.Option(help="Folder for the masks; beside the files if left out.")
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(help="A running service; without it the packaged champion works here."),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(help="In place of the champion: a folder as src/model of a bento."),
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Probability; the model's own if left out.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace masks.")] = False,
) -> None:
    """Segment FILES and write their masks: NAME_mask.png, NAME_seg.dcm or NAME_mask.nii.gz."""
    from tumorseg.inference import predict as work

    if url and model:
        raise InputError("--model: a service has its own; leave out --model or --url")
    if not (url or model):
        from tumorseg.registry.bento import ensure_current_bento

        _check_in_repository()
        model = work.packaged_model(ensure_current_bento(", or give --url or --model")["tag"])
    if not work.run(files, output, work.choose(model, url, threshold), overwrite=overwrite):
        sys.exit(1)


@app.command()
def rollback(
    to: Annotated[
        str | None,
        typer.Option(help="The version to put back; the champion before this one if left out."),
    ] = None,
    reason: Annotated[str | None, typer.Option(help="Why, for the history.")] = None,
) -> None:
    """Put an earlier champion back and package it."""
    from tumorseg.registry.promotion import roll_back

    start = time.monotonic()
    made, packaged = roll_back(_registry(), load_params(PackageParams), to, reason)
    left = made.champion or {}
    print(f"champion: version {made.before} (sha256 {left.get('digest')}) →", end=" ")
    print(f"version {made.version} (sha256 {made.challenger['digest']})")
    print(f"packaged: {packaged['tag']}, sha256 {packaged['digest']}")
    print(f"took {time.monotonic() - start:.1f} s; a service that runs serves it once restarted")


@app.command()
def package() -> None:
    """Package the champion, where the bento holds another model, and print the bento's tag."""
    from tumorseg.registry.bento import ensure_current_bento

    print(ensure_current_bento()["tag"])


@app.command()
def history() -> None:
    """Show who became champion, when, by whom and why."""
    from tumorseg.registry import decisions, versions

    name = _registry().model_name
    made = decisions.history(name)
    if not made:
        raise InputError("nothing has been decided yet: `make run` registers a first model")
    champion = versions.champion(name)
    print("| when (UTC) | who | what | champion | why |")
    print("|---|---|---|---|---|")
    for one in made:
        move = f"{one.before or 'none'} → {one.serving}" if one.moves else f"{one.before} stays"
        when = f"{datetime.fromisoformat(one.when):%Y-%m-%d %H:%M:%S}"
        cells = [when, one.who, f"{one.decision} {one.version}", move, one.why]
        plain = [" ".join(cell.split()).replace("|", "\\|") for cell in cells]
        print(f"| {' | '.join(plain)} |")
    now = None if champion is None else str(champion.version)
    if now != made[-1].serving:
        print(f"the champion is {now or 'none'}: the last decision was not carried out, or undone")


def _registry() -> RegisterParams:
    """The register section, once MLflow is known to answer."""
    from tumorseg.registry.runs import unreachable

    target = load_params(RegisterParams)
    if reason := unreachable():
        raise InputError(f"no MLflow ({reason}): type `make run`, or set MLFLOW_TRACKING_URI")
    return target


@app.command()
def env() -> None:
    """Print the environment of a run, for `eval "$(tumorseg env)"`."""
    for name in ("PATH", *environment.defaults(Path.cwd())):
        print(f"export {name}={shlex.quote(os.environ[name])}")


@data_app.command("use")
def data_use(
    folder: Path,
    format_: Annotated[
        str, typer.Option("--format", help="auto, coco, masks, nifti, dicom or matlab.")
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
    groups: Annotated[
        Path | None,
        typer.Option(help="CSV file: slice number or file name, patient; with a line of titles."),
    ] = None,
) -> None:
    """Import FOLDER (COCO, images with masks, NIfTI, DICOM with SEG, or MATLAB) to data/."""
    from tumorseg.importers import Options, plan
    from tumorseg.importers.use import use

    kind = None if format_ == "auto" else format_
    options = Options(axis=axis, slices=slices, modality=modality)
    if dry_run:
        print(plan(folder, kind, options, groups))
    else:
        _report(use(folder, kind=kind, options=options, groups=groups))


@data_app.command("labels")
def data_labels(
    folder: Path,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only compare.")] = False,
) -> None:
    """Put the COCO labels in FOLDER's train/, valid/ and test/ on the same images."""
    from tumorseg.data import labels

    print("the present labels, compared with those of", folder)
    print(labels.table(labels.compare_labels(folder, Path("data"))))
    print("A perfect model of the present labels would reach these figures on the others.")
    if not dry_run:
        labels.use_labels(folder)
        print("data/ now has the other labels, recorded in data.dvc.")
        print("next: `make run`; `dvc metrics diff` and `dvc plots diff` show what it changed;")
        print("      `git add data.dvc dvc.lock reports && git commit` keeps it as a version")


@data_app.command("phantom")
def data_phantom(
    seed: Annotated[int, typer.Option(min=0, help="Another seed makes other images.")] = 0,
) -> None:
    """Make the phantom set anew and put it under data/."""
    from tumorseg.data.phantom import make_phantom
    from tumorseg.importers.use import use

    with tempfile.TemporaryDirectory(dir=environment.STATE) as scratch:
        make_phantom(Path(scratch, "data"), seed=seed)
        _report(use(Path(scratch, "data")))


@data_app.command("pull")
def data_pull() -> None:
    """Fetch the data version that data.dvc names from DVC's remote."""
    dataset.pull()


@data_app.command("kaggle")
def data_kaggle() -> None:
    """Download the published brain-tumour set from Kaggle and put it under data/."""
    from tumorseg.importers.use import download_from_kaggle, use

    _report(use(download_from_kaggle()))


def _report(summary: "Summary") -> None:
    print(summary)
    print(f"data/ now holds {summary.images} images, recorded in data.dvc.")
    print("next: `make run`; then `git commit data.dvc` keeps this version")


if __name__ == "__main__":
    main()
