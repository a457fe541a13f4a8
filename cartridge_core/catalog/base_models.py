"""Base models."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from cartridge_core.catalog.insertion import add_once
from cartridge_core.catalog.models import BaseModelRow
from cartridge_core.manifest import BaseModelIdentity


def record_base_model(session: Session, tenant: str, identity: BaseModelIdentity) -> BaseModelRow:
    """The row of a base model at its revision, written if it is new."""
    same = select(BaseModelRow).where(
        BaseModelRow.tenant == tenant,
        BaseModelRow.model_id == identity.id,
        BaseModelRow.revision == identity.revision,
        BaseModelRow.config_digest == identity.config_digest,
        BaseModelRow.tokenizer_digest == identity.tokenizer_digest,
    )
    return add_once(
        session,
        lambda: session.scalar(same),
        lambda: BaseModelRow(
            tenant=tenant,
            model_id=identity.id,
            revision=identity.revision,
            config_digest=identity.config_digest,
            tokenizer_digest=identity.tokenizer_digest,
        ),
    )
