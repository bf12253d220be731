"""Every package that medlt needs, and all that these need, has a licence that a hospital or a company can use."""

import re
import tomllib
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
ALLOWED = {
    "0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "CNRI-Python", "HPND", "ISC", "MIT",
    "MIT-0", "MIT-CMU", "PSF-2.0", "Python-2.0", "Unlicense", "Zlib",
}  # fmt: skip
WEAK = {
    "certifi": "MPL-2.0", "hypothesis": "MPL-2.0", "pathspec": "MPL-2.0", "tqdm": "MPL-2.0",
}  # fmt: skip
"""Packages under a licence of files: a changed file of theirs must be published, medlt's and yours need not."""
STATED = {
    "axe-playwright-python": "MIT",
}  # fmt: skip
"""Licence of packages whose metadata name none that is known, by the LICENSE file that they hold."""
NAMES = {
    r"Apache( Software)?( Licen[cs]e)?,?( Version)?[ -]?(2(\.0)?)?( Licen[cs]e)?": "Apache-2.0",
    r"(The )?MIT( Licen[cs]e)?": "MIT",
    r"(new |modified |revised )?\(?(3-clause )?BSD([ -]3([ -]Clause)?)?\)?( Licen[cs]e)?": "BSD-3-Clause",
    r"(Simplified )?BSD[ -]2([ -]Clause)?( Licen[cs]e)?": "BSD-2-Clause",
    r"ISC( Licen[cs]e)?( \(ISCL\))?": "ISC",
    r"(Python Software Foundation( Licen[cs]e)?|PSF(L|-2\.0)?)": "PSF-2.0",
    r"(The )?Unlicense( \(Unlicense\))?": "Unlicense",
    r"Mozilla Public License 2\.0 \(MPL 2\.0\)|MPL[ -]?2\.0": "MPL-2.0",
}
"""Ways of writing a licence -> its SPDX name."""


def spdx(text: str) -> str:
    """The SPDX name of a licence as it is written, "" if it is not known."""
    return next((name for way, name in NAMES.items() if re.fullmatch(way, text.strip(), re.IGNORECASE)), "")


def licences(package: Distribution) -> set[str]:
    """All licences of a package by its metadata: the expression, else the classifiers, else the field."""
    if expression := package.metadata.get("License-Expression"):
        names = re.split(r"\s+(?:AND|OR|WITH)\s+", re.sub(r"[()]", " ", expression).strip())
        return {name.strip() for name in names} - {"LLVM-exception"}
    classes = [one for one in package.metadata.get_all("Classifier", []) if one.startswith("License :: ")]
    named = [spdx(last := one.split(" :: ")[-1]) or last for one in classes if not one.endswith("OSI Approved")]
    written = package.metadata.get("License") or ""
    parts = re.split(r"\s+(?:AND|OR)\s+|/", written) if len(written) < 60 else []  # longer: a whole licence
    return set(filter(None, named)) or {spdx(part) or part.strip() for part in parts if part.strip()}


def needed(requirements: list[str]) -> dict[str, Distribution]:
    """The installed packages that these requirements name, and all that those need, by name."""
    known: dict[str, Distribution] = {}
    waiting = [(Requirement(one), "") for one in requirements]
    while waiting:
        requirement, extra = waiting.pop()
        name = canonicalize_name(requirement.name)
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        if name in known and not requirement.extras:
            continue
        try:
            known[name] = distribution(name)
        except PackageNotFoundError:  # an extra that is not installed here
            continue
        for inner in known[name].requires or []:
            waiting += [(Requirement(inner), one) for one in (requirement.extras or {""})]
    return known


def problems(packages: dict[str, Distribution]) -> list[str]:
    """One line for each package whose licence is unknown or not allowed."""
    bad = []
    for name, package in sorted(packages.items()):
        own = {STATED[name]} if name in STATED else licences(package)
        if not own or own - ALLOWED - {WEAK.get(name, "")}:
            bad.append(f"{name} {package.version}: {', '.join(sorted(own)) or 'no known licence'}")
    return bad


def test_every_dependency_has_a_licence_of_the_list() -> None:
    packages = needed(PROJECT["dependencies"])
    assert {"numpy", "torch", "opencv-python-headless", "markupsafe"} <= packages.keys()  # the last by jinja2
    assert problems(packages) == []


def test_every_dependency_of_the_extras_has_one() -> None:
    extras = [one for part in PROJECT["optional-dependencies"].values() for one in part if not one.startswith("medlt[")]
    assert problems(needed(extras)) == []


class Package:
    """The metadata of a package that is not installed."""

    version = "1"

    def __init__(self, **fields: str | list[str]) -> None:
        self.fields = fields
        self.metadata = self

    def get(self, name: str) -> object:
        return self.fields.get(name.replace("-", "_"))

    def get_all(self, name: str, default: list[str]) -> object:
        return self.fields.get(name, default)


@pytest.mark.parametrize(
    ("fields", "bad"),
    [
        ({"License_Expression": "Apache-2.0 AND (MIT OR BSD-3-Clause)"}, False),
        ({"License_Expression": "MIT AND GPL-3.0-or-later"}, True),
        ({"Classifier": ["License :: OSI Approved :: MIT License"]}, False),
        ({"Classifier": ["License :: OSI Approved :: GNU General Public License v3 (GPLv3)"], "License": "GPL"}, True),
        ({"Classifier": ["License :: OSI Approved :: MIT License", "License :: Other/Proprietary License"]}, True),
        ({"License": "Apache License 2.0"}, False),
        ({"License": "AGPL-3.0"}, True),
        ({"License": "see LICENSE"}, True),
        ({}, True),
    ],
)
def test_the_check_knows_copyleft_and_unknown_ones(fields: dict[str, str | list[str]], bad: bool) -> None:
    assert bool(problems({"x": Package(**fields)})) == bad  # type: ignore[dict-item]
