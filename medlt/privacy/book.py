"""The budget book of a collection: every model that medlt trained on its patients, in whatever run, and at what cost.

One file per collection, beside its table. It holds the digests of the weights, so that a file is recognised wherever
it was copied, and every private mechanism, so that a claim adds up all runs. Patients are in it as HMAC-SHA-256 of
their ids under a key that lies in the book too: who holds the book can test whether an id is in it. It stays with the
collection, and no part of it is released.
"""

from __future__ import annotations

import hmac
import json
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from medlt import config as configs
from medlt.files import digest, digest_unchanged, locked, tensor_bytes, write_json
from medlt.privacy.ledger import MECHANISM, Mechanism, mechanism_of, read_mechanism
from medlt.store import Artifact
from medlt.types import InputError

FORMAT = "medlt budget book 1"
FILE = "medlt-budget-book.json"
MODELS = (
    "codec", "denoiser", "classifier", "latent_classifier", "epistemic", "sparse", "code_classifier", "levels",
    "embedding", "evolution",
)  # fmt: skip
"""Kinds of artifacts that hold weights trained on patients, or their votes."""
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True)
class BookedTraining:
    """One training on patients.

    kind: of its artifact; runs: the ids of the runs that use it; patients: a key of `BudgetBook.groups`; weights: the
    digests of its files; mechanisms: () if it was not private.
    """

    kind: str
    runs: tuple[str, ...]
    patients: str
    weights: tuple[str, ...]
    mechanisms: tuple[Mechanism, ...] = ()


@dataclass(frozen=True)
class BudgetBook:
    """All trainings on the patients of a collection. groups: the hashed ids of patients that were trained on together.

    key: of the hashes, 64 hex digits.
    """

    key: str
    groups: dict[str, tuple[str, ...]]
    trainings: tuple[BookedTraining, ...] = ()

    def hashed(self, patients: Iterable[str]) -> tuple[str, ...]:
        """Return the hashes of these patients, 32 hex digits each, sorted."""
        key = bytes.fromhex(self.key)
        return tuple(sorted({hmac.new(key, str(one).encode(), "sha256").hexdigest()[:32] for one in patients}))

    def on(self, patients: Iterable[str]) -> list[BookedTraining]:
        """Return the trainings on at least one of these patients."""
        own = set(self.hashed(patients))
        shared = {name for name, members in self.groups.items() if not own.isdisjoint(members)}
        return [one for one in self.trainings if one.patients in shared]

    def with_training(self, run: str, patients: Sequence[str], made: BookedTraining) -> BudgetBook:
        """Return the book with one more training, or with one more run of a training that it has."""
        group = digest(patients)
        made = replace(made, runs=(run,), patients=group)
        same = [one for one in self.trainings if replace(one, runs=made.runs) == made]
        others = tuple(one for one in self.trainings if one not in same)
        runs = tuple(dict.fromkeys([*(run for one in same for run in one.runs), run]))
        groups = {**self.groups, group: tuple(patients)}
        return replace(self, groups=groups, trainings=(*others, replace(made, runs=runs)))


def book_place(config: configs.RunConfig | configs.EvaluateConfig, folder: Path) -> Path | None:
    """Return the place of the collection's budget book: that of the config, else beside the table of the data.

    Drawn data has no patients. Its private runs have a book in the run folder, its other runs have None.
    """
    own, data = config if isinstance(config, configs.RunConfig) else None, config.data
    if own is not None and own.budget_book is not None:
        return own.budget_book
    if isinstance(data, configs.PhantomData):
        return folder / FILE if own is not None and own.privacy is not None else None
    return (data.path if isinstance(data, configs.ManifestData) else data.table).parent / FILE


def read_book(place: Path) -> BudgetBook | None:
    """Return the book, None if there is none. Raises InputError if it is damaged or was edited."""
    if not place.is_file():
        return None
    try:
        tree = json.loads(place.read_text())
        written = tree.pop("digest")
        if (written, tree["format"]) == (digest(tree), FORMAT):
            groups = {name: tuple(members) for name, members in tree["groups"].items()}
            return BudgetBook(tree["key"], groups, tuple(_training(one) for one in tree["trainings"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    raise InputError(f"{place}: the budget book is damaged; restore it from a copy")


def add_to_book(
    place: Path, run: str, patients: Iterable[str], made: Sequence[Artifact], given: Iterable[Path]
) -> None:
    """Write the trainings of these artifacts, on these patients, into the book, under a lock. It is made if need be.

    run: the id of the run that made or uses them. given: weights that the run was given; a file that it hands on as it
    was is not taken for trained. Raises InputError if the book cannot be written.
    """
    passed_on = {one for path in given for one in weight_digests(path)}
    with locked(place.with_name(f".{place.name}.lock"), f"the budget book {place}"):
        before = read_book(place) or BudgetBook(secrets.token_hex(32), {})
        after, hashed = before, before.hashed(patients)
        for one in made:
            if one.kind in MODELS:
                after = after.with_training(run, hashed, _trained(one, passed_on))
        if after != before:
            _write(place, after)


def weight_digests(path: Path) -> list[str]:
    """Return the digests of the files of weights in a folder, or of one such file; [] if there is none.

    A safetensors file has a second one, of its tensors alone: under other names, in another order or with other
    metadata they are the same weights. In another precision they are not recognised.
    """
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.suffix in WEIGHTS)
    return [one for file in files for one in (digest_unchanged(file), *_tensors(file))]


def _tensors(file: Path) -> list[str]:
    """Return the digest of the tensors in a safetensors file, whatever their names; [] for another file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            names = opened.keys()
            held = [digest(list(one.shape), tensor_bytes(one)) for one in map(opened.get_tensor, names)]
    except (SafetensorError, OSError):
        return []
    return [digest("tensors", sorted(held))]


def _trained(made: Artifact, passed_on: set[str]) -> BookedTraining:
    """Return the training that an artifact holds."""
    files = [name for name in made.files if Path(name).suffix in WEIGHTS]
    weights = {one for name in files for one in (made.files[name], *_tensors(made.path(name)))} - passed_on
    own = [read_mechanism(made.path(name)) for name in made.files if Path(name).name == MECHANISM]
    return BookedTraining(made.kind, (), "", tuple(sorted(weights)), tuple(own))


def _write(place: Path, book: BudgetBook) -> None:
    tree: dict[str, Any] = {"format": FORMAT, "key": book.key, "groups": book.groups}
    tree = json.loads(json.dumps(tree | {"trainings": [asdict(one) for one in book.trainings]}))
    try:
        write_json(place, {**tree, "digest": digest(tree)})
    except OSError as error:
        raise InputError(
            f"{place}: the budget book cannot be written ({error.strerror}); give another place as budget_book"
        ) from None


def _training(tree: dict[str, Any]) -> BookedTraining:
    """Return the training in a JSON tree. Raises KeyError or TypeError for other fields."""
    own = tuple(mechanism_of(one) for one in tree["mechanisms"])
    lists = {name: tuple(tree[name]) for name in ("runs", "weights")}
    return BookedTraining(**{**tree, **lists, "mechanisms": own})
