"""The notebook's cells work, one after the other, and show what they say."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient


@pytest.fixture(scope="module")
def outputs(root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[list[Any]]:
    """Execute the notebook; return what each of its cells of code puts out."""
    folder = tmp_path_factory.mktemp("notebook")
    with pytest.MonkeyPatch.context() as patch:
        # Neither what the user has configured nor where that is looked for is any business of a test.
        for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
            patch.setenv(name, str(folder))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]))
        book: Any = nbformat.read(root / "examples" / "notebook.ipynb", as_version=4)  # type: ignore[no-untyped-call]
        NotebookClient(book, timeout=60, resources={"metadata": {"path": str(folder)}}).execute()
    return [cell.outputs for cell in book.cells if cell.cell_type == "code"]


def test_values_are_shown(outputs: list[list[Any]]) -> None:
    shown = [o.data["text/plain"] for cell in outputs for o in cell if o.output_type == "execute_result"]
    assert "'ann: 6 seats for ann'" in shown


def test_pictures_are_shown(outputs: list[list[Any]]) -> None:
    pictures = [o.data for cell in outputs for o in cell if o.output_type == "execute_result" and len(o.data) > 1]
    assert len(pictures) == 3
    assert all("image/svg+xml" in data or "mermaid" in data["text/markdown"] for data in pictures)
    free, _, booked = (data["text/plain"] for data in pictures)
    assert "class Free active" in free
    assert "class Booked active" in booked


def test_what_failed_was_undone(outputs: list[list[Any]]) -> None:
    (said,) = [o.text for cell in outputs for o in cell if o.output_type == "stream"]
    assert said.splitlines() == [
        "nobody cannot be invited",
        "free again: Table ['book', 'release', 'book', 'release']",
    ]


def test_it_is_kept_without_what_it_put_out(root: Path) -> None:
    book: Any = nbformat.read(root / "examples" / "notebook.ipynb", as_version=4)  # type: ignore[no-untyped-call]
    assert all(not cell.outputs and cell.execution_count is None for cell in book.cells if cell.cell_type == "code")
