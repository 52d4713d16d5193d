"""Which NIfTI volume belongs to which label volume, and to which patient."""

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from tumorseg.core.errors import InputError
from tumorseg.importers.reading import visible_files

LABEL_ENDINGS = ("seg", "label", "mask")  # the first is preferred
CONTRAST_ENHANCED = ("t1ce", "t1c", "t1gd")


@dataclass(frozen=True)
class Subject:
    """A volume with its labels.

    Attributes:
        name: What the names of both files begin with.
        patient: Several subjects, such as visits, may be of one.
    """

    name: str
    patient: str
    image: Path
    labels: Path


def volumes(folder: Path) -> list[Path]:
    """All NIfTI files under a folder."""
    return [p for p in visible_files(folder) if p.name.lower().endswith((".nii", ".nii.gz"))]


def pairs(folder: Path, modality: str | None) -> tuple[list[Subject], dict[Path, str]]:
    """Pairs volumes with label volumes.

    Args:
        folder: Holds `X.nii[.gz]` with `X_seg`, `X_label` or `X_mask`, where several `X_MODALITY`
            may share one label volume (BraTS); or imagesTr/ and labelsTr/ (nnU-Net).
        modality: Which of several volumes to read; None for the contrast-enhanced one.

    Returns:
        The subjects, and path → why it is left out.

    Raises:
        InputError: Most volumes have no labels, or it is unclear which of several volumes to read.
    """
    labels: dict[tuple[Path, str], Path] = {}
    skipped: dict[Path, str] = {}
    found = {path: _subject_of_labels(path) for path in volumes(folder)}
    for path, owner in sorted(found.items(), key=_preference):
        if owner is None:
            continue
        key = (_image_folder(path), owner)
        if key in labels:
            skipped[path] = f"{labels[key].name} is read instead"
        labels.setdefault(key, path)
    candidates: dict[tuple[Path, str], dict[str, Path]] = defaultdict(dict)
    lonely = 0
    for path in (path for path, owner in found.items() if owner is None):
        owner = _stem(path)
        while owner and (path.parent, owner) not in labels:
            owner = owner[: max(owner.rfind("_"), owner.rfind("-"), 0)]
        if owner:
            ending = _stem(path)[len(owner) :].lstrip("_-").lower()
            candidates[path.parent, owner][ending] = path
        else:
            skipped[path] = "has no label volume"
            lonely += 1
    chosen = {}
    for key, path in labels.items():
        if image := _choose(path, candidates[key], modality):
            chosen[key] = image
        else:
            skipped[path] = f"has no volume{f' {modality}' if modality else ''} beside it"
            lonely += 1
    if lonely > len(chosen):
        raise InputError(
            f"{folder}: {lonely} volumes stand alone and {len(chosen)} have labels (such as "
            f"{next(iter(skipped))}, which {next(iter(skipped.values()))}); name them X.nii.gz and "
            "X_seg.nii.gz, or use imagesTr/ and labelsTr/"
        )
    several = len({place for place, _ in chosen}) > 1
    subjects = [
        Subject(name, _patient(folder, place, name, several), image, labels[place, name])
        for (place, name), image in sorted(chosen.items())
    ]
    return subjects, skipped


def _stem(path: Path) -> str:
    return re.sub(r"\.nii(\.gz)?$", "", path.name, flags=re.IGNORECASE)


def _subject_of_labels(path: Path) -> str | None:
    """The subject's name if a file is a label volume, else None."""
    if path.parent.name in ("labelsTr", "imagesTr"):
        return _stem(path) if path.parent.name == "labelsTr" else None
    named = re.fullmatch(rf"(.+)[_-]({'|'.join(LABEL_ENDINGS)})", _stem(path), re.IGNORECASE)
    return named[1] if named else None


def _preference(found: tuple[Path, str | None]) -> tuple[int, Path]:
    ending = re.split("[_-]", _stem(found[0]).lower())[-1]
    return LABEL_ENDINGS.index(ending) if ending in LABEL_ENDINGS else 0, found[0]


def _image_folder(labels: Path) -> Path:
    home = labels.parent
    return home.with_name("imagesTr") if home.name == "labelsTr" else home


def _choose(labels: Path, images: dict[str, Path], modality: str | None) -> Path | None:
    if modality is not None or not images:
        return images.get((modality or "").lower())
    for wanted in ("", *CONTRAST_ENHANCED, "0000"):
        if wanted in images:
            return images[wanted]
    if len(images) > 1:
        raise InputError(
            f"{labels}: belongs to several volumes ({', '.join(sorted(images))}); choose one with "
            "--modality"
        )
    return next(iter(images.values()))


def _patient(folder: Path, place: Path, name: str, several: bool) -> str:
    inside = place.relative_to(folder)
    for part in inside.parts:
        if part.startswith("sub-"):  # BIDS, where a patient's sessions are folders further down
            return part
    # BraTS since 2023 numbers a patient's visits: BraTS-GLI-00005-000, -001.
    if visit := re.fullmatch(r"(BraTS-\w+-\d+)-\d{3}", name):
        return visit[1]
    return inside.as_posix() if several else name
