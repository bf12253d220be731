"""Recomposition: a real lesion on another patient, or one half of a real image on another, in pixels.

    plan     tail image i with finding c; head image j of another patient without c; how the lesion varies; a seed
    compose  real pixels under a soft mask (`medlt.synthesis.composite`); the lesion varies as `medlt.synthesis.lesions`
    refine   the last k of N steps from sqrt(abar) z + sqrt(1-abar) eps, z the latents of the composite, under the label
             vector; outside the mask z is put back at each step (`keep`); k = 0: no denoiser at all
    decode   composite + soft (decode(z_refined) - decode(z))

| variant | composite | what the denoiser may change | source |
|---|---|---|---|
| paste | lesion of i on j | the lesion | TumorCP |
| half | the half of i with the lesion, the other half of j | that half | |
| lesion | j as it is; a mask from i | the mask: a new lesion is drawn | LeFusion, arXiv 2403.14066 |
| surroundings | i as it is | all but the lesion | arXiv 2512.20980 |

| column of the plan | meaning |
|---|---|
| tail_parent, head_parent, parents | uids of i and j (i again in surroundings); those whose pixels are in the image |
| area | share of the cells that are taken where only a map says where the finding is |
| scale, rotation, down, right, reflected | how the lesion varies (`medlt.synthesis.lesions.Move`) |
| fold, view, sex, age | those of the head image |

The other columns are those of `medlt.synthesis.plan`. Labels: `medlt.synthesis.labels.recomposed_labels`, with the
share of each finding's given region on the pixels taken or left; a finding of unknown place has the share of the area.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from medlt.diffusion.attributes import ATTRIBUTES
from medlt.diffusion.backbone import EVERYWHERE, Backbone
from medlt.diffusion.guidance import keep
from medlt.diffusion.sampler import from_latent, last_steps
from medlt.localise.measure import Localisation
from medlt.rng import noise_like, numpy_generator, seed_of
from medlt.synthesis.composite import Difference, composite, difference_decoded
from medlt.synthesis.conditional import Key, SamplingMethod, sample_rows
from medlt.synthesis.fusion import PANELS
from medlt.synthesis.guides import Guide, target_columns
from medlt.synthesis.heads import compatible_heads, in_turn
from medlt.synthesis.lesions import LesionMasks, Move, Variety, visible
from medlt.synthesis.plan import PARENTS, TrainTable
from medlt.synthesis.recomposed import Recomposed, label
from medlt.synthesis.space import Standardises, in_calls
from medlt.types import Batch, InputError

VARIANTS = ("paste", "half", "lesion", "surroundings")
COLUMNS = (
    "finding", "slot", "candidate", "tail_parent", "head_parent", "parents", "area", "scale", "rotation", "down",
    "right", "reflected", "seed", "fold", *ATTRIBUTES,
)  # fmt: skip
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RecomposeSettings:
    """Settings of a plan.

    area: N(mean, sd) of the cells; matched: share of the possible heads that is compatible; side: as in
    `medlt.synthesis.lesions.LesionMasks`. Raises InputError for an unknown variant.
    """

    variant: str = "paste"
    area_mean: float = 0.15
    area_sd: float = 0.03
    variety: Variety = field(default_factory=Variety)
    matched: float = 0.5
    side: str | None = None
    num_candidates: int = 1

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise InputError(f"recompose: {self.variant!r} is not a variant; choose one of {', '.join(VARIANTS)}")


@dataclass(kw_only=True)
class Recomposition:
    """The method.

    train: train rows; difference: real pixels of S x S, and how seams are made; where: where findings are, and how well
    that is known; usual: usual place of findings, None if it is unknown; size: S.

    strength: k/N, 0 for pixels alone, without the parts below. encode: images -> codec latents. The others are as in
    `medlt.synthesis.fusion.LatentFusion`.
    """

    train: TrainTable
    difference: Difference
    where: Localisation
    size: int
    settings: RecomposeSettings = field(default_factory=RecomposeSettings)
    strength: float = 0.0
    backbone: Backbone | None = None
    standardiser: Standardises | None = None
    encode: Callable[[Tensor], Tensor] | None = None
    decode: Callable[[Tensor], Tensor] | None = None
    scheduler: Callable[[], Any] | None = None
    guidance_scale: float = 2.0
    guidance_interval: tuple[float, float] = EVERYWHERE
    guidance: tuple[Guide, ...] = ()
    batch_size: int = 32
    reads_real_images: bool = field(default=True, init=False)
    name: ClassVar[str] = "recompose"

    def __post_init__(self) -> None:
        chosen = self.settings
        half = chosen.variant == "half"
        self.masks = LesionMasks(self.where, self.size, half, chosen.side if half else None, chosen.area_mean)
        if not self.strength:
            if chosen.variant in ("lesion", "surroundings"):
                raise InputError(f"recompose: variant {chosen.variant} needs a denoiser; give a strength above 0")
            return
        assert self.backbone is not None
        assert self.scheduler is not None
        self._steps = last_steps(self.strength, int(self.scheduler().num_inference_steps))
        self._sample = in_calls(self._last_steps, self.backbone.device, self.batch_size)

    def plan(self, targets: Mapping[str, int], seed: int) -> pd.DataFrame:
        """Return targets[finding] slots of `num_candidates` rows each, index uid.

        All candidates of a slot share the tail image. A tail image whose finding nobody can place, or without a
        compatible head, is left out with one line in the log. Raises InputError for a finding that is not a tail
        finding, or that no tail image is left for.
        """
        if unknown := [name for name in targets if name not in self.train.tail]:
            raise InputError(f"recompose: {unknown[0]!r} is not a tail finding; remove it from the targets")
        made: list[dict[str, Any]] = []
        for finding in (name for name in self.train.findings if targets.get(name, 0) > 0):
            heads, used = self._heads(finding), Counter[str]()
            order = numpy_generator(seed, "lesions", finding).permutation(sorted(heads))
            for slot in range(targets[finding]):
                tail = str(order[slot % len(order)])
                for n in range(self.settings.num_candidates):
                    made.append(self._row((seed, finding, slot, n), tail, in_turn(heads[tail], used)))
        return pd.DataFrame(made, columns=["uid", *COLUMNS]).set_index("uid")

    def _heads(self, finding: str) -> dict[str, list[str]]:
        """Return usable tail uid -> its compatible heads; in surroundings the tail image itself."""
        every = self.train.parents(finding)
        placed = [uid for uid in every if self.masks.usable(uid, finding)]
        if len(placed) < len(every):
            left_out = f"{len(every) - len(placed)} of {len(every)} images with {finding}"
            log.warning("recompose: %s have no usable mask, box, side or map and are left out", left_out)
        if not placed:
            raise InputError(
                f"recompose: no image with {finding} has a usable mask, box, side or map; give masks, boxes or a "
                f"column side_{finding}, or remove {finding} from the targets"
            )
        if self.settings.variant == "surroundings":
            return {uid: [uid] for uid in placed}
        heads = compatible_heads(self.train, finding, placed, self.difference.pixels, self.settings.matched)
        if alone := [uid for uid, some in heads.items() if not some]:
            log.warning("recompose: %d images with %s have no head in their fold and projection", len(alone), finding)
        if len(alone) == len(placed):
            raise InputError(
                f"recompose: no image with {finding} has a head in its fold and projection; lower checks.folds, or "
                "fill in the column view"
            )
        return {uid: some for uid, some in heads.items() if some}

    def _row(self, key: Key, tail: str, head: str) -> dict[str, Any]:
        """Return the plan row of one future image."""
        _, finding, slot, candidate = key
        rng, chosen, real = numpy_generator("recompose", *key), self.settings, self.train.table.loc[head]
        area = float(np.clip(rng.normal(chosen.area_mean, chosen.area_sd), 0.0, 1.0))
        move = self._move(rng, tail, finding, area)
        pixels = {"paste": [tail, head], "half": [tail, head], "lesion": [head], "surroundings": [tail]}
        slug = re.sub(r"\W+", "-", finding)
        uid = f"recompose_{slug}_{slot:05d}_{candidate}_{seed_of('uid', *key) % 16**6:06x}"
        row = {"uid": uid, "finding": finding, "slot": slot, "candidate": candidate, "tail_parent": tail}
        row |= {"head_parent": head, "parents": pixels[chosen.variant], "area": area, **vars(move)}
        return row | {
            "seed": int(rng.integers(2**63 - 1)), "fold": real["fold"], **{name: real.get(name) for name in ATTRIBUTES}
        }  # fmt: skip

    def _move(self, rng: np.random.Generator, tail: str, finding: str, area: float) -> Move:
        """Return how the lesion varies; a half and a lesion that stays where it is do not."""
        if self.settings.variant in ("half", "surroundings"):
            return Move()
        usual = self.where.prior
        prior = None if usual is None else usual([tail], finding)[0].numpy()
        symmetric = usual is not None and usual.symmetric(tail, finding)
        known = None if prior is None or np.isnan(prior).any() else prior
        return self.settings.variety.draw(rng, self.masks.taken(tail, finding, area).mask, known, symmetric)

    def run(self, rows: pd.DataFrame) -> Iterator[Batch]:
        """Yield batches of finished images in the order of `rows`, each image a function of its own row.

        The rows of a batch have the six further columns of `medlt.synthesis.fusion.LatentFusion.run`. Raises InputError
        for a parent that is not a train row.
        """
        for part in self.train.batches(rows, PARENTS, self.batch_size):
            made = self._compose(part)
            labels = pd.DataFrame(made.labels, index=part.index, columns=list(self.train.findings))
            further = {name: made.measured[name].to_numpy() for name in made.measured}
            yield Batch(part.assign(**further), self._finished(part, made), labels)

    def explain(self, rows: pd.DataFrame) -> dict[str, Tensor]:
        """Return the stages of `medlt.synthesis.fusion.PANELS`, images [B,1,S,S] in [0,1].

        The mask is what the denoiser may change, `fused` the composite of real pixels; the head image has no map.
        """
        panels = [self._panels(part) for part in self.train.batches(rows, PARENTS, self.batch_size)]
        return {name: torch.cat([panel[name] for panel in panels]) for name in PANELS} if panels else {}

    def with_guidance(self, guidance: tuple[Guide, ...]) -> Recomposition:
        """Return the same method with these guides."""
        return replace(self, guidance=guidance)

    def _panels(self, rows: pd.DataFrame) -> dict[str, Tensor]:
        made = self._compose(rows)
        tail, head = (self.difference.pixels(rows[name].tolist()) for name in ("tail_parent", "head_parent"))
        maps = self.where.trust.locate(rows["tail_parent"].tolist(), rows["finding"].tolist()).maps[:, None]
        located = F.interpolate(maps, (self.size, self.size), mode="bilinear")
        panels = (tail, head, located, torch.zeros_like(head), made.change, made.real, self._finished(rows, made))
        return dict(zip(PANELS, panels, strict=True))

    def _compose(self, rows: pd.DataFrame) -> Recomposed:
        """Return composites, what the denoiser may change in them, and their labels."""
        variant = self.settings.variant
        of = zip(rows["tail_parent"], rows["finding"], rows["area"], strict=True)
        taken, moves = [self.masks.taken(*one) for one in of], [Move.of(row) for row in rows.to_dict("records")]
        tail, head = (self.difference.pixels(rows[name].tolist()) for name in ("tail_parent", "head_parent"))
        moved = [move.apply(image[0], one.mask) for move, image, one in zip(moves, tail, taken, strict=True)]
        mask = torch.from_numpy(np.stack([one for _, one in moved]))
        soft = self.difference.soft(mask, self.size)
        real = head if variant == "lesion" else tail
        if variant in ("paste", "half"):
            lesion = torch.stack([image for image, _ in moved])[:, None]
            real = composite(head, lesion, soft, self.difference.seam)
        shown = np.array([visible(move.places(one.mask), self.size) for move, one in zip(moves, taken, strict=True)])
        cells = torch.stack([one.cells for one in taken])
        labels, measured = label(self.where, self.train, variant, rows, cells, shown, soft)
        keeps = variant == "surroundings"
        return Recomposed(real, 1 - soft if keeps else soft, mask, keeps, labels, measured)

    def _finished(self, rows: pd.DataFrame, made: Recomposed) -> Tensor:
        """Return images [B,1,S,S]: the composites, refined if there is a denoiser."""
        if not self.strength:
            return made.real
        assert self.backbone is not None
        assert self.standardiser is not None
        assert self.encode is not None
        assert self.decode is not None
        z = self.encode(made.real)
        own = self.backbone.space == "standardised"
        at, seeds = self.standardiser.to(z) if own else z, [seed_of("noise", int(seed)) for seed in rows["seed"]]
        labels, about = torch.from_numpy(made.labels), rows[list(ATTRIBUTES)].to_dict("records")
        target = target_columns(rows["finding"], self.train.findings)
        known, condition = made.known((z.shape[2], z.shape[3])), self.backbone.condition(labels, about)
        tensors = (at, noise_like(seeds, z.shape[1:]), known, condition, labels, target)
        on_device = (tensor.to(self.backbone.device) for tensor in tensors)
        refined = self._sample(*on_device, torch.tensor(seeds)).to(z.device)
        images = self.decode(self.standardiser.back(refined) if own else refined).cpu()
        keys = {"lesion": "head_parent", "surroundings": "tail_parent"}.get(self.settings.variant)
        start = self.difference.starts(rows.index.tolist() if keys is None else rows[keys].tolist(), z)
        return difference_decoded(made.real, images, start, made.change)

    def _last_steps(self, z: Tensor, noise: Tensor, known: Tensor, *context: Tensor) -> Tensor:
        """Run the last k steps; known: bool [B,1,h,w], where z stays; context: as in `sample_rows`."""
        method = cast(SamplingMethod, self)  # its parts are there
        return sample_rows(
            method, lambda scheduler: from_latent(z, noise, scheduler, self._steps), *context, outermost=keep(known, z)
        )
