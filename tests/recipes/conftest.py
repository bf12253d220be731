"""A whole run small enough for a test: thirty phantom patients at 32 px, real networks of a few thousand weights."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medlt.config import RunConfig, parse
from medlt.data.phantom import FINDINGS
from medlt.types import Synthesizer

TINY = {
    "seed": 3,
    "size": 32,
    "threads": 1,
    "data": {"kind": "phantom", "patients": 40, "size": 64, "imbalance": 8},
    "codec": {"kind": "train", "width": 8, "levels": 3, "steps": 8, "batch_size": 4},
    "sparse": {
        "groups": 4,
        "vocabulary": 4,
        "generations": 2,
        "imitation_epochs": 2,
        "interaction_epochs": 2,
        "width": 8,
        "batch_size": 8,
    },
    "denoiser": {"width": 8, "steps": 6, "batch_size": 8, "checkpoint_every": 3},
    "method": {
        "labels": "tail",
        "num_inference_steps": 10,
        "strength": 0.2,
        "localise": {"networks": 2, "steps": 4, "code_steps": 4},
    },
    "targets": {"tail_below": 8, "head_above": 20, "count": 10, "max_per_finding": 3, "num_candidates": 2},
    "checks": {"folds": 2, "verifier_quantile": 0.01},
    "classifier": {"size": 32, "steps": 6, "batch_size": 8, "evaluate_every": 3},
    "evaluation": {"seeds": 2, "n_bootstrap": 100, "steps": 6, "synthetic_fraction": 0.2, "synthetic_weight": 0.3},
}


@pytest.fixture(scope="session")
def tiny() -> Callable[[Path], RunConfig]:
    """The tiny config with its run folder."""
    return lambda out: parse({**TINY, "output_dir": str(out)})


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[[Path], RunConfig]) -> Path:
    """A finished tiny run, made once."""
    from medlt.recipes.run import main

    place = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        main(tiny(Path("run")))
    return place / "run"


PRIVACY = {
    "epsilon": 8.0,
    "delta": 1e-5,
    "patients": 24,
    "findings": [*FINDINGS, "No_Finding"],
    "noise_multiplicity": 1,
    "grad_sample_mode": "bookkeeping",
    "max_physical_batch_size": 16,
}


@pytest.fixture(scope="session")
def private(tiny: Callable[[Path], RunConfig]) -> Callable[..., RunConfig]:
    """The tiny config as a private run that samples from noise, with changes."""

    def config(out: Path, **changes: Any) -> RunConfig:
        given = tiny(out).model_dump(mode="json", exclude={"method", "checks", "privacy"})
        own = {"method": {"kind": "noise", "num_inference_steps": 4}, "checks": {"folds": 2}, "privacy": PRIVACY}
        return parse({**given, **own, **changes})

    return config


@pytest.fixture(scope="session")
def private_run(tmp_path_factory: pytest.TempPathFactory, private: Callable[..., RunConfig]) -> Path:
    """A finished private run without a comparison, whose codec is trained privately too. Tests change copies of it."""
    from medlt.recipes.augment import main

    return main(private(tmp_path_factory.mktemp("private") / "run"))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, finished: Path) -> Path:
    """A store with all parts of the finished run, for `artifacts_dir` of runs that may train more beside them."""
    return Path(shutil.copytree(finished / "artifacts", tmp_path_factory.mktemp("trained") / "artifacts"))


@pytest.fixture(scope="session")
def method_of() -> Callable[[RunConfig], Synthesizer]:
    """The method of a config, its parts trained or found in the run's folder."""
    from medlt.recipes._cohort import open_cohort
    from medlt.recipes._learn import learn
    from medlt.recipes._methods import build_method
    from medlt.recipes._setup import opened
    from medlt.recipes.augment import check
    from medlt.training.runtime import silent

    def build(config: RunConfig) -> Synthesizer:
        rows = check(config)
        with opened(config, silent) as run:
            return build_method(run, learn(run, open_cohort(run, rows))).method

    return build
