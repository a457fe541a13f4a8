"""Rows for tests of the catalog, without any files behind them."""

from sqlalchemy.orm import Session

from cartridge_core.catalog import Whereabouts, record_base_model, record_cartridge, record_corpus, record_dataset
from cartridge_core.catalog.models import CartridgeRow
from cartridge_core.manifest import BaseModelIdentity, CartridgeManifest, LayerSpec
from tests.samples import REFERENCE

WHEREABOUTS = Whereabouts(
    model_name="default.clinic.reference",
    version=1,
    model_id="m-1",
    run_id="run",
    artifact_uri="s3://bucket/default/cartridges/x",
    artifact_key="default/cartridges/x",
    size_bytes=3000,
)


def manifest(seed: int = 0, base_model: BaseModelIdentity = REFERENCE, tenant: str = "default") -> CartridgeManifest:
    """A manifest that differs by seed."""
    return CartridgeManifest(
        tenant=tenant,
        base_model=base_model,
        layers=(LayerSpec(num_kv_heads=2, head_dim=8),) * 2,
        dtype="float32",
        num_tokens=6,
        key_positions=tuple(range(6)),
        next_position=6,
        template_digest="t" * 64,
        corpus_digest="a" * 64,
        dataset_digest="f" * 64,
        seed=seed,
        software_version="0.1.0",
        tensors_sha256="b" * 64,
    )


def add_cartridge(
    session: Session,
    corpus: str = "clinic",
    seed: int = 0,
    *,
    tenant: str = "default",
    content: str = "a" * 64,
    base_model: BaseModelIdentity = REFERENCE,
) -> CartridgeRow:
    """A Cartridge with everything it refers to."""
    version = record_corpus(session, tenant, corpus, content, num_documents=3, num_skipped=1, uri="docs")
    base = record_base_model(session, tenant, base_model)
    dataset = record_dataset(session, version, base, "f" * 64, num_conversations=100)
    return record_cartridge(session, version, base, dataset, manifest(seed, base_model, tenant))
