"""PostgreSQL, an S3 API, MLflow and Prefect as real servers on the loopback interface.

They hold what a deployment holds, behind the variables that a deployment sets, for development,
tests and faults: each can be killed and started again with what it held.
"""

import json
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import httpx
import psycopg2

from deploy import buckets
from deploy.process import PATIENCE_SECONDS, Server
from tumorseg.core.environment import SILENT, answers
from tumorseg.core.errors import InputError
from tumorseg.core.prefect_server import free_port

DATABASES = ("prefect", "mlflow")
# moto takes any; those of a deployment come from its secrets.
DUMMY_KEYS = {"AWS_ACCESS_KEY_ID": "loopback", "AWS_SECRET_ACCESS_KEY": "loopback-only"}


@dataclass(frozen=True)
class Profile:
    """The running servers.

    Attributes:
        servers: By name: postgres, s3, mlflow, prefect.
        environment: What a client sets, as a deployment does; DVC's remote `server` included.
        databases: libpq URLs, by name.
    """

    servers: dict[str, Server]
    environment: dict[str, str]
    databases: dict[str, str]

    def query(self, database: str, statement: str) -> list[tuple[Any, ...]]:
        """The rows that a statement gives in one of the databases."""
        with psycopg2.connect(self.databases[database]) as link, link.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall()

    def objects(self, bucket: str) -> tuple[int, int]:
        """How many objects a bucket holds, and their bytes."""
        s3 = boto3.resource("s3", **s3_options(self.environment["AWS_ENDPOINT_URL_S3"]))
        sizes = [found.size for found in s3.Bucket(bucket).objects.all()]
        return len(sizes), sum(sizes)


def programs() -> Path:
    """The folder of PostgreSQL's own programs, which Debian keeps off PATH.

    Raises:
        InputError: There is none.
    """
    found = shutil.which("initdb")
    if found and shutil.which("postgres"):
        return Path(found).resolve().parent
    folders = {int(p.parts[-3]): p.parent for p in Path("/usr/lib/postgresql").glob("*/bin/initdb")}
    if folders:
        return folders[max(folders)]
    raise InputError(
        "PostgreSQL's programs initdb and postgres are not here: `apt-get install postgresql` "
        "brings them (Debian, Ubuntu), or put their folder on PATH"
    )


def postgres(folder: Path) -> tuple[Server, str]:
    """A PostgreSQL on a free loopback port, with new data and a random password.

    Args:
        folder: Holds data and log; readable for others, since root may not run PostgreSQL.

    Returns:
        The server, not yet started, and `user:password@host:port`.

    Raises:
        InputError: PostgreSQL is not installed, or the data folder cannot be made.
    """
    home, port, password = programs(), free_port(0), secrets.token_urlsafe(16)
    user = None
    if os.geteuid() == 0:
        names = {entry.pw_name for entry in pwd.getpwall()}
        user = "postgres" if "postgres" in names else "nobody"
    place = folder / "postgres"
    place.mkdir()
    secret, log = place / "password", place / "postgres.log"
    secret.touch(0o600)
    secret.write_text(password)
    if user:
        for path in (place, secret):
            shutil.chown(path, user)
    command = [str(home / "initdb"), "--no-sync", f"--pgdata={place / 'data'}"]
    command += [f"--pwfile={secret}", "--username=tumorseg", "--auth=scram-sha-256"]
    command += ["--encoding=UTF8", "--locale=C"]
    made = subprocess.run(
        command, cwd=place, user=user, capture_output=True, text=True, check=False
    )
    secret.unlink()
    if made.returncode:
        raise InputError(f"initdb in {place}: {made.stderr.strip() or made.stdout.strip()}")
    command = [str(home / "postgres"), "-D", str(place / "data"), "-p", str(port)]
    command += ["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]
    account = f"tumorseg:{password}@127.0.0.1:{port}"

    def ready() -> bool:
        try:
            psycopg2.connect(f"postgresql://{account}/postgres", connect_timeout=2).close()
        except psycopg2.OperationalError:
            return False
        return True

    # SIGINT is PostgreSQL's fast shutdown; it would wait for its clients after SIGTERM.
    return Server("postgres", command, log, ready, dict(os.environ), user, signal.SIGINT), account


def s3_options(url: str) -> dict[str, str]:
    """What boto3 needs for the S3 API on loopback."""
    keys = {name.lower(): key for name, key in DUMMY_KEYS.items()}
    return {"endpoint_url": url, "region_name": "us-east-1", **keys}


class MotoServer(Server):
    """moto keeps its objects in memory; its recording brings them back after a kill."""

    def start(self) -> None:
        """Starts it, with the objects that it held before."""
        recording = Path(self.environment["MOTO_RECORDER_FILEPATH"])
        known = recording.exists()
        if known:
            _drop_torn(recording)
        super().start()
        url = f"http://127.0.0.1:{self.environment['MOTO_PORT']}"
        if known:
            replay = f"{url}/moto-api/recorder/replay-recording"
            httpx.post(replay, timeout=PATIENCE_SECONDS).raise_for_status()
        else:
            buckets.create(**s3_options(url))


def _drop_torn(recording: Path) -> None:
    """Removes the request at the end of moto's recording that a kill cut off."""
    lines = recording.read_text().splitlines(keepends=True)
    with suppress(ValueError):
        json.loads(lines[-1] if lines else "null")
        return
    recording.write_text("".join(lines[:-1]))


@contextmanager
def profile(folder: Path) -> Iterator[Profile]:
    """Runs all four servers until the context ends.

    Args:
        folder: For data and logs; exists, and others may enter it.

    Raises:
        InputError: PostgreSQL is not installed, or a server does not start.
    """
    database, account = postgres(folder)
    ports = {name: free_port(0) for name in ("s3", "mlflow", "prefect")}
    urls = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
    environment = DUMMY_KEYS | {
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL_S3": urls["s3"],
        "DVC_GLOBAL_CONFIG_DIR": str(Path(__file__).parent / "dvc"),
        "MLFLOW_TRACKING_URI": urls["mlflow"],
        "PREFECT_API_URL": f"{urls['prefect']}/api",
        "TUMORSEG_DVC_REMOTE": "server",
    }
    # Nobody else's servers or accounts: only what is named here.
    base = {k: v for k, v in os.environ.items() if k not in environment} | SILENT
    base |= {k: v for k, v in environment.items() if k.startswith("AWS_")}

    def server(name: str, command: str, probe: str, own: dict[str, str]) -> Server:
        kind = MotoServer if name == "s3" else Server
        return kind(
            name,
            [sys.executable, "-m", *command.split()],
            folder / f"{name}.log",
            lambda: answers(urls[name] + probe),
            base | own,
        )

    servers = {
        "postgres": database,
        "s3": server(
            "s3",
            f"moto.server -H 127.0.0.1 -p {ports['s3']}",
            "/moto-api/data.json",
            {
                "MOTO_ENABLE_RECORDING": "1",
                "MOTO_PORT": str(ports["s3"]),
                "MOTO_RECORDER_FILEPATH": str(folder / "s3-recording"),
            },
        ),
        "mlflow": server(
            "mlflow",
            f"mlflow server --host 127.0.0.1 --port {ports['mlflow']} --workers 1 "
            "--artifacts-destination s3://mlflow",
            "/health",
            {
                "MLFLOW_BACKEND_STORE_URI": f"postgresql+psycopg2://{account}/mlflow",
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            },
        ),
        "prefect": server(
            "prefect",
            f"prefect server start --host 127.0.0.1 --port {ports['prefect']}",
            "/api/health",
            {
                "PREFECT_HOME": str(folder / "prefect"),
                "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://{account}/prefect",
            },
        ),
    }
    databases = {name: f"postgresql://{account}/{name}" for name in DATABASES}
    with ExitStack() as stack:
        for name, one in servers.items():
            stack.callback(one.stop)
            one.start()
            if name == "postgres":
                create_databases(account)
        yield Profile(servers, environment, databases)


def create_databases(account: str) -> None:
    """Creates the databases of Prefect and MLflow."""
    with closing(psycopg2.connect(f"postgresql://{account}/postgres")) as link:
        link.autocommit = True  # CREATE DATABASE takes no transaction
        for name in DATABASES:
            link.cursor().execute(f"CREATE DATABASE {name}")
