"""The comparison as one HTML file that needs nothing else."""

from pathlib import Path
from typing import Any

import yaml

from tumorseg.core.files import atomic_path
from tumorseg.evaluation.paired import FEWEST_GROUPS, Difference
from tumorseg.evaluation.results import TITLES, verdicts
from tumorseg.evaluation.strata import FEWEST, differences
from tumorseg.reporting import charts
from tumorseg.reporting.caveats import caveats
from tumorseg.reporting.inputs import ReportInputs, networks_of, over_seeds
from tumorseg.reporting.pictures import attention_cases, colour_bar, worst_cases
from tumorseg.reporting.wording import fill

PAIR = ("attention_unet", "unet")
SHOWN = ("unet", "attention_unet", "copy")


def write_report(inputs: ReportInputs, path: Path) -> None:
    """Writes the page.

    Args:
        inputs: A finished comparison.
        path: The HTML file.
    """
    text = fill("report.html", page_values(inputs))
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def page_values(inputs: ReportInputs) -> dict[str, Any]:
    """Everything that report.html names."""
    figures = inputs.figures
    return {
        "figures": figures,
        "titles": TITLES,
        "short": {name: title.removeprefix("control: ") for name, title in TITLES.items()},
        "shown": [name for name in SHOWN if name in figures["test"]],
        "lineage": inputs.lineage,
        "sides": inputs.split["slices"],
        "verdicts": verdicts(figures),
        "caveats": caveats(inputs),
        "seeds": {name: inputs.seeds(name) for name in networks_of(inputs)},
        "shown_seeds": {name: inputs.shown_seed(name) for name in networks_of(inputs)},
        "strata": inputs.strata.to_dict("records"),
        "charts": _charts(inputs),
        "worst": worst_cases(inputs),
        "attention": attention_cases(inputs),
        "gated_seed": inputs.gated_seed,
        "colour_bar": colour_bar(),
        "runs": [training.run for training in inputs.trainings],
        "params_of": inputs.params["train"],
        "params": yaml.safe_dump(inputs.params, sort_keys=False, allow_unicode=True),
    } | _paired(inputs)


def _paired(inputs: ReportInputs) -> dict[str, Any]:
    scored = over_seeds(inputs.test)
    scored = scored[scored["method"].isin(PAIR)]
    rows, skipped = differences(inputs.test, *PAIR, *inputs.bootstrap)
    found = Difference(**inputs.figures["paired"]["-".join(PAIR)])
    dice = scored.pivot(index="path", columns="method", values="dice")
    gaps = dice[PAIR[0]] - dice[PAIR[1]]
    return {
        "higher": int((gaps > 0).sum()),
        "lower": int((gaps < 0).sum()),
        "equal": int((gaps == 0).sum()),
        "skipped": skipped,
        "fewest": FEWEST,
        "fewest_groups": FEWEST_GROUPS,
        "scatter": charts.scatter(scored, PAIR[1], PAIR[0]),
        "histogram": charts.histogram(scored, *PAIR, found),
        "forest": charts.forest(rows, found, *PAIR) if len(rows) else None,
    }


def _charts(inputs: ReportInputs) -> dict[str, str | None]:
    near = inputs.calibration[inputs.calibration["region"] == "near"]
    shown = [name for name in SHOWN if name in set(inputs.strata["method"])]
    return {
        "loss": charts.loss_curves(inputs.trainings),
        "dice": charts.dice_curves(inputs.trainings),
        "reliability": charts.reliability(near) if len(near) else None,
        "strata": charts.strata_dots(inputs.strata, shown) if len(inputs.strata) else None,
    }
