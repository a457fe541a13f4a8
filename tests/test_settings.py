import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from cartridge_core.errors import SettingsError
from cartridge_core.settings import Settings, redact_url, valid_name


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty working directory and no variables of ours."""
    for name in list(os.environ):
        if name.startswith(("CARTRIDGE_", "MLFLOW_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_embedded_defaults_lie_below_home(bare: Path) -> None:
    settings = Settings()
    home = bare / ".cartridges"
    assert settings.home == home
    assert settings.catalog_url == f"sqlite:///{home}/catalog.db"
    assert settings.artifact_root == str(home / "artifacts")
    assert settings.mlflow_tracking_uri == f"sqlite:///{home}/mlflow.db"
    assert (settings.tenant, settings.base_model, settings.device, settings.threads) == (
        "default",
        "reference",
        "auto",
        None,
    )


def test_another_home_moves_everything(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "there")
    assert settings.catalog_url == f"sqlite:///{tmp_path}/there/catalog.db"
    assert settings.mlflow_artifacts == tmp_path / "there" / "mlartifacts"


def test_home_does_not_follow_the_working_directory(monkeypatch: pytest.MonkeyPatch, bare: Path) -> None:
    settings = Settings()
    monkeypatch.chdir("/")
    assert settings.home == bare / ".cartridges"


def test_arguments_win_over_variables_over_the_file(monkeypatch: pytest.MonkeyPatch, bare: Path) -> None:
    (bare / "cartridge.toml").write_text('tenant = "file"\nthreads = 3\ndevice = "cpu"\n')
    monkeypatch.setenv("CARTRIDGE_TENANT", "variable")
    monkeypatch.setenv("CARTRIDGE_DEVICE", "cuda:1")
    settings = Settings(tenant="argument")
    assert (settings.tenant, settings.device, settings.threads) == ("argument", "cuda:1", 3)


def test_the_file_may_be_named(monkeypatch: pytest.MonkeyPatch, bare: Path) -> None:
    (bare / "other.toml").write_text('tenant = "other"\n')
    monkeypatch.setenv("CARTRIDGE_CONFIG", str(bare / "other.toml"))
    assert Settings().tenant == "other"
    monkeypatch.setenv("CARTRIDGE_CONFIG", "gone.toml")
    with pytest.raises(SettingsError, match=r"CARTRIDGE_CONFIG names gone\.toml"):
        Settings()


def test_mlflow_keeps_its_own_variable(monkeypatch: pytest.MonkeyPatch, bare: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert Settings().mlflow_tracking_uri == "http://mlflow:5000"
    assert Settings(mlflow_tracking_uri="https://other").mlflow_tracking_uri == "https://other"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    (bare / "cartridge.toml").write_text('mlflow_tracking_uri = "http://file:5000"\n')
    assert Settings().mlflow_tracking_uri == "http://file:5000"


def test_an_empty_variable_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARTRIDGE_THREADS", "")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    settings = Settings()
    assert settings.threads is None
    assert settings.mlflow_tracking_uri.startswith("sqlite:")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tenant", "Not A Name"),
        ("tenant", ""),
        ("threads", 0),
        ("threads", "many"),
        ("device", "tpu"),
        ("base_model", ""),
        ("catalog_url", "mongodb://host/db"),
        ("catalog_url", "sqlite://"),
        ("operator_catalog_url", "mongodb://host/db"),
        ("catalog_url", "sqlite:///:memory:"),
        ("artifact_root", "gs://bucket"),
        ("artifact_root", "s3://"),
        ("mlflow_tracking_uri", "./mlruns"),
        ("mlflow_public_url", "mlflow:5000"),
    ],
)
def test_a_wrong_value_is_refused_by_the_name_of_its_field(field: str, value: object) -> None:
    with pytest.raises(SettingsError, match=rf"^{field} = .* cannot be used: .*\S"):
        Settings(**{field: value})


def test_a_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARTRIDGE_DEVICE", "gpu")
    with pytest.raises(SettingsError, match=r"device = 'gpu'.*Correct CARTRIDGE_DEVICE"):
        Settings()


def test_a_wrong_home_is_named_although_others_are_made_from_it() -> None:
    with pytest.raises(SettingsError, match=r"^home = "):
        Settings(home=3)


def test_unknown_variables_are_refused_with_a_suggestion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARTRIDGE_TENNANT", "acme")
    with pytest.raises(SettingsError, match=r"CARTRIDGE_TENNANT is not a setting\. Did you mean CARTRIDGE_TENANT\?"):
        Settings()


def test_what_kubernetes_adds_for_a_service_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GATEWAY_SERVICE_HOST", "GATEWAY_SERVICE_PORT_HTTP", "GATEWAY_PORT", "GATEWAY_PORT_80_TCP_ADDR"):
        monkeypatch.setenv(f"CARTRIDGE_{name}", "10.0.0.1")
    assert "10.0.0.1" not in Settings().model_dump_json()


def test_unknown_keys_are_refused(bare: Path) -> None:
    with pytest.raises(SettingsError, match=r"homme is not a setting\. Did you mean home\?"):
        Settings(homme=".")
    (bare / "cartridge.toml").write_text('colour = "red"\n')
    with pytest.raises(SettingsError, match=r"colour is not a setting\. Known are .*artifact_root"):
        Settings()


def test_a_broken_file_is_named(bare: Path) -> None:
    (bare / "cartridge.toml").write_text("tenant = \n")
    with pytest.raises(SettingsError, match=r"cartridge\.toml cannot be read as TOML"):
        Settings()


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().tenant = "other"  # type: ignore[misc]


def test_passwords_are_not_shown() -> None:
    url = "postgresql://me:secret@host/db"
    settings = Settings(catalog_url=url, operator_catalog_url=url, mlflow_tracking_uri="http://me:secret@host")
    assert "secret" not in repr(settings)
    assert redact_url(settings.catalog_url) == "postgresql://me:***@host/db"
    with pytest.raises(SettingsError) as refusal:
        Settings(catalog_url="mysql://me:secret@host/db")
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:hush@host/db",
        "postgresql://me:hu/sh@host/db",
        "postgresql://me:hu@sh@host/db",
        "postgresql://:hush@host",
        "postgresql://host/db?user=me&password=hush",
        "postgresql://host/db?sslpassword=hush&user=me",
        "http://me:hush@host/ is away, http://me:hush@other/ too",
    ],
)
def test_no_part_of_a_password_is_shown(url: str) -> None:
    shown = redact_url(url)
    assert "hu" not in shown and "sh" not in shown
    assert "***" in shown and "host" in shown


@pytest.mark.parametrize("url", ["sqlite:///a/b.db", "http://host:5000", "s3://bucket/prefix", "http://host/?page=2"])
def test_what_holds_no_password_is_shown_as_it_is(url: str) -> None:
    assert redact_url(url) == url


def test_operators_may_have_a_database_user_of_their_own() -> None:
    both = Settings(catalog_url="postgresql://reader@host/db", operator_catalog_url="postgresql://operator@host/db")
    assert both.as_operator().catalog_url == "postgresql://operator@host/db"
    assert Settings().as_operator() == Settings()


@pytest.mark.parametrize("name", ["a", "clinic-2", "0", "x" * 63])
def test_names(name: str) -> None:
    assert valid_name(name) == name


@pytest.mark.parametrize("name", ["", "Clinic", "a/b", "a.b", "a_b", "ä", "a\n", "x" * 64, ".."])
def test_names_that_cannot_be_carried(name: str) -> None:
    with pytest.raises(SettingsError, match="corpus name"):
        valid_name(name, "corpus name")
