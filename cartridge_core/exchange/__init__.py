"""Cartridges in other software's files: one file a format. Needs none of that software."""

from cartridge_core.exchange.foreign_prefix import ForeignPrefix
from cartridge_core.exchange.peft_adapter import read_adapter, write_adapter
from cartridge_core.exchange.reference_checkpoint import read_checkpoint

__all__ = ["ForeignPrefix", "read_adapter", "read_checkpoint", "write_adapter"]
