"""Who is let in: API keys, rate limits, and where a gateway without keys may listen."""

import ipaddress
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from cartridge_core.catalog import catalog_session
from cartridge_core.catalog.api_keys import ApiKey, any_api_key, find_api_key, key_id_of
from cartridge_core.digest import sha256_text
from cartridge_core.errors import SettingsError
from cartridge_core.serving.caller import Caller
from cartridge_core.serving.errors import ForbiddenError, RateLimitedError, UnauthorizedError
from cartridge_core.serving.remembered import Freshness, Remembered
from cartridge_core.serving.resolver import Catalogue
from cartridge_core.settings import Settings


class Door:
    """Lets callers in.

    As long as no key was ever made, everybody on this machine is let in as the settings' tenant. From the first key on
    every request needs one, also when all were revoked again.

    Args:
        catalogue: Where keys are.
        tenant: Whose corpora are meant where no key is needed.
        freshness: How long a key's being valid is believed: how long a revocation takes.
        clock: Seconds.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        tenant: str,
        freshness: Freshness | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._catalogue, self._tenant = catalogue, tenant
        freshness = freshness or Freshness()
        self._keys: Remembered[tuple[str, str], ApiKey | None] = Remembered(self._find, freshness)
        self._locked: Remembered[str, bool] = Remembered(self._is_locked, freshness)
        self._limits = RateLimits(clock)

    async def caller(self, headers: Headers) -> Caller:
        """Who sends these headers.

        Raises:
            UnauthorizedError: A key is needed and there is no valid one.
            ForbiddenError: No key is needed, and the request was made for another machine than this.
            RateLimitedError: The key has used up its requests.
            CatalogDownError: The catalog does not answer, and nothing recent is remembered.
        """
        if not await self._locked.get(""):
            self._check_host(headers)
            return Caller(self._tenant)
        scheme, _, token = headers.get("authorization", "").partition(" ")
        token = token.strip() if scheme.lower() == "bearer" else ""
        key_id = key_id_of(token)
        key = None if key_id is None else await self._keys.get((key_id, sha256_text(token)))
        if key is None:
            raise UnauthorizedError(
                "No valid API key was sent.", "Send the header Authorization: Bearer KEY; operators make keys."
            )
        self._limits.take(key)
        corpora = None if key.corpora is None else frozenset(key.corpora)
        return Caller(key.tenant, key.key_id, corpora, key.operator)

    def close(self) -> None:
        """Stop asking."""
        self._keys.close()
        self._locked.close()

    def _check_host(self, headers: Headers) -> None:
        # A page of somebody else's, whose name was pointed at this machine, runs in the user's browser and would be
        # let in otherwise; its requests carry its own name.
        host = headers.get("host", "")
        if not is_loopback(urlsplit(f"//{host}").hostname or ""):
            raise ForbiddenError(
                f"Without API keys this gateway answers this machine only, not requests to {host!r}.",
                "Ask it at 127.0.0.1, or make a key: cartridge key create NAME.",
            )

    def _find(self, key: tuple[str, str]) -> ApiKey | None:
        with self._catalogue.open().session(read_only=True) as session:
            return find_api_key(session, *key)

    def _is_locked(self, _: str) -> bool:
        with self._catalogue.open().session(read_only=True) as session:
            return any_api_key(session)


class RateLimits:
    """Requests of each key in a minute, in this process: a bucket that fills evenly and may be emptied at once.

    Args:
        clock: Seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, key: ApiKey) -> None:
        """Count one request.

        Raises:
            RateLimitedError: There are none left.
        """
        if key.requests_per_minute is None:
            return
        now, most = self._clock(), float(key.requests_per_minute)
        left, at = self._buckets.get(key.key_id, (most, now))
        left = min(most, left + (now - at) * most / 60)
        if left < 1:
            self._buckets[key.key_id] = (left, now)
            raise RateLimitedError(
                f"This key may send {key.requests_per_minute} requests a minute.",
                "Ask again shortly.",
                retry_after=(1 - left) * 60 / most,
            )
        self._buckets[key.key_id] = (left - 1, now)


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is this machine's own, reachable from nowhere else."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_may_listen(settings: Settings, host: str) -> None:
    """Refuse to let others in where nobody needs a key.

    Raises:
        SettingsError: The address can be reached from elsewhere and there is no valid key.
        CatalogError: The catalog cannot be asked.
    """
    if is_loopback(host):
        return
    with catalog_session(settings, read_only=True) as session:
        if any_api_key(session, valid=True):
            return
    raise SettingsError(
        f"The gateway would listen on {host!r}, where others can reach it, and there are no API keys.",
        "Make one (`cartridge key create NAME`), or listen on 127.0.0.1.",
    )
