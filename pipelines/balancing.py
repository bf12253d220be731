"""The further losses of DiffuLT's denoiser (arXiv 2403.05170), with what they stand on."""

from __future__ import annotations

import numpy as np

from medlt import config as configs
from medlt.checks.bands import limits
from medlt.diffusion.aid import AidLoss
from medlt.diffusion.backbone import Backbone
from medlt.diffusion.cbdm import ClassBalancing
from medlt.diffusion.losses import Extra
from pipelines import learning, tuning
from pipelines.guiding import features
from pipelines.learnt import Learnt
from pipelines.tuning import Further


def losses(ready: Learnt, chosen: configs.Diffult) -> Further:
    """CBDM first, then L_AID, each where the config has it; as `pipelines.tuning.train` wants them."""

    def further(backbone: Backbone) -> tuple[Extra, ...]:
        made: list[Extra] = []
        if chosen.cbdm is not None:
            pool, own = ready.real.train.labels(), chosen.cbdm
            made.append(ClassBalancing(backbone.condition, pool, own.weight, own.power, backbone.noise))
        if chosen.aid is not None:
            made.append(_aid(ready, chosen.aid, backbone))
        return tuple(made)

    return further


def _aid(ready: Learnt, chosen: configs.InBandLoss, backbone: Backbone) -> AidLoss:
    """Bands among the real train latents in the features of a small classifier of latents; lengths in their median."""
    data, look = tuning.data(ready.real, ready.latents, "train", backbone.space), features(ready, backbone)
    seen = np.concatenate([look(data.latents(data.uids[i : i + 256])).numpy() for i in range(0, len(data.uids), 256)])
    labels = np.asarray(data.labels)
    widths = limits(seen, labels)
    eyes = learning.eyes(ready.run, ready.real, ready.latents, ready.progress)
    return AidLoss(
        phi=look,
        named=eyes.digest,
        limits=widths.tolist(),
        counts=(labels == 1).sum(0).tolist(),
        alpha=chosen.weight,
        share=chosen.share,
        low=round(chosen.window[0] * backbone.noise.train_steps),
        high=chosen.window[1],
        unit=float(np.nanmedian(widths)),
        noise=backbone.noise,
    )
