"""What takes the place of a run's usual training loops where it is private, and keeps its ledger."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from medlt.privacy import ledger
from medlt.runs import Finished, Run
from medlt.types import PrivateFit, RowLoss
from pipelines.budgeting import noise, plans
from pipelines.stages import Collection, Progress


def fit(run: Run, real: Collection, progress: Progress, kept: bool = True) -> PrivateFit | None:
    """What trains in place of the usual loops, or None in a run without privacy."""
    config = run.config
    if config.privacy is None:
        return None
    chosen, planned, sigma = config.privacy, plans(config, real), noise(config, real)

    def train(
        network: nn.Module, loss: RowLoss, units: Sequence[str], *, training: Mapping[str, Any], folder: Path, key: str,
        name: str, evaluate: Callable[[nn.Module], float] | None = None,
        picture: Callable[[nn.Module], Tensor] | None = None,
    ) -> nn.Module:  # fmt: skip
        from medlt.privacy import training as private

        others = tuple((sigma, one.rate, one.steps) for stage, one in planned.items() if stage != name) if kept else ()
        own = chosen.model_dump(exclude={"findings", "classifier"})
        how = private.Private(noise_multiplier=sigma, seed=config.seed, before=others, **own)
        rows = list(units) if chosen.unit == "patient" else [str(i) for i in range(len(units))]
        done = private.fit(network, loss, rows, training=training, private=how, folder=folder, key=key, name=name,
                           data=real.train.digest(), device=config.device, evaluate=evaluate, picture=picture,
                           progress=progress)  # fmt: skip
        if kept and not isinstance(run, Finished):
            ledger.write(_home(run, name), [*_earlier(run, done), done], chosen.delta, chosen.epsilon)
            write(run, real)
        return network

    return train


def alike(run: Run, real: Collection, progress: Progress) -> PrivateFit | None:
    """The same mechanism for trainings that an audit makes and throws away: they are in no ledger."""
    return fit(run, real, progress, kept=False)


def _earlier(run: Run, done: ledger.Mechanism) -> list[ledger.Mechanism]:
    """Other trainings of this stage in this folder, whose weights have gone: what they told of patients has not."""
    place = _home(run, done.stage)
    known = ledger.read(place).mechanisms if place.is_file() else ()
    return [one for one in known if one.weights != done.weights]


def _home(run: Run, name: str) -> Path:
    return run.home("privacy") / (re.sub(r"\W+", "-", name) + ".json")


def write(run: Run, real: Collection) -> None:
    """RUN/ledger.json: what of the plan has been done, together."""
    chosen = run.config.privacy
    if chosen is None:
        return
    places = [_home(run, name) for name in plans(run.config, real)]
    done = [one for place in places if place.is_file() for one in ledger.read(place).mechanisms]
    ledger.write(run.path("ledger.json"), done, chosen.delta, chosen.epsilon)
    run.record(weights={one.stage: one.weights for one in done})  # of several the last
