"""The manifests: well formed, valid by schema, in agreement with each other and with the code."""

import itertools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from deploy import local, services
from deploy.services import Server
from tests.conftest import REPOSITORY
from tumorseg.core import environment
from tumorseg.core.errors import InputError
from tumorseg.data import dataset
from tumorseg.serving.keys import OPEN_VARIABLE, VARIABLE

DEPLOY = REPOSITORY / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
KUSTOMIZATION = yaml.safe_load((DEPLOY / "kubernetes" / "kustomization.yaml").read_text())
MANIFESTS = sorted(DEPLOY / "kubernetes" / name for name in KUSTOMIZATION["resources"])
OBJECTS = [made for path in MANIFESTS for made in yaml.safe_load_all(path.read_text())]
# Read by images that are not ours, and by botocore, which composes their names.
THEIRS = {
    *("POSTGRES_USER", "POSTGRES_PASSWORD", "PGDATA"),
    *("MINIO_ROOT_USER", "MINIO_ROOT_PASSWORD", "MINIO_UPDATE", "MINIO_CALLHOME_ENABLE"),
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL_S3"),
    *("AWS_EC2_METADATA_DISABLED", "HOME", "REPOSITORY_URL", "TUMORSEG_HOME", dataset.REMOTE),
}


def is_read(name: str) -> bool:
    """Whether code that is installed here, or an image of the manifests, knows the variable."""
    import mlflow.environment_variables
    from dvc import env
    from mlflow.cli import server
    from prefect import settings

    if name in THEIRS | {VARIABLE, OPEN_VARIABLE} | environment.SILENT.keys():
        return True
    if name.startswith("PREFECT_"):
        return hasattr(settings, name)
    if name.startswith("DVC_"):
        return hasattr(env, name)
    options = {option.envvar for option in server.params}
    return hasattr(mlflow.environment_variables, name) or name in options | {"MLFLOW_TRACKING_URI"}


def pods() -> Iterator[tuple[str, dict, dict]]:
    """Name, labels and specification of each pod that the manifests make."""
    for made in OBJECTS:
        spec = made.get("spec", {})
        spec = spec.get("jobTemplate", {}).get("spec", spec)
        if "template" in spec:
            template = spec["template"]
            yield made["metadata"]["name"], template["metadata"]["labels"], template["spec"]


def containers() -> Iterator[tuple[str, dict]]:
    for name, _, spec in pods():
        for container in [*spec.get("initContainers", []), *spec["containers"]]:
            yield f"{name}/{container['name']}", container


def test_yaml_is_clean() -> None:
    names = subprocess.run(
        ["git", "ls-files", "*.yaml", "*.yml"], cwd=REPOSITORY, capture_output=True, text=True
    ).stdout.split()
    command = [sys.executable, "-m", "yamllint", "--strict", *names]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert names and done.returncode == 0, done.stdout


def test_kubernetes_accepts_each_manifest() -> None:
    import kubernetes_validate

    for made in OBJECTS:
        kubernetes_validate.validate(made, "1.37", strict=True)


def test_kustomization_names_all_that_is_there() -> None:
    there = {path.name for path in (DEPLOY / "kubernetes").glob("*.yaml")}
    assert there == {*KUSTOMIZATION["resources"], "kustomization.yaml"}
    images = {container["image"].split(":")[0] for _, container in containers()}
    assert {image["name"] for image in KUSTOMIZATION["images"]} <= images


def test_kubernetes_names_refer_to_what_is_there() -> None:
    names = {(made["kind"], made["metadata"]["name"]) for made in OBJECTS}
    given = (DEPLOY / "kubernetes" / "example.secrets.env").read_text()
    keys = set(re.findall(r"^(\w+)=$", given, re.M))
    labels = [label for _, label, _ in pods()]
    for made in OBJECTS:
        spec = made.get("spec", {})
        if made["kind"] == "Service":
            fit = [pod for _, label, pod in pods() if spec["selector"].items() <= label.items()]
            ports = {
                p["containerPort"] for pod in fit for c in pod["containers"] for p in c["ports"]
            }
            assert {port["port"] for port in spec["ports"]} <= ports, made["metadata"]["name"]
        if made["kind"] in ("NetworkPolicy", "PodDisruptionBudget"):
            said = str(spec)
            for app in re.findall(r"'app': '([\w-]+)'", said):
                assert {"app": app} in labels
            for some in re.findall(r"'values': \[([^\]]+)\]", said):
                assert all({"app": app.strip(" '")} in labels for app in some.split(","))
        if made["kind"] == "HorizontalPodAutoscaler":
            assert (spec["scaleTargetRef"]["kind"], spec["scaleTargetRef"]["name"]) in names
    for _, _, spec in pods():
        for volume in spec.get("volumes", []):
            if claim := volume.get("persistentVolumeClaim"):
                assert ("PersistentVolumeClaim", claim["claimName"]) in names
            if chosen := volume.get("configMap"):
                assert ("ConfigMap", chosen["name"]) in names
    for name, container in containers():
        for source in container.get("envFrom", []):
            assert ("ConfigMap", source["configMapRef"]["name"]) in names, name
        for variable in container.get("env", []):
            if "valueFrom" in variable:
                chosen = variable["valueFrom"]["secretKeyRef"]
                assert chosen["name"] == "secrets" and chosen["key"] in keys, name


def test_pods_are_bounded_and_without_rights() -> None:
    for name, _, spec in pods():
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["automountServiceAccountToken"] is False, name
    for name, container in containers():
        assert {"cpu", "memory"} <= container["resources"]["limits"].keys(), name
        assert container["securityContext"]["allowPrivilegeEscalation"] is False, name
    jobs = {f"prepare/{step}" for step in ("clone", "buckets", "data", "schedules")}
    for name, container in containers():
        assert name in jobs or "livenessProbe" in container, name
        ports = {port["name"] for port in container.get("ports", [])}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            if asked := container.get(probe, {}).get("httpGet"):
                assert asked["port"] in ports, name


def test_the_service_is_probed_where_it_answers() -> None:
    (found,) = (c for name, c in containers() if name == "service/service")
    folder = REPOSITORY / "src" / "tumorseg" / "serving"
    text = "".join(path.read_text() for path in folder.rglob("*.py"))
    paths = {found[probe]["httpGet"]["path"] for probe in ("readinessProbe", "livenessProbe")}
    assert paths == {"/readyz", "/livez"} and all(path in text for path in paths)
    (front,) = (o for o in OBJECTS if o["kind"] == "Service" and o["metadata"]["name"] == "service")
    assert front["spec"]["sessionAffinity"] == "ClientIP"  # what the page keeps is one process's


def commands() -> dict[tuple[str, ...], list[str]]:
    """The commands of all containers, without arguments → the options that they are given."""
    all_of = COMPOSE["services"].values()
    given = [container["command"] for _, container in containers() if "command" in container]
    given += [one["command"] for one in all_of if one["image"].startswith("tumorseg-worker")]
    found: dict[tuple[str, ...], set[str]] = {}
    for program, *rest in given:
        if program == "sh" or rest[:2] == ["-m", "deploy.buckets"]:  # which takes no options
            continue
        if program == "python":
            words = [sys.executable, *rest[: 3 if rest[1] == "dvc" else 2]]
        else:
            words = [program, *itertools.takewhile(str.isalpha, rest)]
        options = {word for word in rest if word.startswith("--")}
        found.setdefault(tuple(words), set()).update(options)
    return {words: sorted(options) for words, options in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize(("words", "options"), commands().items(), ids=str)
def test_commands_exist_with_their_options(words, options) -> None:
    folder = Path(sys.executable).parent
    done = subprocess.run(
        [*words, "--help"],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=os.environ
        | {"COLUMNS": "200", "PYTHONPATH": f"{REPOSITORY / 'src'}:{REPOSITORY}"}
        | {"PATH": f"{folder}:{os.environ['PATH']}"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert not [option for option in options if option not in done.stdout]


def variables() -> set[str]:
    found = {name for made in OBJECTS if made["kind"] == "ConfigMap" for name in made["data"]}
    found -= {"databases.sql"}
    found |= {entry["name"] for _, container in containers() for entry in container.get("env", [])}
    return found.union(
        *(service.get("environment", {}) for service in COMPOSE["services"].values())
    )


def test_variables_are_ones_that_are_read() -> None:
    assert [name for name in sorted(variables()) if not is_read(name)] == []


def test_compose_services_refer_to_what_is_there() -> None:
    made = COMPOSE["services"]
    for name, service in made.items():
        assert {"cpus", "memory"} <= service["deploy"]["resources"]["limits"].keys()
        assert "healthcheck" in service or service["restart"] == "no", name
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["cap_drop"] == ["ALL"]
        assert set(service.get("networks", [])) <= COMPOSE["networks"].keys()
        for needed, how in service.get("depends_on", {}).items():
            assert needed in made
            if how["condition"] == "service_healthy":
                assert "healthcheck" in made[needed]
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in COMPOSE["volumes"] or (DEPLOY / source).exists(), volume
        for port in service.get("ports", []):
            assert re.fullmatch(r"127\.0\.0\.1:(\d+):\1", port), f"{name} is open beyond loopback"
    text = (DEPLOY / "compose.yaml").read_text()
    hosts = set(re.findall(r"(?:http|tcp)://([a-z][\w-]*):\d+", text))
    assert hosts - {"localhost"} <= made.keys()


def test_compose_starts_nothing_without_secrets() -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    given = (DEPLOY / "example.env").read_text()
    asked = set(re.findall(r"\$\{(\w+)", text))
    assert asked == set(re.findall(r"^(\w+)=", given, re.M))
    assert not re.search(r"^\w+=.+", given, re.M), "a value in the example"
    for name in asked - {"TUMORSEG_SERVICE_IMAGE"}:
        assert not re.search(rf"\$\{{{name}(?!:\?)", text), f"{name} may be empty"
    ignored = ["deploy/.env", "deploy/kubernetes/secrets.env"]
    done = subprocess.run(["git", "check-ignore", *ignored], cwd=REPOSITORY, capture_output=True)
    assert done.stdout.decode().split() == ignored


def test_both_ways_set_what_the_local_profile_sets() -> None:
    data = {o["metadata"]["name"]: o["data"] for o in OBJECTS if o["kind"] == "ConfigMap"}
    wanted = {"AWS_ENDPOINT_URL_S3", "DVC_GLOBAL_CONFIG_DIR", "MLFLOW_TRACKING_URI"}
    wanted |= {"PREFECT_API_URL", dataset.REMOTE}
    assert all(f'"{name}":' in Path(services.__file__).read_text() for name in wanted)
    assert wanted <= data["client"].keys()
    assert wanted <= COMPOSE["services"]["worker"]["environment"].keys()
    sql = (DEPLOY / "databases.sql").read_text()
    assert sql.partition("\n")[2] == data["databases"]["databases.sql"]
    assert all(f"CREATE DATABASE {name};" in sql for name in services.DATABASES)


def test_the_image_takes_nothing_but_the_lock() -> None:
    lines = (REPOSITORY / ".dockerignore").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == ["*", "!requirements.lock"]
    copied = re.findall(r"^COPY (\S+)", (DEPLOY / "Dockerfile").read_text(), re.M)
    assert copied == ["requirements.lock"]
    assert re.search(r"^USER 10001", (DEPLOY / "Dockerfile").read_text(), re.M)


def test_without_postgresql_one_sentence_says_what_to_install(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(services.Path, "glob", lambda *_: iter(()))
    with pytest.raises(InputError, match="apt-get install postgresql"):
        services.programs()


def test_a_server_that_does_not_start_is_named(tmp_path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no licence for this')"]
    server = Server("oracle", command, tmp_path / "log", lambda: False, dict(os.environ))
    with pytest.raises(InputError, match=r"oracle did not start.*no licence"):
        server.start()


def test_a_checkout_with_results_elsewhere_is_left_alone(tmp_path) -> None:
    with pytest.raises(InputError, match=r"no dvc\.yaml"):
        local.check_place(tmp_path)
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "artifacts").mkdir()
    with pytest.raises(InputError, match="fresh clone"):
        local.check_place(tmp_path)
