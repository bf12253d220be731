"""A method: real tail images whose latents receive a little noise."""

import re
from collections.abc import Iterator, Mapping

import pandas as pd
from pydantic import Field
from torch import Tensor

from medlt.config import MethodConfig
from medlt.plugins import MethodPlugin
from medlt.rng import noise_like, numpy_generator, seed_of
from medlt.synthesis.parts import MethodParts
from medlt.types import Batch

BATCH = 16


class JitterSettings(MethodConfig):
    """Real tail images whose latents receive a little noise."""

    noise: float = Field(0.1, ge=0, le=1, description="standard deviation of the noise, in standardised latents")


class Jitter:
    """Plans which train image each synthetic image is made from, and makes the images of a plan."""

    reads_real_images = True
    guidance = ()

    def __init__(self, settings: JitterSettings, parts: MethodParts) -> None:
        self.settings, self.parts = settings, parts

    def plan(self, targets: Mapping[str, int], seed: int) -> pd.DataFrame:
        """Return one row per future image: targets[finding] slots of `num_candidates` candidates each."""
        rows = []
        for finding, wanted in targets.items():
            sources = numpy_generator(seed, "jitter", finding).permutation(self.parts.train.parents(finding))
            for slot in range(wanted):
                source = str(sources[slot % len(sources)])
                rows += [self._row(finding, slot, n, source, seed) for n in range(self.parts.num_candidates)]
        return pd.DataFrame(rows).set_index("uid")

    def _row(self, finding: str, slot: int, candidate: int, source: str, seed: int) -> dict[str, object]:
        real = self.parts.train.table.loc[source]
        name = re.sub(r"\W+", "-", finding)
        return {
            "uid": f"jitter_{name}_{slot:05d}_{candidate}",
            "finding": finding,
            "slot": slot,
            "candidate": candidate,
            "seed": seed_of("jitter", seed, finding, slot, candidate),
            "fold": real["fold"],
            "view": real.get("view"),
            "label_source": source,
            "parents": [source],
        }

    def run(self, rows: pd.DataFrame) -> Iterator[Batch]:
        """Yield the images of plan rows, in their order. An image depends on its own row alone."""
        labels = self.parts.train.table[list(self.parts.train.findings)].astype(float)
        for start in range(0, len(rows), BATCH):
            part = rows.iloc[start : start + BATCH]
            z = self.parts.latents(list(part["label_source"]))
            z = z + self.settings.noise * noise_like(list(part["seed"]), z.shape[1:])
            images = self.parts.decode(self.parts.standardiser.back(z)).cpu()
            yield Batch(part, images, labels.loc[part["label_source"]].set_index(part.index))

    def explain(self, rows: pd.DataFrame) -> Mapping[str, Tensor]:
        """Return no intermediate images."""
        return {}

    def with_guidance(self, guidance: tuple[object, ...]) -> "Jitter":
        """Return the same method; it has no guidance."""
        return self


PLUGIN = MethodPlugin(JitterSettings, Jitter)
