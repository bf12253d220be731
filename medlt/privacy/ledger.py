"""The ledger of a run: all private trainings on its patients, and the epsilon that they cost together.

ledger.json is the record for a data-protection officer. It holds a digest of its contents, and its composed epsilon is
computed again each time it is read, so a number changed by hand is refused. The digest is not a signature: a person
who changes the file on purpose can compute a new one. Keep a copy to exclude that.
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
from medlt.privacy.accounting import Spent, Step, spent
from medlt.types import InputError

FORMAT = "medlt ledger 1"
NAME = "ledger.json"
MECHANISM_FORMAT = "medlt mechanism 1"
MECHANISM = "mechanism.json"
"""The record that one private training writes to its folder, for the ledger."""
UNITS = ("patient", "image")
NEIGHBOURS = {
    "patient": "one patient, with all of their images, added or removed; the number of patients is a public one",
    "image": "one image added or removed; the number of images is a public one; a patient with several images is "
    "protected less",
    "mixed": "one patient with a single image added or removed, the weaker privacy unit of the stages",
}
ACCOUNTANTS = ("opacus", "scipy", "numpy")
DRIFT = 0.01  # relative difference of epsilon between versions of the accountants


@dataclass(frozen=True, kw_only=True)
class Mechanism:
    """One finished training under differential privacy, or the votes of Private Evolution (`medlt.privacy.votes`).

    privacy_unit: "patient" or "image"; units: their public number, of which `sample_rate` is made, not the true one;
    sample_rate: probability that a unit is in a step; max_grad_norm: largest norm of the gradient of a unit;
    clip_margin: by what factor rounding may exceed that, see `limits.clip_margin`; noise_multiplier: standard
    deviation of the noise over `max_grad_norm`; steps: taken, of `planned`; max_images_per_patient: rows of a sampled
    unit per step, 0 for all, as in votes; noise_multiplicity: how often each of these rows is used; times: how many
    trainings of this kind one unit can be in;
    grad_sample_mode: how the gradients of units were computed; randomness: source of noise and sampling, as a
    sentence; secure_mode: whether that source is cryptographic; data, weights: digests of the rows and of the trained
    weights ("" until the training is finished); changes: to the network before training.
    """

    stage: str
    privacy_unit: str
    units: int
    sample_rate: float
    noise_multiplier: float
    max_grad_norm: float
    steps: int
    planned: int
    max_images_per_patient: int
    noise_multiplicity: int
    times: int = 1
    clip_margin: float = 1.0
    grad_sample_mode: str
    randomness: str
    secure_mode: bool
    data: str
    weights: str = ""
    changes: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.privacy_unit not in UNITS:
            raise InputError(
                f"ledger: {self.stage} has privacy_unit {self.privacy_unit!r}; give one of {', '.join(UNITS)}"
            )
        if self.units < 1 or self.times < 1 or self.clip_margin < 1 or not self.max_grad_norm > 0:
            raise InputError(
                f"ledger: {self.stage} has units {self.units}, times {self.times}, clip_margin {self.clip_margin}, "
                f"max_grad_norm {self.max_grad_norm}; give units, times and clip_margin of at least 1 and "
                "max_grad_norm above 0"
            )

    @property
    def cost(self) -> Step:
        """The input of the accountants: (noise multiplier / margin, sampling rate, steps)."""
        return self.noise_multiplier / self.clip_margin, self.sample_rate, self.steps * self.times


@dataclass(frozen=True)
class Ledger:
    """All mechanisms on the patients of a run. `spent` is their joint cost at `delta`."""

    mechanisms: tuple[Mechanism, ...]
    delta: float
    target_epsilon: float
    spent: Spent
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def privacy_unit(self) -> str:
        """The weakest privacy unit of the mechanisms."""
        return "image" if any(one.privacy_unit == "image" for one in self.mechanisms) else "patient"

    @property
    def neighbours(self) -> str:
        """How two collections differ that the claim makes hard to distinguish."""
        return NEIGHBOURS["mixed" if len({one.privacy_unit for one in self.mechanisms}) > 1 else self.privacy_unit]

    @property
    def units(self) -> int:
        """The largest public number of units of any mechanism; 0 without mechanisms."""
        return max((one.units for one in self.mechanisms), default=0)

    @property
    def secure_mode(self) -> bool:
        """Whether all noise and sampling used cryptographic randomness."""
        return all(one.secure_mode for one in self.mechanisms)

    def of(self, stage: str) -> tuple[Mechanism, ...]:
        """Return the mechanisms of a stage: several if it trained several networks."""
        return tuple(one for one in self.mechanisms if one.stage == stage)


def compose(mechanisms: Sequence[Mechanism], delta: float, target_epsilon: float) -> Ledger:
    """Return the ledger of mechanisms on the same patients. Raises InputError for values out of range."""
    cost = _composed(tuple(one.cost for one in mechanisms), delta)
    versions = {name: metadata.version(name) for name in ACCOUNTANTS}
    return Ledger(tuple(mechanisms), delta, target_epsilon, cost, versions)


def write_ledger(path: Path, mechanisms: Sequence[Mechanism], delta: float, target_epsilon: float) -> None:
    """Write ledger.json atomically. An existing one is replaced."""
    tree = _tree(compose(mechanisms, delta, target_epsilon))
    write_json(path, {**tree, "digest": digest(tree)})


def read_ledger(path: Path) -> Ledger:
    """Read a ledger, and check its digest and its composed epsilon.

    Raises InputError if it is missing, damaged, edited by hand, or if its epsilon is not that of its mechanisms.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: there is no ledger; nothing in this run was trained privately, or it did not finish")
    try:
        tree = json.loads(Path(path).read_text())
        written, version = tree.pop("digest"), tree["format"]
    except (ValueError, KeyError, AttributeError, TypeError):
        raise InputError(f"{path}: damaged; restore it from a copy, or train again") from None
    if written != digest(tree):
        raise InputError(f"{path}: was edited by hand (its digest does not match); restore it from a copy")
    if version != FORMAT:
        raise InputError(f"{path}: is {version!r}, this version reads {FORMAT!r}; use the version that wrote it")
    return _checked(tree, path)


def write_mechanism(path: Path, mechanism: Mechanism) -> None:
    """Write mechanism.json atomically."""
    values = asdict(mechanism) | {"max_grad_norm": _finite(mechanism.max_grad_norm)}
    tree = json.loads(json.dumps({"format": MECHANISM_FORMAT, **values}, allow_nan=False))
    write_json(path, {**tree, "digest": digest(tree)})


def read_mechanism(path: Path) -> Mechanism:
    """Read the mechanism of a finished private training. Raises InputError if it is missing or damaged."""
    try:
        tree = json.loads(Path(path).read_text())
        written, version = tree.pop("digest"), tree.pop("format")
        if written == digest({"format": version, **tree}) and version == MECHANISM_FORMAT:
            return mechanism_of(tree | {"max_grad_norm": _number(tree["max_grad_norm"])})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    raise InputError(f"{path}: missing or damaged; remove its folder and run again to repeat the training")


def format_epsilon(epsilon: float) -> str:
    """Return epsilon as text with two decimals, rounded up, because a smaller number would promise too much."""
    return f"{math.ceil(round(epsilon * 100, 6)) / 100:.2f}" if math.isfinite(epsilon) else "infinite"


def _tree(ledger: Ledger) -> dict[str, Any]:
    """Return the contents of ledger.json, as JSON types, so that they are equal after reading."""
    cost = ledger.spent
    tree = {
        "format": FORMAT,
        "privacy_unit": ledger.privacy_unit,
        "neighbours": ledger.neighbours,
        "delta": ledger.delta,
        "epsilon": {
            "target": _finite(ledger.target_epsilon),
            "spent": _finite(cost.epsilon),
            "by_rdp": _finite(cost.rdp),
        },
        "accountant": cost.accountant,
        "secure_mode": ledger.secure_mode,
        "mechanisms": [asdict(one) for one in ledger.mechanisms],
        "versions": dict(ledger.versions),
    }
    return dict(json.loads(json.dumps(tree, allow_nan=False)))


def _finite(epsilon: float) -> float | None:
    """Return a finite number as it is, and None for infinity, which JSON lacks."""
    return epsilon if math.isfinite(epsilon) else None


def _number(value: float | None) -> float:
    """Return the number of which `_finite` made `value`."""
    return math.inf if value is None else float(value)


def _checked(tree: dict[str, Any], path: Path) -> Ledger:
    """Return the ledger in a JSON tree. Raises InputError unless its totals follow from its mechanisms."""
    try:
        mechanisms = [mechanism_of(one) for one in tree["mechanisms"]]
        target, *written = (_number(tree["epsilon"][key]) for key in ("target", "spent", "by_rdp"))
        again = compose(mechanisms, float(tree["delta"]), target)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: damaged; restore it from a copy, or train again") from None
    cost = (again.spent.epsilon, again.spent.rdp)
    if not all(math.isclose(a, b, rel_tol=DRIFT, abs_tol=DRIFT) for a, b in zip(written, cost, strict=True)):
        raise InputError(
            f"{path}: holds epsilon {written[0]}, but its mechanisms cost {format_epsilon(cost[0])}; restore it from a "
            "copy"
        )
    if (tree["privacy_unit"], tree["secure_mode"]) != (again.privacy_unit, again.secure_mode):
        raise InputError(
            f"{path}: its privacy_unit or secure_mode is not that of its mechanisms; restore it from a copy"
        )
    return Ledger(again.mechanisms, again.delta, again.target_epsilon, again.spent, tree["versions"])


def mechanism_of(tree: dict[str, Any]) -> Mechanism:
    """Return the mechanism in a JSON tree. Raises KeyError for other fields."""
    if set(tree) != {one.name for one in fields(Mechanism)}:
        raise KeyError("fields")
    return Mechanism(**{**tree, "changes": tuple(tree["changes"])})


@lru_cache(maxsize=256)
def _composed(costs: tuple[Step, ...], delta: float) -> Spent:
    """Return the joint cost, from a cache: a ledger is read often, and each composition takes up to a second."""
    return spent(costs, delta)
