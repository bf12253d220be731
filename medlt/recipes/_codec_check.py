"""What the codec of a run keeps of each finding, measured before the denoiser is trained."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from medlt import config as configs
from medlt.checks.codec import Amplitudes, CodecRule, by_ring, by_twin, codec_table
from medlt.checks.folds import CrossFitClassifiers
from medlt.checks.separation import digest_network
from medlt.classify.train import Classifier
from medlt.csv_text import as_csv
from medlt.data.squares import square
from medlt.diffusion.codec import encode
from medlt.files import digest, write_json, write_table, write_text
from medlt.recipes._codec import decoder
from medlt.recipes._cohort import Cohort
from medlt.recipes._setup import RunFolder
from medlt.rng import numpy_generator
from medlt.types import Codec

FORMAT = 1  # part of the key: increase it if the same parts would give other numbers
RULE = CodecRule()
IMAGES, POSITIVES, LESIONS = 256, 24, 12
"""Validation images that are decoded at most; positives of a finding that are among them before others; lesions of a
finding whose contrast is measured, at most."""
N_BOOTSTRAP = 500
CHUNK = 32
TABLE = "codec_check.parquet"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CodecCheck:
    """The table of `medlt.checks.codec.codec_table` for the codec of a config, and what to change."""

    table: pd.DataFrame
    advice: tuple[str, ...]

    @cached_property
    def lost(self) -> dict[str, str]:
        """Finding -> reason, for those that the codec loses."""
        return self._with("lost")

    @property
    def unclear(self) -> dict[str, str]:
        """Finding -> reason, for those of which too little is known."""
        return self._with("unclear")

    def _with(self, status: str) -> dict[str, str]:
        rows = self.table[self.table["status"] == status]
        return {str(name): str(reason) for name, reason in rows["reason"].items()}

    def sentence(self) -> str:
        """Return one line that names the lost findings and what would keep them; "" if there are none."""
        if not self.lost:
            return ""
        names = ", ".join(f"{name} ({reason})" for name, reason in self.lost.items())
        return f"the codec loses {names}; use {', or '.join(self.advice)}"

    def metadata(self) -> dict[str, Any]:
        """Return the result for run.json."""
        return {"lost": self.lost, "unclear": self.unclear, "advice": list(self.advice), "rule": asdict(RULE)}


def check_codec(
    run: RunFolder[configs.RunConfig], cohort: Cohort, codec: Codec, verifiers: CrossFitClassifiers
) -> CodecCheck:
    """Measure the codec, or read the result from the store.

    AUROC is that of the verifiers, which were trained on real train images, on validation images. The lesions are those
    of validation images, then of train images until there are `LESIONS` of a finding. Their contrast is measured by
    twins of synthetic radiographs, and by masks or boxes elsewhere. A private run has neither.
    """
    measured = _Measurement(run, cohort, codec, [one for one in verifiers.verifiers if isinstance(one, Classifier)])
    with run.stage("codec_check"):
        made = run.store.make("codec_check", measured.key(), measured.build)
        table = pd.read_parquet(made.path(TABLE))
    return CodecCheck(table, advice(run.config))


def note_codec_check(run: RunFolder[configs.RunConfig], result: CodecCheck) -> None:
    """Write the tables into the run folder and the result to run.json, and warn of lost findings in one line."""
    if run.writable:
        write_table(run.path(TABLE), result.table)
        write_text(run.path("codec_check.csv"), as_csv(result.table, index=True))
        write_json(run.path("codec_check.json"), result.metadata())
    run.record(codec_check=result.metadata())
    if result.lost:
        log.warning("%s; see %s", result.sentence(), run.path("codec_check.csv"))


def advice(config: configs.RunConfig) -> tuple[str, ...]:
    """Return the settings that keep more than those of the config, the cheapest first."""
    chosen, more = config.codec, []
    if isinstance(chosen, configs.TrainedCodec) and chosen.levels > 2:
        more.append(f"codec.levels: {chosen.levels - 1}")
    if not isinstance(chosen, configs.PixelsConfig):
        more += [f"size: {2 * config.size}"]
        more += [] if isinstance(config.denoiser, configs.StableConfig) else ["codec: identity (loses nothing)"]
    return tuple(more)


@dataclass(frozen=True)
class _Measurement:
    """The images, lesions and verifiers of a check."""

    run: RunFolder[configs.RunConfig]
    cohort: Cohort
    codec: Codec
    verifiers: Sequence[Classifier]

    @property
    def findings(self) -> tuple[str, ...]:
        """The findings, without the label that means none."""
        return tuple(name for name in self.cohort.findings if name != self.cohort.manifest.no_finding)

    def key(self) -> dict[str, Any]:
        """Return everything that decides the numbers."""
        rows, regions = self.rows, self.cohort.regions
        seen = self.cohort.manifest.rows.loc[sorted({uid for uids in self.lesions.values() for uid in uids})]
        return {
            "format": FORMAT, "codec": self.codec.digest, "size": self.run.config.size, "rule": asdict(RULE),
            "precision": [self.run.runtime.precision, self.run.runtime.device], "n_bootstrap": N_BOOTSTRAP,
            "images": digest([*rows.index], list(rows["content"].astype(str)), list(seen["content"].astype(str))),
            "labels": digest(rows[list(self.findings)].to_csv(), list(rows["patient_id"].astype(str))),
            "lesions": digest(self.lesions), "regions": regions.digest(), "twins": self.twins,
            "verifiers": [digest_network(one.net) for one in self.verifiers],
        }  # fmt: skip

    @cached_property
    def rows(self) -> pd.DataFrame:
        """The validation rows that verifiers see: all, or up to `IMAGES` with enough positives of each finding."""
        rows = self.cohort.val.rows if self.verifiers else self.cohort.val.rows.iloc[:0]
        if len(rows) <= IMAGES:
            return rows
        order = rows.iloc[numpy_generator(self.run.config.seed, "codec check").permutation(len(rows))]
        rare = sorted(self.findings, key=lambda name: int((rows[name] == 1).sum()))
        first = [uid for name in rare for uid in order.index[order[name] == 1][:POSITIVES]]
        return rows.loc[list(dict.fromkeys([*first, *order.index]))[:IMAGES]]

    @property
    def twins(self) -> bool:
        """Whether images have twins without a finding: those of the built-in synthetic radiographs."""
        return self.run.config.data.kind == "phantom" and self.run.config.privacy is None

    @cached_property
    def lesions(self) -> dict[str, list[str]]:
        """Finding -> uids whose lesions are measured, validation images first; findings with any."""
        known: dict[str, list[str]] = {}
        for name in self.findings:
            given = None if self.twins else set(self.cohort.regions.known(name))
            parts = [part.index[part[name] == 1].astype(str) for part in (self.cohort.val.rows, self.cohort.train.rows)]
            uids = [uid for part in parts for uid in part if given is None or uid in given]
            known |= {name: uids[:LESIONS]} if uids else {}
        return known

    def build(self, folder: Path) -> None:
        """Write the table into the work folder of an artifact. All images are decoded in one go."""
        rows, names = self.rows, list(self.findings)
        pairs = [(name, uid) for name, uids in self.lesions.items() for uid in uids]
        uids = list(dict.fromkeys([*map(str, rows.index), *(uid for _, uid in pairs)]))
        real = self.cohort.images(self.cohort.manifest, self.run.config.size, uids)
        twins = [self._twin(name, uid) for name, uid in pairs] if self.twins else []
        back = self._decoded(torch.cat([real, *twins]))
        at = {uid: i for i, uid in enumerate(uids)}
        seen = _Seen(real, back[: len(real)], torch.cat([real[:0], *twins]), back[len(real) :])
        scores = [self._scores(one[: len(rows)]) for one in (seen.real, seen.decoded)]
        table = codec_table(
            names, self._amplitudes(seen, pairs, at), rows[names].to_numpy(np.float64), scores[0], scores[1],
            list(rows["patient_id"].astype(str)), rule=RULE, n_bootstrap=N_BOOTSTRAP,
            rng=numpy_generator("codec check"),
        )  # fmt: skip
        write_table(folder / TABLE, table)

    def _scores(self, images: Tensor) -> np.ndarray:
        """Return the mean probability of the verifiers [N,K]."""
        if not len(images):
            return np.zeros((0, len(self.findings)))
        columns = [self.cohort.findings.index(name) for name in self.findings]
        return np.asarray(np.mean([one.predict(images).numpy() for one in self.verifiers], 0)[:, columns])

    def _decoded(self, images: Tensor) -> Tensor:
        """Return images uint8 [N,1,S,S] as the run decodes their latents, in 8 bits."""
        decode, done = decoder(self.run.runtime, self.codec), [images[:0]]
        for part in torch.split(images, CHUNK):
            back = decode(self.codec.latents(encode(self.codec, part.float() / 255)))
            done.append((back.nan_to_num(0) * 255).round().to(torch.uint8))
            self.run.runtime.progress("codec_check", sum(map(len, done)), len(images))
        return torch.cat(done)

    def _amplitudes(
        self, seen: _Seen, pairs: Sequence[tuple[str, str]], at: Mapping[str, int]
    ) -> dict[str, Amplitudes]:
        """Return the amplitudes of the lesions of each finding that has any."""
        owners, known = self.cohort.manifest.rows["patient_id"].astype(str), {}
        for name, uids in self.lesions.items():
            rows = torch.tensor([at[uid] for uid in uids])
            real, back = (one[rows].float() / 255 for one in (seen.real, seen.decoded))
            if self.twins:
                rows = torch.tensor([i for i, pair in enumerate(pairs) if pair[0] == name])
                twins = (one[rows].float() / 255 for one in (seen.twins, seen.decoded_twins))
                known[name] = by_twin(real, next(twins), back, next(twins), list(owners.loc[uids]))
            else:
                masks = self.cohort.regions.masks(uids, name, self.run.config.size)
                known[name] = by_ring(real, back, masks, list(owners.loc[uids]))
        return known

    def _twin(self, finding: str, uid: str) -> Tensor:
        """Return the twin of a synthetic radiograph without the finding, uint8 [1,1,S,S]."""
        from medlt.data.phantom import film

        data, size = self.run.config.data, self.run.config.size
        assert isinstance(data, configs.PhantomData)
        row = {str(name): value for name, value in self.cohort.manifest.rows.loc[uid].items()}
        image = film({**row, "uid": uid, finding: 0.0}, self.run.config.seed, data.size).image
        return torch.from_numpy(np.round(square(image, size) * 255)).to(torch.uint8)[None, None]


@dataclass(frozen=True)
class _Seen:
    """Images as files hold them and as the codec gives them back, uint8 [N,1,S,S], and the same of twins."""

    real: Tensor
    decoded: Tensor
    twins: Tensor
    decoded_twins: Tensor
