"""The notebook runs from top to bottom, on a small configuration."""

from pathlib import Path

import nbformat
import pytest
from conftest import TINY, TINY_DRAWINGS
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "paper.ipynb"


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (parameters,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    parameters.source = f"overrides = {[*TINY, *TINY_DRAWINGS, 'runner=local']}"
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    shown = "".join(
        str(output.get("data", {}).get("text/markdown", ""))
        for cell in notebook.cells
        for output in cell.get("outputs", [])
    )
    assert "centralized" in shown
    assert "drawings" in shown
    assert (tmp_path / "outputs/notebook/report.html").is_file()


def test_the_notebook_is_committed_without_outputs_and_logic() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs for cell in code)
    assert not any("def " in cell.source or "class " in cell.source for cell in code)
