"""The Great Expectations suite on the manifest: what stops a run, and what only warns."""

from pathlib import Path
from typing import Any

import great_expectations as gx
import great_expectations.expectations as expect
import pandas as pd
from great_expectations.checkpoint import UpdateDataDocsAction

from tumorseg.core.errors import InputError
from tumorseg.core.params import ValidateParams
from tumorseg.data import coco
from tumorseg.data.shapes import RECTANGLE_FILL

RESULT_FORMAT = {
    "result_format": "COMPLETE",
    "unexpected_index_column_names": ["path"],
    "include_unexpected_rows": False,
}
NAMED = 5  # files that a message names before it counts the rest

# Finding → the sentence that a failure prints, for the manifest's quality flags and its columns
# from `leakage`.
QUALITY_FLAGS = {
    "rotated": "no picture is turned by EXIF; labels may mean the picture before it is turned",
    "coloured": "every picture is grey; of a coloured one only the brightness is used",
    "blank": "no picture is blank",
    "wrong_extension": "every file's format is the one that its name says",
    "duplicate_annotation_id": "no two annotations of an image share an id",
    "empty_label": "every annotation covers at least a pixel",
    "self_intersection": "no outline crosses itself",
    "out_of_frame": "no label leaves its picture",
    "intensity_outlier": "no picture is far brighter, darker, flatter or harsher than the others",
    "size_outlier": "all pictures have the usual size",
}
ELSEWHERE = {
    "duplicate_across_splits": ("duplicate_elsewhere", "no file is in two splits"),
    "near_duplicate_across_splits": (
        "near_duplicate_elsewhere",
        "no picture has a near duplicate in another split (validate.near_duplicate)",
    ),
    "neighbour_across_splits": (
        "neighbour_elsewhere",
        "no slice has a neighbour (by the number in its name) in another split",
    ),
}


def suite(params: ValidateParams) -> list[expect.Expectation]:
    """The expectations, each with its finding's name and the sentence that a failure prints."""
    found: list[expect.Expectation] = []

    def add(kind: Any, name: str, sentence: str, **settings: Any) -> None:
        stops = name in params.stop_on and not (params.quarantine and name == "unusable")
        severity = "critical" if stops else "warning"
        meta = {"finding": name}
        found.append(kind(meta=meta, notes=sentence, severity=severity, **settings))

    sentence = "every image can be read and has usable labels"
    add(expect.ExpectColumnValuesToBeNull, "unusable", sentence, column="problem")
    sentence, splits = "every split has images", list(coco.SPLITS)
    kind: Any = expect.ExpectColumnDistinctValuesToContainSet
    add(kind, "empty_split", sentence, column="split", value_set=splits)
    kind = expect.ExpectColumnValuesToBeBetween
    sentence = "every picture's sides are within validate.min_side and max_side"
    for column in ("width", "height"):
        limits = {"min_value": params.min_side, "max_value": params.max_side}
        add(kind, "size", sentence, column=column, **limits)
    sentence = "no tumour covers more of its image than validate.max_tumour_fraction"
    most = params.max_tumour_fraction
    add(kind, "tumour_fraction", sentence, column="tumour_fraction", max_value=most)
    sentence = "not all masks are rectangles; from boxes, a network learns boxes"
    kind = expect.ExpectColumnMinToBeBetween
    add(kind, "only_rectangles", sentence, column="box_fill", max_value=RECTANGLE_FILL)
    sentence = "every picture is 8-bit grey or RGB without transparency"
    kind = expect.ExpectColumnValuesToBeInSet
    add(kind, "unusual_mode", sentence, column="mode", value_set=["L", "RGB"])
    for name, (column, sentence) in ELSEWHERE.items():
        add(kind, name, sentence, column=column, value_set=[False])
    kind = expect.ExpectColumnValuesToNotMatchRegex
    for name, sentence in QUALITY_FLAGS.items():
        add(kind, name, sentence, column="oddities", regex=rf"\b{name}\b")
    return found


def check(manifest: pd.DataFrame, params: ValidateParams, docs: Path) -> list[dict[str, Any]]:
    """Runs the suite in a context that leaves nothing behind but Data Docs.

    Args:
        manifest: As `tumorseg.data.manifest.build_manifest` returns it, with its leaks marked.
        params: The validate section.
        docs: Receives Great Expectations' own HTML site; its entry is `index.html`.

    Returns:
        One finding an expectation: name, expectation (a sentence), success, severity, images
        (number of offenders), examples (up to five paths).

    Raises:
        RuntimeError: An expectation could not be computed.
    """
    # An image that cannot be used fills no split, and its size or mode must not stop the run too.
    of_usable = manifest[["split", "width", "height", "mode"]].where(manifest["problem"].isna())
    table = manifest.drop(columns="mask_rle").assign(**of_usable)

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    store = {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(docs.resolve())}
    builder = {"class_name": "DefaultSiteIndexBuilder"}
    site = {"class_name": "SiteBuilder", "site_index_builder": builder, "store_backend": store}
    context.add_data_docs_site("docs", site)
    asset = context.data_sources.add_pandas("data").add_dataframe_asset("manifest")
    definition = gx.ValidationDefinition(
        name="manifest",
        data=asset.add_batch_definition_whole_dataframe("all rows"),
        suite=context.suites.add(gx.ExpectationSuite(name="manifest", expectations=suite(params))),
    )
    checkpoint = gx.Checkpoint(
        name="manifest",
        validation_definitions=[context.validation_definitions.add(definition)],
        actions=[UpdateDataDocsAction(name="docs")],
        result_format=RESULT_FORMAT,
    )
    outcome = context.checkpoints.add(checkpoint).run({"dataframe": table})
    (validation,) = outcome.run_results.values()
    findings = []
    for result in validation.results:
        expectation, raised = result.expectation_config, result.exception_info or {}
        if raised.get("raised_exception"):
            raise RuntimeError(f"{expectation.type}: {raised['exception_message']}")
        offenders = [str(row["path"]) for row in result.result.get("unexpected_index_list") or []]
        finding = {
            "name": expectation.meta["finding"],
            "expectation": expectation.notes,
            "success": bool(result.success),
            "severity": expectation.severity.value,
            "images": len(offenders),
            "examples": offenders[:NAMED],
        }
        findings.append(finding)
    return findings


def report(findings: list[dict[str, Any]], manifest: pd.DataFrame) -> list[str]:
    """The failed expectations in words, a line each, with the files and what is wrong with them."""
    problems = manifest.set_index("path")["why"].dropna().to_dict()
    lines = []
    for finding in findings:
        if not finding["success"]:
            named = [f"{path} {problems.get(path, '')}".strip() for path in finding["examples"]]
            if finding["images"] > len(named):
                named.append(f"and {finding['images'] - len(named)} more")
            where = f": {'; '.join(named)}" if named else ""
            what = f"{finding['severity']}: {finding['name']}: not met: {finding['expectation']}"
            lines.append(what + where)
    return lines


def stop_on_critical(lines: list[str]) -> None:
    """Raises InputError if a line of `report` is critical."""
    critical = [line for line in lines if line.startswith("critical")]
    if critical:
        raise InputError(
            "data/ is not fit for use: mend what is named here and type `dvc add data`, or choose "
            "in params.yaml (validate.stop_on; validate.quarantine excludes unusable files); "
            "reports/audit.html shows it\n  " + "\n  ".join(critical)
        )
