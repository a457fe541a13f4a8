"""Where things live and who is asking: one `Settings` object from arguments, the environment and a TOML file."""

import difflib
import os
import re
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import SplitResult, urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from cartridge_core.errors import SettingsError

NAME_PATTERN = re.compile(r"[a-z0-9-]{1,63}")
"""What corpora, tenants and aliases may be called: safe in a URL, a file name, an S3 key and an MLflow name."""

ENV_PREFIX = "CARTRIDGE_"
CONFIG_VARIABLE = "CARTRIDGE_CONFIG"
CONFIG_FILE = "cartridge.toml"

# Kubernetes puts such variables into every container beside a service called "cartridge-...": not ours to judge.
_SERVICE_LINK = re.compile(r"_SERVICE_HOST$|_SERVICE_PORT(_\w+)?$|_PORT$|_PORT_\d+_(TCP|UDP)(_\w+)?$")

_SECRETS = ("attachment_key", "teacher_key")
_CATALOG_SCHEMES = ("sqlite", "postgresql", "postgresql+psycopg")
_MLFLOW_SCHEMES = (
    "sqlite",
    "postgresql",
    "postgresql+psycopg",
    "postgresql+psycopg2",
    "mysql+pymysql",
    "http",
    "https",
)


def valid_name(name: str, what: str = "name") -> str:
    """A name that every store can carry.

    Args:
        name: The candidate.
        what: What is being named, for the message.

    Raises:
        SettingsError: It does not match `[a-z0-9-]{1,63}`.
    """
    if not NAME_PATTERN.fullmatch(name):
        raise SettingsError(
            f"{name!r} cannot be a {what}.", "Use 1 to 63 characters out of lower-case letters, digits and hyphens."
        )
    return name


def redact_url(url: str) -> str:
    """The URL, or a text with URLs, with passwords masked, fit for messages and logs.

    A password may hold slashes and, against the rules, an `@`; drivers also take one as a parameter. Rather too much is
    masked than too little.
    """
    masked = re.sub(r"(://[^/@:\s]*):\S*@", r"\1:***@", url)
    return re.sub(r"(?i)([?&][^=&\s]*(?:password|passwd|pwd|secret|token)[^=&\s]*=)[^&\s]*", r"\1***", masked)


def server_address(url: str) -> str:
    """The root address of an HTTP server, without a slash at its end.

    Raises:
        ValueError: It is none, or carries a password.
    """
    parts = urlsplit(url)
    _ = parts.port  # a ValueError where it is no port
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or "@" in url:
        raise ValueError("must look like http://engine:8001")
    return url.rstrip("/")


class Settings(BaseSettings):
    """Everything a command, a flow or a server needs to know about its surroundings.

    An argument wins over an environment variable, that over the TOML file, that over the embedded default. The file is
    `cartridge.toml` in the working directory, or the one that CARTRIDGE_CONFIG names. Variables are the field's name
    behind `CARTRIDGE_`; variables of other software keep their own names (MLFLOW_TRACKING_URI, AWS_*, HF_HOME).

    Raises:
        SettingsError: A value cannot be used or a key is unknown; the message names the field.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, frozen=True, extra="forbid", validate_default=True, env_ignore_empty=True
    )

    home: Path = Path(".cartridges")
    """Folder of the embedded stores and of finished work; relative to the working directory."""
    tenant: str = "default"
    """Whose corpora and Cartridges are meant; part of every key and name."""
    catalog_url: str = Field(
        default_factory=lambda data: f"sqlite:///{_posix(data['home'] / 'catalog.db')}",
        repr=False,
    )
    """Database of the catalog: a SQLite file or `postgresql://`."""
    operator_catalog_url: str | None = Field(default=None, repr=False)
    """The same database as a user who may do what operators do, where `catalog_url` names one who only reads."""
    artifact_root: str = Field(default_factory=lambda data: str(data["home"] / "artifacts"))
    """Where Cartridges and reports are kept: a folder or `s3://bucket/prefix`."""
    mlflow_tracking_uri: str = Field(
        default_factory=lambda data: f"sqlite:///{_posix(data['home'] / 'mlflow.db')}",
        validation_alias="mlflow_tracking_uri",
        repr=False,
    )
    """MLflow server or database; read from MLFLOW_TRACKING_URI."""
    mlflow_public_url: str | None = Field(default=None, repr=False)
    """Where browsers find the MLflow server, for links; None for the address above."""
    base_model: str = Field(default="reference", min_length=1)
    """Hub id or folder of the base model; `reference` is the shipped one."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    """Where models run; `auto` takes the first GPU, else the CPU."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of torch; None leaves torch's own choice."""
    task_runner: str = Field(default="threads", pattern=r"^(threads|dask|(tcp|tls)://\S+)$")
    """Where flows spread a study's shards and an evaluation's arms: over threads, over Dask processes of this machine,
    or over the workers of a Dask scheduler, named by its address."""
    workers: int = Field(default=1, ge=1, le=1024)
    """How many groups are worked on at once; unused with a scheduler's address."""
    teachers: Annotated[tuple[str, ...], NoDecode] = ()
    """Addresses of vLLM servers that speak both roles of a study, any number of replicas of the base model; a variable
    separates them by commas. None for the base model in this process."""
    teacher_key: SecretStr | None = None
    """API key of those servers (vLLM's `--api-key`)."""
    local_copy_bytes: int = Field(default=32 << 30, gt=0)
    """Most bytes of fetched Cartridges on this machine's disk; those least recently used go first."""
    attachment_key: SecretStr | None = Field(default=None, min_length=32)
    """What gateway and vLLM share: the gateway signs with it which Cartridge stands in front of a prompt."""

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise SettingsError(*_explain(error)) from None

    @property
    def mlflow_artifacts(self) -> Path:
        """Artifact folder of an embedded MLflow; a server has its own."""
        return self.home / "mlartifacts"

    def as_operator(self) -> "Settings":
        """These settings as an operator's: with the database user who makes keys, moves aliases and keeps pins."""
        return self.model_copy(update={"catalog_url": self.operator_catalog_url or self.catalog_url})

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then the environment, then the TOML file."""
        _refuse_unknown_variables(cls)
        return init_settings, env_settings, _toml_source(settings_cls)

    @field_validator("home")
    @classmethod
    def _absolute(cls, home: Path) -> Path:
        # Made absolute once, so that a later change of the working directory moves nothing.
        return home.expanduser().resolve()

    @field_validator("teachers", mode="before")
    @classmethod
    def _listed(cls, teachers: Any) -> Any:
        return re.split(r"[\s,]+", teachers.strip()) if isinstance(teachers, str) else teachers

    @field_validator("teachers")
    @classmethod
    def _servers(cls, teachers: tuple[str, ...]) -> tuple[str, ...]:
        addresses = tuple(map(server_address, teachers))
        if len(set(addresses)) < len(addresses):
            raise ValueError("names a server twice")
        return addresses

    @field_validator("tenant")
    @classmethod
    def _named(cls, tenant: str) -> str:
        return valid_name(tenant, "tenant")

    @field_validator("catalog_url", "operator_catalog_url")
    @classmethod
    def _a_database(cls, url: str | None) -> str | None:
        if url is None:
            return None
        parts = _split(url)
        _known_scheme(parts, _CATALOG_SCHEMES)
        if parts.scheme == "sqlite" and parts.path in ("", "/", "/:memory:"):
            raise ValueError(
                "a catalog in memory would be forgotten at once; name a file: sqlite:////folder/catalog.db"
            )
        return url

    @field_validator("mlflow_tracking_uri")
    @classmethod
    def _an_mlflow(cls, uri: str) -> str:
        _known_scheme(_split(uri), _MLFLOW_SCHEMES)
        return uri

    @field_validator("mlflow_public_url")
    @classmethod
    def _a_page(cls, url: str | None) -> str | None:
        if url is not None:
            _known_scheme(_split(url), ("http", "https"))
        return url

    @field_validator("artifact_root")
    @classmethod
    def _a_store(cls, root: str) -> str:
        if "://" not in root:
            return str(Path(root).expanduser().resolve())
        parts = _split(root)
        _known_scheme(parts, ("s3", "file"))
        if parts.scheme == "s3" and not parts.netloc:
            raise ValueError("name the bucket: s3://bucket/prefix")
        return root


def _posix(path: Path) -> str:
    return path.as_posix()


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError as error:
        raise ValueError(f"not a URL: {error}") from None


def _known_scheme(parts: SplitResult, schemes: tuple[str, ...]) -> None:
    if parts.scheme not in schemes:
        raise ValueError(f"must begin with one of {', '.join(f'{scheme}://' for scheme in schemes)}")


def _toml_source(settings_cls: type[BaseSettings]) -> TomlConfigSettingsSource:
    named = os.environ.get(CONFIG_VARIABLE)
    path = Path(named).expanduser() if named else Path(CONFIG_FILE)
    if named and not path.is_file():
        raise SettingsError(
            f"{CONFIG_VARIABLE} names {named}, which is not a file.", f"Write the file or unset {CONFIG_VARIABLE}."
        )
    try:
        return TomlConfigSettingsSource(settings_cls, toml_file=path)
    except (OSError, ValueError) as error:  # tomllib's error is a ValueError
        raise SettingsError(f"{path} cannot be read as TOML: {error}.", "Correct the file.") from error


def _refuse_unknown_variables(cls: type[BaseSettings]) -> None:
    known = {ENV_PREFIX + name.upper() for name, field in cls.model_fields.items() if field.validation_alias is None}
    for variable in sorted(os.environ):
        name = variable.upper()
        if not name.startswith(ENV_PREFIX) or name in known | {CONFIG_VARIABLE} or _SERVICE_LINK.search(name):
            continue
        raise SettingsError(f"{variable} is not a setting.", _suggestion(name, sorted(known)))


def _suggestion(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean {close[0]}?" if close else f"Known are {', '.join(known)}."


def _explain(error: ValidationError) -> tuple[str, str]:
    """Problem and remedy of the first thing that is wrong."""
    first = error.errors(include_url=False)[0]
    name = str(first["loc"][0]) if first["loc"] else "settings"
    if first["type"] == "extra_forbidden":
        return f"{name} is not a setting.", _suggestion(name, sorted(Settings.model_fields))
    cause = first.get("ctx", {}).get("error")
    reason = str(cause) if cause is not None else first["msg"]
    variable = name.upper() if name == "mlflow_tracking_uri" else ENV_PREFIX + name.upper()
    value = "***" if name in _SECRETS else redact_url(str(first["input"]))
    return (
        f"{name} = {value!r} cannot be used: {reason.rstrip('.')}.",
        f"Correct {variable}, the argument or {CONFIG_FILE}.",
    )
