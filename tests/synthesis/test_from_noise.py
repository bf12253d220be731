"""Conditional sampling: label vectors, noise and conditions."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from medlt.diffusion.labels import LabelVector
from medlt.diffusion.schedulers import factory
from medlt.recipes._privacy import independent_rows
from medlt.rng import noise_like, seed_of
from medlt.synthesis.from_noise import FromNoise
from medlt.testing import label_backbone

NEED = {"Hernia": 4, "Pleural Other": 2}


def built(methods: dict[str, Any], **changed: Any) -> FromNoise:
    made: FromNoise = methods["noise"](**changed)
    return made


def test_labels_are_those_of_a_real_row_that_has_the_finding(methods: dict[str, Any]) -> None:
    method = built(methods)
    rows = method.plan(NEED, 3)
    table, names = method.train.table, list(method.train.findings)
    for batch in method.run(rows):
        expected = table.loc[batch.rows["label_source"], names].to_numpy(float)
        np.testing.assert_array_equal(batch.labels.to_numpy(float), expected)
        assert all(batch.labels.at[uid, row["finding"]] == 1 for uid, row in batch.rows.iterrows())
    assert method.reads_real_images is False
    assert rows["parents"].tolist() == [[]] * len(rows)


def test_every_label_vector_is_used_once_before_any_is_used_twice(methods: dict[str, Any]) -> None:
    method = built(methods, num_candidates=1)
    positives = method.train.positive("Hernia")
    rows = method.plan({"Hernia": len(positives) + 1}, 3)
    assert sorted(rows["label_source"].iloc[: len(positives)]) == positives
    assert rows["label_source"].iloc[-1] == rows["label_source"].iloc[0]


def test_the_label_vector_of_a_frontal_image_is_preferred_to_that_of_a_lateral_one(methods: dict[str, Any]) -> None:
    method = built(methods, num_candidates=1)
    uids = method.train.positive("Hernia")
    view = pd.Series("PA", method.train.table.index).mask(method.train.table.index.isin(uids[1::2]), "LL")
    train = replace(method.train, table=method.train.table.assign(view=view))
    rows = replace(method, train=train).plan({"Hernia": 3 * len(uids)}, 3)
    assert set(rows["label_source"]) == set(uids[::2])
    assert set(rows["view"]) == {"PA"}


def test_one_row_equals_the_loop_written_out(methods: dict[str, Any]) -> None:
    """Two DDIM steps of x0 = c (a constant), by hand: noise from the row's seed, the last estimate decoded."""
    level = label_backbone(lambda x, t, c: x * 0.5 + c[:, 0, None, None, None], 5)
    method = built(methods, backbone=level, scheduler=factory("ddim", 2), guidance_scale=1.0)
    row = method.plan({"Hernia": 1}, 3).iloc[[0]]
    scheduler = method.scheduler()
    (first, last), a = scheduler.timesteps.tolist(), scheduler.alphas_cumprod
    x = noise_like([seed_of("noise", int(row["seed"].iloc[0]))], (2, 8, 8))
    c = float(method.train.table.loc[row["label_source"].iloc[0], "Effusion"])
    x0 = 0.5 * x + c
    n = (x - a[first].sqrt() * x0) / (1 - a[first]).sqrt()
    z = 0.5 * (a[last].sqrt() * x0 + (1 - a[last]).sqrt() * n) + c
    image = next(iter(method.run(row))).images
    torch.testing.assert_close(image, method.decode(method.standardiser.back(z)), atol=1e-5, rtol=1e-5)


def test_in_codec_space_nothing_is_unstandardised(methods: dict[str, Any]) -> None:
    same = {"scheduler": factory("ddim", 2), "guidance_scale": 1.0}
    spaces = {s: label_backbone(lambda x, t, c: 0 * x + 0.3, 5, space=s) for s in ("codec", "standardised")}
    images = {s: next(iter(built(methods, backbone=b, **same).run(built(methods).plan(NEED, 0)))).images
              for s, b in spaces.items()}  # fmt: skip
    torch.testing.assert_close(images["codec"], torch.full_like(images["codec"], 0.3).sigmoid())
    torch.testing.assert_close(images["standardised"], torch.full_like(images["codec"], 0.3 * 2 + 0.25).sigmoid())


def test_view_sex_and_age_of_the_row_reach_the_condition(methods: dict[str, Any]) -> None:
    method = built(methods)
    table = method.train.table.assign(view="PA", sex="F", age=np.arange(len(method.train.table)) + 1.0)
    table.loc[table.index[::2], "view"] = np.nan
    conditions: list[Any] = []
    inner = method.backbone.condition

    class Spy:
        null, digest = inner.null, inner.digest

        def __call__(self, labels: torch.Tensor, about: Any = ()) -> torch.Tensor:
            conditions.extend(about)
            return inner(labels, about)

    collection = type(method.train)(table, method.train.findings, method.train.tail)
    backbone = type(method.backbone)(method.backbone.network, Spy(), "sample", 2, "spied")
    spied = built(methods, train=collection, backbone=backbone)
    rows = spied.plan(NEED, 3)
    list(spied.run(rows))
    expected = table.loc[rows["label_source"], ["view", "sex", "age"]].to_dict("records")
    pd.testing.assert_frame_equal(pd.DataFrame(conditions), pd.DataFrame(expected))


def test_made_up_rows_of_a_data_independent_run_have_no_view_sex_or_age(methods: dict[str, Any]) -> None:
    """Their plan knows nothing of a patient, and a network with attributes gets each of them as unknown."""
    method = built(methods, train=independent_rows(("Hernia",), built(methods).train.findings))
    rows = method.plan({"Hernia": 3}, 3)
    assert rows[["view", "sex", "age"]].isna().all().all()
    about, labels = rows[["view", "sex", "age"]].to_dict("records"), torch.ones(len(rows), 2)
    vector = LabelVector(2, ("view", "sex", "age"))
    assert torch.equal(vector(labels, about), vector(labels))


@pytest.mark.parametrize("guidance", [0.0, 2.0])
def test_the_guidance_scale_sets_the_influence_of_labels(methods: dict[str, Any], guidance: float) -> None:
    """The conditional estimate is 1 where the first finding is, the null one 0: the latent is guidance times it."""
    level = label_backbone(lambda x, t, c: 0 * x + c[:, 0, None, None, None], 5)
    method = built(methods, backbone=level, guidance_scale=guidance)
    rows = method.plan(NEED, 3)
    first = torch.tensor(method.train.table.loc[rows["label_source"], "Effusion"].to_numpy(np.float32))
    images = torch.cat([batch.images for batch in method.run(rows)])
    expected = (guidance * first * 2 + 0.25).sigmoid()[:, None, None, None].expand_as(images)
    torch.testing.assert_close(images, expected)
