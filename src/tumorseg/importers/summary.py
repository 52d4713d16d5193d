"""What an import does or would do, for people."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tumorseg.data.coco import SPLITS
from tumorseg.importers.record import Source

SHOWN = 10  # so many skipped files are named


@dataclass(frozen=True)
class Summary:
    """What an import does or would do.

    Attributes:
        kind: The importer's name.
        slices: train, valid and test → number of slices.
        drawn: Whether the slices were divided here, as opposed to by the source.
        groups: Number of patients or series known.
        categories: Their names.
        spacing: Smallest and largest distance of rows or columns, in mm; None if none is known.
        skipped: Path → why it is left out.
        doubts: What the user should look at; one sentence each.
    """

    kind: str
    slices: dict[str, int]
    drawn: bool
    groups: int
    categories: list[str]
    spacing: tuple[float, float] | None
    skipped: dict[Path, str]
    doubts: list[str]

    @property
    def images(self) -> int:
        """The number of slices in all splits."""
        return sum(self.slices.values())

    def __str__(self) -> str:
        """One line a fact."""
        # Two passes: which slices hold a tumour decides the sides, so masks are read for that too.
        mine = "divided here, a patient's slices together; masks are read twice for it"
        by = mine if self.drawn else "as in the source"
        counts = ", ".join(f"{split} {count}" for split, count in self.slices.items())
        low, high = self.spacing or (0.0, 0.0)
        spacing = f"{low:.2f} mm" if low == high else f"{low:.2f} to {high:.2f} mm"
        lines = [
            f"format      {self.kind}",
            f"slices      {counts} ({by})",
            f"patients    {self.groups or 'not known'}",
            f"categories  {', '.join(self.categories) or 'none'}",
            f"spacing     {spacing if self.spacing else 'not known'}",
        ]
        lines += [f"skipped     {path}: {why}" for path, why in list(self.skipped.items())[:SHOWN]]
        if len(self.skipped) > SHOWN:
            lines.append(f"skipped     … and {len(self.skipped) - SHOWN} more")
        lines += [f"doubtful    {doubt}" for doubt in self.doubts]
        return "\n".join(lines)


def summarise(kind: str, source: Source, sides: Sequence[str]) -> Summary:
    """Counts what a source holds, given the side of each of its records."""
    records = source.records
    groups = {record.group for record in records if record.group is not None}
    counts = Counter(sides)
    spacings = {record.spacing for record in records if record.spacing is not None}
    distances = [distance for spacing in spacings for distance in spacing]
    doubts = list(source.doubts)
    lone = sum(record.group is None for record in records)
    drawn = any(record.split is None for record in records)
    if lone and drawn:
        doubts.append(
            f"the patients of {lone} slices are not known, so one patient may be in two splits"
        )
    placed = {(r.group, side) for r, side in zip(records, sides, strict=True)}
    shared = Counter(group for group, _ in placed if group is not None)
    if several := sorted(group for group, splits in shared.items() if splits > 1):
        doubts.append(
            f"{len(several)} patients are in several splits of the source, such as {several[0]}"
        )
    if any(max(spacing) > 1.1 * min(spacing) for spacing in spacings):
        doubts.append("some slices have pixels that are not square; they are not resampled")
    return Summary(
        kind=kind,
        slices={split: counts[split] for split in SPLITS},
        drawn=drawn,
        groups=len(groups),
        categories=[str(category.get("name")) for category in source.categories],
        spacing=(min(distances), max(distances)) if distances else None,
        skipped=source.skipped,
        doubts=doubts,
    )
