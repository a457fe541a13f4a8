"""A large catalog on PostgreSQL: `make bench-catalog`.

Ten thousand corpora and a hundred thousand Cartridge versions are generated at the first migration's schema and copied
in, the later migrations run over them, and then the questions are asked that a gateway and a command line ask.
"""

import argparse
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import text
from sqlalchemy.dialects import postgresql

from cartridge_core.catalog import Catalog, list_cartridges, list_corpora, list_events, list_served, resolve
from cartridge_core.catalog.aliases import aliased_rows
from cartridge_core.catalog.cartridges import find_cartridge
from cartridge_core.catalog.entry import entry_rows
from cartridge_core.catalog.migration import upgrade
from cartridge_core.catalog.models import CartridgeRow
from cartridge_core.catalog.session import open_engine
from cartridge_core.digest import sha256_text
from cartridge_core.manifest import BaseModelIdentity, CartridgeManifest, LayerSpec
from cartridge_core.proof import write_proof
from cartridge_core.settings import Settings
from tests.postgres import short_folder, start_postgres

TENANT, PAGE = "default", 50
MOMENT = datetime(2026, 1, 1, tzinfo=UTC)
BASE = BaseModelIdentity(id="Qwen/Qwen3-4B", revision="r1", config_digest="c" * 64, tokenizer_digest="d" * 64)
ASKED = {
    "resolve_p99_ms": {"at_most": 5.0},
    "list_cartridges_page_p99_ms": {"at_most": 50.0},
    "list_corpus_page_p99_ms": {"at_most": 50.0},
    "list_corpora_page_p99_ms": {"at_most": 50.0},
    "audit_page_p99_ms": {"at_most": 50.0},
    "corpora": {"at_least": 10_000},
    "versions": {"at_least": 100_000},
    "sequential_scans": {"at_most": 0},
}


def manifest() -> dict[str, Any]:
    """The manifest of a Cartridge of 256 tokens for a model of 36 layers, as the catalog keeps it."""
    return CartridgeManifest(
        tenant=TENANT,
        base_model=BASE,
        layers=(LayerSpec(num_kv_heads=8, head_dim=128),) * 36,
        dtype="bfloat16",
        num_tokens=256,
        key_positions=tuple(range(256)),
        next_position=256,
        template_digest="t" * 64,
        corpus_digest="a" * 64,
        dataset_digest="f" * 64,
        seed=0,
        software_version="0.1.0",
        tensors_sha256="b" * 64,
    ).model_dump(mode="json")


def fill(url: str, corpora: int, each: int) -> None:
    """Copy the rows in, in the first migration's schema."""
    count, kept = corpora * each, json.dumps(manifest())
    numbers, all_ = range(1, corpora + 1), range(1, count + 1)

    def owner(number: int) -> int:
        return (number - 1) % corpora + 1

    def version(number: int) -> int:
        return (number - 1) // corpora + 1

    tables: dict[str, tuple[str, Iterator[tuple[Any, ...]]]] = {
        "corpora": ("name", ((f"corpus-{n:06}",) for n in numbers)),
        "corpus_versions": ("corpus_id, number, digest", ((n, 1, sha256_text(f"content {n}")) for n in numbers)),
        "base_models": (
            "model_id, revision, config_digest, tokenizer_digest",
            iter([(BASE.id, BASE.revision, BASE.config_digest, BASE.tokenizer_digest)]),
        ),
        "datasets": (
            "corpus_version_id, base_model_id, digest",
            ((n, 1, sha256_text(f"dataset {n}")) for n in numbers),
        ),
        "cartridges": (
            "corpus_version_id, base_model_id, dataset_id, digest, num_tokens, kv_bytes, manifest",
            ((owner(n), 1, owner(n), sha256_text(f"cartridge {n}"), 256, 37_748_736, kept) for n in all_),
        ),
        "registrations": (
            "cartridge_id, model_name, version, model_id, run_id, artifact_uri, artifact_key, size_bytes",
            (
                (n, f"{TENANT}.corpus-{owner(n):06}.Qwen--Qwen3-4B", version(n), f"m-{n}", f"r-{n}", "s3://b/k", "k", 9)
                for n in all_
            ),
        ),
        "evaluations": (
            "cartridge_id, digest, benchmark, num_questions, score, icl_score, figures, report_key",
            ((n, sha256_text(f"report {n}"), "closed_answer", 100, 0.9, 0.95, "{}", "r") for n in all_),
        ),
        "status_changes": (
            "cartridge_id, status, reason, actor",
            (
                (n, status, "", "bench")
                for n in all_
                for status in ("registered", *(["published"] if version(n) == each else []))
            ),
        ),
        "aliases": (
            "corpus_id, name, cartridge_id, updated_at",
            ((n, "champion", (each - 1) * corpora + n, MOMENT) for n in numbers),
        ),
        "alias_changes": (
            "corpus_id, name, action, cartridge_id, reason, actor",
            ((n, "champion", "promote", (each - 1) * corpora + n, "", "bench") for n in numbers),
        ),
    }
    engine = open_engine(url)
    with engine.begin() as connection:
        raw: Any = connection.connection.driver_connection
        for table, (columns, rows) in tables.items():
            with (
                raw.cursor() as cursor,
                cursor.copy(f"COPY {table} (id, tenant, created_at, {columns}) FROM STDIN") as out,
            ):
                for number, row in enumerate(rows, 1):
                    out.write_row((number, TENANT, MOMENT, *row))
            connection.execute(
                text(f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), (SELECT max(id) FROM {table}))")
            )
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(text("VACUUM ANALYZE"))
    engine.dispose()


def fill_log(url: str, lines: int) -> None:
    """Lines of the audit log, which the first schema does not have."""
    engine = open_engine(url)
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO audit_events (tenant, created_at, actor, action, subject, topic, details) "
                "SELECT :tenant, now(), 'bench', 'promote', 'corpus-' || n % 10000 || '@champion', "
                "'corpus-' || n % 10000, '{}' "
                "FROM generate_series(1, :n) n"
            ),
            {"tenant": TENANT, "n": lines},
        )
        connection.execute(text("ANALYZE audit_events"))
    engine.dispose()


def settle(url: str) -> None:
    """Have everything written: what is measured is a catalog at work, not one that is being copied in."""
    engine = open_engine(url)
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(text("CHECKPOINT"))
    engine.dispose()
    os.sync()


def timed(ask: Callable[[], object], times: int) -> dict[str, float]:
    """Median and 99th percentile in milliseconds, each of a transaction of its own."""
    for _ in range(20):
        ask()
    seen = []
    for _ in range(times):
        started = time.perf_counter()
        ask()
        seen.append((time.perf_counter() - started) * 1000)
    return {"p50": statistics.median(seen), "p99": statistics.quantiles(seen, n=100)[98]}


def plans(catalog: Catalog) -> dict[str, str]:
    """What PostgreSQL does for the statements that matter."""
    named = {"tenant": TENANT, "corpus": "corpus-000077", "alias": "champion"}
    by_name = aliased_rows().params(named)
    page = entry_rows(TENANT).order_by(CartridgeRow.id.desc()).where(CartridgeRow.id < 50_000).limit(PAGE)
    found = {}
    with catalog.session(read_only=True) as session:
        for name, statement in (("resolve", by_name), ("page", page)):
            written = statement.compile(dialect=postgresql.dialect(), compile_kwargs={"literal_binds": True})
            rows = session.connection().exec_driver_sql(
                f"EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF) {str(written).replace('%', '%%')}"
            )
            found[name] = "\n".join(str(row[0]) for row in rows)
    return found


def main() -> int:
    """Generate, migrate, measure, write the proof."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpora", type=int, default=10_000)
    parser.add_argument("--versions-each", type=int, default=10)
    parser.add_argument("--times", type=int, default=1000)
    given = parser.parse_args()
    started, chance = time.time(), random.Random(0)
    with ExitStack() as stack:
        folder = stack.enter_context(short_folder())
        server = start_postgres(folder, durable=False)
        stack.callback(server.cleanup)
        url = f"postgresql://postgres:@/postgres?host={server.get_uri().split('host=')[1]}"
        engine = open_engine(url)
        upgrade(engine, "0001")
        filling = time.time()
        fill(url, given.corpora, given.versions_each)
        migrating = time.time()
        upgrade(engine)
        migrated = time.time()
        engine.dispose()
        fill_log(url, 100_000)
        settle(url)
        with Catalog(Settings(home=Path(folder), catalog_url=url)) as catalog:

            def corpus() -> str:
                return f"corpus-{chance.randint(1, given.corpora):06}"

            def asking(ask: Callable[[Any], object]) -> Callable[[], object]:
                def once() -> object:
                    with catalog.session(read_only=True) as session:
                        return ask(session)

                return once

            last = given.corpora * given.versions_each
            questions: dict[str, tuple[Callable[[Any], object], int]] = {
                "resolve": (lambda s: resolve(s, TENANT, corpus()), given.times),
                "find_by_version": (lambda s: find_cartridge(s, TENANT, corpus(), "3"), given.times // 5),
                "list_cartridges_page": (
                    lambda s: list_cartridges(s, TENANT, limit=PAGE, before=chance.randint(PAGE, last)),
                    given.times // 5,
                ),
                "list_corpus_page": (lambda s: list_cartridges(s, TENANT, corpus(), limit=PAGE), given.times // 5),
                "list_corpora_page": (
                    lambda s: list_corpora(s, TENANT, limit=PAGE, after=corpus()),
                    given.times // 5,
                ),
                "audit_page": (lambda s: list_events(s, TENANT, subject=f"corpus-{chance.randint(1, 9999)}"), 200),
                "models_list": (
                    lambda s: list_served(
                        s, TENANT, [one.name for one in list_corpora(s, TENANT, limit=1000, served=True)]
                    ),
                    5,
                ),
            }
            figures: dict[str, float] = {
                "corpora": given.corpora,
                "versions": last,
                "fill_s": migrating - filling,
                "migrate_s": migrated - migrating,
            }
            for name, (ask, times) in questions.items():
                figures |= {f"{name}_{key}_ms": value for key, value in timed(asking(ask), times).items()}
            explained = plans(catalog)
    figures["sequential_scans"] = sum(
        line.strip().removeprefix("->").strip().startswith("Seq Scan") and "base_models" not in line
        for plan in explained.values()
        for line in plan.splitlines()
    )
    command = "python -m tests.proofs.bench_catalog " + " ".join(sys.argv[1:])
    proof = write_proof("bench-catalog", command.strip(), figures, ASKED, started, {"plans": dict(explained)})
    return 0 if proof.ok else 1


if __name__ == "__main__":
    sys.exit(main())
