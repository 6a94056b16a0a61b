"""The notebook runs from top to bottom, on a small configuration."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "paper.ipynb"


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (parameters,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    parameters.source = (
        "import fedcats as fc\n"
        "photos = fc.drawings(train_per_class=8, test_per_class=6)\n"
        "settings = dict(model='squeezenet1_1', weights='none', epochs=1, runner='local')\n"
        "clients = 2"
    )
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    shown = "".join(
        str(output.get("data", {}).get("text/html", ""))
        for cell in notebook.cells
        for output in cell.get("outputs", [])
    )
    assert "centralized" in shown
    assert "drawings" in shown
    assert shown.count("<figure>") == 9
    assert "2 of 2 done" in shown  # the progress
    assert [*tmp_path.glob("outputs/*/*/report.html")]


def test_the_notebook_is_committed_without_outputs_and_logic() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs for cell in code)
    assert not any("def " in cell.source or "class " in cell.source for cell in code)
