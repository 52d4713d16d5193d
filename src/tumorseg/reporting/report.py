"""A finished comparison in writing: the report, one HTML file, and the cards of model and data.

The model card follows Mitchell et al. 2019 (https://arxiv.org/abs/1810.03993), the data card
Gebru et al. 2021 (https://arxiv.org/abs/1803.09010).
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from tumorseg.core.files import atomic_path
from tumorseg.data.audit import PERCENTILES
from tumorseg.data.coco import ANNOTATIONS, SPLITS, read_json
from tumorseg.data.leakage import neighbours_elsewhere
from tumorseg.data.shapes import RECTANGLE_FILL
from tumorseg.data.splits import EXCLUDED
from tumorseg.evaluation.paired import FEWEST_GROUPS, Difference
from tumorseg.evaluation.results import TITLES, verdicts
from tumorseg.evaluation.strata import FEWEST, differences
from tumorseg.reporting import figures
from tumorseg.reporting.report_data import ReportData, caveats, histories, limits, over_seeds
from tumorseg.reporting.wording import fill

PAIR = ("attention_unet", "unet")
SHOWN = ("unet", "attention_unet", "copy")


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
    """Everything that report.html names."""
    return {
        "figures": report.figures,
        "titles": TITLES,
        "short": {name: title.removeprefix("baseline: ") for name, title in TITLES.items()},
        "shown": [name for name in SHOWN if name in report.figures["test"]],
        "lineage": report.lineage,
        "sides": report.split["slices"],
        "verdicts": verdicts(report.figures),
        "caveats": caveats(report),
        "seeds": {name: report.seeds(name) for name in report.networks},
        "shown_seeds": {name: report.shown_seed(name) for name in report.networks},
        "strata": report.strata.to_dict("records"),
        "charts": _charts(report),
        "worst": figures.worst_cases(report),
        "attention": figures.attention_cases(report),
        "gated_seed": report.gated_seed,
        "colour_bar": figures.colour_bar(),
        "runs": [training.run for training in report.trainings],
        "params_of": report.params["train"],
        "params": yaml.safe_dump(report.params, sort_keys=False, allow_unicode=True),
    } | _paired(report)


def _paired(report: ReportData) -> dict[str, Any]:
    scored = over_seeds(report.test)
    scored = scored[scored["method"].isin(PAIR)]
    section = report.params["evaluate"]
    bootstrap = int(section["bootstrap_samples"]), int(section["seed"])
    rows, skipped = differences(report.test, *PAIR, *bootstrap)
    found = Difference(**report.figures["paired"]["-".join(PAIR)])
    dice = scored.pivot(index="path", columns="method", values="dice")
    gaps = dice[PAIR[0]] - dice[PAIR[1]]
    return {
        "higher": int((gaps > 0).sum()),
        "lower": int((gaps < 0).sum()),
        "equal": int((gaps == 0).sum()),
        "skipped": skipped,
        "fewest": FEWEST,
        "fewest_groups": FEWEST_GROUPS,
        "scatter": figures.scatter(scored, PAIR[1], PAIR[0]),
        "histogram": figures.histogram(scored, *PAIR, found),
        "forest": figures.forest(rows, found, *PAIR) if len(rows) else None,
    }


def _charts(report: ReportData) -> dict[str, str | None]:
    near = report.calibration[report.calibration["region"] == "near"]
    shown = [name for name in SHOWN if name in set(report.strata["method"])]
    return {
        "training": figures.svg_url(figures.training_curves(histories(report.trainings))),
        "reliability": figures.reliability(near) if len(near) else None,
        "strata": figures.strata_dots(report.strata, shown) if len(report.strata) else None,
    }


def model_values(report: ReportData) -> dict[str, Any]:
    """Everything that model_card.md names."""
    winner, seed = report.figures["winner"], report.figures["winner_seed"]
    runs = [training.run for training in report.trainings]
    (chosen,) = (run for run in runs if (run["network"], run["seed"]) == (winner, seed))
    return {
        "figures": report.figures,
        "titles": TITLES,
        "networks": report.networks,
        "registered": report.figures["runs"][f"{winner}-{seed}"],
        "threshold": report.params["evaluate"]["threshold"],
        "run": chosen,
        "runs": runs,
        "section": report.params["train"],
        "augment": report.params["augment"],
        "lineage": report.lineage,
        "sides": report.split["slices"],
        "verdicts": verdicts(report.figures),
        "strata": report.strata[report.strata["method"] == winner].to_dict("records"),
        "limits": caveats(report) + limits(report),
        "environment": report.environment,
    }


def data_values(report: ReportData) -> dict[str, Any]:
    """Everything that data_card.md names."""
    usable = report.usable.reset_index(drop=True)
    usable = usable.assign(neighbour_in_train=neighbours_elsewhere(usable, ("train",)))
    sizes = usable["width"].astype(str) + "×" + usable["height"].astype(str)
    return {
        "lineage": report.lineage,
        "split": report.split,
        "audit": report.audit,
        "failed": [finding for finding in report.audit["findings"] if not finding["success"]],
        "passed": sum(finding["success"] for finding in report.audit["findings"]),
        "params": report.params,
        "source": recorded_source(report.data),
        "listed": report.audit["images"],
        "usable": len(usable),
        "unnamed": int(usable["group"].isna().sum()),
        "patients": usable["group"].nunique(),
        "numbered": int(usable["slice_number"].notna().sum()),
        "spacings": _counts(usable["spacing_mm"].value_counts()),
        "sizes": _counts(sizes.value_counts().head(5)),
        "other_sizes": max(sizes.nunique() - 5, 0),
        "annotations": _counts(usable["annotations"].value_counts().sort_index()),
        "percentiles": PERCENTILES,
        "sides": [
            _split_counts(usable[usable["split"] == name], name)
            for name in (*SPLITS, EXCLUDED)
            if (usable["split"] == name).any()
        ],
        "categories": sorted(set(usable["categories"])),
        "rectangles": int((usable["box_fill"] >= RECTANGLE_FILL).sum()),
        "labelled": int(usable["box_fill"].notna().sum()),
    }


def _counts(counted: pd.Series) -> dict[str, int]:
    return {str(value): int(number) for value, number in counted.items()}


def _split_counts(rows: pd.DataFrame, name: str) -> dict[str, Any]:
    """The counts of one split, given its rows of the manifest with `neighbour_in_train`."""
    tumour = rows.loc[rows["tumour_fraction"] > 0, "tumour_fraction"]
    sizes = np.percentile(tumour, PERCENTILES) if len(tumour) else [None] * len(PERCENTILES)
    leaks = ("neighbour_in_train", "near_duplicate_elsewhere", "duplicate_elsewhere")
    return {
        "name": name,
        "slices": len(rows),
        "groups": int(rows["split_group"].nunique()),
        "without_tumour": int((rows["tumour_fraction"] == 0).sum()),
        "categories": _counts(rows["categories"].value_counts()),
        "sizes": dict(zip(PERCENTILES, sizes, strict=True)),
    } | {leak: int(rows[leak].sum()) for leak in leaks}


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
        parts = {"info": [document.get("info")], "licence": document.get("licenses")}
        for part, entries in parts.items():
            for entry in entries if isinstance(entries, list) else []:
                for key, value in entry.items() if isinstance(entry, dict) else []:
                    known = found.setdefault(f"{part} {key}", [])
                    if key != "id" and str(value).strip() and str(value) not in known:
                        known.append(str(value))
    return {key: values for key, values in found.items() if values}
