"""docker-compose.yml: valid, closed to the outside, complete, and true to the images and scripts that it names."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.compose_file import COMPOSE_FILE, ROOT, Service, example_variables, read_compose, secret_names, services

SERVICES = services(example_variables())
ONE_SHOT = {"bucket", "migrate", "deploy"}


def each() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("service", SERVICES.values(), ids=lambda service: service.name)


def test_it_is_valid_by_the_compose_specification(tmp_path: Path) -> None:
    filled = tmp_path / "compose.yml"
    filled.write_text(yaml.safe_dump(read_compose(example_variables())), encoding="utf-8")
    for file in (COMPOSE_FILE, filled):
        done = subprocess.run(
            [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(file)],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("missing", secret_names())
def test_without_a_secret_nothing_starts(missing: str) -> None:
    with pytest.raises(ValueError, match=missing):
        services(example_variables() | {missing: ""})


def test_every_variable_is_in_the_example_and_every_example_is_used() -> None:
    used = set(re.findall(r"(?<!\$)\$\{(\w+)", COMPOSE_FILE.read_text(encoding="utf-8")))
    assert used == set(example_variables()) - {"COMPOSE_PROFILES", "COMPOSE_PROJECT_NAME"}


@each()
def test_ports_are_published_on_this_machine_only(service: Service) -> None:
    ports = service.declared.get("ports", ())
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in ports), ports
    assert COMPOSE_FILE.read_text(encoding="utf-8").count('ports: ["${BIND:-127.0.0.1}:') >= bool(ports)
    unwatched = {
        name: one.declared.get("ports", ()) for name, one in SERVICES.items() if name in ("postgres", "s3", "vllm")
    }
    assert not any(unwatched.values())


def test_links_and_pages_lead_to_published_ports() -> None:
    for service, variable, path in (
        ("prefect", "PREFECT_SERVER_UI_API_URL", "/api"),
        ("mlflow", "CARTRIDGE_MLFLOW_PUBLIC_URL", ""),
    ):
        address, port, _ = SERVICES[service].declared["ports"][0].rsplit(":", 2)
        said = {one.environment[variable] for one in SERVICES.values() if variable in one.environment}
        assert said == {f"http://{address}:{port}{path}"}
    assert all("CARTRIDGE_MLFLOW_PUBLIC_URL" in SERVICES[name].environment for name in SERVICES if "worker" in name)


@each()
def test_every_service_is_watched_and_started_again(service: Service) -> None:
    if service.name in ONE_SHOT:
        assert service.declared["restart"] == "on-failure" and not service.health
    else:
        assert service.declared["restart"] == "unless-stopped" and service.health
    assert service.declared["logging"]["options"]["max-size"]


@each()
def test_our_services_have_no_rights_to_lose(service: Service) -> None:
    if "build" not in service.declared:
        return
    assert service.declared["cap_drop"] == ["ALL"]
    assert service.declared["security_opt"] == ["no-new-privileges:true"]


@each()
def test_dependencies_are_waited_for_and_run_in_the_same_profile(service: Service) -> None:
    for name, how in service.declared.get("depends_on", {}).items():
        expected = "service_completed_successfully" if name in ONE_SHOT else "service_healthy"
        assert how == {"condition": expected}
        for profile in ("cpu", "gpu"):
            assert SERVICES[name].runs_in(profile) or not service.runs_in(profile)


def test_each_profile_has_everything() -> None:
    always = {
        "postgres",
        "s3",
        "bucket",
        "mlflow",
        "prefect",
        "migrate",
        "deploy",
        "worker-cpu",
        "prometheus",
        "grafana",
    }
    assert {name for name, one in SERVICES.items() if one.runs_in("cpu")} == always | {"worker-gpu-on-cpu", "gateway"}
    assert {name for name, one in SERVICES.items() if one.runs_in("gpu")} == always | {
        "worker-gpu",
        "vllm",
        "gateway-vllm",
    }


def test_vllm_is_reached_by_the_gateway_only() -> None:
    def networks(name: str) -> set[str]:
        return set(SERVICES[name].declared["networks"])

    beside = {name for name in SERVICES if name != "vllm" and networks(name) & networks("vllm")}
    assert beside == {"gateway-vllm", "s3"}
    assert networks("gateway-vllm") & networks("vllm") == {"engine"}


def test_each_service_has_the_catalogs_user_that_it_needs() -> None:
    def users(name: str) -> dict[str, str]:
        found = SERVICES[name].environment.items()
        return {
            variable: url.split("://")[1].split(":")[0] for variable, url in found if variable.endswith("CATALOG_URL")
        }

    own, operators = "CARTRIDGE_CATALOG_URL", "CARTRIDGE_OPERATOR_CATALOG_URL"
    for name in ("deploy", "worker-cpu", "worker-gpu", "worker-gpu-on-cpu"):
        assert users(name) == {own: "cartridge-flows"}, name
    for name in ("gateway", "gateway-vllm"):
        assert users(name) == {own: "cartridge-serving", operators: "cartridge-operator"}, name
    assert {name: users(name)[own] for name in SERVICES if users(name).get(own) == "catalog"} == {"migrate": "catalog"}


def test_named_volumes_are_declared_and_files_are_there() -> None:
    volumes = set(read_compose(example_variables())["volumes"])
    used = set()
    for service in SERVICES.values():
        for source in service.volumes.values():
            if source.startswith("."):
                assert (ROOT / source).exists(), f"{service.name} mounts {source}"
            else:
                used.add(source)
    assert used == volumes


def test_what_a_service_is_given_is_known_to_the_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from cartridge_core.settings import ENV_PREFIX, Settings

    known = set(Settings.model_fields)
    for service in SERVICES.values():
        ours = {name.removeprefix(ENV_PREFIX).lower() for name in service.environment if name.startswith(ENV_PREFIX)}
        assert ours <= known, service.name
    monkeypatch.chdir(tmp_path)
    for name, value in SERVICES["gateway"].environment.items():
        monkeypatch.setenv(name, value)
    assert Settings().artifact_root == "s3://cartridges/artifacts"


def test_scripts_and_files_that_commands_name_are_in_the_image() -> None:
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    kept = [line[1:] for line in ignore if line.startswith("!")]
    for service in SERVICES.values():
        for word in service.command:
            if word.startswith("infra/"):
                assert (ROOT / word).exists(), word
                assert any(word == path or word.startswith(f"{path}/") for path in kept), f"{word} is left out"


def test_make_env_fills_every_secret_once(tmp_path: Path) -> None:
    made = subprocess.run(
        [sys.executable, str(ROOT / "infra/make_env.py"), str(tmp_path / ".env")], capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
    lines = (tmp_path / ".env").read_text(encoding="utf-8").splitlines()
    values = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    drawn = [values[name] for name in secret_names()]
    assert len(set(drawn)) == len(drawn) and all(re.fullmatch(r"[0-9a-f]{40,}", value) for value in drawn)
    assert (tmp_path / ".env").stat().st_mode & 0o777 == 0o600
    assert not any(value in made.stdout + made.stderr for value in drawn)
    again = subprocess.run(
        [sys.executable, str(ROOT / "infra/make_env.py"), str(tmp_path / ".env")], capture_output=True, text=True
    )
    assert again.returncode == 1 and "is there already" in again.stderr
    assert (tmp_path / ".env").read_text(encoding="utf-8").splitlines() == lines


def test_no_secret_is_in_the_checkout() -> None:
    text = (ROOT / ".env.example").read_text(encoding="utf-8")
    assert all(re.search(rf"^{name}=$", text, flags=re.MULTILINE) for name in secret_names())
    assert ".env" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("page", ["README.md", "docs/deploying.md"])
def test_the_pages_name_every_port_and_volume(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for service in SERVICES.values():
        for port in service.declared.get("ports", ()):
            assert f"| {port.split(':')[1]} |" in text, port
    for volume in read_compose(example_variables())["volumes"]:
        assert f"`{volume}`" in text, volume
