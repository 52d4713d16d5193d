"""The environment of a run, set before Prefect, MLflow or BentoML are imported.

Variables that are set already (a shared MLflow server, a Prefect API, a bento store) are kept.
"""

import os
import re
import sys
import urllib.request
from pathlib import Path

STATE = Path(".state")
PACKAGED = Path("artifacts/package/bento.json")  # which bento is served
PREFECT_URL_FILE = STATE / "prefect" / "url"
STATISTICS = STATE / "statistics.db"  # of the slices that `tumorseg serve` answered

# Two heaps for all threads: the service takes a quarter less memory under load and stops growing.
SERVING = {"MALLOC_ARENA_MAX": "2"}

# Otherwise glibc returns each large array to the system at once, and the next needs new pages:
# a sixth of the time of a training step, and more than half with what Dask sets for its workers.
TRAINING = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**34)}

# The scans are patients': no component may report to its maker or look for updates.
SILENT = {
    "BENTOML_DO_NOT_TRACK": "True",
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "ITERATIVE_DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false",
}


def defaults(root: Path) -> dict[str, str]:
    """The environment of a run in the repository `root`, as variable → value."""
    state = (root / STATE).resolve()
    return SILENT | {
        **TRAINING,
        "BENTOML_HOME": str(state / "bentoml"),
        "DVC_SITE_CACHE_DIR": str(state / "dvc-site"),
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        # MLflow's and Prefect's clients wait a minute for a server that is restarted.
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "5",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # eight processes, for language models
        "MLFLOW_TRACKING_URI": f"sqlite:///{state / 'mlflow.db'}",
        "MPLBACKEND": "Agg",
        "MPLCONFIGDIR": str(state / "matplotlib"),
        "PREFECT_CLIENT_RETRY_EXTRA_CODES": "500",  # what it answers while its database is away
        "PREFECT_HOME": str(state / "prefect"),
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
        "TORCHINDUCTOR_CACHE_DIR": str(state / "inductor"),
    }


def search_path() -> str:
    """PATH with this interpreter's folder first: `python` in dvc.yaml is the one that runs this."""
    own, known = str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)
    return known if known.split(os.pathsep)[0] == own else f"{own}{os.pathsep}{known}"


def set_up(root: Path | None = None) -> None:
    """Puts `defaults` into this process's environment.

    Args:
        root: The repository; by default the current directory.
    """
    root = root or Path.cwd()
    os.environ["PATH"] = search_path()
    os.environ |= defaults(root) | os.environ
    if (root / "dvc.yaml").exists():
        (root / STATE).mkdir(exist_ok=True)
    # Without a server Prefect starts one for each flow, which works but costs seconds.
    url = noted_prefect(root)
    if "PREFECT_API_URL" not in os.environ and url and answers(f"{url}/health"):
        os.environ["PREFECT_API_URL"] = url


def noted_prefect(root: Path = Path()) -> str | None:
    """The API address of the Prefect server that a command started in the repository `root`."""
    try:
        return (root / PREFECT_URL_FILE).read_text().strip()
    except FileNotFoundError:
        return None


def answers(url: str) -> bool:
    """Whether an address answers with status 200."""
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except (OSError, ValueError):
        return False


def without_password(uri: str) -> str:
    """An address for messages and logs, without the account that it may hold."""
    return re.sub(r"//[^/@]*@", "//", uri)
