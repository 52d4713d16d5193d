"""Named sets of parameters on top of params.yaml, for DVC experiments."""

import json
from pathlib import Path
from typing import Any

import yaml

from tumorseg.errors import InputError

EXPERIMENTS = Path("experiments.yaml")


def command(name: str | None, changes: list[str]) -> list[str]:
    """What `dvc` is told: to reproduce, or to run an experiment where anything differs.

    Args:
        name: A set of experiments.yaml, or None.
        changes: `key=value` each, on top of the set.

    Raises:
        InputError: As for `load`, or a change is not of that form.
    """
    if wrong := [change for change in changes if "=" not in change]:
        raise InputError(f"--set {wrong[0]}: must be KEY=VALUE, such as train.seeds=[0,1,2]")
    told = (load(name) if name else []) + changes
    if not told:
        return ["repro"]
    named = ["--force", "--name", name] if name else []
    print("experiment:", " ".join(told))
    return ["exp", "run", *named, *(word for one in told for word in ("--set-param", one))]


def load(name: str, path: Path = EXPERIMENTS, params: Path = Path("params.yaml")) -> list[str]:
    """What a set changes, as `key=value` for `dvc exp run --set-param`.

    Args:
        name: The set.
        path: Sets by name; each is `section.key: value`.
        params: Holds the keys that may be set.

    Raises:
        InputError: There is no such set, or it names a key that params.yaml lacks.
    """
    try:
        sets: Any = yaml.safe_load(path.read_text())
        known: Any = yaml.safe_load(params.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path} or {params}: cannot be read ({error})") from None
    if not isinstance(sets, dict) or name not in sets:
        has = ", ".join(map(str, sets)) if isinstance(sets, dict) else "none"
        raise InputError(f"{path}: has no set {name!r}; it has {has}")
    if not isinstance(sets[name], dict):
        raise InputError(f"{path}: {name}: must hold lines such as `train.common.epochs: 30`")
    for key in sets[name]:
        place = known
        for part in key.split("."):
            if not isinstance(place, dict) or part not in place:
                raise InputError(f"{path}: {name}: {params} has no key {key}")
            place = place[part]
    return [f"{key}={json.dumps(value)}" for key, value in sets[name].items()]
