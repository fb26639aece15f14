"""Executes notebooks and keeps the result beside each: `python notebooks/execute.py [NAME.py ...]`; all without names."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
os.environ["PYTHONWARNINGS"] = "ignore:IProgress"  # progress bars of libraries find no widgets here, and need none


def execute(source: Path) -> Path:
    """Run a percent-format .py from top to bottom; returns the .ipynb with outputs. A failing cell raises."""
    notebook = jupytext.read(source)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number:03d}"  # stable, so that an unchanged notebook does not change in git
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(HERE)}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    target = source.with_suffix(".ipynb")
    nbformat.write(notebook, target)
    return target


if __name__ == "__main__":
    names = [Path(name) for name in sys.argv[1:]] or sorted(HERE.glob("[0-9]*.py"))
    for name in names:
        print(execute(name))
