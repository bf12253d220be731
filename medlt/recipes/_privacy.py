"""Privacy of a run: the trainings on patients that it plans, the noise they need, and the ledger.

A private run that starts from noise makes its images independently of the data: each label vector has one finding and
no other, the config sets the number of images, and no verifier that was trained on patients selects images. So the
ledger of its denoiser covers its images too.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pandas as pd
from torch import Tensor, nn

from medlt import config as configs
from medlt.checks.consistency import folds
from medlt.checks.folds import CrossFitClassifiers
from medlt.files import digest
from medlt.privacy import accounting, ledger
from medlt.privacy.claims import config_violations
from medlt.recipes._cohort import Cohort, RealRows
from medlt.recipes._setup import RunFolder
from medlt.sparse.private import private_steps
from medlt.synthesis.plan import TrainTable as TrainTable
from medlt.training.protocols import PrivateFit, RowLoss
from medlt.training.runtime import Runtime
from medlt.training.settings import Training
from medlt.types import InputError

SPARSE = {"batch_size", "generations", "imitation_epochs", "adaptation_epochs", "interaction_epochs"}
Plans = dict[str, accounting.Planned]


def plans(config: configs.RunConfig, cohort: RealRows) -> Plans:
    """Return every training on patients that this run plans, by its name in the ledger.

    Every verifier counts for every patient, although each patient is left out of one verifier. Raises InputError if a
    step draws more units than there are.
    """
    planned: Plans = {}
    whole = _units(config, cohort.train.rows)

    def add(name: str, batch: int, steps: int, units: int = whole) -> None:
        if batch > units:
            raise InputError(f"privacy: a step of the {name} draws {batch} of {units} units; lower its batch_size")
        planned[name] = accounting.Planned(batch / units, steps)

    if isinstance(config.codec, configs.TrainedCodec):
        add("codec", config.codec.batch_size, config.codec.steps)
    elif isinstance(config.codec, configs.FolderCodec) and config.codec.tune is not None:
        add("codec", config.codec.tune.batch_size, config.codec.tune.steps)
    if config.method.kind == "fusion":
        count = int(cohort.train.rows["patient_id"].nunique())
        for name, steps in private_steps(count, **config.sparse.model_dump(include=SPARSE)).items():
            add(name, config.sparse.batch_size, steps)
    if getattr(config.denoiser, "train", "full") != "none":
        add("denoiser", config.denoiser.batch_size, config.denoiser.steps)
    for k, units in _verifier_units(config, cohort).items():
        add(f"verifier {k}", config.classifier.batch_size, config.classifier.steps, units)
    return planned


def _units(config: configs.RunConfig, rows: pd.DataFrame) -> int:
    """Return the number of privacy units, patients or images."""
    assert config.privacy is not None
    return len(rows) if config.privacy.privacy_unit == "image" else int(rows["patient_id"].nunique())


def _verifier_units(config: configs.RunConfig, cohort: RealRows) -> dict[int, int]:
    """Return verifier number -> number of privacy units it is trained on; {} if the run trains no verifier."""
    assert config.privacy is not None
    if config.data_independent and not config.privacy.classifier:
        return {}
    rows = cohort.train.rows
    fold = folds(rows["patient_id"], rows[list(cohort.findings)], config.checks.folds, config.seed)
    return {k: _units(config, rows[fold != k]) for k in range(config.checks.folds)}


def check_budget(config: configs.RunConfig, cohort: RealRows) -> None:
    """Raise InputError, before any training, for a budget that cannot be kept; warn of settings that void the claim."""
    if config.privacy is None:
        return
    log, units = logging.getLogger(__name__), _units(config, cohort.train.rows)
    noise(config, cohort)
    if (warning := accounting.warn_of_delta(config.privacy.delta, units)) is not None:
        log.warning("privacy: %s", warning)
    for reason in config_violations(config):
        log.warning("privacy: this run will carry no claim: %s", reason)


@cache
def _noise(planned: tuple[tuple[float, int], ...], epsilon: float, delta: float) -> float:
    return accounting.calibrate([accounting.Planned(*one) for one in planned], epsilon, delta)


def noise(config: configs.RunConfig, cohort: RealRows) -> float:
    """Return the noise multiplier at which all planned trainings together cost the budget."""
    assert config.privacy is not None
    planned = tuple((one.rate, one.steps) for one in plans(config, cohort).values())
    return _noise(planned, config.privacy.epsilon, config.privacy.delta)


@dataclass(frozen=True)
class PrivateTraining:
    """Private training of a run, with its ledger; see `medlt.training.protocols.PrivateFit`.

    kept: False for the trainings of an audit, whose weights are deleted; they are in no ledger.
    """

    run: RunFolder[configs.RunConfig]
    cohort: Cohort
    kept: bool = True

    @property
    def chosen(self) -> configs.Privacy:
        """The section `privacy` of the config."""
        assert self.run.config.privacy is not None
        return self.run.config.privacy

    @property
    def digest(self) -> str:
        """Digest of the mechanism, which every stage of the run shares."""
        own = self.chosen.model_dump(exclude={"max_physical_batch_size", "grad_sample_mode", "findings", "classifier"})
        return digest("private", own, noise(self.run.config, self.cohort))

    def __call__(
        self, network: nn.Module, loss: RowLoss, units: Sequence[str], *, training: Training, runtime: Runtime,
        folder: Path, key: str, name: str, evaluate: Callable[[nn.Module], float] | None = None,
        picture: Callable[[nn.Module], Tensor] | None = None,
    ) -> None:  # fmt: skip
        """Train as in `medlt.training.protocols.PrivateFit`, within the budget that the other stages leave."""
        from medlt.privacy.dpsgd.training import PrivacySettings, fit_private

        config, chosen = self.run.config, self.chosen
        sigma, planned = noise(config, self.cohort), plans(config, self.cohort)
        others = tuple((sigma, one.rate, one.steps) for stage, one in planned.items() if stage != name)
        own = chosen.model_dump(exclude={"findings", "classifier"})
        private = PrivacySettings(noise_multiplier=sigma, before=others if self.kept else (), **own)
        fit_private(network, loss, units, training=training, private=private, runtime=runtime, folder=folder, key=key,
            name=name, data=self.cohort.train.digest(), evaluate=evaluate, picture=picture)  # fmt: skip

    def account(self, mechanism: Path) -> None:
        """Add a finished training to the ledger of its stage and to that of the run.

        Other trainings of the stage in this store stay in the ledger, even if their weights were deleted.
        """
        if not self.kept or not self.run.writable:
            return
        done = ledger.read_mechanism(mechanism)
        place = self._place(done.stage)
        known = ledger.read_ledger(place).mechanisms if place.is_file() else ()
        others = [one for one in known if one.weights != done.weights]
        ledger.write_ledger(place, [*others, done], self.chosen.delta, self.chosen.epsilon)
        self.write()

    def write(self) -> None:
        """Write RUN/ledger.json with all trainings that have been done so far."""
        places = [self._place(name) for name in plans(self.run.config, self.cohort)]
        done = [one for place in places if place.is_file() for one in ledger.read_ledger(place).mechanisms]
        ledger.write_ledger(self.run.path("ledger.json"), done, self.chosen.delta, self.chosen.epsilon)
        self.run.record(weights={one.stage: one.weights for one in done})  # the last of each stage

    def _place(self, stage: str) -> Path:
        return Path(self.run.store.root) / "privacy" / (re.sub(r"\W+", "-", stage) + ".json")


def private_fit(run: RunFolder[configs.RunConfig], cohort: Cohort) -> PrivateFit | None:
    """Return the private training of the run, or None in a run without privacy."""
    return None if run.config.privacy is None else PrivateTraining(run, cohort)


def independent_rows(requested: Sequence[str], findings: tuple[str, ...]) -> TrainTable:
    """Return one made-up row `only-FINDING` per finding, with this finding and no other, in fold 0."""
    index = pd.Index([independent_uid(name) for name in requested], name="uid")
    rows = {name: [float(name == one) for one in requested] for name in findings}
    return TrainTable(pd.DataFrame({"patient_id": "", "fold": 0, **rows}, index=index), findings, tuple(requested))


def withheld(uids: Sequence[str]) -> Tensor:
    """Raise InputError: the images of a data-independent run do not depend on real ones."""
    raise InputError("a private run gives methods and checks no real images; remove privacy, or use another plug-in")


def independent_uid(finding: str) -> str:
    """Return the uid of a finding's made-up row."""
    return "only-" + re.sub(r"\W+", "-", finding)


def no_verifiers(requested: Sequence[str], findings: tuple[str, ...]) -> CrossFitClassifiers:
    """Return an empty set of cross-fitted classifiers, for a run whose images no classifier may select."""
    fold = independent_rows(requested, findings).table["fold"]
    return CrossFitClassifiers((), fold, pd.DataFrame(index=fold.index, columns=list(findings), dtype=float))
