"""The ledger of a run: every mechanism that looked at the patients, and what all of them cost together.

ledger.json is what a data-protection officer files. It names its own bytes by a digest, and the composed epsilon in it
is computed anew at each reading: a number changed by hand is refused. The digest is no signature: who wants to deceive
can compute it too; who must exclude that keeps a copy.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from medlt.files import digest, write_json
from medlt.privacy.accounting import Spent, Step, spent, warn_of_delta
from medlt.types import InputError

FORMAT = "medlt ledger 1"
NAME = "ledger.json"
MECHANISM_FORMAT = "medlt mechanism 1"
MECHANISM = "mechanism.json"
"""What one private training leaves in its folder, for the ledger."""
UNITS = ("patient", "image")
NEIGHBOURS = {
    "patient": "one patient, with all of their images, added or removed",
    "image": "one image added or removed; a patient with several images is hidden less",
    "mixed": "one patient with a single image added or removed, the weaker unit of the stages",
}
ACCOUNTANTS = ("opacus", "scipy", "numpy")
DRIFT = 0.01  # relative, of epsilon between versions of the accountants


@dataclass(frozen=True, kw_only=True)
class Mechanism:
    """One training under differential privacy, as it was done.

    unit: whose presence is hidden; units: how many there were; sample_rate: chance of each to be in a step; clip: norm
    of a unit's gradient; noise_multiplier: standard deviation of the noise over `clip`; steps: taken, of `planned`;
    times: of several like trainings, in how many one unit can be; way: how gradients were taken one by one;
    randomness: of noise and sampling, in a sentence; data, weights: digests, of the rows it saw and of what it
    learnt ("" until it is finished); changes: to the network, before training.
    """

    stage: str
    unit: str
    units: int
    sample_rate: float
    noise_multiplier: float
    clip: float
    steps: int
    planned: int
    images_per_unit: int
    multiplicity: int
    times: int = 1
    way: str
    randomness: str
    secure: bool
    data: str
    weights: str = ""
    changes: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise InputError(f"ledger: {self.stage} has unit {self.unit!r}; it is one of {', '.join(UNITS)}")
        if self.units < 1 or self.times < 1 or not self.clip > 0:
            raise InputError(f"ledger: {self.stage} has units, times or a clip below 1, or 0; give what was used")

    @property
    def cost(self) -> Step:
        """What the accountants count: (noise multiplier, sampling rate, steps)."""
        return self.noise_multiplier, self.sample_rate, self.steps * self.times


@dataclass(frozen=True)
class Ledger:
    """All mechanisms on the patients of a run. `spent` is what they cost together at `delta`."""

    mechanisms: tuple[Mechanism, ...]
    delta: float
    epsilon_asked: float
    spent: Spent
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def unit(self) -> str:
        """The weakest unit of its mechanisms."""
        return "image" if any(one.unit == "image" for one in self.mechanisms) else "patient"

    @property
    def neighbours(self) -> str:
        """Which two collections the claim makes hard to tell apart."""
        return NEIGHBOURS["mixed" if len({one.unit for one in self.mechanisms}) > 1 else self.unit]

    @property
    def units(self) -> int:
        """The fewest units of any of its mechanisms; 0 where there is none."""
        return min((one.units for one in self.mechanisms), default=0)

    @property
    def secure(self) -> bool:
        """Whether all noise and sampling was from secret randomness."""
        return all(one.secure for one in self.mechanisms)

    @property
    def warning(self) -> str | None:
        """A sentence where delta is too large for so few units."""
        return warn_of_delta(self.delta, self.units) if self.mechanisms else None

    def of(self, stage: str) -> tuple[Mechanism, ...]:
        """Return the mechanisms of a stage, several where it trained several networks."""
        return tuple(one for one in self.mechanisms if one.stage == stage)


def compose(mechanisms: Sequence[Mechanism], delta: float, epsilon_asked: float) -> Ledger:
    """Return the ledger of mechanisms on the same patients. Raises InputError for values out of range."""
    cost = _composed(tuple(one.cost for one in mechanisms), delta)
    versions = {name: metadata.version(name) for name in ACCOUNTANTS}
    return Ledger(tuple(mechanisms), delta, epsilon_asked, cost, versions)


def write_ledger(path: Path, mechanisms: Sequence[Mechanism], delta: float, epsilon_asked: float) -> None:
    """Write ledger.json, whole or not at all, in place of an earlier one."""
    tree = _tree(compose(mechanisms, delta, epsilon_asked))
    write_json(path, {**tree, "digest": digest(tree)})


def read_ledger(path: Path) -> Ledger:
    """Return the ledger, checked: its digest, and its composed epsilon computed anew.

    Raises InputError for one that is missing, damaged, edited by hand, or not what its mechanisms cost.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: there is no ledger; nothing of this run was trained privately, or it did not finish")
    try:
        tree = json.loads(Path(path).read_text())
        told, known = tree.pop("digest"), tree["format"]
    except (ValueError, KeyError, AttributeError, TypeError):
        raise InputError(f"{path}: damaged; restore it from a copy, or train again") from None
    if told != digest(tree):
        raise InputError(f"{path}: was edited by hand (its digest does not match); restore it from a copy")
    if known != FORMAT:
        raise InputError(f"{path}: is {known!r}, this version reads {FORMAT!r}; use the version that wrote it")
    return _checked(tree, path)


def write_mechanism(path: Path, mechanism: Mechanism) -> None:
    """Write mechanism.json, whole or not at all."""
    told = asdict(mechanism) | {"clip": _finite(mechanism.clip)}
    tree = json.loads(json.dumps({"format": MECHANISM_FORMAT, **told}, allow_nan=False))
    write_json(path, {**tree, "digest": digest(tree)})


def read_mechanism(path: Path) -> Mechanism:
    """Return the mechanism of a finished private training. Raises InputError for one that is missing or damaged."""
    try:
        tree = json.loads(Path(path).read_text())
        told, known = tree.pop("digest"), tree.pop("format")
        if told == digest({"format": known, **tree}) and known == MECHANISM_FORMAT:
            return _mechanism(tree | {"clip": _number(tree["clip"])})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    raise InputError(f"{path}: missing or damaged; remove its folder, and the training is made again")


def format_epsilon(epsilon: float) -> str:
    """Return epsilon as it is printed anywhere: two decimals, rounded up, for a smaller number would promise too much."""
    return f"{math.ceil(round(epsilon * 100, 6)) / 100:.2f}" if math.isfinite(epsilon) else "infinite"


def _tree(ledger: Ledger) -> dict[str, Any]:
    """Return what is written, in JSON's own kinds, so that it is equal after reading."""
    cost = ledger.spent
    tree = {
        "format": FORMAT,
        "unit": ledger.unit,
        "neighbours": ledger.neighbours,
        "delta": ledger.delta,
        "epsilon": {
            "asked": _finite(ledger.epsilon_asked),
            "spent": _finite(cost.epsilon),
            "by_rdp": _finite(cost.rdp),
        },
        "accountant": cost.accountant,
        "secure": ledger.secure,
        "mechanisms": [asdict(one) for one in ledger.mechanisms],
        "versions": dict(ledger.versions),
    }
    return dict(json.loads(json.dumps(tree, allow_nan=False)))


def _finite(epsilon: float) -> float | None:
    """Return JSON knows no infinity."""
    return epsilon if math.isfinite(epsilon) else None


def _number(told: float | None) -> float:
    return math.inf if told is None else float(told)


def _checked(tree: dict[str, Any], path: Path) -> Ledger:
    """Return the ledger a tree tells of, if it follows from its mechanisms."""
    try:
        mechanisms = [_mechanism(one) for one in tree["mechanisms"]]
        asked, *told = (_number(tree["epsilon"][key]) for key in ("asked", "spent", "by_rdp"))
        again = compose(mechanisms, float(tree["delta"]), asked)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: damaged; restore it from a copy, or train again") from None
    found = (again.spent.epsilon, again.spent.rdp)
    if not all(math.isclose(a, b, rel_tol=DRIFT, abs_tol=DRIFT) for a, b in zip(told, found, strict=True)):
        raise InputError(
            f"{path}: says epsilon {told[0]}, but its mechanisms cost {format_epsilon(found[0])}; restore it from a copy"
        )
    if (tree["unit"], tree["secure"]) != (again.unit, again.secure):
        raise InputError(f"{path}: its unit or its randomness is not that of its mechanisms; restore it from a copy")
    return Ledger(again.mechanisms, again.delta, again.epsilon_asked, again.spent, tree["versions"])


def _mechanism(tree: dict[str, Any]) -> Mechanism:
    if set(tree) != {one.name for one in fields(Mechanism)}:
        raise KeyError("fields")
    return Mechanism(**{**tree, "changes": tuple(tree["changes"])})


@lru_cache(maxsize=256)
def _composed(costs: tuple[Step, ...], delta: float) -> Spent:
    """Return kept: a ledger is read by many, and each composition takes up to a second."""
    return spent(costs, delta)
