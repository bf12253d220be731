"""The public names: listed, lazy, typed and documented."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import medlt

NAMES = [
    "Audit",
    "Batch",
    "CheckPlugin",
    "CheckResult",
    "CodecPlugin",
    "Collection",
    "CollectionSummary",
    "Conversion",
    "EvaluateConfig",
    "InputError",
    "LayoutPlugin",
    "LongTailAugmenter",
    "Manifest",
    "MethodPlugin",
    "Radiographs",
    "RandSyntheticSwapd",
    "Run",
    "RunConfig",
    "SyntheticImages",
    "Verdict",
    "VerdictView",
    "__version__",
    "audit",
    "augment",
    "convert",
    "evaluate",
    "finetune",
    "grid",
    "load",
    "release",
    "verify_release",
]


def test_the_public_names_are_these() -> None:
    assert sorted(medlt.__all__) == NAMES
    assert sorted(dir(medlt)) == NAMES


@pytest.mark.parametrize("name", [name for name in NAMES if name != "__version__"])
def test_every_name_is_there_and_documented(name: str) -> None:
    value = getattr(medlt, name)
    text = inspect.getdoc(value) or ""
    assert text.splitlines()[0].rstrip().endswith("."), text.splitlines()[0]
    if inspect.isfunction(value):
        arguments = text.split("Args:")[1].split("Returns:" if "Returns:" in text else "Raises:")[0]
        for parameter in inspect.signature(value).parameters:
            assert f"{parameter}: " in arguments, parameter
        assert "Raises:" in text
        assert ">>>" in text
    elif value.__module__.startswith("medlt.api"):
        members = inspect.getmembers(value, lambda member: inspect.isfunction(member) or isinstance(member, property))
        own = [member for name, member in members if not name.startswith("_") and name in vars(value)]
        assert all(inspect.getdoc(member) for member in own)


def test_names_are_no_modules_of_medlt() -> None:
    """`import medlt.export` would put the module in the place of a name `medlt.export`."""
    package = Path(str(medlt.__file__)).parent
    modules = {path.stem for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert modules & set(NAMES) == set()


def test_the_stub_imports_each_name_from_its_module() -> None:
    stub = ast.parse(Path(str(medlt.__file__)).with_suffix(".pyi").read_text())
    for node in stub.body:
        assert isinstance(node, ast.ImportFrom)
        assert node.level == 1
        assert all(alias.asname == alias.name for alias in node.names)  # a type checker re-exports no other form


def test_a_wrong_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="augmnt"):
        medlt.augmnt  # type: ignore[attr-defined]  # noqa: B018


def test_import_medlt_loads_nothing_heavy() -> None:
    heavy = ["torch", "monai", "pandas", "numpy", "pydantic", "sklearn", "diffusers", "pydicom"]
    code = f"import sys, medlt; dir(medlt); print([name for name in {heavy} if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"


def test_a_collection_needs_no_torch() -> None:
    code = (
        "import sys, medlt; medlt.Collection, medlt.InputError; print('torch' in sys.modules, 'monai' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.split() == ["False", "False"]
