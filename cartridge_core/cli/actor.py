"""Who sits at the command line."""

import getpass


def actor() -> str:
    """Who asks, for the record; nobody where the system knows no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""
