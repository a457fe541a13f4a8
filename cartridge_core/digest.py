"""Digests: every product of the foundry is addressed by the sha256 of its content."""

import hashlib
import json
from pathlib import Path
from typing import Any

_BLOCK = 1 << 20


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces, the one byte form of a value that digests are taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256_bytes(data: bytes) -> str:
    """Hex sha256 of bytes."""
    return hashlib.sha256(data).hexdigest()


def sha256_text(text: str) -> str:
    """Hex sha256 of a text's UTF-8 bytes."""
    return sha256_bytes(text.encode())


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file, read in blocks."""
    hasher = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            hasher.update(block)
    return hasher.hexdigest()


def digest_of(value: Any) -> str:
    """Hex sha256 of a JSON-serialisable value in canonical form."""
    return sha256_text(canonical_json(value))
