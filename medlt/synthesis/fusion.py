"""Latent fusion: tail pixels in the code of a head image, refined by the last steps of a diffusion model.

Elberg, Parra, Petrache, "Long Tail Image Generation Through Feature Space Augmentation and Iterated Learning",
arXiv 2405.01705. Notation: `medlt.sparse.embedding` (z, E, D, C, s) and `medlt.synthesis.fuse` (a, b, T, G, omega).

    plan    tail image i with finding c; head partner j, another patient of the same fold;
            two thresholds ~ N; tail_probability ~ U(0,1)
    fuse    s' from E(z_i), E(z_j) under T and A_c'(j) < head_threshold;  z' = D(s')
            T: the largest cells of the map of c in i (`medlt.localise`), or A_c(i) > tail_threshold
    refine  the last k of N steps from sqrt(abar) z' + sqrt(1-abar) eps (renoise; without it from z', as published),
            classifier-free guidance under the label vector, then the `guidance`
    decode  image = composite of the two real images under omega + soft omega (decode(z) - decode(z'))

Without `difference` the image is decode(z) alone. `plan` draws all random numbers; `run` is a function of each row
alone, bit for bit on a CPU, whatever other rows are in the batch (`medlt.diffusion.batching`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from medlt.diffusion.attributes import ATTRIBUTES
from medlt.diffusion.backbone import EVERYWHERE, Backbone
from medlt.diffusion.sampler import from_latent, last_steps
from medlt.localise.code_explainer import CodeExplainer, Latents
from medlt.localise.maps import CodeMap
from medlt.localise.measure import Localisation
from medlt.localise.trust import GIVEN, Located, Trust
from medlt.rng import noise_like, seed_of
from medlt.sparse.embedding import SimplicialCoder
from medlt.synthesis.composite import Difference, composite, difference_decoded
from medlt.synthesis.conditional import sample_rows
from medlt.synthesis.evidence import Evidence, carried, evidence_table, reason
from medlt.synthesis.fuse import coins, fuse, located, masks
from medlt.synthesis.guides import Guide, target_columns
from medlt.synthesis.labels import cam_share, fused_labels
from medlt.synthesis.plan import PARENTS, PlanSettings, TrainTable, plan_fusion
from medlt.synthesis.space import Standardises, in_calls
from medlt.types import Batch, InputError

PANELS = ("tail", "head", "cam_tail", "cam_head", "mask", "fused", "refined")
TOKENS = ("code_tail", "code_head", "code_fused")


@dataclass(frozen=True)
class _Fused:
    """Rows before refinement; z, z_tail, z_head: standardised [B,C,h,w]; maps and omega: [B,h,w].

    tokens: the largest of each group, int64 [B,L,h,w], of the tail image, of the head image and fused; measured: one
    row each, the columns that `LatentFusion.run` adds.
    """

    z_tail: Tensor
    z_head: Tensor
    cam_tail: Tensor
    cam_head: Tensor
    omega: Tensor
    z: Tensor
    tokens: tuple[Tensor, Tensor, Tensor]
    labels: np.ndarray
    measured: pd.DataFrame


@dataclass(kw_only=True)
class LatentFusion:
    """The method.

    train: train rows; coder: trained for `train.findings`; latents: uids -> standardised latents [N,C,h,w];
    standardiser: fitted on the train split; backbone: must be safe to call from several threads, and is conditioned on
    labels, view, sex and age of the tail image; decode: codec latents [B,C,h,w] -> images [B,1,H,W] in [0,1], where
    the bytes of a row depend on that row alone (as in `medlt.diffusion.decode`); scheduler: returns a new scheduler
    with timesteps set; strength: k/N; batch_size: rows in memory; guidance_interval: timesteps of classifier-free
    guidance, as shares of the trained ones; difference: real pixels, None for decoded ones alone
    (`medlt.synthesis.composite`); localisation: where findings are, and how well that is known (None: the
    maps of the coder alone, unmeasured).
    """

    train: TrainTable
    coder: SimplicialCoder
    latents: Latents
    standardiser: Standardises
    backbone: Backbone
    decode: Callable[[Tensor], Tensor]
    scheduler: Callable[[], Any]
    plan_settings: PlanSettings = field(default_factory=PlanSettings)
    cam: str = "gradcam"
    strength: float = 5 / 75
    renoise: bool = True
    guidance_scale: float = 3.5
    guidance_interval: tuple[float, float] = EVERYWHERE
    guidance: tuple[Guide, ...] = ()
    labels: str = "cam_mass"
    rule: str = "published"
    localisation: Localisation | None = None
    difference: Difference | None = None
    batch_size: int = 32
    reads_real_images: bool = field(default=True, init=False)
    name: ClassVar[str] = "fusion"

    def __post_init__(self) -> None:
        if self.coder.config["findings"] != len(self.train.findings):
            own, wanted = self.coder.config["findings"], len(self.train.findings)
            raise InputError(f"fusion: the coder has {own} findings and the train rows {wanted}; train the coder again")
        if not 0 < self.strength <= 1:
            raise InputError(f"fusion: strength is {self.strength}; give a share of the steps above 0 and at most 1")
        self._steps = last_steps(self.strength, int(self.scheduler().num_inference_steps))
        self.explainer = CodeExplainer(self.coder, self.latents, self.cam)
        self.where = self.localisation or self._by_code()
        self._sample = in_calls(self._last_steps, self.backbone.device, self.batch_size)

    def plan(self, targets: Mapping[str, int], seed: int) -> pd.DataFrame:
        """Return targets[finding] slots of `plan_settings.num_candidates` rows each (`plan_fusion`), index uid."""
        return plan_fusion(self.train, self.explainer, self.plan_settings, targets, seed)

    def run(self, rows: pd.DataFrame) -> Iterator[Batch]:
        """Yield batches of finished images in the order of `rows`, each image a function of its own row.

        The rows of a batch have six more columns. `mask_share`: the share of latent pixels from the tail image;
        `tail_mass`: the mass of the tail finding's map on them; `localised_by`: the stage that made this map;
        `lesion_carried`: the share of the given mask or box on them, NaN without one; `label_mass`: E or L of the label
        rule; `label_reason`: why it is unknown. Raises InputError for a parent that is not a train row.
        """
        for part in self.train.batches(rows, PARENTS, self.batch_size):
            fused = self._fuse(part)
            images = self._images(part, fused)
            labels = pd.DataFrame(fused.labels, index=part.index, columns=list(self.train.findings))
            yield Batch(
                part.assign(**{name: fused.measured[name].to_numpy() for name in fused.measured}), images, labels
            )

    def explain(self, rows: pd.DataFrame) -> dict[str, Tensor]:
        """Return the stages PANELS of `rows`, images [B,1,H,W] in [0,1]."""
        panels = [self._panels(part) for part in self.train.batches(rows, PARENTS, self.batch_size)]
        return {name: torch.cat([panel[name] for panel in panels]) for name in PANELS} if panels else {}

    def codes(self, rows: pd.DataFrame) -> dict[str, Tensor]:
        """Return code_tail, code_head and code_fused, tokens int64 [B,L,h,w] in 0 to V-1, and decoded_tail,
        decoded_head and decoded_fused, images [B,1,H,W] of the latents before refinement."""
        parts = [self._fuse(part) for part in self.train.batches(rows, PARENTS, self.batch_size)]
        tokens = {name: [part.tokens[i].cpu() for part in parts] for i, name in enumerate(TOKENS)}
        latents = {"decoded_tail": "z_tail", "decoded_head": "z_head", "decoded_fused": "z"}
        images = {name: [self._decoded(getattr(part, z)) for part in parts] for name, z in latents.items()}
        return {name: torch.cat(one) for name, one in (tokens | images).items() if one}

    def with_guidance(self, guidance: tuple[Guide, ...]) -> LatentFusion:
        """Return the same method with these guides."""
        return replace(self, guidance=guidance)

    def _by_code(self) -> Localisation:
        """Return the localisation by the maps of the coder alone, which nobody measured."""
        height, width = self.explainer.standardised([self.train.table.index[0]]).shape[-2:]
        stage = CodeMap(self.explainer, self.train.findings, (height, width))
        return Localisation(Trust({"code": stage}, (height, width)))

    def _fuse(self, rows: pd.DataFrame) -> _Fused:
        """Return codes, maps, masks, fused latents and labels of rows."""
        tails, findings = rows["tail_parent"].tolist(), rows["finding"].tolist()
        z_a, z_b = (self.explainer.standardised(rows[name].tolist()) for name in ("tail_parent", "head_parent"))
        a, b = self.explainer.code(z_a), self.explainer.code(z_b)
        of_tail, cam_b = self.where.trust.locate(tails, findings), self.explainer.maps(b, self._columns(rows))
        cam_a = of_tail.maps.to(a.device)
        tail, generic = masks(cam_a, cam_b, rows["tail_threshold"].tolist(), rows["head_threshold"].tolist())
        if self.rule == "tail_only":
            tail = located(cam_a, of_tail.given, rows["tail_area"].tolist())
        coin = coins(rows["seed"].tolist(), rows["tail_probability"].tolist(), (a.shape[-2], a.shape[-1])).to(a.device)
        s, omega = fuse(a, b, tail, generic, coin, self.rule)
        labels, evidence = self._labels(rows, omega)
        measured = self._measured(tails, findings, of_tail, omega, evidence).set_index(rows.index)
        tokens = a.argmax(2), b.argmax(2), s.argmax(2)
        return _Fused(z_a, z_b, cam_a, cam_b, omega, self.explainer.decode(s), tokens, labels, measured)

    def _columns(self, rows: pd.DataFrame) -> np.ndarray:
        """Return the column of each head finding, -1 for an empty name."""
        return np.array([self.train.findings.index(c) if c else -1 for c in rows["head_finding"]])

    def _labels(self, rows: pd.DataFrame, omega: Tensor) -> tuple[np.ndarray, Evidence]:
        """Return label vectors [B,K] by the rule, and the evidence of the tail finding of each row."""
        names, none = list(self.train.findings), self.train.no_finding
        skip = names.index(none) if none else None
        parents = [rows[name].tolist() for name in ("tail_parent", "head_parent")]
        y_a, y_b = (self.train.table.loc[uids, names].to_numpy(np.float64) for uids in parents)
        of = partial(evidence_table, self.where, self.labels, findings=names, skip=skip)
        tail, head = of(parents[0], y_a, pixels=omega), of(parents[1], y_b, pixels=~omega)
        unmeasured = tail.unmeasured | head.unmeasured
        labels = fused_labels(self.labels, y_a, y_b, tail.mass, head.mass, skip, unmeasured)
        own = np.arange(len(rows)), [names.index(finding) for finding in rows["finding"]]
        return labels, Evidence(tail.mass[own], tail.unmeasured[own])

    def _measured(
        self, tails: list[str], findings: list[str], of_tail: Located, omega: Tensor, evidence: Evidence
    ) -> pd.DataFrame:
        """Return the columns that `run` adds."""
        given = zip(of_tail.stages, evidence.mass, evidence.unmeasured, strict=True)
        columns = {
            "mask_share": omega.double().mean((1, 2)).cpu().numpy(),
            "tail_mass": cam_share(of_tail.maps, omega.cpu()),
            "localised_by": list(of_tail.stages),
            "lesion_carried": carried(self.where, tails, findings, omega),
            "label_mass": evidence.mass,
            "label_reason": [reason(self.labels, *one) for one in given],
        }
        return pd.DataFrame(columns)

    def _refine(self, rows: pd.DataFrame, fused: _Fused) -> Tensor:
        """Return the fused latents after the last k steps, standardised like the input."""
        standardised = self.backbone.space == "standardised"
        z = fused.z if standardised else self.standardiser.back(fused.z)
        seeds = [seed_of("noise", int(seed)) for seed in rows["seed"]]
        target, labels = target_columns(rows["finding"], self.train.findings), torch.from_numpy(fused.labels)
        tensors = (z, noise_like(seeds, z.shape[1:]), self._condition(rows, fused), labels, target)
        on_device = (tensor.to(self.backbone.device) for tensor in tensors)
        refined = self._sample(*on_device, torch.tensor(seeds)).to(z.device)
        return refined if standardised else self.standardiser.to(refined)

    def _condition(self, rows: pd.DataFrame, fused: _Fused) -> Tensor:
        """Return the condition of each row: its label vector, and the attributes in the plan."""
        about = rows[[name for name in ATTRIBUTES if name in rows]].to_dict("records")
        return self.backbone.condition(torch.from_numpy(fused.labels).float(), about)

    def _last_steps(self, z: Tensor, noise: Tensor, *context: Tensor) -> Tensor:
        """Run the last k steps; context: condition, labels, target and seeds of the rows."""
        return sample_rows(
            self, lambda scheduler: from_latent(z, noise, scheduler, self._steps, self.renoise), *context
        )

    def _images(self, rows: pd.DataFrame, fused: _Fused) -> Tensor:
        """Return finished images [B,1,H,W]."""
        refined = self._decoded(self._refine(rows, fused))
        if self.difference is None:
            return refined
        real = self._before(rows, fused)["fused"]
        start = self.difference.starts(list(rows.index), self.standardiser.back(fused.z))
        return difference_decoded(real, refined, start, self.difference.soft(fused.omega, real.shape[-1]))

    def _before(self, rows: pd.DataFrame, fused: _Fused) -> dict[str, Tensor]:
        """Return tail, head and fused images [B,1,H,W], real pixels with `difference`, else decoded ones."""
        if self.difference is None:
            latents = {"tail": fused.z_tail, "head": fused.z_head, "fused": fused.z}
            return {name: self._decoded(z) for name, z in latents.items()}
        tail, head = (self.difference.pixels(rows[name].tolist()) for name in ("tail_parent", "head_parent"))
        soft = self.difference.soft(self._pixels(rows, fused, head.shape[-1]), head.shape[-1])
        return {"tail": tail, "head": head, "fused": composite(head, tail, soft, self.difference.seam)}

    def _pixels(self, rows: pd.DataFrame, fused: _Fused, size: int) -> Tensor:
        """Return the pixels of the tail image, bool [B,size,size]: those of a given mask or box, else of the cells.

        The cells that a small lesion touches hold more of the patient's anatomy than of the lesion.
        """
        taken = F.interpolate(fused.omega[:, None].float().cpu(), (size, size), mode="nearest")[:, 0].bool()
        if self.rule == "tail_only":
            parents = zip(rows["tail_parent"], rows["finding"], fused.measured["localised_by"], strict=True)
            for i, (uid, finding, stage) in enumerate(parents):
                if stage in GIVEN:
                    taken[i] &= torch.from_numpy(self.where.regions.pixels(uid, finding, size))
        return taken

    def _decoded(self, z: Tensor) -> Tensor:
        """Return images of standardised latents."""
        return self.decode(self.standardiser.back(z)).cpu()

    def _panels(self, rows: pd.DataFrame) -> dict[str, Tensor]:
        fused = self._fuse(rows)
        images = self._before(rows, fused) | {"refined": self._images(rows, fused)}
        size = images["refined"].shape[-2:]
        images = {name: F.interpolate(one, size, mode="nearest") for name, one in images.items()}
        maps = {"cam_tail": fused.cam_tail, "cam_head": fused.cam_head}
        smooth = {name: F.interpolate(m[:, None].cpu(), size, mode="bilinear") for name, m in maps.items()}
        panels = images | smooth | {"mask": F.interpolate(fused.omega[:, None].float().cpu(), size, mode="nearest")}
        return {name: panels[name] for name in PANELS}
