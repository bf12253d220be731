"""Commands that need no network do without MONAI, whose import takes most of the start of a training."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from medlt.data.manifest import Manifest

BLOCK = '''"""Stands in for MONAI: whoever imports it is written down."""
import os, traceback
with open(os.environ["MONAI_IMPORTS"], "a") as file:
    file.write("".join(traceback.format_stack()))
raise ImportError("this command needs no MONAI")
'''


@pytest.fixture(scope="module")
def table(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A csv table of labels with the images of the finished run."""
    made = Manifest.read(finished / "manifest.parquet").rows.query("synthetic")
    place = tmp_path_factory.mktemp("table") / "labels.csv"
    rows = made[["patient_id", "split", "Mass", "Nodule"]].round().assign(path=made["path"])
    rows.reset_index(names="uid").to_csv(place, index=False)
    return place


COMMANDS = {
    "report": "report {run}",
    "validate": "validate {run}/manifest.parquet",
    "manifest": "manifest csv {table} {out}/manifest.parquet --images {run} --findings Mass,Nodule --all-zero keep",
    "convert": "convert {run}/stages/data/phantom {out}/converted --size 32 --workers 1",
    "config list": "config list",
    "config copy": "config copy demo/demo {out}/demo.yaml",
    "config schema": "config schema",
    "doctor": "doctor",
    **{
        f"export {kind}": f"export {{run}} {{out}}/exported --format {kind}"
        for kind in ("imagefolder", "monai", "cxr-lt", "longtailcxr", "torchxrayvision", "webdataset")
    },
}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_without_a_network_import_no_monai(name: str, finished: Path, table: Path, tmp_path: Path) -> None:
    (tmp_path / "blocked" / "monai").mkdir(parents=True)
    (tmp_path / "blocked" / "monai" / "__init__.py").write_text(BLOCK)
    imports, before = tmp_path / "imports.txt", os.environ.get("PYTHONPATH", "")
    path = os.pathsep.join([str(tmp_path / "blocked"), *filter(None, [before])])
    env = {**os.environ, "PYTHONPATH": path, "MONAI_IMPORTS": str(imports)}
    args = COMMANDS[name].format(run=finished, table=table, out=tmp_path).split()
    done = subprocess.run([sys.executable, "-m", "medlt", *args], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert not imports.exists(), imports.read_text()
    assert done.returncode == 0 or (name in ("doctor", "validate") and done.returncode == 1), done.stderr


def test_the_stand_in_is_what_a_training_imports(tmp_path: Path) -> None:
    """Without it the test above would prove nothing."""
    (tmp_path / "monai").mkdir()
    (tmp_path / "monai" / "__init__.py").write_text(BLOCK)
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}", "MONAI_IMPORTS": str(tmp_path / "imports.txt")}
    root = str(Path(__file__).parents[2])
    code = f"import sys; sys.path.insert(1, {root!r}); from medlt.classify import networks"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 1
    assert "networks.py" in (tmp_path / "imports.txt").read_text()
