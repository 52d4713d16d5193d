"""params.yaml, checked: one class a section, and a wrong key or value is an error that names it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from tumorseg.errors import InputError
from tumorseg.params.base import Section
from tumorseg.params.chain import (
    FINDINGS,
    NETWORKS,
    AugmentParams,
    CommonTrainParams,
    EvaluateParams,
    Finding,
    NetworkParams,
    SplitParams,
    TrainParams,
    ValidateParams,
)
from tumorseg.params.operation import (
    CrossvalidateParams,
    DriftParams,
    FannedOutParams,
    PackageParams,
    PromoteParams,
    RegisterParams,
    RetrainParams,
    SegmentParams,
)

__all__ = [
    "FINDINGS",
    "NETWORKS",
    "SECTIONS",
    "AugmentParams",
    "CommonTrainParams",
    "CrossvalidateParams",
    "DriftParams",
    "EvaluateParams",
    "FannedOutParams",
    "Finding",
    "NetworkParams",
    "PackageParams",
    "PromoteParams",
    "RegisterParams",
    "RetrainParams",
    "Section",
    "SegmentParams",
    "SplitParams",
    "TrainParams",
    "ValidateParams",
    "check",
    "load_params",
    "read_document",
]

SECTIONS: tuple[type[Section], ...] = (
    ValidateParams,
    SplitParams,
    AugmentParams,
    TrainParams,
    EvaluateParams,
    RegisterParams,
    PromoteParams,
    PackageParams,
    RetrainParams,
    DriftParams,
    SegmentParams,
    CrossvalidateParams,
)
SectionT = TypeVar("SectionT", bound=Section)


def load_params(kind: type[SectionT], path: Path = Path("params.yaml")) -> SectionT:
    """Reads params.yaml, checks all of it, and returns one section.

    Args:
        kind: The section's class, such as `TrainParams`.
        path: The file.

    Raises:
        InputError: The file is missing or is no YAML mapping, or a section or key is unknown,
            missing or wrong; the message names each as `section.key`.
    """
    asked = check(read_document(path), path)[kind.section]
    assert isinstance(asked, kind)
    return asked


def read_document(path: Path) -> dict[str, Any]:
    """Reads params.yaml as it is.

    Raises:
        InputError: It is missing or is no YAML mapping.
    """
    try:
        document: Any = yaml.safe_load(path.read_text())
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); run in the repository's root"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict):
        raise InputError(f"{path}: must hold sections of keys, such as 'train:'")
    return document


def check(document: Mapping[str, Any], where: object) -> dict[str, Section]:
    """Checks all sections, and returns them by name.

    Args:
        document: What params.yaml holds.
        where: What messages begin with.

    Raises:
        InputError: As `load_params`.
    """
    known = {section.section: section for section in SECTIONS}
    problems = [f"{name}: unknown section" for name in document if name not in known]
    parsed: dict[str, Section] = {}
    for name, section in known.items():
        if document.get(name) is None:
            problems.append(f"{name}: missing section")
            continue
        try:
            parsed[name] = section.model_validate(document.get(name))
        except ValidationError as error:
            problems += [_sentence(name, problem) for problem in error.errors()]
    if problems:
        raise InputError(f"{where}: " + "; ".join(problems))
    return parsed


def _sentence(section: str, problem: Any) -> str:
    key = ".".join([section, *map(str, problem["loc"])])
    if problem["type"] == "extra_forbidden":
        return f"{key}: unknown key"
    if problem["type"] == "missing":
        return f"{key}: missing"
    message = problem["msg"].removeprefix("Value error, ")
    if isinstance(problem["input"], dict):  # several keys together
        return f"{key}: {message}"
    return f"{key}: {message[0].lower()}{message[1:]} (got {problem['input']!r})"
