from pathlib import Path

import nbformat
from nbclient import NotebookClient

from cartridge_core.models import load_base_model
from cartridge_core.rendering import prefix_token_ids
from tests.samples import cartridge_of

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebooks" / "cartridge.ipynb"


def test_the_shipped_notebook_runs_on_a_cartridge(tmp_path, monkeypatch):
    base = load_base_model("reference")
    cartridge = cartridge_of(
        base,
        prefix_token_ids(base.tokenizer, "Note the badge of Anton Weber: yellow. " * 8)[:48],
        num_frozen_tokens=1,
        corpus_digest="0" * 64,
        dataset_digest=None,
        training_config_digest="0" * 64,
        seed=0,
    )
    cartridge.save(tmp_path / "cartridge")
    monkeypatch.setenv("CARTRIDGE_FOLDER", str(tmp_path / "cartridge"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=180).execute()
    said = "".join(
        output.get("text", "")
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if cell.cell_type == "code"
    )
    assert cartridge.digest[:12] in said
    with_cartridge = next(line for line in said.splitlines() if line.startswith("with the Cartridge"))
    assert "yellow" in with_cartridge
