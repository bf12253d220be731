"""The deployment record of a release: what a reader of a differential privacy claim has to know, for programs to read.

The questions are those of NIST SP 800-226 (2025), Guidelines for Evaluating Differential Privacy Guarantees: the unit
of privacy, how neighbouring data sets differ, the privacy parameters, the trust model, the algorithm and its
composition, and what lies outside the mathematics, such as side channels. Names of fields are those of the OpenDP
deployments registry, where that has one.
"""

from __future__ import annotations

from typing import Any

from medlt.privacy.claims import Claim
from medlt.privacy.ledger import NEIGHBOURS, Ledger
from medlt.privacy.votes import STAGE

VOCABULARY = "NIST SP 800-226; fields as in the deployments registry of OpenDP"
UNPROTECTED = (
    "the number of privacy units that the config gives as public; the true number stays secret",
    "the settings of the run, and its list of findings",
    "given weights: codec, initial weights, base model and LoRA files count as public",
    "the choice of settings, if it was made by looking at the patients",
)
SIDE_CHANNELS = {
    "floating_point": "Gaussian noise is drawn in float32; values that it misses depend on the sum (arXiv 2112.05307)",
    "timing": "not protected: the time of a training depends on the patients drawn; it is not released",
    "memory_and_machine": "not protected: the machine of the training is trusted",
    "other_files": "the run folder is not released: losses, latents, reports and recorded rows are without noise",
}
TRUST = (
    "Central: the holder of the patients' data runs the trainings and is trusted with it. Who receives the release is "
    "not trusted, and may know all other patients and all settings"
)


def _mechanisms(ledger: Ledger | str) -> list[str]:
    """Return what the mechanisms of a ledger are."""
    stages = {one.stage for one in ledger.mechanisms} if isinstance(ledger, Ledger) else set()
    voted = "noisy votes: a histogram of all units, each of norm 1, with Gaussian noise"
    trained = "DP-SGD: clipped gradients of Poisson samples of units, with Gaussian noise"
    return ([voted] if STAGE in stages else []) + ([trained] if stages - {STAGE} else [])


def deployment(claimed: Claim, ledger: Ledger | str, runs: int) -> dict[str, Any]:
    """Return the record as JSON types; dp_variant and privacy_loss are None if no privacy is claimed.

    runs: number of private runs on the same patients that the claim adds up.
    """
    private = claimed.epsilon is not None
    trained = isinstance(ledger, Ledger)
    neighbours = ledger.neighbours if isinstance(ledger, Ledger) else NEIGHBOURS[claimed.privacy_unit]
    loss = {
        "privacy_unit": claimed.privacy_unit,
        "neighbouring_relation": f"unbounded: {neighbours}",
        "privacy_parameters": {"epsilon": claimed.epsilon, "delta": claimed.delta},
        "private_runs_added_up": runs,
    }
    implementation = {
        "mechanisms": "; ".join([*_mechanisms(ledger), "see ledger"]),
        "composition": "all private trainings on at least one common patient, by PRV and RDP accountants",
        "post_processing": "images, labels and checks are computed from the results of the mechanisms and public "
        "settings alone",
        "secure_randomness": claimed.secure_mode,
    }
    return {
        "vocabulary": VOCABULARY,
        "dp_variant": {"variant_name": "Approximate DP", "unprotected_quantities": list(UNPROTECTED)}
        if private
        else None,
        "privacy_loss": loss if private else None,
        "deployment_model": {
            "model_name": "Central",
            "trust_assumptions": TRUST,
            "release_type": "One release",
            "data_source_type": "Static",
            "access_type": "Non-interactive",
        },
        "implementation": implementation if private and trained else None,
        "side_channels": dict(SIDE_CHANNELS),
    }
