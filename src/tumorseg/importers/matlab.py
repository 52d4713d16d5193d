"""The MATLAB files of the brain tumor dataset of Cheng et al. (figshare 1512427): one slice each.

N.mat holds slice N in the struct `cjdata`: `image`, `tumorMask`, `label` (1 to 3) and `PID`;
`cvind.mat` the authors' fold of each slice, for cross-validation. MATLAB stores columns first, so
that HDF5 shows all arrays transposed.
"""

import re
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat
from tqdm import tqdm

from tumorseg.core.errors import InputError
from tumorseg.imaging.display import limits, to_uint8
from tumorseg.imaging.preprocess import Grey, Mask
from tumorseg.imaging.study import check_size
from tumorseg.importers.reading import Options, Record, Source, annotate, readable, visible_files

LOOKS_FOR = "1.mat, 2.mat, … of the brain tumor dataset (MATLAB v7.3), with cvind.mat or without"
CATEGORIES = ("meningioma", "glioma", "pituitary")  # labels 1, 2 and 3
FILES = re.compile(r"\d{1,9}\.mat|(1512427|brainTumorDataPublic).*\.zip")


def fits(folder: Path) -> bool:
    """Whether there is a numbered MATLAB file, or an archive of them as figshare sends it."""
    return any(FILES.fullmatch(path.name) for path in visible_files(folder))


def read(folder: Path, options: Options) -> Source:
    """Indexes a tree of numbered MATLAB files; one that cannot be used is left out.

    A patient is a PID without the letter that may end it: MR040241A and MR040241B are, by all
    appearance, scans of one patient, who must not be in two splits.

    Raises:
        InputError: There are only archives.
    """
    files = visible_files(folder)
    found = [path for path in files if FILES.fullmatch(path.name)]
    archives = [path for path in found if path.suffix == ".zip"]
    if archives == found:
        raise InputError(f"{folder}: holds only archives, such as {archives[0]}; unpack them")
    skipped = dict.fromkeys(archives, "is an archive; unpack it, if that is not done yet")
    folds: list[int] = []
    for path in files:
        if path.name == "cvind.mat":
            try:
                folds = _folds(path)
            except InputError as error:
                skipped[path] = str(error)
    records: dict[int, Record] = {}
    paths = sorted(set(found) - set(archives), key=lambda path: (int(path.stem), path))
    for path in tqdm(paths, "reading slices", unit="slice", disable=None):
        number = int(path.stem)
        if number in records:
            skipped[path] = f"is slice {number} once more"
            continue
        try:
            _, mask, category, patient = _slice(path)
        except InputError as error:
            skipped[path] = str(error)
            continue
        records[number] = Record(
            name=f"slice_{number:04d}.png",
            group=patient,
            number=number,
            split=None,
            spacing=None,
            labels=annotate({category: mask}),
            load=partial(_load, path),
            entry={"fold": folds[number - 1]} if 0 < number <= len(folds) else {},
        )
    return Source(list(records.values()), list(CATEGORIES), skipped)


def _load(path: Path) -> Grey:
    """The image between the percentiles that NIfTI volumes are shown between, here of the slice.

    The published JPEG exports show it between its least and greatest value.
    """
    image, *_ = _slice(path)
    return to_uint8(image, *limits(image))


def _slice(path: Path) -> tuple[NDArray[Any], Mask, str, str]:
    """Reads one file.

    Returns:
        The stored values, shape (H, W); the mask, bool, shape (H, W); the category; the patient.

    Raises:
        InputError: It is damaged, or is no such file.
    """
    with readable(path):
        if not h5py.is_hdf5(path):
            raise InputError(f"{path}: is no HDF5 file; save it in MATLAB with -v7.3")
        with h5py.File(path) as file:
            keys = ("image", "tumorMask", "label", "PID")
            image, mask, label, name = (_dataset(file, f"cjdata/{key}") for key in keys)
            if len(image.shape) != 2 or image.shape != mask.shape:
                sizes = " and ".join("×".join(map(str, each.shape)) for each in (image, mask))
                raise InputError(f"{path}: image and mask are {sizes}, not one size")
            check_size(*image.shape)
            if label.size != 1 or label[()].item() not in (1, 2, 3):
                raise InputError(f"{path}: has a label that is not 1, 2 or 3")
            patient = "".join(map(chr, name[()].ravel())).strip("\0 ")
            if not patient:
                raise InputError(f"{path}: has an empty PID; name the patient")
            return (
                np.asarray(image[()].T, np.float32),
                mask[()].T != 0,
                CATEGORIES[int(label[()].item()) - 1],
                re.sub(r"(?<=\d)[A-Za-z]$", "", patient),
            )


def _folds(path: Path) -> list[int]:
    """The fold of each slice, in the order of their numbers; raises InputError."""
    with readable(path):
        if h5py.is_hdf5(path):
            with h5py.File(path) as file:
                values = _dataset(file, "cvind")[()]
        else:  # MATLAB saves so unless it is told -v7.3
            values = loadmat(path)["cvind"]
        if (values < 1).any() or (values % 1).any():
            raise InputError(f"{path}: has folds that are no numbers from 1 on; export it again")
        return [int(value) for value in values.ravel()]


def _dataset(file: Any, key: str) -> Any:
    """One dataset of an HDF5 file; raises InputError."""
    if key not in file:
        raise InputError(f"{file.filename}: has no {key.replace('/', '.')}; export it again")
    dataset = file[key]
    # Data elsewhere could be those of any file of this machine.
    if dataset.file != file or dataset.external or dataset.is_virtual:
        raise InputError(f"{file.filename}: refers to another file; export it again")
    return dataset
