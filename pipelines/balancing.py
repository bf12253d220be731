"""The further losses of DiffuLT's denoiser (arXiv 2403.05170), with what they stand on."""

from __future__ import annotations

import numpy as np

from medlt import config as configs
from medlt.checks.bands import limits
from medlt.diffusion.aid import AidLoss
from medlt.diffusion.backbone import Backbone
from medlt.diffusion.cbdm import ClassBalancing
from medlt.diffusion.losses import Extra
from pipelines import tuning
from pipelines.guiding import features
from pipelines.learnt import Learnt
from pipelines.tuning import Further


def losses(ready: Learnt, chosen: configs.Method) -> Further:
    """CBDM first, then L_AID, each where the config has it; as `pipelines.tuning.train` wants them.

    `tuning.nothing` for any other method, or where both are off: the denoiser is then the one all methods share.
    """
    if not isinstance(chosen, configs.Diffult):
        return tuning.nothing
    cbdm = chosen.cbdm if chosen.cbdm is not None and chosen.cbdm.weight else None
    aid = chosen.aid if chosen.aid is not None and chosen.aid.weight else None
    if cbdm is None and aid is None:
        return tuning.nothing

    def further(backbone: Backbone) -> tuple[Extra, ...]:
        made: list[Extra] = []
        if cbdm is not None:
            pool = ready.real.train.labels()
            made.append(ClassBalancing(backbone.condition, pool, cbdm.weight, cbdm.power, backbone.noise))
        if aid is not None:
            made.append(_aid(ready, aid, backbone))
        return tuple(made)

    return further


def _aid(ready: Learnt, chosen: configs.InBandLoss, backbone: Backbone) -> AidLoss:
    """Bands among the real train latents in the features of a small classifier of latents; lengths in their median."""
    data, look = tuning.data(ready.real, ready.latents, "train", backbone.space), features(ready, backbone)
    parts = (data.latents(data.uids[i : i + 256]).to(backbone.device) for i in range(0, len(data.uids), 256))
    seen = np.concatenate([look(part).cpu().numpy() for part in parts])
    labels = np.asarray(data.labels)
    widths = limits(seen, labels)
    return AidLoss(
        phi=look,
        named=ready.run.told()["digests"]["latent_classifier"],
        limits=widths.tolist(),
        counts=(labels == 1).sum(0).tolist(),
        alpha=chosen.weight,
        share=chosen.share,
        low=round(chosen.window[0] * backbone.noise.train_steps),
        high=chosen.window[1],
        estimate=chosen.estimate,
        unit=float(np.nanmedian(widths)),
        noise=backbone.noise,
    )
