"""A finished comparison on the phantom's few slices, built by hand for the report and the cards."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml

from tests.conftest import REPOSITORY
from tumorseg.core.params import NetworkParams, SplitParams
from tumorseg.data import coco
from tumorseg.data.audit import audit
from tumorseg.data.coco import SPLITS
from tumorseg.data.leakage import find_pairs, mark_leaks
from tumorseg.evaluation.metrics import count, score
from tumorseg.evaluation.paired import comparisons
from tumorseg.reporting.report_data import ReportData
from tumorseg.training.networks import build_network

# Pixels by which each method's masks are off, for each seed.
SHIFTS = {"unet": (2, 4), "attention_unet": (0, 1), "ensemble": (3,), "copy": (30,)}
SHIFTS |= {"intensity": (25,)}
METHODS = (*SHIFTS, "background")


def per_slice(manifest: pd.DataFrame) -> pd.DataFrame:
    """The table of the data contract: the true masks, shifted."""
    rows = []
    for row in manifest[manifest["split"].isin(["valid", "test"])].itertuples():
        truth = coco.decode(row.mask_rle, row.height, row.width)
        for method in METHODS:
            network = "unet" in method
            if row.split == "valid" and method not in METHODS[:3]:
                continue
            for seed, shift in enumerate(SHIFTS.get(method, (0,))):
                mask = np.roll(truth, shift, axis=1) & (method != "background")
                undefined = row.split == "valid" or not (mask.any() and truth.any())
                rows.append(
                    {"method": method, "seed": seed if network else pd.NA, "split": row.split}
                    | {"path": row.path, "group": row.split_group, "category": row.categories}
                    | count(mask, truth)
                    | {"hd95": float("nan") if undefined else float(shift)}
                    | {"surface_dice": float("nan") if undefined else 1 / (1 + shift)}
                    | {"mask_rle": coco.encode(mask), "truth_rle": row.mask_rle}
                )
    return score(pd.DataFrame(rows)).astype({"seed": "Int64"})


def made_up(slices: pd.DataFrame) -> dict:
    """metrics.json with figures that no two methods share, so that a mix-up shows."""
    figures: dict = {"split": {"method": "official", "digest": "5p11t" * 12}}
    figures["split"]["patients_known"] = False
    names = ("micro_dice", "micro_iou", "accuracy", "micro_sensitivity", "micro_precision")
    names += ("micro_dice_low", "micro_dice_high")
    names += ("mean_dice", "mean_dice_low", "mean_dice_high")
    names += ("mean_iou", "mean_iou_low", "mean_iou_high", "detection_rate", "share_dice_zero")
    names += ("mean_dice_by_patient", "mean_dice_by_patient_low", "mean_dice_by_patient_high")
    more = ("mean_hd95", "mean_hd95_low", "mean_hd95_high", "mean_surface_dice")
    more += ("mean_surface_dice_low", "mean_surface_dice_high")
    more += ("lesion_sensitivity", "lesion_precision", "lesion_f1")
    for split, methods in (("valid", METHODS[:3]), ("test", METHODS)):
        figures[split] = {}
        for place, method in enumerate(methods):
            wanted = names + more if split == "test" else names
            values = {name: 0.9 - 0.1 * place - 0.003 * i for i, name in enumerate(wanted)}
            seeds = len(SHIFTS.get(method, "x"))
            figures[split][method] = values | {"slices": 5, "groups": 4, "seeds": seeds}
            if split == "test":
                figures[split][method] |= {"hd95_undefined": place, "surface_dice_undefined": place}
                if place < 3:  # it has probabilities
                    figures[split][method] |= {"ece": 0.01 + place, "ece_near": 0.077 + place}
    none = dict.fromkeys(("mean_hd95", "mean_hd95_low", "mean_hd95_high"), float("nan"))
    figures["test"]["background"] |= none | {"lesion_precision": None}
    pairs = [("attention_unet", "unet"), ("unet", "copy"), ("attention_unet", "copy")]
    return figures | {
        "thresholds": {"ensemble": 0.5}
        | {f"{name}-{seed}": 0.5 - 0.05 * seed for name in METHODS[:2] for seed in (0, 1)},
        "distances": {"unit": "pixels", "tolerance": 2},
        "runs": {
            f"{name}-{seed}": {s: figures[s][name] | {"seeds": 1} for s in ("valid", "test")}
            for name in METHODS[:2]
            for seed in (0, 1)
        },
        "paired": comparisons(slices[slices["split"] == "test"], pairs, 50, 0),
        "winner": "attention_unet",
        "winner_seed": 1,
    }


def make_report_data(workplace: dict, data: Path, folder: Path) -> ReportData:
    """The whole: two networks with two seeds each, and the three baselines.

    Args:
        workplace: The fixture.
        data: The phantom.
        folder: For a file that is needed on the way.
    """
    np.save(folder / "small.npy", workplace["thumbnails"])
    pairs = find_pairs(workplace["manifest"], folder / "small.npy", 0.95)
    manifest = mark_leaks(workplace["manifest"], pairs, SPLITS)
    slices = per_slice(manifest)
    strata = pd.DataFrame(
        {"by": by, "stratum": name, "method": method, "slices": 2, "groups": 1, "mean_dice": 0.5}
        | {"mean_dice_low": 0.4, "mean_dice_high": 0.6, "mean_dice_by_patient": 0.55}
        | {"micro_dice": 0.5, "share_dice_zero": float("nan") if name == "none" else 0.25}
        | {"lesion_sensitivity": float("nan") if name == "none" else 0.5}
        for by, name in (("size", "small"), ("size", "none"), ("category", "glioma"))
        for method in METHODS
    )
    edges = np.linspace(0, 1, 6)
    calibration = pd.DataFrame(
        {"method": method, "low": low, "high": high, "pixels": 100, "region": region}
        | {"mean_probability": (low + high) / 2, "tumour_fraction": low}
        for method in METHODS[:3]
        for region in ("all", "near")
        for low, high in pairwise(edges)
    )
    runs = [
        {"network": name, "seed": seed, "parameters": 1234 + seed, "epochs": 3 + seed}
        | {"best_epoch": 2, "val_loss": 0.5, "val_dice": 0.6, "images_per_second": 7.5}
        | {"seconds": 240.0, "device": "cpu", "hardware": "a <b>CPU</b>", "precision": "32"}
        | {"deterministic": True, "weights_digest": f"{seed}abc" * 16, "run_id": None}
        for name in METHODS[:2]
        for seed in (0, 1)
    ]
    histories = pd.DataFrame(
        {"network": run["network"], "seed": run["seed"], "epoch": epoch, "train_loss": 0.6}
        | {"val_loss": 0.7, "val_dice": 0.5, "learning_rate": 0.01}
        for run in runs
        for epoch in range(1, run["epochs"] + 1)
    )
    params = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    torch.manual_seed(0)
    gated = build_network(
        "attention_unet",
        NetworkParams(encoder="plain", channels=[4, 8, 16], norm="batch", space_to_depth=1),
    )
    return ReportData(
        figures=made_up(slices),
        slices=slices,
        strata=strata,
        calibration=calibration,
        runs=runs,
        histories=histories,
        manifest=manifest,
        audit=audit(manifest, pairs, workplace["thumbnails"], [], SplitParams(**params["split"])),
        split={"method": "official", "digest": "5p11t" * 12, "groups": 3, "excluded": 0}
        | {"groups_divided": 0, "slices": {"train": 12, "valid": 5, "test": 5}}
        | {"patients_known": False},
        params=params,
        lineage={"git_sha": "c0de" * 10, "data_md5": "da7a.dir", "lock_digest": "10cc" * 16},
        data=data,
        gated=gated.eval(),
        crossvalidation=None,
    )
