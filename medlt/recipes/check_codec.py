"""Measure what the codec of a config keeps of each finding, and what would keep more, before a denoiser is trained."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from medlt import config as configs
from medlt.recipes._checks import check_rows, check_shortfall
from medlt.recipes._codec import make_codec
from medlt.recipes._codec_check import CodecCheck, check_codec, note_codec_check
from medlt.recipes._cohort import open_cohort
from medlt.recipes._models import train_verifiers
from medlt.recipes._privacy import check_budget, private_fit
from medlt.recipes._setup import opened
from medlt.recipes.augment import check
from medlt.training.runtime import silent
from medlt.types import InputError, Progress


@dataclass(frozen=True)
class Checked:
    """The check of the config's codec, and of other choices by what to write into the config."""

    folder: Path
    result: CodecCheck
    others: dict[str, CodecCheck]


def main(config: configs.RunConfig, progress: Progress = silent, *, try_others: bool = False) -> Checked:
    """Train or load codec and verifiers, and measure the codec; `try_others` also trains and measures other choices.

    A later run finds what was trained here. Raises InputError on bad input, and for a private run whose images no
    verifier may see.
    """
    if config.data_independent:
        raise InputError(
            "privacy: this run has no verifier and no masks to check its codec with; check the same config without the "
            "section privacy, on data that may be read"
        )
    if config.privacy is not None and try_others:
        raise InputError("privacy: other codecs are not in the budget; leave out --try")
    rows = check(config)
    with opened(config, progress) as run:
        cohort = open_cohort(run, rows)
        check_rows(config, cohort)
        check_shortfall(cohort)
        check_budget(config)
        private = private_fit(run, cohort)
        codec = make_codec(run, cohort, private)
        verifiers = train_verifiers(run, cohort, private)
        result, others = check_codec(run, cohort, codec, verifiers), {}
        note_codec_check(run, result)
        for name, other in candidates(config) if try_others else ():
            trial = replace(run, config=other, writable=False)
            others[name] = check_codec(trial, cohort, make_codec(trial, cohort, None), verifiers)
    return Checked(run.folder, result, others)


def candidates(config: configs.RunConfig) -> Iterator[tuple[str, configs.RunConfig]]:
    """Yield other codecs at the config's size, the smallest latents first: what to write, and the config with it."""
    chosen = config.codec
    if isinstance(chosen, configs.TrainedCodec):
        for levels in range(chosen.levels - 1, 1, -1):
            codec = chosen.model_copy(update={"levels": levels})
            yield f"codec.levels: {levels}", config.model_copy(update={"codec": codec})
    if not isinstance(chosen, configs.PixelsConfig) and not isinstance(config.denoiser, configs.StableConfig):
        yield "codec: identity", config.model_copy(update={"codec": configs.PixelsConfig()})
