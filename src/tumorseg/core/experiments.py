"""Named sets of parameters on top of params.yaml, for DVC experiments."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from tumorseg.core.errors import InputError
from tumorseg.core.params import check, read_document

EXPERIMENTS = Path("experiments.yaml")
PARAMS = Path("params.yaml")


def command(name: str | None, changes: list[str]) -> list[str]:
    """What `dvc` is told: to reproduce, or to run an experiment where anything differs.

    Args:
        name: A set of experiments.yaml, or None.
        changes: `key=value` each, on top of the set.

    Raises:
        InputError: As for `load`, a change is not of that form, or params.yaml would be wrong with
            it: found before DVC removes outputs to make them anew.
    """
    if wrong := [change for change in changes if "=" not in change]:
        raise InputError(f"--set {wrong[0]}: must be KEY=VALUE, such as train.seeds=[0,1,2]")
    told = (load(name) if name else []) + changes
    check(changed(read_document(PARAMS), told), "params.yaml with these values" if told else PARAMS)
    if not told:
        return ["repro"]
    named = ["--force", "--name", name] if name else []
    print("experiment:", " ".join(told))
    print(f"{PARAMS} will hold these values; `git checkout {PARAMS}` takes them back", flush=True)
    return ["exp", "run", *named, *(word for one in told for word in ("--set-param", one))]


def changed(document: dict[str, Any], told: list[str]) -> dict[str, Any]:
    """The parameters with changes on top.

    Args:
        document: What params.yaml holds.
        told: `key=value` each.

    Raises:
        InputError: There is no such key, or the value is no YAML.
    """
    made = deepcopy(document)
    for one in told:
        key, _, value = one.partition("=")
        if (place := _holder(made, key)) is None:
            raise InputError(f"{one}: {PARAMS} has no key {key}")
        try:
            place[key.rpartition(".")[2]] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise InputError(f"{one}: {value} is no value, such as 3, [0,1,2] or true") from None
    return made


def _holder(document: dict[str, Any], key: str) -> dict[str, Any] | None:
    """The mapping in which a dotted key stands; None where there is no such key."""
    place: Any = document
    *parents, last = key.split(".")
    for part in parents:
        place = place.get(part) if isinstance(place, dict) else None
    return place if isinstance(place, dict) and last in place else None


def load(name: str, path: Path = EXPERIMENTS, params: Path = PARAMS) -> list[str]:
    """What a set changes, as `key=value` for `dvc exp run --set-param`.

    Args:
        name: The set.
        path: Sets by name; each is `section.key: value`.
        params: Holds the keys that may be set.

    Raises:
        InputError: There is no such set, or it names a key that params.yaml lacks.
    """
    known = read_document(params)
    try:
        sets: Any = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    if not isinstance(sets, dict) or name not in sets:
        has = ", ".join(map(str, sets)) if isinstance(sets, dict) else "none"
        raise InputError(f"{path}: has no set {name!r}; it has {has}")
    if not isinstance(sets[name], dict):
        raise InputError(f"{path}: {name}: must hold lines such as `train.common.epochs: 30`")
    for key in sets[name]:
        if _holder(known, key) is None:
            raise InputError(f"{path}: {name}: {params} has no key {key}")
    return [f"{key}={json.dumps(value)}" for key, value in sets[name].items()]
