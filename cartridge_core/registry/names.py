"""What things are called in MLflow."""

import re

from cartridge_core.digest import sha256_text

_ALLOWED = re.compile(r"[^A-Za-z0-9._-]")


def model_name(tenant: str, corpus: str, base_model_id: str) -> str:
    """Name of the registered model of a corpus and a base model, such as `default.clinic.Qwen--Qwen3-0.6B`.

    Tenants and corpora hold no dots, so the parts can be told apart; a slash, which MLflow refuses, becomes two
    hyphens as in the hub's own cache. Where anything else had to be replaced, a digest keeps different ids apart.

    Args:
        tenant: Whose corpus.
        corpus: Name of the corpus.
        base_model_id: Hub id or folder name.
    """
    plain = base_model_id.replace("/", "--")
    base = _ALLOWED.sub("-", plain)
    if base != plain or "--" in base_model_id:
        base = f"{base}-{sha256_text(base_model_id)[:8]}"
    return f"{corpus_prefix(tenant, corpus)}{base}"


def corpus_prefix(tenant: str, corpus: str) -> str:
    """How the names of all registered models of a corpus begin."""
    return f"{tenant}.{corpus}."


def experiment_name(tenant: str, corpus: str) -> str:
    """Name of the experiment that holds the runs about a corpus."""
    return f"{tenant}.{corpus}"
