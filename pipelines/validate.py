"""validate: COCO folder → manifest, checked by Great Expectations and audited."""

import numpy as np

from pipelines._flow import command, stage, step
from pipelines._paths import DATA, REPORTS
from tumorseg.core.files import atomic_path, write_json
from tumorseg.core.params import SplitParams, ValidateParams, load_params
from tumorseg.data import coco
from tumorseg.data.audit import audit, patient_lines
from tumorseg.data.expectations import check, report, stop_on_critical
from tumorseg.data.leakage import find_pairs, mark_leaks, save_pairs
from tumorseg.data.manifest import THUMBNAILS, build_manifest, save_manifest
from tumorseg.reporting.audit_page import write_page
from tumorseg.reporting.data_docs import settle


@stage(name="validate")
def validate() -> None:
    """Builds the manifest of data/, audits it, and stops on a finding that params.yaml names."""
    params = load_params(ValidateParams)
    manifest = step(build_manifest)(DATA, params)
    counts = manifest["split"].value_counts().to_dict()
    annotated = manifest["annotations"].value_counts().sort_index().to_dict()
    print(f"{len(manifest)} images {counts}; annotations an image → images: {annotated}")
    pairs = step(find_pairs)(manifest, THUMBNAILS, params.near_duplicate)
    manifest = mark_leaks(manifest, pairs, coco.SPLITS)
    findings = step(check)(manifest, params, REPORTS / "data_docs")

    thumbnails = np.load(THUMBNAILS, mmap_mode="r")
    figures = step(audit)(manifest, pairs, thumbnails, findings, load_params(SplitParams))
    for line in patient_lines(figures["patients"]):
        print(line)
    write_json(REPORTS / "audit.json", figures)
    step(write_page)(figures, manifest, pairs, thumbnails, DATA, REPORTS / "audit.html")
    settle(REPORTS / "data_docs", REPORTS / "audit.html")
    unusable = manifest["problem"].notna()
    with atomic_path(REPORTS / "unusable.csv") as temporary:
        manifest.loc[unusable, ["path", "problem", "why"]].to_csv(temporary, index=False)

    lines = report(findings, manifest)
    for line in lines:
        print(line)
    stop_on_critical(lines)
    if unusable.any():
        print(f"{unusable.sum()} excluded, listed in reports/unusable.csv; data/ is as it was")
    save_pairs(pairs)
    save_manifest(manifest[~unusable].reset_index(drop=True))


if __name__ == "__main__":
    command(validate)
