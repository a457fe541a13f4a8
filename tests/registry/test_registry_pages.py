"""Links lead to where a browser finds MLflow, which is not always where this process does."""

from cartridge_core.registry.pages import version_page
from cartridge_core.settings import Settings


def test_a_version_has_a_page_where_mlflow_is_a_server() -> None:
    settings = Settings(mlflow_tracking_uri="http://mlflow:5000/")
    assert version_page(settings, "default.clinic", 3) == "http://mlflow:5000/#/models/default.clinic/versions/3"


def test_the_public_address_stands_in_links() -> None:
    settings = Settings(mlflow_tracking_uri="http://mlflow:5000", mlflow_public_url="https://me:secret@ml.example.org/")
    page = version_page(settings, "default.clinic", 3)
    assert page == "https://me:***@ml.example.org/#/models/default.clinic/versions/3"


def test_an_embedded_mlflow_has_no_pages() -> None:
    settings = Settings(mlflow_tracking_uri="sqlite:////tmp/mlflow.db", mlflow_public_url="https://ml.example.org")
    assert version_page(settings, "default.clinic", 3) is None
