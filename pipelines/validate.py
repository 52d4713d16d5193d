"""validate: COCO folder → manifest, checked by Great Expectations."""

from pathlib import Path

from pipelines._flow import main, stage, step
from tumorseg.expectations import check, report, stop_on_critical
from tumorseg.files import write_json
from tumorseg.manifest import build_manifest, save_manifest
from tumorseg.params import ValidateParams, load_params

DATA = Path("data")


@stage(name="validate")
def validate() -> None:
    """Builds the manifest of data/, checks it, and stops on a critical finding."""
    params = load_params(ValidateParams)
    manifest = step(build_manifest)(DATA)
    counts = manifest["split"].value_counts().to_dict()
    annotated = manifest["annotations"].value_counts().sort_index().to_dict()
    print(f"{len(manifest)} images {counts}; annotations an image → images: {annotated}")
    findings = step(check)(manifest, params, Path("reports/data_docs"))
    write_json(Path("reports/validation.json"), findings)
    lines = report(findings, manifest)
    for line in lines:
        print(line)
    stop_on_critical(lines)
    save_manifest(manifest, Path("artifacts/validate/manifest.parquet"))


if __name__ == "__main__":
    main(validate)
