"""Named sets of parameters on top of params.yaml, for DVC experiments."""

import json
from pathlib import Path
from typing import Any

import yaml

from tumorseg.core.errors import InputError
from tumorseg.core.params import PARAMS, check, read_document

EXPERIMENTS = Path("experiments.yaml")


def command(name: str | None, changes: list[str]) -> list[str]:
    """The arguments of `dvc`: `repro`, or `exp run` where anything differs from params.yaml.

    Args:
        name: A set of experiments.yaml, or None.
        changes: `section.key=value` each, on top of the set.

    Raises:
        InputError: There is no such set, a change is not of that form, or params.yaml would be
            wrong with it. DVC would find that only after it has removed outputs.
    """
    document = read_document(PARAMS)
    if name:
        changes = changes_of(name) + changes
    for change in changes:
        apply(change, document)
    check(document, f"{PARAMS} with these values" if changes else PARAMS)
    if not changes:
        return ["repro"]
    print("experiment:", " ".join(changes))
    print(f"{PARAMS} will hold these values; `git checkout {PARAMS}` takes them back", flush=True)
    named = ["--force", "--name", name] if name else []
    return ["exp", "run", *named, *(word for change in changes for word in ("--set-param", change))]


def changes_of(name: str, path: Path = EXPERIMENTS) -> list[str]:
    """The changes of a set, as for `apply`.

    Raises:
        InputError: There is no such set.
    """
    sets = read_document(path)
    if not isinstance(sets.get(name), dict):
        raise InputError(f"{path}: has no set {name!r}; it has {', '.join(sets)}")
    return [f"{key}={json.dumps(value)}" for key, value in sets[name].items()]


def apply(change: str, document: dict[str, Any]) -> None:
    """Sets a key of a document, in place.

    Args:
        change: Such as `train.seeds=[0,1,2]`.
        document: What params.yaml holds.

    Raises:
        InputError: There is no such key, or the value is no YAML.
    """
    key, equals, value = change.partition("=")
    *parents, last = key.split(".")
    section: Any = document
    try:
        for parent in parents:
            section = section[parent]
        if not equals or last not in section:
            raise KeyError(last)
        section[last] = yaml.safe_load(value)
    except (KeyError, TypeError, yaml.YAMLError):
        raise InputError(
            f"{change}: must be KEY=VALUE, a key of {PARAMS} and its value in YAML, such as "
            "train.seeds=[0,1,2]"
        ) from None
