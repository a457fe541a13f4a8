"""A document is erased with everything that was made of it: no store holds a word of it afterwards."""

from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from cartridge_core.storage import open_store
from tests.cli.test_commands import answer, refusal
from tests.s3 import left_upload, make_bucket, s3_server, s3_variables
from tests.talkative import Workplace

BUCKET = "forgetful"
SECRETS = (b"Zweigelt", b"zweigelt")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with s3_server() as endpoint:
        for name, value in s3_variables(endpoint).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("CARTRIDGE_ARTIFACT_ROOT", f"s3://{BUCKET}/root")
        make_bucket(BUCKET)
        yield BUCKET


def places(home: Path, bucket: str) -> set[str]:
    """Every file and every object that holds a word of the document: digest store, catalog, MLflow, S3."""
    client = boto3.client("s3")
    found = {
        str(path.relative_to(home))
        for path in home.rglob("*")
        if path.is_file() and any(secret in path.read_bytes() for secret in SECRETS)
    }
    keys = [entry["Key"] for entry in client.list_objects_v2(Bucket=bucket).get("Contents", ())]
    # What a part holds nobody can ask for; that it is there is enough.
    left = client.list_multipart_uploads(Bucket=bucket).get("Uploads", ())
    found |= {f"upload of {upload['Key']}" for upload in left}
    return found | {
        key
        for key in keys
        if any(secret in client.get_object(Bucket=bucket, Key=key)["Body"].read() for secret in SECRETS)
    }


def test_nothing_of_a_document_is_left(workplace: Workplace, bucket: str, tmp_path: Path) -> None:
    home = workplace.settings.home
    (workplace.documents / "zweigelt.md").write_text("# Ada Zweigelt\n\nThe ward of Ada Zweigelt is 77.\n")
    answer("corpus", "add", "wards", workplace.documents)
    (workplace.documents / "zweigelt.md").unlink()
    before = answer("corpus", "add", "wards", workplace.documents)
    (workplace.documents / "zweigelt.md").write_text("# Ada Zweigelt\n\nThe ward of Ada Zweigelt is 78.\n")
    answer("corpus", "add", "wards", workplace.documents)
    (workplace.documents / "zweigelt.md").unlink()
    answer("synthesize", "wards", "--config", workplace.study_file, "--questions", workplace.questions)
    training = tmp_path / "train.toml"
    training.write_text("num_tokens = 24\nwarmup_steps = 1\nbatch_size = 4\neval_every = 2\n", encoding="utf-8")
    cartridge = answer("train", "wards", "--config", training, "--steps", "2")
    answer("evaluate", "wards", "--questions", workplace.questions, "--baseline", "no_context")
    answer("register", "wards")
    answer("promote", "wards", "--force")
    # One was trained and never registered: its writer was killed between the files and in the middle of another.
    other = answer("train", "wards", "--config", training, "--steps", "3")["digest"]
    root = f"s3://{bucket}/root"
    for digest in (cartridge["digest"], other):
        left_upload(root, f"default/cartridges/{digest}/cartridge.safetensors", b"Zweigelt")
    open_store(root).write_bytes(f"default/cartridges/{other}/manifest.json", b"Zweigelt")
    assert len(places(home, bucket)) > 2

    (uri,) = {
        one["uri"]
        for one in answer("corpus", "forget", "wards", f"{workplace.documents.name}/zweigelt.md")["documents"]
    }
    plan = answer("corpus", "forget", "wards", uri)
    assert (plan["done"], len(plan["versions"]), len(plan["datasets"])) == (None, 2, 1)
    assert [(one["digest"], one["aliases"]) for one in plan["cartridges"]] == [(cartridge["digest"], ["champion"])]
    assert answer("show", "wards")["status"] == "published", "a dry run changed something"
    assert answer("corpus", "forget", "wards", uri, "--yes")["done"] == "retired"
    assert "no alias 'champion'" in refusal("ask", "wards", "Who?")
    assert answer("list", "wards")[0]["status"] == "retired"

    erased = answer("corpus", "forget", "wards", uri, "--yes", "--erase", "--retrain")
    assert erased["version_without"] == before["digest"]
    assert erased["retrain"][0] == "cartridge synthesize wards"
    assert places(home, bucket) == set()
    assert [one["digest"] for one in answer("corpus", "list")] == [before["digest"]]
    assert answer("list", "wards") == []
    assert answer("list", "wards", "--deleted")[0]["status"] == "deleted"
    assert answer("audit", "--subject", "wards", "--action", "forget")[0]["details"]["cartridges"] == [
        cartridge["digest"]
    ]
    assert answer("doctor", "--grace-minutes", "0")["ok"]
    assert "holds no document" in refusal("corpus", "forget", "wards", uri)
    assert answer("corpus", "remove", "wards", "--yes", "--erase")["done"] == "erased"
    assert answer("corpus", "list") == []


def test_what_two_corpora_hold(workplace: Workplace) -> None:
    for name in ("wards", "copy"):
        answer("corpus", "add", name, workplace.documents)
    answer("synthesize", "wards", "--config", workplace.study_file)
    one = next(iter(sorted(workplace.documents.iterdir()))).name
    plan = answer("corpus", "forget", "wards", f"{workplace.documents.name}/{one}")
    assert (plan["elsewhere"], len(plan["datasets"])) == (["copy"], 1)
    plan = answer("corpus", "remove", "wards")
    assert (plan["elsewhere"], plan["datasets"]) == (["copy"], []), "the dataset belongs to the other corpus too"
    assert "There is no corpus" in refusal("corpus", "remove", "nope")


def test_a_document_that_only_older_versions_hold(workplace: Workplace) -> None:
    """What counts stays what it was; what was removed since does not come back with the rest of the old version."""
    file = workplace.documents / "zweigelt.md"
    file.write_text("# Ada Zweigelt\n\nThe ward of Ada Zweigelt is 77.\n", encoding="utf-8")
    (workplace.documents / "removed.md").write_text("# Cy\n\nThe ward of Cy is 5.\n", encoding="utf-8")
    answer("corpus", "add", "wards", workplace.documents)
    file.unlink()
    (workplace.documents / "removed.md").unlink()
    newest = answer("corpus", "add", "wards", workplace.documents)
    erased = answer("corpus", "forget", "wards", f"{workplace.documents.name}/zweigelt.md", "--yes", "--erase")
    assert erased["version_without"] == newest["digest"]
    assert [one["digest"] for one in answer("corpus", "list")] == [newest["digest"]]
    # Its sources are still known: nothing of it was forgotten.
    assert answer("corpus", "show", "wards")["digest"] == newest["digest"]


def test_one_withdrawn_document_is_not_let_in_by_the_erasure_of_another(workplace: Workplace) -> None:
    for name in ("one", "two"):
        (workplace.documents / f"{name}.md").write_text(f"# {name}\n\nThe ward of {name} is 7.\n", encoding="utf-8")
    answer("corpus", "add", "wards", workplace.documents)
    one, two = (f"{workplace.documents.name}/{name}.md" for name in ("one", "two"))
    assert answer("corpus", "forget", "wards", one, "--yes")["done"] == "retired"
    assert "was withdrawn" in refusal("corpus", "show", "wards")
    assert answer("corpus", "forget", "wards", two, "--yes", "--erase")["done"] == "erased"
    assert "was withdrawn" in refusal("corpus", "show", "wards")
    answer("corpus", "forget", "wards", one, "--yes", "--erase")
    assert answer("corpus", "show", "wards")["num_documents"] == len(list(workplace.documents.iterdir())) - 2
