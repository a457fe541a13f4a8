"""Write .env from .env.example with a fresh value for every secret: `python infra/make_env.py [FILE]`."""

import os
import re
import secrets
import sys
from pathlib import Path

EXAMPLE = Path(__file__).resolve().parents[1] / ".env.example"


def filled_in(example: str) -> str:
    """The example with random hexadecimal digits behind every empty variable of its section "Secrets"."""
    before, section, rest = re.split(r"(?=^# --- )", example, maxsplit=2, flags=re.MULTILINE)
    section = re.sub(r"^(\w+)=$", lambda match: f"{match[1]}={secrets.token_hex(24)}", section, flags=re.MULTILINE)
    return before + section + rest


def main(target: Path) -> None:
    """Write the file, readable to its owner only; one that is there stays.

    Raises:
        SystemExit: It is there already.
    """
    try:
        handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise SystemExit(f"{target} is there already. Its secrets are in use; edit it, or remove it first.") from None
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(filled_in(EXAMPLE.read_text(encoding="utf-8")))
    sys.stdout.write(f"Wrote {target}.\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else EXAMPLE.with_name(".env"))
