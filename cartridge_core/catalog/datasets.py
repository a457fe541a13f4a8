"""Datasets of synthetic conversations."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from cartridge_core.catalog.insertion import add_once
from cartridge_core.catalog.models import BaseModelRow, CorpusVersionRow, DatasetRow


def record_dataset(
    session: Session,
    version: CorpusVersionRow,
    teacher: BaseModelRow,
    digest: str,
    *,
    num_conversations: int | None = None,
) -> DatasetRow:
    """The row of a dataset about a corpus version, written if it is new.

    Args:
        session: Open session.
        version: What the conversations are about; its tenant owns the dataset.
        teacher: The model that spoke them.
        digest: Digest of the dataset's manifest.
        num_conversations: How many, where known.
    """
    same = select(DatasetRow).where(
        DatasetRow.tenant == version.tenant,
        DatasetRow.corpus_version_id == version.id,
        DatasetRow.digest == digest,
    )
    return add_once(
        session,
        lambda: session.scalar(same),
        lambda: DatasetRow(
            tenant=version.tenant,
            corpus_version_id=version.id,
            base_model_id=teacher.id,
            digest=digest,
            num_conversations=num_conversations,
        ),
    )
