"""Runs notebooks and stores their outputs: `python notebooks/refresh.py [FILE...]`, by default all.

What differs between two runs is left out: progress on stderr, counts and times of execution. Pictures get 64 levels, to
stay small. The CPU seconds of each notebook are printed.
"""

from __future__ import annotations

import base64
import io
import resource
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

HERE = Path(__file__).parent


def refresh(path: Path) -> float:
    """Run a notebook and store it with its outputs; return the CPU seconds."""
    before = cpu_seconds()
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(HERE)}}).execute()
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.outputs = [clean(output) for output in cell.outputs if output.get("name") != "stderr"]
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    nbformat.write(notebook, path)
    return cpu_seconds() - before


def clean(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Return an output without its metadata and count, its picture smaller."""
    if "image/png" in output.get("data", {}):
        output.data["image/png"] = small(output.data["image/png"])
    if "metadata" in output:
        output.metadata = {}
    if "execution_count" in output:
        output.execution_count = None
    return output


def small(png: str) -> str:
    """Return a picture, PNG as base64, with 64 levels: those of grey, or colours that fit it best."""
    image = Image.open(io.BytesIO(base64.b64decode(png)))
    few = image.point([value // 4 * 255 // 63 for value in range(256)]) if image.mode == "L" else image.quantize(64)
    few.save(buffer := io.BytesIO(), "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def cpu_seconds() -> float:
    """Return the CPU seconds of all processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    for one in map(Path, sys.argv[1:] or sorted(map(str, HERE.glob("*.ipynb")))):
        print(f"{one.name}: {refresh(one):.0f} s of CPU time, {one.stat().st_size / 1000:.0f} kB", flush=True)
