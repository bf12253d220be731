"""The parts that every method needs, trained or loaded: codec, latents of all images, verifiers."""

from __future__ import annotations

from medlt import config as configs
from medlt.recipes._checks import check_rows, check_shortfall
from medlt.recipes._codec import encode, make_codec
from medlt.recipes._codec_check import check_codec, note_codec_check
from medlt.recipes._cohort import Cohort
from medlt.recipes._models import Learnt, train_verifiers
from medlt.recipes._privacy import check_budget, no_verifiers, private_fit
from medlt.recipes._setup import RunFolder


def learn(run: RunFolder[configs.RunConfig], cohort: Cohort) -> Learnt:
    """Train or load the parts that every method needs: the codec, the latents of all images, and the verifiers.

    A finding that the codec loses is named here, before the denoiser is trained.
    """
    check_rows(run.config, cohort)
    check_shortfall(cohort)
    check_budget(run.config)
    private = private_fit(run, cohort)
    codec = make_codec(run, cohort, private)
    latents = encode(run, cohort, codec)
    if run.config.data_independent:
        verifiers = no_verifiers(cohort.requested, cohort.findings)
    else:
        verifiers = train_verifiers(run, cohort, private)
        note_codec_check(run, check_codec(run, cohort, codec, verifiers))
    return Learnt(cohort, latents, verifiers, private)
