"""A finished comparison in writing: the report, one HTML file, and the cards of model and data.

The model card follows Mitchell et al. 2019 (https://arxiv.org/abs/1810.03993), the data card
Gebru et al. 2021 (https://arxiv.org/abs/1803.09010).
"""

from importlib.metadata import metadata, version
from pathlib import Path
from platform import python_version
from typing import Any

import numpy as np
import pandas as pd
import yaml

from tumorseg.core.files import atomic_path
from tumorseg.core.params import NETWORKS
from tumorseg.data.audit import PERCENTILES
from tumorseg.data.coco import ANNOTATIONS, SPLITS, read_json
from tumorseg.data.shapes import RECTANGLE_FILL
from tumorseg.data.splits import EXCLUDED, NO_PATIENTS
from tumorseg.evaluation.metrics import group_name
from tumorseg.evaluation.paired import FEWEST_GROUPS
from tumorseg.evaluation.results import TITLES, fold_table, rests_on, verdicts
from tumorseg.reporting import figures
from tumorseg.reporting.report_data import LEAKS, ReportData, caveats, limits, over_seeds
from tumorseg.reporting.wording import fill

SHOWN = ("unet", "attention_unet", "ensemble", "copy")
PACKAGES = ("torch", "lightning", "albumentations", "numpy", "onnxruntime")


def write_report(report: ReportData, path: Path) -> None:
    """Writes the report as one HTML file that needs nothing else."""
    _write(fill("report.html", page_values(report)), path)


def write_cards(report: ReportData, model: Path, data: Path) -> None:
    """Writes the cards of the model and of the data as Markdown."""
    _write(fill("model_card.md", model_values(report)), model)
    _write(fill("data_card.md", data_values(report)), data)


def _write(text: str, path: Path) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def page_values(report: ReportData) -> dict[str, Any]:
    """The variables of report.html."""
    dice = over_seeds(report.test)
    gaps = dice["attention_unet"] - dice["unet"]
    near = report.calibration[report.calibration["region"] == "near"]
    return vars(report) | {
        "titles": TITLES,
        **group_words(report),
        "short": {name: title.removeprefix("baseline: ") for name, title in TITLES.items()},
        "networks": NETWORKS,
        "shown": SHOWN,
        "verdicts": verdicts(report.figures),
        "caveats": caveats(report),
        "fewest_groups": FEWEST_GROUPS,
        "higher": int((gaps > 0).sum()),
        "lower": int((gaps < 0).sum()),
        "equal": int((gaps == 0).sum()),
        "strata": report.strata.to_dict("records"),
        "folds": folds(report.crossvalidation),
        "charts": {
            "scatter": figures.svg_url(figures.scatter(dice, "unet", "attention_unet")),
            "training": figures.svg_url(figures.training_curves(report.histories)),
            "reliability": figures.svg_url(figures.reliability(near)),
            "strata": figures.svg_url(figures.strata_dots(report.strata, SHOWN)),
        },
        "worst": figures.worst_cases(report),
        "attention": figures.attention_cases(report),
        "parameters": yaml.safe_dump(report.params, sort_keys=False, allow_unicode=True),
    }


def folds(crossvalidation: dict[str, Any] | None) -> dict[str, Any] | None:
    """What the section on cross-validation shows, if there was one."""
    if crossvalidation is None:
        return None
    dice = fold_table(crossvalidation)
    return crossvalidation | {
        "methods": list(dice),
        "rows": dice.T.to_dict(),
        "rests_on": rests_on(crossvalidation, "test"),
        "verdicts": verdicts(crossvalidation),
    }


def group_words(report: ReportData) -> dict[str, Any]:
    """What both pages call the groups, and how much the figures of each split rest on."""
    return {
        "group": group_name(report.figures["split"]["patients_known"]),
        "rests_on": {split: rests_on(report.figures, split) for split in ("valid", "test")},
    }


def model_values(report: ReportData) -> dict[str, Any]:
    """The variables of model_card.md."""
    winner, seed = report.figures["winner"], report.figures["winner_seed"]
    chosen = next(r for r in report.runs if (r["network"], r["seed"]) == (winner, seed))
    return vars(report) | {
        "titles": TITLES,
        **group_words(report),
        "registered": report.figures["runs"][f"{winner}-{seed}"],
        "run": chosen,
        "verdicts": verdicts(report.figures),
        "strata": report.strata[report.strata["method"] == winner].to_dict("records"),
        "limits": caveats(report) + limits(report),
        "environment": {"Python": python_version()}
        | {name: version(name) for name in PACKAGES}
        | {"licence of the code": metadata("tumorseg")["License-Expression"]},
    }


def data_values(report: ReportData) -> dict[str, Any]:
    """The variables of data_card.md."""
    usable = report.usable
    sizes = usable["width"].astype(str) + "×" + usable["height"].astype(str)
    by_split = {name: usable[usable["split"] == name] for name in (*SPLITS, EXCLUDED)}
    return vars(report) | {
        "failed": [finding for finding in report.audit["findings"] if not finding["success"]],
        "passed": sum(finding["success"] for finding in report.audit["findings"]),
        "source": recorded_source(report.data),
        "usable": len(usable),
        "unnamed": int(usable["group"].isna().sum()),
        "patients": usable["group"].nunique(),
        "no_patients": NO_PATIENTS,
        "numbered": int(usable["slice_number"].notna().sum()),
        "spacings": usable["spacing_mm"].value_counts().to_dict(),
        "sizes": sizes.value_counts().head(5).to_dict(),
        "other_sizes": max(sizes.nunique() - 5, 0),
        "annotations": usable["annotations"].value_counts().sort_index().to_dict(),
        "percentiles": PERCENTILES,
        "splits": {name: _counts(rows) for name, rows in by_split.items() if len(rows)},
        "rectangles": int((usable["box_fill"] >= RECTANGLE_FILL).sum()),
        "labelled": int(usable["box_fill"].notna().sum()),
    }


def _counts(rows: pd.DataFrame) -> dict[str, Any]:
    """The counts of one split, given its rows of the manifest."""
    tumour = rows.loc[rows["tumour_fraction"] > 0, "tumour_fraction"]
    sizes = np.percentile(tumour, PERCENTILES) if len(tumour) else [None] * len(PERCENTILES)
    return {
        "slices": len(rows),
        "groups": rows["split_group"].nunique(),
        "without_tumour": int((rows["tumour_fraction"] == 0).sum()),
        "categories": rows["categories"].value_counts().to_dict(),
        "sizes": sizes,
    } | {leak: int(rows[leak].sum()) for leak in LEAKS}


def recorded_source(data: Path) -> dict[str, list[str]]:
    """What the annotation files record of the data's origin.

    Args:
        data: Holds a folder a split.

    Returns:
        Field of COCO's `info` and `licenses` → its values in the splits, each once.
    """
    found: dict[str, list[str]] = {}
    for split in SPLITS:
        document = read_json(data / split / ANNOTATIONS)
        entries = [("info", document.get("info") or {})]
        entries += [("licence", licence) for licence in document.get("licenses") or []]
        for part, entry in entries:
            for key, value in entry.items():
                known = found.setdefault(f"{part} {key}", [])
                if key != "id" and str(value).strip() and str(value) not in known:
                    known.append(str(value))
    return {key: values for key, values in found.items() if values}
