"""Renders our kustomizations without kustomize: as much of it as they use, and an error for everything else.

`make infra-check` compares the result with what `kubectl kustomize` makes of them.
"""

from pathlib import Path
from typing import Any

import yaml

Manifest = dict[str, Any]
Key = tuple[str, str]

_KNOWN = {"apiVersion", "kind", "namespace", "resources", "generatorOptions", "configMapGenerator", "patches"}
_NOT_IN_A_NAMESPACE = {"Namespace"}
_MERGED_BY_NAME = {"containers", "env"}


def render(folder: Path) -> dict[Key, Manifest]:
    """Every manifest of a kustomization, by kind and name.

    Raises:
        ValueError: It uses something that is not rendered here, or defines something twice.
    """
    content = yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))
    if unknown := set(content) - _KNOWN:
        raise ValueError(f"{folder}: {', '.join(sorted(unknown))} is not rendered here.")
    found: dict[Key, Manifest] = {}
    for resource in content.get("resources", ()):
        path = folder / resource
        manifests = render(path).values() if path.is_dir() else yaml.safe_load_all(path.read_text(encoding="utf-8"))
        _add(found, manifests)
    _add(found, (_config_map(folder, generator, content) for generator in content.get("configMapGenerator", ())))
    for patch in content.get("patches", ()):
        if set(patch) != {"path"}:
            raise ValueError(f"{folder}: only patches that are files are rendered here.")
        change = yaml.safe_load((folder / patch["path"]).read_text(encoding="utf-8"))
        key = _key(change)
        found[key] = _merged(found[key], change)
    for (kind, _), manifest in found.items():
        if "namespace" in content and kind not in _NOT_IN_A_NAMESPACE:
            manifest["metadata"]["namespace"] = content["namespace"]
    return found


def _add(found: dict[Key, Manifest], manifests: Any) -> None:
    for manifest in manifests:
        if _key(manifest) in found:
            raise ValueError(f"{' '.join(_key(manifest))} is defined twice.")
        found[_key(manifest)] = manifest


def _key(manifest: Manifest) -> Key:
    return manifest["kind"], manifest["metadata"]["name"]


def _config_map(folder: Path, generator: Manifest, content: Manifest) -> Manifest:
    if set(generator) != {"name", "files"} or content.get("generatorOptions") != {"disableNameSuffixHash": True}:
        raise ValueError(f"{folder}: only ConfigMaps of files, with a fixed name, are rendered here.")
    data = {Path(file).name: (folder / file).read_text(encoding="utf-8") for file in generator["files"]}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": generator["name"]}, "data": data}


def _merged(base: Any, change: Any, name: str = "") -> Any:
    """A strategic merge: maps key by key, containers and variables by name, everything else replaced."""
    if isinstance(base, dict) and isinstance(change, dict):
        return base | {key: _merged(base.get(key), value, key) for key, value in change.items()}
    if name in _MERGED_BY_NAME and isinstance(base, list):
        changes = {entry["name"]: entry for entry in change}
        kept = [_merged(entry, changes.pop(entry["name"], {})) for entry in base]
        return [*changes.values(), *kept]
    return change
