"""The Great Expectations suite on the manifest: what stops a run, and what is only said."""

from pathlib import Path
from typing import Any

import great_expectations as gx
import great_expectations.expectations as expect
import pandas as pd
from great_expectations.checkpoint import UpdateDataDocsAction

from tumorseg import coco
from tumorseg.errors import InputError
from tumorseg.manifest import RECTANGLE_FILL
from tumorseg.params import ValidateParams

MODES = ["L", "RGB", "RGBA", "LA", "P", "CMYK", "YCbCr", "1", "I", "I;16", "F"]
NAMED = 5  # files that a message names before it counts the rest


def suite(params: ValidateParams) -> list[expect.Expectation]:
    """The expectations; `notes` is the sentence that a failure prints."""
    critical: Any = {"severity": "critical"}
    warning: Any = {"severity": "warning"}
    side: Any = {"min_value": params.min_side, "max_value": params.max_side}
    return [
        expect.ExpectColumnValuesToBeNull(
            column="problem", notes="every image can be read and has usable labels", **critical
        ),
        expect.ExpectColumnValuesToBeUnique(
            column="path", notes="no image is listed twice", **critical
        ),
        expect.ExpectColumnDistinctValuesToContainSet(
            column="split", value_set=list(coco.SPLITS), notes="every split has images", **critical
        ),
        expect.ExpectColumnValuesToBeBetween(
            column="width",
            notes="the width in pixels is within validate.*_side",
            **side,
            **critical,
        ),
        expect.ExpectColumnValuesToBeBetween(
            column="height",
            notes="the height in pixels is within validate.*_side",
            **side,
            **critical,
        ),
        expect.ExpectColumnValuesToBeInSet(
            column="mode", value_set=MODES, notes="the colour mode is known", **critical
        ),
        expect.ExpectColumnValuesToBeBetween(
            column="tumour_fraction",
            max_value=params.max_tumour_fraction,
            notes="no tumour covers more of its image than validate.max_tumour_fraction",
            **critical,
        ),
        expect.ExpectColumnValuesToBeInSet(
            column="duplicate_in_other_split",
            value_set=[False],
            notes="no file is in two splits",
            **critical,
        ),
        expect.ExpectColumnValuesToBeInSet(
            column="neighbour_in_other_split",
            value_set=[False],
            notes="no slice has a neighbour (by the number in its name) in another split; where "
            "one has, its test figure may be recognition rather than segmentation",
            **warning,
        ),
        expect.ExpectColumnMinToBeBetween(
            column="box_fill",
            max_value=RECTANGLE_FILL,
            notes="not all masks are rectangles; from boxes, a network learns boxes",
            **warning,
        ),
    ]


def check(manifest: pd.DataFrame, params: ValidateParams, docs: Path) -> list[dict[str, Any]]:
    """Runs the suite and writes Data Docs.

    Args:
        manifest: As `tumorseg.manifest.build_manifest` returns it.
        params: The validate section.
        docs: Receives the HTML site; its entry is `index.html`.

    Returns:
        One finding an expectation: expectation, success, severity, images (number of offenders),
        examples (up to five paths).
    """
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    store = {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(docs.resolve())}
    context.add_data_docs_site(
        "docs",
        {
            "class_name": "SiteBuilder",
            "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
            "store_backend": store,
        },
    )
    asset = context.data_sources.add_pandas("data").add_dataframe_asset("manifest")
    definition = gx.ValidationDefinition(
        name="manifest",
        data=asset.add_batch_definition_whole_dataframe("all images"),
        suite=context.suites.add(gx.ExpectationSuite(name="manifest", expectations=suite(params))),
    )
    checkpoint = gx.Checkpoint(
        name="manifest",
        validation_definitions=[context.validation_definitions.add(definition)],
        actions=[UpdateDataDocsAction(name="docs")],
        result_format={
            "result_format": "COMPLETE",
            "unexpected_index_column_names": ["path"],
            "include_unexpected_rows": False,
        },
    )
    outcome = context.checkpoints.add(checkpoint).run(
        {"dataframe": manifest.drop(columns="mask_rle")}
    )
    (validation,) = outcome.run_results.values()
    return [_finding(result) for result in validation.results]


def _finding(result: Any) -> dict[str, Any]:
    raised = result.exception_info or {}
    if raised.get("raised_exception"):
        raise RuntimeError(f"{result.expectation_config.type}: {raised['exception_message']}")
    offenders = [str(row["path"]) for row in result.result.get("unexpected_index_list") or []]
    return {
        "expectation": result.expectation_config.notes,
        "success": bool(result.success),
        "severity": result.expectation_config.severity.value,
        "images": len(offenders),
        "examples": offenders[:NAMED],
    }


def report(findings: list[dict[str, Any]], manifest: pd.DataFrame) -> list[str]:
    """The failed expectations in words, a line each, with the files and what is wrong with them."""
    problems = manifest.set_index("path")["problem"].dropna().to_dict()
    lines = []
    for finding in findings:
        if finding["success"]:
            continue
        named = [f"{path} {problems.get(path, '')}".strip() for path in finding["examples"]]
        if finding["images"] > len(named):
            named.append(f"and {finding['images'] - len(named)} more")
        where = f": {'; '.join(named)}" if named else ""
        lines.append(f"{finding['severity']}: not met: {finding['expectation']}{where}")
    return lines


def stop_on_critical(lines: list[str]) -> None:
    """Raises InputError if a line of `report` is critical."""
    critical = [line for line in lines if line.startswith("critical")]
    if critical:
        raise InputError(
            "data/ is not fit for use; see reports/data_docs/index.html\n  " + "\n  ".join(critical)
        )
