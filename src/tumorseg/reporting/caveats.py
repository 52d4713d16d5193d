"""What speaks against a comparison's figures, each in a sentence made from what was measured."""

from tumorseg.core.params import NETWORKS
from tumorseg.data.shapes import RECTANGLE_FILL
from tumorseg.evaluation.paired import Difference
from tumorseg.evaluation.results import TITLES
from tumorseg.reporting.inputs import ReportInputs, networks_of
from tumorseg.reporting.wording import fixed, percent, whole

MANY_RECTANGLES = 0.5  # the share from which labels as a whole are called boxes


def caveats(inputs: ReportInputs) -> list[str]:
    """The warnings at the head of the report; none where nothing is wrong."""
    return [*_leaks(inputs), *_boxes(inputs), *_controls(inputs), *_repeats(inputs)]


def limits(inputs: ReportInputs) -> list[str]:
    """What a user of the model must know besides `caveats`: what was not measured or not known."""
    usable, test = inputs.usable, inputs.test_facts()
    found = [
        "Each slice is segmented alone: the network sees neither the slices beside it nor another "
        "sequence of the same patient.",
        "Training, choice and test use one data set; how the figures carry over to other scanners, "
        "protocols or patients was not measured.",
    ]
    unnamed = int(usable["group"].isna().sum())
    if unnamed:
        which = f"{whole(unnamed)} of {whole(len(usable))} slices"
        if unnamed == len(usable):
            which = "any slice"
        found.append(
            f"The patient is not named for {which}, so that nobody can tell whether a patient is "
            "on both sides of the split."
        )
    if not inputs.usable["spacing_mm"].astype(bool).any():
        found.append("No pixel spacing is recorded, so that no distance or area is in millimetres.")
    healthy = test.index[test["tumour_fraction"] == 0]
    if healthy.empty:
        found.append(
            "No test slice is without tumour: how often the networks find one where there is none "
            "was not measured."
        )
        return found
    for name in networks_of(inputs):
        rows = inputs.test[(inputs.test["method"] == name) & inputs.test["path"].isin(healthy)]
        kept = float((rows["tp"] + rows["fp"] == 0).mean())
        found.append(
            f"{TITLES[name]} leaves {percent(kept)} of the {whole(len(healthy))} test slices "
            "without tumour empty, averaged over seeds; an empty mask there has Dice 1, any other "
            "has 0."
        )
    return found


def _leaks(inputs: ReportInputs) -> list[str]:
    test = inputs.test_facts()
    kinds = {
        "neighbour_in_train": "a neighbouring slice in train",
        "near_duplicate_elsewhere": "a near duplicate on another side",
        "duplicate_elsewhere": "an equal file on another side",
    }
    counts = {what: int(test[column].sum()) for column, what in kinds.items()}
    counts |= {"slices of their group in train": int(test["group_in_train"].sum())}
    parts = [f"{whole(count)} have {what}" for what, count in counts.items() if count]
    if not parts:
        return []
    return [
        f"The split leaks: of {whole(len(test))} test slices {', '.join(parts)}. A network can "
        "score there by recognising a patient rather than by finding a tumour."
    ]


def _boxes(inputs: ReportInputs) -> list[str]:
    fills = inputs.usable["box_fill"].dropna()
    boxes = int((fills >= RECTANGLE_FILL).sum())
    if not len(fills) or boxes / len(fills) <= MANY_RECTANGLES:
        return []
    which = f"All {whole(boxes)}" if boxes == len(fills) else f"{whole(boxes)} of {len(fills)}"
    return [
        f"{which} labels are axis-aligned rectangles. Networks trained on them draw boxes, Dice "
        "rewards that, and boundary distances measure the corners of boxes."
    ]


def _controls(inputs: ReportInputs) -> list[str]:
    found = []
    for pair, figures in inputs.figures["paired"].items():
        name, other = pair.split("-")
        gap = Difference(**figures)
        if other in NETWORKS or (gap.shown and gap.mean > 0):
            continue
        test = inputs.figures["test"]
        dice = f"{fixed(test[name]['mean_dice'])} against {fixed(test[other]['mean_dice'])}"
        verb = "scores lower than" if gap.shown else "is not shown to beat"
        found.append(
            f"{TITLES[name]} {verb} the {TITLES[other]}, which has no network (mean Dice {dice})."
        )
    return found


def _repeats(inputs: ReportInputs) -> list[str]:
    found = []
    if not all(training.run["deterministic"] for training in inputs.trainings):
        found.append(
            "Deterministic mode was off in training: the same command need not give the same "
            "figures again."
        )
    single = [TITLES[name] for name in networks_of(inputs) if len(inputs.seeds(name)) == 1]
    if single:
        found.append(
            f"One seed only for {' and '.join(single)}: how far the figures vary from training to "
            "training was not measured."
        )
    return found
