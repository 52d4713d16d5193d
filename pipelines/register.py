"""register: figures → MLflow; the winner → ONNX → a version in the registry, a candidate."""

import json
import tempfile
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd

from pipelines._flow import command, stage, step
from pipelines._paths import CANDIDATE, REPORTS, TRAINED
from tumorseg.core.errors import InputError
from tumorseg.core.files import write_json
from tumorseg.core.params import EvaluateParams, RegisterParams, TrainParams, load_params
from tumorseg.data.arrays import load_slices
from tumorseg.data.manifest import load_manifest
from tumorseg.data.splits import fingerprint
from tumorseg.monitoring.drift import FILE, reference
from tumorseg.monitoring.ood import describe
from tumorseg.registry import runs, versions
from tumorseg.registry.export import export_onnx, parity
from tumorseg.training.predict_split import load_network

ATTACHED = (
    "metrics.json",
    "per_slice.csv",
    "strata.csv",
    "calibration.csv",
    "curves.png",
    "comparison.png",
    "predictions.png",
    "report.html",
    "model_card.md",
    "data_card.md",
)


@stage(name="register")
def register() -> None:
    """Completes the runs in MLflow and registers the winner on the validation split."""
    params, training = load_params(RegisterParams), load_params(TrainParams)
    figures = json.loads((REPORTS / "metrics.json").read_text())
    trained = {
        name: json.loads((TRAINED / name / "run.json").read_text())["run_id"]
        for name in figures["runs"]
    }
    for name, found in figures["runs"].items():
        network = name.rpartition("-")[0]
        metrics = {f"{s}_{key}": v for s in ("valid", "test") for key, v in found[s].items()}
        metrics |= {f"over_seeds_test_{key}": v for key, v in figures["test"][network].items()}
        metrics |= {f"test_copy_{key}": v for key, v in figures["test"]["copy"].items()}
        tags = {
            "winner": str(network == figures["winner"]),
            "split": figures["split"]["method"],
            "recipe": runs.recipe(),
        }
        files = [TRAINED / name / "weights.safetensors", *(REPORTS / file for file in ATTACHED)]
        step(runs.complete_run, retries=2)(trained[name], metrics, tags, files)

    winner, chosen = figures["winner"], f"{figures['winner']}-{figures['winner_seed']}"
    network = load_network(
        winner, training, TRAINED / chosen / "weights.safetensors", load_params(EvaluateParams)
    )
    images = load_slices("valid").images
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        step(export_onnx)(network, images.shape[-1], folder / "model.onnx")
        difference = step(parity)(network, folder / "model.onnx", images[:16])
        if not difference <= params.parity_tolerance:  # also where it is not a number
            raise InputError(
                f"ONNX and PyTorch differ by {difference:.1e} in probability, more than "
                f"register.parity_tolerance {params.parity_tolerance:.1e} in params.yaml; "
                "nothing was registered"
            )
        print(f"ONNX Runtime and PyTorch agree within {difference:.1e} in probability")
        inputs = step(describe)(load_slices("train").images, images)
        lineage = runs.lineage()
        copy = {"copy_mean_dice": figures["test"]["copy"]["mean_dice"]}
        write_json(
            folder / "model.json",
            {
                "name": params.model_name,
                "version": "candidate",
                "run_id": trained[chosen],
                "digest": versions.digest_of(folder / "model.onnx"),
                "architecture": winner,
                "image_size": images.shape[-1],
                "threshold": figures["thresholds"][chosen],
                "data_md5": lineage["data_md5"],
                "git_sha": lineage["git_sha"],
                "split": figures["split"],
                "validation": figures["runs"][chosen]["valid"],
                "test": figures["runs"][chosen]["test"] | copy,
                # Tells promote whether a later test set is the same.
                "test_set": fingerprint(load_manifest().query("split == 'test'")),
                "inputs": inputs,
            },
        )
        write_json(folder / FILE, step(looks)(winner, figures["winner_seed"], inputs["side"]))
        step(runs.complete_run, retries=2)(trained[chosen], {}, {}, [folder / FILE])
        version = step(versions.register, retries=2)(folder, params.model_name)
        info = json.loads((folder / "model.json").read_text())
    keys = ("version", "run_id", "digest", "architecture")
    write_json(CANDIDATE, {key: info[key] for key in keys})
    print(f"{chosen} is version {version}, sha256 {info['digest']}")


def looks(network: str, seed: int, side: int) -> dict[str, Any]:
    """The reference that the drift flow will compare served slices with."""
    manifest = load_manifest()
    images = chain.from_iterable(load_slices(split).images for split in ("train", "valid"))
    groups = pd.concat(
        [manifest.loc[manifest["split"] == s, "split_group"] for s in ("train", "valid")]
    )
    scored = pd.read_csv(REPORTS / "per_slice.csv")
    scored = scored.query("split == 'valid' and method == @network and seed == @seed")
    found = (scored["tp"] + scored["fp"]) / scored[["tp", "fp", "fn", "tn"]].sum(axis=1)
    return reference(images, groups, side, found, scored["group"])


if __name__ == "__main__":
    command(register)
