"""The Secrets that the manifests refer to, made from .env: `python make_secrets.py .env | kubectl apply -f -`."""

import json
import sys
from pathlib import Path

NAMESPACE = "cartridges"


def secrets_of(values: dict[str, str]) -> dict[str, dict[str, str]]:
    """Name of each Secret to its entries.

    Args:
        values: What .env says.
    """

    def url(driver: str, name: str, user: str, password: str) -> str:
        return f"postgresql+{driver}://{user}:{values[password]}@postgres:5432/{name}"

    def catalog(role: str) -> str:
        return url("psycopg", "catalog", f"cartridge-{role}", f"CATALOG_{role.upper()}_PASSWORD")

    users = ("CATALOG", "CATALOG_FLOWS", "CATALOG_SERVING", "CATALOG_OPERATOR", "PREFECT", "MLFLOW", "POSTGRES")
    return {
        "cartridge-postgres": {f"{user}_PASSWORD": values[f"{user}_PASSWORD"] for user in users},
        "cartridge-owner": {"CARTRIDGE_CATALOG_URL": url("psycopg", "catalog", "catalog", "CATALOG_PASSWORD")},
        "cartridge-flows": {"CARTRIDGE_CATALOG_URL": catalog("flows")},
        "cartridge-gateway": {
            "CARTRIDGE_CATALOG_URL": catalog("serving"),
            "CARTRIDGE_OPERATOR_CATALOG_URL": catalog("operator"),
        },
        "cartridge-stores": {
            "AWS_ACCESS_KEY_ID": values["S3_ACCESS_KEY"],
            "AWS_SECRET_ACCESS_KEY": values["S3_SECRET_KEY"],
            "HF_TOKEN": values.get("HF_TOKEN", ""),
        },
        "cartridge-mlflow": {"MLFLOW_BACKEND_STORE_URI": url("psycopg", "mlflow", "mlflow", "MLFLOW_PASSWORD")},
        "cartridge-prefect": {
            "PREFECT_API_DATABASE_CONNECTION_URL": url("asyncpg", "prefect", "prefect", "PREFECT_PASSWORD")
        },
        "cartridge-engine": {"CARTRIDGE_ATTACHMENT_KEY": values["ATTACHMENT_KEY"]},
        "cartridge-grafana": {"GF_SECURITY_ADMIN_PASSWORD": values["GRAFANA_PASSWORD"]},
    }


def main(env_file: Path) -> None:
    """Print them as one list of manifests.

    Raises:
        SystemExit: A value is missing.
    """
    lines = (line for line in env_file.read_text(encoding="utf-8").splitlines() if "=" in line and line[0] != "#")
    values = {name: value for name, value in (line.split("=", 1) for line in lines) if value}
    try:
        found = secrets_of(values)
    except KeyError as error:
        raise SystemExit(f"{env_file} does not set {error.args[0]}: run make env.") from None
    items = [
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "stringData": {key: value for key, value in entries.items() if value},
        }
        for name, entries in found.items()
    ]
    json.dump({"apiVersion": "v1", "kind": "List", "items": items}, sys.stdout, indent=1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
