"""What the predictor of a longtail-guided run does not know: its least sure images beside unguided ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from medlt.classify.cam import class_activation_map
from medlt.classify.epistemic import Epistemic
from medlt.classify.train import Classifier
from medlt.data.loaders import images
from medlt.data.manifest import Manifest
from medlt.evaluation import introspection as told
from medlt.files import write_table
from medlt.report.introspection import save_pair
from medlt.synthesis.guides import targets
from medlt.synthesis.longtail import LongtailGuide
from pipelines.making import Prepared, joined
from pipelines.stages import Progress

UNGUIDED = " unguided"  # no uid of an image ends so


@dataclass(frozen=True)
class Seen:
    """What is known of some images [B,1,S,S] in [0,1]: signal [B], near [B,k], maps [B,h,w]; in the order of rows."""

    rows: pd.DataFrame
    images: Tensor
    signal: np.ndarray
    near: np.ndarray
    maps: np.ndarray


def introspect(ready: Prepared[Any], made: Manifest, progress: Progress) -> None:
    """introspection.parquet and its gallery, where a longtail guide was at work and images were kept."""
    guide = next((one for one in ready.method.guides if isinstance(one, LongtailGuide)), None)
    gallery = ready.run.path("introspection_gallery.parquet")  # written last
    if guide is None or not len(made.rows) or not isinstance(guide.predictor, Epistemic) or gallery.is_file():
        return
    progress("introspection", 0, 1)
    guided = _seen(ready, guide, made.rows, images(made, guide.predictor.size).float() / 255)
    top = told.most(guided.signal, np.ones(len(made.rows), dtype=bool))
    plan = pd.read_parquet(ready.run.path("plan.parquet")).loc[made.rows.index]
    plain = replace(ready.method, guides=tuple(one for one in ready.method.guides if one is not guide))
    unguided = _seen(ready, guide, made.rows, joined(list(plain.run(plan))).images)
    known = pd.concat([_known(made, guided, ""), _known(made, unguided, UNGUIDED)])
    uids = list(made.rows.index.astype(str))
    highest = [uid for uid, high in zip(uids, top, strict=True) if high]
    table = told.introspect(known, highest, [uid + UNGUIDED for uid in uids])
    write_table(ready.run.path("introspection.parquet"), table)
    write_table(gallery, _gallery(ready, guided, top))
    progress("introspection", 1, 1)


def _seen(ready: Prepared[Any], guide: LongtailGuide, rows: pd.DataFrame, pixels: Tensor) -> Seen:
    """What the predictor makes of images."""
    head = guide.predictor
    assert isinstance(head, Epistemic)
    findings, real = ready.real.manifest.findings, ready.real.training_set("train", head.size)
    column = targets(rows["finding"], findings)
    base = Classifier(head.net, head.size, {"positive": [0] * len(findings)})
    signal = head.score(pixels, guide.statistic)[torch.arange(len(rows)), column].numpy()
    near = told.nearest(base.features(pixels).numpy(), base.features(real.images).numpy(), real.uids)
    sized = torch.nn.functional.interpolate(pixels, (head.size, head.size), mode="area")
    return Seen(rows, pixels, signal, near, class_activation_map(base, sized, column).numpy())


def _known(made: Manifest, seen: Seen, suffix: str) -> pd.DataFrame:
    """Attributes of images, whose uids end in `suffix`."""
    uids = [f"{uid}{suffix}" for uid in made.rows.index]
    labels = pd.DataFrame(made.labels(), index=uids, columns=list(made.findings))
    about = made.rows[[name for name in ("view", "sex", "age") if name in made.rows]].set_axis(uids)
    return told.describe(labels, about, seen.maps, seen.near)


def _gallery(ready: Prepared[Any], seen: Seen, top: np.ndarray) -> pd.DataFrame:
    """The top images beside their nearest real ones, one picture each."""
    at = np.flatnonzero(top)
    near = [str(seen.near[i][0]) for i in at]
    real = images(ready.real.train, seen.images.shape[-1], ready.real.cache, near).float() / 255
    uids = seen.rows.index[at].astype(str)
    files = [save_pair(ready.run.folder, uid, seen.images[i], one) for uid, i, one in zip(uids, at, real, strict=True)]
    told_of = {
        "finding": list(seen.rows["finding"].iloc[at]),
        "signal": seen.signal[at],
        "nearest": near,
        "file": files,
    }
    return pd.DataFrame(told_of, index=pd.Index(uids, name="uid"))
