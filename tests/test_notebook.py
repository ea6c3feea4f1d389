"""The notebook of the documentation runs from its first cell to its last."""

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]


def test_notebook_runs_and_shows_images(tiny_sd3, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent) + os.pathsep + os.environ["PATH"])
    notebook = nbformat.read(ROOT / "docs/notebooks/first-style.ipynb", as_version=4)
    for cell in notebook.cells:
        for written, tested in (
            ("STEPS = 150", "STEPS = 2"),
            ("../../examples", f"{ROOT}/examples"),
            ("mini-sd15", str(tiny_sd3)),
        ):
            cell.source = cell.source.replace(written, tested)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert (
        sum("image/png" in output.get("data", {}) for output in outputs) == 3
    )  # the reference, the base's images, the style's
    assert (tmp_path / "first-style.safetensors").stat().st_size > 10_000
