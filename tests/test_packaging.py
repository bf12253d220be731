"""What is installed: one package, its configs as data, and a program that finds them from anywhere."""

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from medlt.config import catalogue

ROOT = Path(__file__).parents[1]


def test_the_catalogue_holds_every_yaml_of_the_checkout() -> None:
    files = {
        path.relative_to(ROOT / "pipelines").with_suffix("").as_posix() for path in ROOT.glob("pipelines/**/*.yaml")
    }
    assert set(catalogue.names()) == files
    assert {name.split("/")[0] for name in files} == {"demo", "phantom", "nih14", "mimic_cxr_lt", "dicom_folder"}
    assert catalogue.path("demo/demo") == ROOT / "pipelines/demo/demo.yaml"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree."""
    place = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", place]
    subprocess.run([*map(str, pip), str(ROOT)], check=True, timeout=600)
    (built,) = place.glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_holds_the_configs_and_no_package_but_medlt(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"medlt"}
    shipped = {name for name in names if name.startswith("medlt/pipelines/")}
    assert shipped == {f"medlt/pipelines/{name}.yaml" for name in catalogue.names()}
    assert {"medlt/py.typed", "medlt/__init__.pyi", "medlt/report/template.html.j2"} <= set(names)


@pytest.mark.slow
def test_the_installed_program_finds_its_configs_from_anywhere(wheel: Path, tmp_path: Path) -> None:
    """From a folder that holds a package `pipelines` too. What medlt needs is taken from this environment."""
    venv.create(tmp_path / "env", with_pip=False)
    (site,) = (tmp_path / "env").glob("lib/python*/site-packages")
    zipfile.ZipFile(wheel).extractall(site)
    needs = next(path for path in sys.path if path.endswith("site-packages"))
    (tmp_path / "work/pipelines").mkdir(parents=True)
    (tmp_path / "work/pipelines/__init__.py").write_text("raise SystemExit('the wrong package')\n")

    def medlt(*args: str) -> str:
        command = [str(tmp_path / "env/bin/python"), "-m", "medlt", *args]
        env = {**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{needs}"}
        done = subprocess.run(command, cwd=tmp_path / "work", env=env, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        return done.stdout

    listed = json.loads(medlt("config", "list", "--json"))["configs"]
    assert [one["name"] for one in listed] == list(catalogue.names())
    assert medlt("config", "copy", "nih14/small_verdict").split() == ["small_verdict.yaml", "fusion.yaml"]
    assert json.loads(medlt("config", "schema"))["title"] == "RunConfig"
    assert "seed" in medlt("demo", "--help")
