"""The configs that ship with medlt, by name: COLLECTION/NAME, such as nih14/fusion.

They are in medlt/pipelines/ of the wheel, and in pipelines/ beside medlt/ of a checkout of the sources.
"""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path

import yaml

from medlt.names import did_you_mean
from medlt.types import InputError

_PACKAGE = Path(__file__).parents[1]
_PLACES = (_PACKAGE / "pipelines", _PACKAGE.parent / "pipelines")


def folder() -> Path:
    """Return the folder of all shipped configs."""
    return next((place for place in _PLACES if (place / "demo" / "demo.yaml").is_file()), _PLACES[0])


def names() -> tuple[str, ...]:
    """Return the name of every shipped config, sorted."""
    root = folder()
    return tuple(sorted(f"{path.parent.name}/{path.stem}" for path in root.glob("*/*.yaml")))


def path(name: str) -> Path:
    """Return the file of a shipped config. Raises InputError for a name that is none."""
    if name not in (known := names()):
        close = did_you_mean(name, known) or did_you_mean(f"nih14/{name}", known) or ";"
        raise InputError(f"{name}: no config that ships with medlt{close} `medlt config list` shows all")
    return folder() / f"{name}.yaml"


def kind(name: str) -> str:
    """Return "experiment", "ablation", or the method of a shipped config. Raises InputError for an unknown name."""
    tree = yaml.safe_load(path(name).read_text())
    if "arms" in tree:
        return "experiment"
    if "ablation" in tree:
        return "ablation"
    method = tree.get("method", "fusion")
    return method if isinstance(method, str) else str(method.get("kind", "fusion"))


def description(name: str) -> str:
    """Return the paragraph that a shipped config opens with. Raises InputError for an unknown name."""
    lines = (line.removeprefix("#").strip() for line in path(name).read_text().splitlines())
    return " ".join(takewhile(bool, lines))


def copy(name: str, to: Path | None = None) -> list[Path]:
    """Copy a shipped config, and the configs that its sources name; return the files that were written.

    `to` is a folder, or a file ending in .yaml; the default is the working folder. Raises InputError and writes nothing
    for an unknown name, and if a file with other contents exists.
    """
    origin = path(name)
    target = Path(to or ".")
    target = target if target.suffix in (".yaml", ".yml") else target / origin.name
    wanted = {target: origin} | {target.parent / source: origin.parent / source for source in _sources(origin)}
    for place, file in wanted.items():
        if place.exists() and (place == target or not place.is_file() or place.read_bytes() != file.read_bytes()):
            raise InputError(f"{place.absolute()}: exists already; move it away, or give another TO")
    fresh = {place: file for place, file in wanted.items() if not place.exists()}
    for place, file in fresh.items():
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.open("xb") as target_file:
            target_file.write(file.read_bytes())
    return list(fresh)


def _sources(file: Path) -> list[Path]:
    """Return the configs that the sources of an experiment name, relative to its folder."""
    tree = yaml.safe_load(file.read_text())
    return list(dict.fromkeys(Path(one["config"]) for one in tree.get("sources", {}).values() if "config" in one))
