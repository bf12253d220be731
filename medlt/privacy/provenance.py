"""What a claim is read from: the config, run.json, the ledger and the rows of a run folder, and its artifacts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from medlt import config as configs
from medlt.data.manifest import Manifest
from medlt.files import REAL_ROWS
from medlt.privacy.book import BookedTraining, BudgetBook, book_place, read_book
from medlt.privacy.ledger import MECHANISM, NAME, Ledger, read_ledger, read_mechanism
from medlt.privacy.votes import STAGE
from medlt.store import Artifact, Store
from medlt.types import InputError


@dataclass(frozen=True)
class Provenance:
    """The files of a run folder that a claim depends on.

    Raises InputError for a folder without a config, or with a damaged run.json.
    """

    folder: Path

    @cached_property
    def config(self) -> configs.RunConfig:
        """The resolved config of the run."""
        return configs.load_config(self.folder / "config.yaml")

    @cached_property
    def record(self) -> dict[str, Any]:
        """The contents of run.json; {} if there is none yet."""
        file = self.folder / "run.json"
        try:
            return dict(json.loads(file.read_text())) if file.is_file() else {}
        except ValueError:
            raise InputError(f"{file}: damaged; remove it and run the same command again to write a new one") from None

    @cached_property
    def ledger(self) -> Ledger | str:
        """The ledger, or what is wrong with it."""
        file = self.folder / NAME
        try:
            return read_ledger(file)
        except InputError as error:
            return str(error).replace(str(file), NAME)

    @cached_property
    def real(self) -> Manifest | None:
        """The real rows that the run recorded; None if they are missing."""
        file = self.folder / REAL_ROWS
        return Manifest.read(file) if file.is_file() else None

    @cached_property
    def data(self) -> str | None:
        """Digest of the recorded train rows; None if they are missing."""
        return None if self.real is None else self.real.split("train").digest()

    @cached_property
    def book(self) -> BudgetBook | str | None:
        """The budget book of the collection, what is wrong with it, or None if there is none."""
        place = book_place(self.config, self.folder)
        try:
            return None if place is None else read_book(place)
        except InputError:
            return "the budget book of the collection is damaged (restore it from a copy)"

    @property
    def patients(self) -> list[str]:
        """The patients of the recorded train rows."""
        return [] if self.real is None else list(self.real.split("train").rows["patient_id"].astype(str))

    @cached_property
    def trainings(self) -> list[BookedTraining]:
        """All trainings of the budget book on some of the same patients; [] without a book."""
        return self.book.on(self.patients) if isinstance(self.book, BudgetBook) else []

    @cached_property
    def store(self) -> Store:
        """The store of the trained parts."""
        return Store(self.config.artifacts_dir or self.folder / "artifacts")

    @cached_property
    def trained(self) -> dict[str, Artifact | str | None]:
        """Every recorded artifact of a private training, by KIND/DIGEST, as `Store.examine` returns it.

        Large caches, which no training wrote, are not read. The denoiser's is here even if it is missing.
        """
        names = set(self.record.get("artifacts", {}))
        private = {name for name in names if any((self.store.root / name).rglob(MECHANISM))}
        private |= {f"denoiser/{name}" for name in [self.record.get("denoiser", {}).get("artifact")] if name}
        return {name: self.store.examine(*name.split("/")) for name in sorted(private)}

    @property
    def denoiser(self) -> Artifact | str | None:
        """The artifact of the denoiser that run.json names, as `Store.examine` returns it."""
        return self.trained.get(f"denoiser/{self.record.get('denoiser', {}).get('artifact')}")

    @property
    def codec(self) -> Artifact | str | None:
        """The artifact of the trained codec that run.json names, as `Store.examine` returns it; None without one.

        A private run has the one whose weights it recorded; other trainings of its codec were thrown away.
        """
        names = [name for name in self.record.get("artifacts", {}) if name.startswith("codec/")]
        made = [self.trained[name] if name in self.trained else self.store.examine(*name.split("/")) for name in names]
        if self.config.privacy is None:
            return made[-1] if made else None
        own = self.record.get("weights", {}).get("codec")
        sound = [one for one in made if isinstance(one, Artifact) and MECHANISM in one.files]
        return next((one for one in sound if read_mechanism(one.path(MECHANISM)).weights == own), None)

    def stages(self) -> list[str]:
        """Return the stages in the ledger."""
        return [] if isinstance(self.ledger, str) else [one.stage for one in self.ledger.mechanisms]


def must_be_private(config: configs.RunConfig) -> tuple[str, ...]:
    """Return the stages that read patients, and that the claim needs in the ledger."""
    codec = isinstance(config.codec, configs.TrainedCodec) or getattr(config.codec, "tune", None) is not None
    denoiser = config.denoiser.train != "none"
    voted = isinstance(config.method, configs.Evolution)
    return (("codec",) if codec else ()) + (("denoiser",) if denoiser else ()) + ((STAGE,) if voted else ())


def given_weights(config: configs.RunConfig) -> dict[str, Path]:
    """Return the paths of weights that the config takes from elsewhere, by their key in the config."""
    denoiser, codec = config.denoiser, config.codec
    given: dict[str, Path] = {}
    if isinstance(codec, configs.FolderCodec):
        given["codec.path"] = codec.path
    if isinstance(denoiser, configs.StableConfig):
        if isinstance(denoiser.model, configs.StableFolder):
            given["denoiser.model.path"] = denoiser.model.path
            given |= {f"denoiser.model.loras[{i}]": path for i, path in enumerate(denoiser.model.loras)}
    elif denoiser.init_from is not None:
        given["denoiser.init_from"] = denoiser.init_from
    return given
