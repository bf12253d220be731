"""The package itself: imports point down, functions and modules stay small, the start imports nothing heavy."""

import ast
import re
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "medlt"
LAYERS = (  # a module imports only from strictly lower layers, or from its own package
    {"types", "names", "keys", "rng", "rows", "versions", "_version"},
    {"files", "folders", "plugins", "processes", "yaml_text", "csv_text", "markdown_text"},
    {"store", "config", "remote", "records"},
    {"engine", "training", "metrics"},
    {"data", "diffusion", "sparse"},
    {"classify", "privacy", "checks"},
    {"localise"},
    {"synthesis", "evaluation", "review"},
    {"writer", "report", "progress"},
    {"recipes"},
    {"doctor", "export"},
    {"api"},
    {"cli"},
    {"__main__"},
    {"testing"},
)
RANK = {module: i for i, layer in enumerate(LAYERS) for module in layer}
WITHIN = {"rng": {"types"}, "files": {"folders"}}
"""What of its own layer a module may import."""


def imported(source: str, here: tuple[str, ...], package: str = "medlt") -> set[str]:
    """Modules and packages of `package` that this source imports; `here` is its dotted place."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level] if node.level else ()
            base += tuple(node.module.split(".")) if node.module else ()
            if base[:1] == (package,):
                names |= {base[1]} if len(base) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith(f"{package}.")}
    return names


def violations(files: dict[str, str]) -> list[str]:
    """What breaks the layers in {path inside the package: source}."""
    bad = []
    for path, source in files.items():
        me = path.split("/")[0].removesuffix(".py")
        if me == "__init__":
            continue
        if me not in RANK:
            bad.append(f"{path}: has no layer")
            continue
        here = ("medlt", *path.removesuffix(".py").split("/"))
        for name in imported(source, here) - {me, "__version__"}:
            within = name in WITHIN.get(me, set())
            if RANK.get(name, -1) >= RANK[me] and not within:
                bad.append(f"{path}: {me} -> {name}")
    return bad


def package_files() -> dict[str, str]:
    return {p.relative_to(PACKAGE).as_posix(): p.read_text() for p in sorted(PACKAGE.rglob("*.py"))}


def test_imports_point_down() -> None:
    assert violations(package_files()) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("utils.py", ""),
        ("data/manifest.py", "from medlt.synthesis.fusion import x"),
        ("data/manifest.py", "from ..diffusion import codec"),
        ("sparse/cam.py", "import medlt.diffusion.codec"),
        ("classify/train.py", "from medlt import cli"),
        ("training/loop.py", "from medlt.diffusion.codec import x"),
        ("evaluation/engine.py", "from medlt.recipes.run import main"),
        ("data/pixels.py", "from medlt.diffusion.cache import x"),
    ],
)
def test_the_layer_test_sees_an_upward_import(path: str, source: str) -> None:
    assert len(violations({path: source})) == 1


def functions(path: Path) -> list[tuple[str, int]]:
    tree = ast.parse(path.read_text())
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [
        (f"{path.name}:{n.name}", (n.end_lineno or 0) - n.lineno + 1) for n in ast.walk(tree) if isinstance(n, kinds)
    ]


RECIPES = PACKAGE / "recipes"
"""A recipe reads top to bottom and may be as long as its story; its functions may have 60 lines."""


def test_functions_and_modules_are_small() -> None:
    whole = sorted(PACKAGE.rglob("*.py"))
    library = [path for path in whole if path.parent != RECIPES]
    sizes = [entry for path in library for entry in functions(path)]
    assert [entry for entry in sizes if entry[1] > 40] == []
    assert [entry for path in whole for entry in functions(path) if entry[1] > 60] == []
    assert median(size for _, size in sizes) <= 10
    assert [p.name for p in library if len(p.read_text().splitlines()) > 300] == []


TRAINING_STEP = re.compile(
    r"\.backward\(|autograd\.backward|AdamW\(|LambdaLR\(|lr_scheduler\.|AveragedModel\(|EMAModel"
)


def test_there_is_one_training_loop() -> None:
    """Optimisers, schedules, averages and backward passes are in `training`; the private step is its strategy.

    Gradients that are taken for a reading (maps, guidance, per-unit gradients) use torch.autograd.grad.
    """
    allowed = {f"training/{name}.py" for name in ("checkpoint", "loop", "averaging")}
    allowed |= {"privacy/dpsgd/bookkeeping.py", "privacy/dpsgd/grad_samples.py"}  # per-unit gradients
    found = {path for path, source in package_files().items() if TRAINING_STEP.search(source)}
    assert found - allowed == set()


def test_no_recipe_reads_the_record_of_a_run_but_its_own_helpers() -> None:
    """run.json is written for people and the report; what one stage gives another is a value."""
    readers = {
        path for path, source in package_files().items() if ".summary()" in source and path.startswith("recipes/")
    }
    # those that only show the record: provenance of a finished run, and which trainings had begun
    assert readers <= {f"recipes/{name}.py" for name in ("_setup", "_denoiser", "_estimate", "generator")}


STARTS = {
    "import medlt": "import medlt",
    "medlt --help": "from medlt.cli import app\ntry: app(['--help'])\nexcept SystemExit: pass",
}
HEAVY = {"torch", "monai", "diffusers", "pandas", "pydicom", "sklearn", "cv2", "PIL", "pydantic"}


@pytest.mark.parametrize("name", STARTS)
def test_nothing_heavy_is_imported_at_the_start(name: str) -> None:
    code = f"import sys\n{STARTS[name]}\nsys.stderr.write(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(done.stderr.split())
    assert "medlt" in modules
    assert modules & HEAVY == set()
    assert len(modules) < 600


def test_the_public_namespace_is_what_the_stub_says() -> None:
    import medlt

    stub = ast.parse((PACKAGE / "__init__.pyi").read_text())
    names = {alias.asname for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert set(medlt.__all__) == names
    for name in names:
        assert getattr(medlt, name or "") is not None


def test_nothing_names_a_machine() -> None:
    kinds = {".py", ".md", ".yaml", ".yml", ".toml", ".ipynb", ".txt", ".sh"}
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    places = ("/" + "work/", "/" + "home/", "/" + "root/", "/" + "Users/", "/" + "mnt/")
    texts = [ROOT / f for f in listed if f and Path(f).suffix in kinds and (ROOT / f).exists()]
    assert [str(p) for p in texts if any(place in p.read_text() for place in places)] == []
