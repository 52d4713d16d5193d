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
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import httpx
import psutil
import psycopg2

from deploy import buckets
from tumorseg.core.environment import SILENT, answers
from tumorseg.core.errors import InputError
from tumorseg.core.prefect_server import free_port

PATIENCE_SECONDS = 120
STOP_SECONDS = 20
DATABASES = ("prefect", "mlflow")
# moto takes any; those of a deployment come from its secrets.
DUMMY_KEYS = {"AWS_ACCESS_KEY_ID": "loopback", "AWS_SECRET_ACCESS_KEY": "loopback-only"}


@dataclass
class Server:
    """One server process, with the processes that it starts.

    Attributes:
        name: For messages and the log's name.
        command: What to run.
        log: Receives its output.
        ready: Whether it answers.
        environment: Its whole environment.
        user: The user to run it as; None for this process's user.
        gentle: The signal that ends it in order.
    """

    name: str
    command: list[str]
    log: Path
    ready: Callable[[], bool]
    environment: dict[str, str]
    user: str | None = None
    gentle: signal.Signals = signal.SIGTERM
    process: psutil.Popen | None = field(default=None, init=False)

    def start(self) -> None:
        """Starts it and waits until it answers.

        Raises:
            InputError: It ended, or did not answer in time.
        """
        with self.log.open("ab") as output:
            self.process = psutil.Popen(
                self.command,
                cwd=self.log.parent,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                user=self.user,
                group=None if self.user is None else pwd.getpwnam(self.user).pw_gid,
                extra_groups=None if self.user is None else [],
                start_new_session=True,  # out of reach of the terminal's Ctrl-C
            )
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self.ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                last = self.log.read_text(errors="replace")[-1000:].strip()
                raise InputError(f"{self.name} did not start: {last}")
            time.sleep(0.1)

    def kill(self) -> None:
        """Kills it and all that it started, as a crash would."""
        self._end(signal.SIGKILL, 0)

    def stop(self) -> None:
        """Ends it in order; kills what has not ended in time."""
        self._end(self.gentle, STOP_SECONDS)

    def _end(self, how: signal.Signals, patience: float) -> None:
        if self.process is None:
            return
        if self.process.poll() is None:
            family = [self.process, *self.process.children(recursive=True)]
            self.process.send_signal(how)
            _, alive = psutil.wait_procs(family, patience)
            for one in alive:
                one.kill()
            psutil.wait_procs(alive)
        self.process = None


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
    debian = Path("/usr/lib/postgresql").glob("*/bin")
    newest_first = sorted(debian, key=lambda path: int(path.parent.name), reverse=True)
    places = os.pathsep.join([os.environ["PATH"], *map(str, newest_first)])
    if found := shutil.which("initdb", path=places):
        return Path(found).resolve().parent
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
    user = "postgres" if os.geteuid() == 0 else None
    place = folder / "postgres"
    place.mkdir()
    secret, log = place / "password", place / "postgres.log"
    secret.touch(0o600)
    secret.write_text(password)
    if user:
        try:
            for path in (place, secret):
                shutil.chown(path, user)
        except LookupError:
            raise InputError(
                f"root may not run PostgreSQL, and there is no user {user}: add one, or become "
                "another user"
            ) from None
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
    """Removes the requests in moto's recording that a kill cut off; several may be under way."""
    whole = []
    for line in recording.read_text().splitlines(keepends=True):
        with suppress(ValueError):
            json.loads(line)
            whole.append(line)
    recording.write_text("".join(whole))


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
    # Without the servers and accounts that surround this process.
    base = {k: v for k, v in os.environ.items() if k not in environment} | SILENT
    base |= {k: v for k, v in environment.items() if k.startswith("AWS_")}

    commands = {
        "s3": f"moto.server -H 127.0.0.1 -p {ports['s3']}",
        "mlflow": f"mlflow server --host 127.0.0.1 --port {ports['mlflow']} --workers 1 "
        "--artifacts-destination s3://mlflow",
        "prefect": f"prefect server start --host 127.0.0.1 --port {ports['prefect']}",
    }
    probes = {"s3": "/moto-api/data.json", "mlflow": "/health", "prefect": "/api/health"}
    base |= {
        "MOTO_ENABLE_RECORDING": "1",
        "MOTO_PORT": str(ports["s3"]),
        "MOTO_RECORDER_FILEPATH": str(folder / "s3-recording"),
        "MLFLOW_BACKEND_STORE_URI": f"postgresql+psycopg2://{account}/mlflow",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://{account}/prefect",
    }
    servers = {"postgres": database}
    for name, command in commands.items():
        kind = MotoServer if name == "s3" else Server
        ready = partial(answers, urls[name] + probes[name])
        words = [sys.executable, "-m", *command.split()]
        servers[name] = kind(name, words, folder / f"{name}.log", ready, base)
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
