"""Work pool templates: what Prefect accepts, with defaults that name what the stack has."""

import json
import re
from typing import Any

import kubernetes_validate
import pytest
from prefect.server.schemas.actions import WorkPoolCreate

from tests.compose_file import ROOT, example_variables, read_compose

FOLDER = ROOT / "infra/work-pools"
TEMPLATES = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))}
PLACEHOLDER = re.compile(r"\{\{\s*(\w+)\s*\}\}")


def test_there_is_one_for_each_type_and_pool() -> None:
    assert set(TEMPLATES) == {
        f"{kind}-{pool}" for kind in ("process", "docker", "kubernetes") for pool in ("cpu", "gpu")
    }


@pytest.mark.parametrize("name", TEMPLATES)
def test_prefect_takes_it_and_every_placeholder_is_a_variable(name: str) -> None:
    template = TEMPLATES[name]
    kind, _, pool = name.partition("-")
    WorkPoolCreate(name=pool, type=kind, base_job_template=template)
    placeholders = set(PLACEHOLDER.findall(json.dumps(template["job_configuration"])))
    assert placeholders == set(template["variables"]["properties"])
    assert template["variables"]["properties"]["env"]["default"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"


def filled_in(part: Any, values: dict[str, Any]) -> Any:
    if isinstance(part, dict):
        filled = {key: filled_in(value, values) for key, value in part.items()}
        return {key: value for key, value in filled.items() if value is not None}
    if isinstance(part, list):
        return [filled_in(value, values) for value in part]
    if isinstance(part, str) and (whole := PLACEHOLDER.fullmatch(part)):
        return values.get(whole[1])
    return PLACEHOLDER.sub(lambda match: str(values.get(match[1], "")), part) if isinstance(part, str) else part


@pytest.mark.parametrize("pool", ["cpu", "gpu"])
def test_the_job_of_a_flow_run_is_one_for_kubernetes(pool: str) -> None:
    template = TEMPLATES[f"kubernetes-{pool}"]
    variables = template["variables"]["properties"]
    values = {name: field["default"] for name, field in variables.items() if "default" in field}
    values |= {"name": "run", "labels": {"a": "b"}, "command": ["prefect", "flow-run", "execute"]}
    values["env"] = [{"name": name, "value": value} for name, value in values["env"].items()]
    manifest = filled_in(template["job_configuration"]["job_manifest"], values)
    kubernetes_validate.validate(manifest, "1.33", strict=True)
    spec = manifest["spec"]["template"]["spec"]
    assert spec["securityContext"]["runAsNonRoot"]
    gpus = spec["containers"][0]["resources"]["limits"].get("nvidia.com/gpu")
    assert gpus == (1 if pool == "gpu" else None)


@pytest.mark.parametrize("pool", ["cpu", "gpu"])
def test_containers_of_flow_runs_join_the_stack(pool: str) -> None:
    variables = TEMPLATES[f"docker-{pool}"]["variables"]["properties"]
    compose, project = read_compose(example_variables()), example_variables()["COMPOSE_PROJECT_NAME"]
    assert variables["image"]["default"] == compose["services"][f"worker-{pool}"]["image"]
    assert variables["networks"]["default"] == [f"{project}_backend"] and "backend" in compose["networks"]
    assert f"{project}_cartridge-home:/var/lib/cartridge" in variables["volumes"]["default"]
