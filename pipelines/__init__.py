"""One thin Prefect flow a module; stage NAME in dvc.yaml runs `python -m pipelines.NAME`."""

from tumorseg.core import environment

# Prefect and MLflow read their settings when they are imported.
environment.set_up()
