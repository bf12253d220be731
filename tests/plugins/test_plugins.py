"""A package with one plug-in of each group is installed; medlt finds and uses all four."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from medlt import config, plugins
from medlt.config.plugged import settings_model
from medlt.plugins import CHECKS, CODECS, LAYOUTS, METHODS, CheckPlugin, MethodPlugin, PluginError, Registry
from medlt.types import Batch, CheckResult, InputError

PACKAGE = Path(__file__).parent / "package"
ROOT = Path(__file__).parents[2]
REGISTRIES: tuple[Registry[Any], ...] = (METHODS, CHECKS, CODECS, LAYOUTS)
PRIVACY = {"epsilon": 8.0, "delta": 1e-5, "patients": 40, "findings": ["Hernia", "Mass"]}


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the package is installed in, as pip does it."""
    place = tmp_path_factory.mktemp("plugins")
    shutil.copytree(PACKAGE, place / "source", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
               "--disable-pip-version-check", "--target", str(place / "site"), str(place / "source")]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return place / "site"


def forget() -> None:
    """Let the registries look for entry points again."""
    for registry in REGISTRIES:
        registry.__dict__.pop("_added", None)
        registry._loaded.clear()
    settings_model.cache_clear()


@pytest.fixture
def installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package is on the path of this process."""
    monkeypatch.syspath_prepend(str(site))
    forget()
    yield
    for name in [name for name in sys.modules if name.startswith("medlt_example")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.undo()
    forget()


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str, str], None]]:
    """Install broken-package 2.0: its module's source, and one entry point of a group."""

    def install(group: str, name: str, source: str) -> None:
        place = tmp_path / "broken"
        info = place / "broken_package-2.0.dist-info"
        info.mkdir(parents=True)
        (place / f"broken_{name}.py").write_text(source)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-package\nVersion: 2.0\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n{name} = broken_{name}:PLUGIN\n")
        monkeypatch.syspath_prepend(str(place))
        forget()

    yield install
    for name in [name for name in sys.modules if name.startswith("broken_")]:
        del sys.modules[name]
    monkeypatch.undo()
    forget()


def write_collection(folder: Path, patients: int = 60, side: int = 32) -> Path:
    """Drawn radiographs with a JSON file beside each: Mass is frequent, Hernia rare."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(patients):
        findings = (["Mass"] if i % 2 else []) + (["Hernia"] if i % 5 == 0 else [])
        pixels = rng.integers(60, 120, (side, side))
        pixels[4:12, 4:12] += 90 * ("Mass" in findings)
        pixels[20:28, 16:24] += 90 * ("Hernia" in findings)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"image{i:03d}.png")
        label = {"patient": f"p{i:03d}", "view": "PA", "findings": findings}
        (folder / f"image{i:03d}.json").write_text(json.dumps(label))
    return folder


TREE: dict[str, Any] = {
    "output_dir": "run",
    "seed": 3,
    "size": 32,
    "threads": 1,
    "data": {"kind": "manifest", "path": "manifest.parquet"},
    "method": {"kind": "jitter", "noise": 0.2},
    "codec": {"kind": "blocks", "side": 8},
    "targets": {"tail_below": 16, "head_above": 20, "count": 20, "max_per_finding": 4, "num_candidates": 2},
    "checks": {"folds": 2, "verifier_quantile": 0.01, "sharpness": {"least": 0.088}},
    "classifier": {"size": 32, "steps": 4, "batch_size": 8, "evaluate_every": 2},
}


def medlt(*arguments: str, site: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the command line in another process, with the package on its path."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)]), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-m", "medlt", *arguments], cwd=folder, env=environment,
                          capture_output=True, text=True, timeout=300)  # fmt: skip


def test_a_package_adds_a_layout_a_method_a_check_and_a_codec(site: Path, tmp_path: Path) -> None:
    """Config, `medlt manifest` and `medlt augment` use all four, and the run records the package."""
    write_collection(tmp_path / "images")
    made = medlt("manifest", "sidecar", "images", "manifest.parquet", "--all-zero", "keep", site=site, folder=tmp_path)
    assert made.returncode == 0, made.stderr
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(TREE))
    run = medlt("augment", "own.yaml", "--json", site=site, folder=tmp_path)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["counts"]["kept"] > 0
    checks = pd.read_parquet(tmp_path / "run/checks.parquet")
    own = checks[checks["check"] == "sharpness"]
    plan = pd.read_parquet(tmp_path / "run/plan.parquet")
    assert sorted(own["uid"]) == sorted(plan.index)
    manifest = pd.read_parquet(tmp_path / "run/manifest.parquet")
    kept = manifest[manifest["synthetic"] == True]  # noqa: E712
    assert set(kept["method"]) == {"jitter"}
    assert 0 < own["passed"].sum() < len(own)
    assert set(kept.index) <= set(own.loc[own["passed"], "uid"])
    record = json.loads((tmp_path / "run/run.json").read_text())["versions"]
    versions = dict.fromkeys(("method.jitter", "codec.blocks", "check.sharpness"), "medlt-example 0.1")
    assert {name: record[name] for name in versions} == versions


def test_the_config_reads_the_settings_of_plugins(installed: None, tmp_path: Path) -> None:
    settings = config.parse(TREE)
    assert (settings.method.kind, settings.codec.kind) == ("jitter", "blocks")
    assert settings.method.model_dump() == {"kind": "jitter", "noise": 0.2}
    assert set(settings.checks.optional) == {"sharpness"}
    assert config.parse(yaml.safe_load(config.dump(settings))) == settings
    assert config.parse({**TREE, "method": "jitter"}).method.model_dump()["noise"] == 0.1
    off = config.parse({**TREE, "checks": {"sharpness": None}})
    assert off.checks.optional == {}
    schema = config.schema()
    assert {"JitterSettings", "BlocksSettings", "SharpnessSettings"} <= set(schema["$defs"])
    assert "sharpness" in schema["$defs"]["Checks"]["properties"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": {"kind": "jitter", "nois": 1}}, "method.nois is not a known key; did you mean 'noise'?"),
        ({"method": {"kind": "jitter", "noise": 2}}, "method.noise: must be at most 1, not 2"),
        ({"method": "jiter"}, "method: no method is named 'jiter'; did you mean 'jitter'?"),
        ({"codec": {"kind": "blocks", "side": 0}}, "codec.side: must be at least 1, not 0"),
        ({"codec": {"kind": "block"}}, "codec: no codec is named 'block'; did you mean 'blocks'?"),
        ({"checks": {"sharpnes": {}}}, "checks.sharpnes is not a known key; did you mean 'sharpness'?"),
        ({"checks": {"sharpness": {"lest": 1}}}, "checks.sharpness.lest is not a known key; did you mean 'least'?"),
        ({"checks": {"sharpness": {"least": "much"}}}, "checks.sharpness.least: must be a number, not 'much'"),
        ({"privacy": PRIVACY}, "privacy: method jitter does not declare that private runs may use it; use method: no"),
    ],
)
def test_settings_of_plugins_have_the_messages_of_medlt(installed: None, change: Any, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        config.parse({**TREE, **change})


def test_private_runs_take_only_plugins_that_declare_it(installed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = {**TREE, "method": "noise", "privacy": PRIVACY}
    assert config.parse(tree).data_independent
    for registry, name in ((CHECKS, "sharpness"), (CODECS, "blocks")):
        with monkeypatch.context() as patch:
            patch.setitem(registry._loaded, name, replace(registry[name], private=False))
            with pytest.raises(InputError, match=f"{name} does not declare that private runs may use it; remove it"):
                config.parse(tree)


def test_a_plugin_gets_no_real_images_in_a_private_run(installed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from medlt.diffusion.parts import CodecParts, WithheldImages
    from medlt.recipes._codec import make_codec
    from medlt.recipes._privacy import no_verifiers
    from medlt.recipes._quality import build_checks

    seen: list[Any] = []

    def spy(registry: Registry[Any], name: str) -> None:
        plugin = registry[name]

        def build(settings: Any, parts: Any) -> Any:
            seen.append(parts)
            return plugins.resolve(plugin.build)(settings, parts)

        monkeypatch.setitem(registry._loaded, name, replace(plugin, build=build))

    spy(CHECKS, "sharpness")
    spy(CODECS, "blocks")
    settings = config.parse({**TREE, "method": "noise", "privacy": PRIVACY})
    rows = pd.DataFrame({"patient_id": ["p"]}, index=["real"])
    part = SimpleNamespace(rows=rows)
    cohort: Any = SimpleNamespace(findings=("Hernia", "Mass"), requested=("Hernia",), tail=("Hernia",), train=part,
                                  val=part, dataset=lambda *_: [], named=lambda _: "")  # fmt: skip
    runtime = SimpleNamespace(at=lambda _: None)
    run: Any = SimpleNamespace(config=settings, runtime=runtime, store=None, stage=lambda _: nullcontext(),
                               record=lambda **_: None)  # fmt: skip
    build_checks(run, cohort, no_verifiers(cohort.requested, cohort.findings))
    make_codec(run, cohort, private=lambda *_: None)  # type: ignore[arg-type]
    check, codec = seen
    assert list(check.rows.index) == ["only-Hernia"]
    assert check.verifiers.verifiers == ()
    with pytest.raises(InputError, match="a private run gives methods and checks no real images"):
        check.images(["real"])
    assert isinstance(codec, CodecParts)
    assert isinstance(codec.train, WithheldImages)
    assert (codec.val, codec.contents, codec.private, codec.patients) == (None, "", None, ())
    with pytest.raises(InputError, match="a private run gives a plug-in no real images"):
        codec.train[0]


def test_package_version_and_settings_are_in_the_keys(installed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from medlt.diffusion.parts import built_codec

    def named(side: int) -> str:
        return built_codec(
            "blocks", config.parse({**TREE, "codec": {"kind": "blocks", "side": side}}).codec, parts
        ).digest

    parts: Any = None  # the codec reads none
    first = named(8)
    assert named(8) == first != named(4)
    monkeypatch.setattr(Registry, "package", lambda self, name: "medlt-example 0.2")
    assert named(8) != first


def test_a_layout_is_read_through_the_public_interface(installed: None, tmp_path: Path) -> None:
    import medlt as public

    collection = public.Collection.from_layout("sidecar", write_collection(tmp_path / "images"), all_zero="keep")
    assert collection.findings == ("Hernia", "Mass")
    assert len(collection) == 60
    with pytest.raises(InputError, match=r"no option sufix=\.\.\.; did you mean 'suffix="):
        public.Collection.from_layout("sidecar", tmp_path / "images", sufix=".txt")
    with pytest.raises(InputError, match="unknown layout 'sidecr'; did you mean 'sidecar'"):
        public.Collection.from_layout("sidecr", tmp_path / "images")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import nothing_of_this_name", "cannot be imported: ModuleNotFoundError: No module named 'nothing_of_this_"),
        ("PLUGIN = 3", "is a int; its entry point must name a medlt.plugins.MethodPlugin"),
        ("OTHER = 3", "cannot be imported: AttributeError"),
        (
            "from medlt.plugins import *\nPLUGIN = MethodPlugin('gone:Settings', 'gone:build')",
            "has settings that cannot",
        ),
        ("from medlt.plugins import *\nPLUGIN = MethodPlugin(dict, print)", "has settings that are no pydantic model"),
    ],
)
def test_a_broken_plugin_gives_one_line_that_names_the_package(
    broken: Callable[[str, str, str], None], source: str, reason: str
) -> None:
    broken("medlt.methods", "faulty", source)
    assert "faulty" in METHODS  # its name is known; nothing of it is imported before it is used
    assert config.parse({**TREE, "method": "noise", "codec": {"kind": "train"}, "checks": {}}).method.kind == "noise"
    with pytest.raises(InputError) as error:
        config.parse({**TREE, "method": "faulty", "codec": {"kind": "train"}, "checks": {}})
    text = str(error.value)
    assert "plug-in faulty = broken_faulty:PLUGIN (medlt.methods, package broken-package 2.0)" in text
    assert reason in text
    assert "\n" not in text
    assert "JitterSettings" not in config.schema()["$defs"]  # the schema goes on without it


@pytest.mark.parametrize(("registry", "name"), [(METHODS, "fusion"), (CHECKS, "finite"), (CHECKS, "folds")])
def test_a_package_cannot_take_a_name_of_medlt(
    broken: Callable[[str, str, str], None], registry: Registry[Any], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    broken(registry.group, name, "import nothing_of_this_name")
    assert list(registry) == list(registry.own)
    assert registry.package(name) == ""
    assert f"{name} of package broken-package is not used: medlt has that name" in caplog.text


def test_the_names_of_checks_are_reserved() -> None:
    from medlt.checks import consistency, sanity, target_label

    modules = [vars(module) for module in (consistency, sanity, target_label)]
    classes = [one for module in modules for one in module.values() if isinstance(one, type)]
    names = {one.name for one in classes if isinstance(getattr(one, "name", None), str)}
    assert {"finite", "label_consistency", "target_label"} <= names <= CHECKS.reserved
    assert set(config.Checks.model_fields) - set(CHECKS.own) <= CHECKS.reserved


class Settings(config.MethodConfig):
    """No settings."""


def of(registry: Registry[Any], monkeypatch: pytest.MonkeyPatch, plugin: Any) -> None:
    """Let the registry load `plugin` as plug-in faulty of a package."""
    entry = type("Entry", (), {"value": "package:PLUGIN", "dist": None})()
    monkeypatch.setitem(registry.__dict__, "_added", {"faulty": entry})
    monkeypatch.setitem(registry._loaded, "faulty", plugin)


class Faulty:
    """A method with one fault at a time."""

    reads_real_images = False
    guidance = ()

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def plan(self, targets: Any, seed: int) -> pd.DataFrame:
        names = [] if self.fault == "columns" else ["finding", "slot", "candidate", "seed", "fold", "view",
                                                    "label_source", "parents"]  # fmt: skip
        rows = pd.DataFrame({name: [0] for name in names}, index=pd.Index(["a"], name="uid"))
        return rows.assign(finding="Mass") if self.fault != "raises" else rows / "text"

    def run(self, rows: pd.DataFrame) -> Iterator[Batch]:
        labels = pd.DataFrame({"Mass": 1.0}, index=rows.index)
        if self.fault == "order":
            labels = labels.set_axis(["b"])
        if self.fault != "none":
            yield Batch(rows, torch.zeros(1, 3 if self.fault == "colour" else 1, 8, 8), labels)

    def explain(self, rows: pd.DataFrame) -> dict[str, torch.Tensor]:
        return {}

    def with_guidance(self, guidance: Any) -> "Faulty":
        return self


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("columns", "plans no column slot, candidate, seed"),
        ("raises", "failed: TypeError"),
        ("order", "returns rows in another order"),
        ("colour", "returns images [1, 3, 8, 8], not float [B,1,H,W]"),
        ("none", "returns 0 images of 1"),
    ],
)
def test_a_method_that_returns_nonsense_is_named(fault: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from medlt.synthesis.parts import PluginMethod

    of(METHODS, monkeypatch, MethodPlugin(Settings, Faulty))
    method = PluginMethod("faulty", Faulty(fault))  # type: ignore[arg-type]
    with pytest.raises(PluginError, match=re.escape(message)) as error:
        list(method.run(method.plan({"Mass": 1}, 0)))
    assert "plug-in faulty = package:PLUGIN (medlt.methods" in str(error.value)
    assert list(PluginMethod("faulty", Faulty("")).run(Faulty("").plan({}, 0)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (lambda batch: [], "must return one CheckResult('faulty', ...) per image"),
        (lambda batch: [CheckResult("other", "a", 0, 0, True)], "must return one CheckResult('faulty', ...)"),
        (lambda batch: [CheckResult("faulty", "b", 0, 0, True)], "in the order of the batch"),
        (lambda batch: [CheckResult("faulty", "a", 0, 0, True), 3], "must return one CheckResult"),
        (lambda batch: 1 / 0, "failed: ZeroDivisionError: division by zero; correct or uninstall the package"),
    ],
)
def test_a_check_that_returns_nonsense_is_named(check: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from medlt.checks.parts import PluginCheck

    of(CHECKS, monkeypatch, CheckPlugin(Settings, check))
    rows = pd.DataFrame(index=pd.Index(["a"], name="uid"))
    batch = Batch(rows, torch.zeros(1, 1, 8, 8), rows)
    with pytest.raises(PluginError, match=re.escape(message)):
        PluginCheck("faulty", check)(batch)
    good = PluginCheck("faulty", lambda batch: [CheckResult("faulty", "a", 0, 0, True)])
    assert [result.uid for result in good(batch)] == ["a"]


def test_the_settings_and_classes_of_a_method_have_its_name() -> None:
    from medlt.synthesis import METHODS as CLASSES

    kinds = {name: METHODS.settings(name).model_fields["kind"].default for name in METHODS.own}
    assert kinds == {name: name for name in METHODS.own}
    assert set(CLASSES) == set(METHODS.own)


def test_every_name_of_medlt_can_be_built() -> None:
    """Settings and builder of each own plug-in exist, and its settings are closed and described."""
    for registry in REGISTRIES:
        for name, plugin in registry.own.items():
            assert callable(plugins.resolve(plugin.build)), name
            assert registry.settings(name).model_config["extra"] == "forbid"
            assert set(getattr(plugin, "checks", ())) <= set(CHECKS)


def test_contributing_quotes_the_package_that_is_tested() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text()
    blocks = re.findall(r"^`([\w./]+)`:\n\n```\w*\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    files = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.*") if path.stem != "__init__"}
    assert {name for name, _ in blocks} == {name for name in files if "__pycache__" not in name}
    assert [name for name, text in blocks if (PACKAGE / name).read_text() != text] == []


def test_the_layers_in_contributing_are_those_that_are_tested() -> None:
    layers = runpy.run_path(str(ROOT / "tests/test_architecture.py"))["LAYERS"]
    table = re.findall(r"^\| \d \|.*$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    named = set(re.findall(r"`(\w+)`", "".join(table)))
    assert named == {name for layer in layers for name in layer} - {"_version", "__main__", "testing"}
