"""
Runs notebooks from top to bottom, each in an interpreter of its own, and writes their outputs into them.

    python -m examples.notebooks.run             # all of them
    python -m examples.notebooks.run FILE.ipynb  # this one
"""

import argparse
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, default=sorted(FOLDER.glob("*.ipynb")))
    for file in parser.parse_args().files:
        start = time.perf_counter()
        run(file)
        print(f"{file.name}: {time.perf_counter() - start:.0f} s")


def run(file: Path):
    """
    Raises:
        nbclient.exceptions.CellExecutionError: with the traceback of the cell that failed.
    """
    notebook = nbformat.read(file, as_version=4)
    client = NotebookClient(notebook, timeout=1800, record_timing=False, resources={"metadata": {"path": file.parent}})
    client.execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = tidy(cell.outputs)
    nbformat.write(notebook, file)


def tidy(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """The outputs without progress bars, and without pictures in a second format."""
    kept = [output for output in outputs if output.get("name") != "stderr"]
    for output in kept:
        if "image/png" in output.get("data", {}):
            output.data.pop("image/jpeg", None)
    return kept


if __name__ == "__main__":
    main()
