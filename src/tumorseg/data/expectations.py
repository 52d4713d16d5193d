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
        "no picture has a near duplicate in another split (validate.near_duplicate); where one "
        "has, its test figure may be recognition rather than segmentation",
    ),
    "neighbour_across_splits": (
        "neighbour_elsewhere",
        "no slice has a neighbour (by the number in its name) in another split; where one has, "
        "its test figure may be recognition rather than segmentation",
    ),
}


def suite(params: ValidateParams) -> list[expect.Expectation]:
    """The expectations, each with its finding's name and the sentence that a failure prints."""

    def about(name: str, sentence: str) -> Any:
        stops = name in params.stop_on and not (params.quarantine and name == "unusable")
        severity = "critical" if stops else "warning"
        return {"meta": {"finding": name}, "notes": sentence, "severity": severity}

    side: Any = {"min_value": params.min_side, "max_value": params.max_side}
    size = about("size", "every picture's sides are within validate.min_side and max_side")
    expectations: list[expect.Expectation] = [
        expect.ExpectColumnValuesToBeNull(
            column="problem",
            **about("unusable", "every image can be read and has usable labels"),
        ),
        expect.ExpectColumnDistinctValuesToContainSet(
            column="split",
            value_set=list(coco.SPLITS),
            **about("empty_split", "every split has images"),
        ),
        expect.ExpectColumnValuesToBeBetween(column="width", **side, **size),
        expect.ExpectColumnValuesToBeBetween(column="height", **side, **size),
        expect.ExpectColumnValuesToBeInSet(
            column="mode",
            value_set=["L", "RGB"],
            **about("unusual_mode", "every picture is 8-bit grey or RGB without transparency"),
        ),
        expect.ExpectColumnValuesToBeBetween(
            column="tumour_fraction",
            max_value=params.max_tumour_fraction,
            **about(
                "tumour_fraction",
                "no tumour covers more of its image than validate.max_tumour_fraction",
            ),
        ),
        expect.ExpectColumnMinToBeBetween(
            column="box_fill",
            max_value=RECTANGLE_FILL,
            **about(
                "only_rectangles",
                "not all masks are rectangles; from boxes, a network learns boxes",
            ),
        ),
    ]
    expectations += [
        expect.ExpectColumnValuesToBeInSet(
            column=column, value_set=[False], **about(name, sentence)
        )
        for name, (column, sentence) in ELSEWHERE.items()
    ]
    expectations += [
        expect.ExpectColumnValuesToNotMatchRegex(
            column="oddities", regex=rf"\b{name}\b", **about(name, sentence)
        )
        for name, sentence in QUALITY_FLAGS.items()
    ]
    return expectations


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
    for result in validation.results:
        raised = result.exception_info or {}
        if raised.get("raised_exception"):
            raise RuntimeError(f"{result.expectation_config.type}: {raised['exception_message']}")
    return [_finding(result) for result in validation.results]


def _finding(result: Any) -> dict[str, Any]:
    offenders = [str(row["path"]) for row in result.result.get("unexpected_index_list") or []]
    return {
        "name": result.expectation_config.meta["finding"],
        "expectation": result.expectation_config.notes,
        "success": bool(result.success),
        "severity": result.expectation_config.severity.value,
        "images": len(offenders),
        "examples": offenders[:NAMED],
    }


def report(findings: list[dict[str, Any]], manifest: pd.DataFrame) -> list[str]:
    """The failed expectations in words, a line each, with the files and what is wrong with them."""
    problems = manifest.set_index("path")["why"].dropna().to_dict()
    lines = []
    for finding in findings:
        if finding["success"]:
            continue
        named = [f"{path} {problems.get(path, '')}".strip() for path in finding["examples"]]
        if finding["images"] > len(named):
            named.append(f"and {finding['images'] - len(named)} more")
        where = f": {'; '.join(named)}" if named else ""
        lines.append(
            f"{finding['severity']}: {finding['name']}: not met: {finding['expectation']}{where}"
        )
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
