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
from medlt.checks.folds import CrossFitClassifiers
from medlt.files import digest
from medlt.privacy import accounting, ledger
from medlt.privacy.claims import config_violations
from medlt.privacy.dpsgd.canaries import GradientCanaries
from medlt.privacy.limits import clip_margin
from medlt.privacy.votes import STAGE
from medlt.recipes._cohort import RealRows
from medlt.recipes._setup import RunFolder
from medlt.sparse.private import private_steps
from medlt.synthesis.plan import TrainTable as TrainTable
from medlt.training.protocols import PrivateFit, RowLoss
from medlt.training.runtime import Runtime
from medlt.training.settings import Training
from medlt.types import InputError

NOT_MECHANISM = {"findings", "requested", "classifier"}
"""Keys of the section that change no training."""
SPARSE = {"batch_size", "generations", "imitation_epochs", "adaptation_epochs", "interaction_epochs"}
Plans = dict[str, accounting.Planned]


def plans(config: configs.RunConfig) -> Plans:
    """Return every training on patients that this run plans, by its name in the ledger: a function of the config alone.

    Every verifier counts for every patient, although each patient is left out of one verifier. Raises InputError if a
    step draws more than the public number of units.
    """
    assert config.privacy is not None
    planned: Plans = {}
    units = config.privacy.patients

    def add(name: str, batch: int, steps: int, precision: str = "fp32") -> None:
        if batch > units:
            raise InputError(f"privacy: a step of the {name} draws {batch} of {units} units; lower its batch_size")
        planned[name] = accounting.Planned(batch / units, steps, margin=clip_margin(precision))

    if isinstance(config.codec, configs.TrainedCodec):
        add("codec", config.codec.batch_size, config.codec.steps)
    elif isinstance(config.codec, configs.FolderCodec) and config.codec.tune is not None:
        add("codec", config.codec.tune.batch_size, config.codec.tune.steps)
    if config.method.kind == "fusion":
        for name, steps in private_steps(units, **config.sparse.model_dump(include=SPARSE)).items():
            add(name, config.sparse.batch_size, steps)
    if config.denoiser.train != "none":
        add("denoiser", config.denoiser.batch_size, config.denoiser.steps, config.denoiser.precision)
    if isinstance(config.method, configs.Evolution):  # every patient is in every vote
        planned[STAGE] = accounting.Planned(1.0, len(config.method.strength))
    if not config.data_independent or config.privacy.classifier:
        for k in range(config.checks.folds):
            add(f"verifier {k}", config.classifier.batch_size, config.classifier.steps)
    return planned


def check_budget(config: configs.RunConfig) -> None:
    """Raise InputError, before any training, for a budget that cannot be kept; warn of settings that void the claim."""
    if config.privacy is None:
        return
    noise(config)
    for reason in config_violations(config):
        logging.getLogger(__name__).warning("privacy: this run will carry no claim: %s", reason)


@cache
def _noise(planned: tuple[accounting.Planned, ...], epsilon: float, delta: float) -> float:
    return accounting.calibrate(planned, epsilon, delta)


def noise(config: configs.RunConfig) -> float:
    """Return the noise multiplier at which all planned trainings together cost the budget; 0 if none is planned."""
    assert config.privacy is not None
    planned = tuple(plans(config).values())
    return _noise(planned, config.privacy.epsilon, config.privacy.delta) if planned else 0.0


@dataclass(frozen=True)
class PrivateTraining:
    """Private training of a run, with its ledger; see `medlt.training.protocols.PrivateFit`.

    kept: False for the trainings of an audit, whose weights are deleted; they are in no ledger. canaries: in the
    gradients of such a training.
    """

    run: RunFolder[configs.RunConfig]
    cohort: RealRows
    kept: bool = True
    canaries: GradientCanaries | None = None

    def __post_init__(self) -> None:
        assert not (self.kept and self.canaries is not None), "canaries are for trainings that nobody keeps"

    @property
    def chosen(self) -> configs.Privacy:
        """The section `privacy` of the config."""
        assert self.run.config.privacy is not None
        return self.run.config.privacy

    @property
    def digest(self) -> str:
        """Digest of the mechanism, which every stage of the run shares."""
        own = self.chosen.model_dump(exclude={"max_physical_batch_size", "grad_sample_mode", *NOT_MECHANISM})
        return digest("private", own, noise(self.run.config))

    def __call__(
        self, network: nn.Module, loss: RowLoss, units: Sequence[str], *, training: Training, runtime: Runtime,
        folder: Path, key: str, name: str, evaluate: Callable[[nn.Module], float] | None = None,
        picture: Callable[[nn.Module], Tensor] | None = None,
    ) -> None:  # fmt: skip
        """Train as in `medlt.training.protocols.PrivateFit`, within the budget that the other stages leave."""
        from medlt.privacy.dpsgd.training import PrivacySettings, fit_private

        config, chosen = self.run.config, self.chosen
        sigma, planned = noise(config), plans(config)
        others = tuple((sigma / one.margin, one.rate, one.steps) for stage, one in planned.items() if stage != name)
        own = chosen.model_dump(exclude={"patients", *NOT_MECHANISM})
        before = others if self.kept else ()
        private = PrivacySettings(noise_multiplier=sigma, units=chosen.patients, before=before, **own)
        fit_private(network, loss, units, training=training, private=private, runtime=runtime, folder=folder, key=key,
            name=name, data=self.cohort.train.digest(), evaluate=evaluate, picture=picture,
            canaries=self.canaries)  # fmt: skip

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
        places = [self._place(name) for name in plans(self.run.config)]
        done = [one for place in places if place.is_file() for one in ledger.read_ledger(place).mechanisms]
        ledger.write_ledger(self.run.path("ledger.json"), done, self.chosen.delta, self.chosen.epsilon)
        self.run.record(weights={one.stage: one.weights for one in done})  # the last of each stage

    def _place(self, stage: str) -> Path:
        return Path(self.run.store.root) / "privacy" / (re.sub(r"\W+", "-", stage) + ".json")


def private_fit(run: RunFolder[configs.RunConfig], cohort: RealRows) -> PrivateFit | None:
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
