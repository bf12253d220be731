"""The notebooks as they are committed: with outputs, small, from no machine in particular, on public names alone.

`make notebooks` runs them.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import medlt

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PLACE = re.compile(r"(?<![\w.:/<*])/[A-Za-z][\w.-]*/[\w.-]")
"""An absolute path."""
STAND_INS = {"write_mimic_cxr_jpg", "tiny_stable_diffusion"}
"""Documented names of `medlt.testing`."""
LARGEST = 400_000


def cells(path: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def outputs(path: Path) -> list[dict[str, Any]]:
    return [output for cell in cells(path) for output in cell["outputs"]]


def texts(path: Path) -> Iterator[str]:
    """The text of every output, without pictures."""
    for output in outputs(path):
        yield "".join(output.get("text", ()))
        yield from ("".join(data) for kind, data in output.get("data", {}).items() if kind.startswith("text/"))


def problems(source: str) -> list[str]:
    """What a code cell uses that is not public: imports and attributes."""
    bad = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            bad += [one.name for one in node.names if one.name.startswith("medlt.")]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "medlt":
            allowed = STAND_INS if node.module == "medlt.testing" else frozenset[str]()
            bad += [f"{node.module}.{one.name}" for one in node.names if one.name not in allowed]
        elif isinstance(node, ast.Attribute):
            of_medlt = isinstance(node.value, ast.Name) and node.value.id == "medlt"
            if node.attr.startswith("_") or (of_medlt and node.attr not in medlt.__all__):
                bad.append(node.attr)
    return bad


def test_there_are_eight_in_order() -> None:
    assert [path.name[:2] for path in NOTEBOOKS] == [f"{number:02d}" for number in range(1, 9)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_uses_public_names_alone(path: Path) -> None:
    assert [problem for cell in cells(path) for problem in problems("".join(cell["source"]))] == []


def test_a_name_that_is_not_public_is_seen() -> None:
    assert problems("from medlt.data.manifest import Manifest") == ["medlt.data.manifest.Manifest"]
    assert problems("import medlt.recipes.run") == ["medlt.recipes.run"]
    assert problems("from medlt.testing import Discs\nmedlt.augmnt\nrun._table('x')") == [
        "medlt.testing.Discs", "augmnt", "_table"
    ]  # fmt: skip
    assert problems("import medlt\nfrom medlt.testing import tiny_stable_diffusion\nmedlt.augment(x).plan") == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_holds_the_outputs_of_a_whole_run(path: Path) -> None:
    kinds = [output["output_type"] for output in outputs(path)]
    assert "error" not in kinds
    assert [output for output in outputs(path) if output.get("name") == "stderr"] == []
    assert any("image/png" in output.get("data", {}) for output in outputs(path))
    silent = [cell["id"] for cell in cells(path) if not cell["outputs"] and _shows(cell)]
    assert silent == [], "run `python notebooks/refresh.py` on it"
    assert path.stat().st_size < LARGEST


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_an_output_is_of_no_machine_and_no_time(path: Path) -> None:
    assert [match[0] for text in texts(path) for match in [PLACE.search(text)] if match] == []
    assert all(cell["metadata"] == {} and cell["execution_count"] is None for cell in cells(path))


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_every_notebook_is_listed_with_what_it_is_about(page: str) -> None:
    text = (ROOT / page).read_text()
    missing = [path.name for path in NOTEBOOKS if not re.search(rf"^.*{re.escape(path.name)}.*\w{{3}}", text, re.M)]
    assert missing == []


def _shows(cell: dict[str, Any]) -> bool:
    """Whether a cell ends with something that is shown."""
    last = ast.parse("".join(cell["source"])).body[-1]
    return isinstance(last, ast.Expr) and not (isinstance(last.value, ast.Call) and _writes(last.value))


def _writes(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Attribute) and call.func.attr in ("touch", "write_text", "write_bytes")
