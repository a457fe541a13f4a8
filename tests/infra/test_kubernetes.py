"""infra/kubernetes: every manifest by Kubernetes's own schemas, and the promises that are made of the whole."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from tests.compose_file import ROOT, example_variables, services
from tests.infra.kustomization import Key, Manifest, render

OVERLAYS = {name: render(ROOT / "infra/kubernetes/overlays" / name) for name in ("cpu", "gpu")}
VERSIONS = ("1.30", "1.33")
ALL = [
    pytest.param(manifest, id=f"{overlay}-{'-'.join(key)}")
    for overlay, found in OVERLAYS.items()
    for key, manifest in found.items()
]
COMPOSE = services(example_variables())


def pods(found: dict[Key, Manifest]) -> Iterator[tuple[str, str, dict[str, Any], dict[str, Any]]]:
    """Kind, name, labels and pod specification of everything that runs."""
    for (kind, name), manifest in found.items():
        if "template" in manifest.get("spec", {}):
            template = manifest["spec"]["template"]
            yield kind, name, template["metadata"]["labels"], template["spec"]


RUNNING = [pytest.param(*pod, id=f"{overlay}-{pod[1]}") for overlay, found in OVERLAYS.items() for pod in pods(found)]


@pytest.mark.parametrize("manifest", ALL)
@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_would_take_it(manifest: Manifest, version: str) -> None:
    kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize(("kind", "name", "labels", "spec"), RUNNING)
def test_it_runs_without_rights(kind: str, name: str, labels: dict[str, str], spec: dict[str, Any]) -> None:
    assert spec["automountServiceAccountToken"] is False and spec["enableServiceLinks"] is False
    assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = spec["containers"]
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert {"requests", "limits"} <= set(container["resources"]) and "memory" in container["resources"]["limits"]
    if kind != "Job":
        assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(container)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_is_referred_to_is_there(overlay: str) -> None:
    found, made = OVERLAYS[overlay], made_secrets()
    claims = {name for kind, name in found if kind == "PersistentVolumeClaim"}
    maps = {name: set(manifest["data"]) for (kind, name), manifest in found.items() if kind == "ConfigMap"}
    for _, name, labels, spec in pods(found):
        assert labels["app.kubernetes.io/name"] == name
        for volume in spec.get("volumes", ()):
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in claims
            if "configMap" in volume:
                assert volume["configMap"]["name"] in maps
        (container,) = spec["containers"]
        mounted = {mount["name"] for mount in container.get("volumeMounts", ())}
        assert mounted == {volume["name"] for volume in spec.get("volumes", ())} | (mounted & {"data"})
        for source in container.get("envFrom", ()):
            assert source.get("configMapRef", {}).get("name", "cartridge") in maps
            assert source.get("secretRef", {}).get("name", "cartridge-stores") in made
        for variable in container.get("env", ()):
            where = variable.get("valueFrom", {})
            if "secretKeyRef" in where:
                assert where["secretKeyRef"]["key"] in made[where["secretKeyRef"]["name"]], (name, variable)
            if "configMapKeyRef" in where:
                assert where["configMapKeyRef"]["key"] in maps[where["configMapKeyRef"]["name"]], (name, variable)
            secret_like = any(word in variable["name"] for word in ("PASSWORD", "SECRET", "TOKEN", "_KEY"))
            assert not secret_like or "valueFrom" in variable, "a secret in a manifest"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_it_is_the_stack_of_the_compose_file(overlay: str) -> None:
    running = {name: spec["containers"][0] for _, name, _, spec in pods(OVERLAYS[overlay])}
    composed = {name: one for name, one in COMPOSE.items() if one.runs_in(overlay)}
    other_names = {"gateway-vllm": "gateway"}
    assert {other_names.get(name, name) for name in composed} == set(running)
    for name, service in composed.items():
        container = running[other_names.get(name, name)]
        assert container["image"] == service.declared["image"], name
        if "build" in service.declared:
            assert tuple(map(str, container["command"])) == service.command, name


def test_each_pod_has_the_catalogs_user_of_the_compose_file() -> None:
    made = {manifest["metadata"]["name"]: manifest["stringData"] for manifest in secret_manifests()}
    for overlay, found in OVERLAYS.items():
        for _, name, _, spec in pods(found):
            refs = [
                source["secretRef"]["name"]
                for source in spec["containers"][0].get("envFrom", ())
                if "secretRef" in source
            ]
            urls = {key: url for ref in refs for key, url in made[ref].items() if key.endswith("CATALOG_URL")}
            service = COMPOSE[name if name in COMPOSE and COMPOSE[name].runs_in(overlay) else f"{name}-vllm"]
            declared = service.environment.items()
            assert urls == {key: url for key, url in declared if key.endswith("CATALOG_URL")}, name


def test_vllm_is_reached_by_the_gateway_only() -> None:
    found = OVERLAYS["gpu"]
    policies = {name: manifest["spec"] for (kind, name), manifest in found.items() if kind == "NetworkPolicy"}
    assert policies["nobody"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    chosen = [spec for name, spec in policies.items() if spec["podSelector"] == selector("vllm")]
    assert [rule for spec in chosen for rule in spec["ingress"]] == [
        {"ports": [{"port": 8001}], "from": [{"podSelector": selector("gateway")}]}
    ]
    assert found[("Service", "vllm")]["spec"].get("type", "ClusterIP") == "ClusterIP"


def selector(name: str) -> dict[str, Any]:
    return {"matchLabels": {"app.kubernetes.io/name": name}}


def test_whoever_needs_a_store_may_reach_it() -> None:
    found = OVERLAYS["gpu"]
    uses = {name for _, name, labels, _ in pods(found) if labels.get("cartridge.dev/uses-stores") == "true"}
    assert uses == {"mlflow", "prefect", "bucket", "migrate", "deploy", "worker-cpu", "worker-gpu", "gateway"}


def test_gpus_are_asked_for_where_they_are() -> None:
    for name in ("worker-gpu", "vllm"):
        spec = OVERLAYS["gpu"][("Deployment", name)]["spec"]["template"]["spec"]
        assert spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
        assert spec["nodeSelector"] == {"cartridge.dev/pool": "gpu"} and spec["tolerations"]
    assert "nvidia.com/gpu" not in json.dumps(list(OVERLAYS["cpu"].values()))


def made_secrets(env: Path | None = None) -> dict[str, set[str]]:
    return {manifest["metadata"]["name"]: set(manifest["stringData"]) for manifest in secret_manifests(env)}


def secret_manifests(env: Path | None = None) -> list[Manifest]:
    """What make_secrets.py prints for the example's variables, or for a file."""
    text = "".join(f"{name}={value}\n" for name, value in example_variables().items())
    script = ROOT / "infra/kubernetes/make_secrets.py"
    done = subprocess.run(
        [sys.executable, str(script), str(env or "/dev/stdin")], input=text, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    items: list[Manifest] = json.loads(done.stdout)["items"]
    return items


def test_secrets_are_made_of_the_same_file(tmp_path: Path) -> None:
    for manifest in secret_manifests():
        kubernetes_validate.validate(manifest, VERSIONS[-1], strict=True)
    empty = tmp_path / ".env"
    empty.write_text("POSTGRES_PASSWORD=\n", encoding="utf-8")
    script = ROOT / "infra/kubernetes/make_secrets.py"
    done = subprocess.run([sys.executable, str(script), str(empty)], capture_output=True, text=True)
    assert done.returncode == 1 and "does not set" in done.stderr and done.stdout == ""


def test_an_unknown_part_of_a_kustomization_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text("namePrefix: a-\n", encoding="utf-8")
    with pytest.raises(ValueError, match="namePrefix"):
        render(tmp_path)
