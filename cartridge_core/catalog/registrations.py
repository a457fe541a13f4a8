"""Where Cartridges are: their files, and their versions in MLflow."""

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from cartridge_core.catalog.models import CartridgeRow, RegistrationRow


@dataclass(frozen=True)
class Whereabouts:
    """Where a Cartridge is."""

    model_name: str
    """Registered model in MLflow."""
    version: int
    """Its version there."""
    model_id: str
    """The logged model's id."""
    run_id: str
    """The run that logged it."""
    artifact_uri: str
    """Folder of the files, fully resolved: a path or `s3://bucket/...`."""
    artifact_key: str
    """The same folder as a key of the artifact store."""
    size_bytes: int
    """Bytes of the files."""


def record_registration(session: Session, cartridge: CartridgeRow, place: Whereabouts) -> RegistrationRow:
    """Write down where a Cartridge is, unless the newest row says just that."""
    newest = session.scalar(
        select(RegistrationRow)
        .where(RegistrationRow.tenant == cartridge.tenant, RegistrationRow.cartridge_id == cartridge.id)
        .order_by(RegistrationRow.id.desc())
        .limit(1)
    )
    if newest is not None and all(getattr(newest, name) == value for name, value in vars(place).items()):
        return newest
    row = RegistrationRow(tenant=cartridge.tenant, cartridge_id=cartridge.id, **vars(place))
    session.add(row)
    session.flush()
    return row
