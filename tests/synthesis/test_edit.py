"""Image-guided edits: start, strength and labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from medlt.classify.sets import TrainingSet
from medlt.diffusion.noise import STABLE_DIFFUSION
from medlt.diffusion.schedulers import factory
from medlt.rng import noise_like, seed_of
from medlt.synthesis.edit import COLUMNS, ImageEdit, call_by_group
from medlt.synthesis.plan import TrainTable
from medlt.testing import label_backbone
from medlt.types import InputError

NEED = {"Hernia": 6, "Pleural Other": 3}
ABAR = STABLE_DIFFUSION.abar()
Methods = dict[str, Callable[..., Any]]


def flat(x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
    """The estimate that every image is as likely as any other: the noise stays where it is."""
    return x / ABAR[t][:, None, None, None].sqrt()


def built(methods: Methods, **changed: Any) -> ImageEdit:
    made: ImageEdit = methods["edit"](**({"mixed": 0.0, "difference": None} | changed))
    return made


def images(method: ImageEdit, rows: pd.DataFrame) -> Tensor:
    return torch.cat([batch.images for batch in method.run(rows)])


def labels(method: ImageEdit, rows: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([batch.labels for batch in method.run(rows)])


def parents(method: ImageEdit, rows: pd.DataFrame) -> Tensor:
    return method.decode(method.standardiser.back(method.latents(rows["tail_parent"].tolist())))


@pytest.mark.parametrize("space", ["standardised", "codec"])
def test_under_a_flat_prior_an_edit_is_its_parent_and_the_noise_of_its_own_strength(
    methods: Methods, space: str
) -> None:
    """x0 = x_t / sqrt(abar) leaves no noise to remove, so DDIM stays at z + sqrt(1/abar - 1) eps of its first step."""
    backbone = label_backbone(flat, 5, space=space)
    method = built(methods, backbone=backbone, scheduler=factory("ddim", 20), guidance_scale=1.0)
    rows = method.plan(NEED, 3)
    assert rows["last_steps"].nunique() == 3
    first = method.scheduler().timesteps[[-int(steps) for steps in rows["last_steps"]]]
    noise = noise_like([seed_of("noise", int(seed)) for seed in rows["seed"]], (2, 8, 8))
    shift = (1 / ABAR[first] - 1).sqrt()[:, None, None, None] * noise
    z = method.latents(rows["tail_parent"].tolist())
    codec = method.standardiser.back(z) + shift if space == "codec" else method.standardiser.back(z + shift)
    torch.testing.assert_close(images(method, rows), method.decode(codec), atol=1e-5, rtol=1e-5)


def test_strength_towards_zero_is_the_codecs_round_trip(methods: Methods) -> None:
    """Of 1000 steps the last one begins at sd 0.03 of a unit latent; further back there is more of it."""
    gone = []
    for strength in (0.001, 0.03, 0.1, 0.3):
        backbone = label_backbone(flat, 5)
        method = built(
            methods, backbone=backbone, scheduler=factory("ddim", 1000), strength=(strength,), guidance_scale=1.0
        )
        rows = method.plan({"Hernia": 2}, 3)
        assert set(rows["last_steps"]) == {round(1000 * strength)}
        gone.append(float((images(method, rows) - parents(method, rows)).abs().mean()))
    assert gone[0] < 0.01
    assert gone == sorted(gone)
    assert gone[-1] > 10 * gone[0]


def test_the_label_vector_is_the_parents(methods: Methods) -> None:
    method = built(methods)
    rows = method.plan(NEED, 3)
    expected = method.train.table.loc[rows["tail_parent"], list(method.train.findings)]
    np.testing.assert_array_equal(labels(method, rows).to_numpy(), expected.to_numpy(float))
    assert all(expected.iloc[i][finding] == 1 for i, finding in enumerate(rows["finding"]))
    assert rows["parents"].tolist() == [[uid] for uid in rows["tail_parent"]]
    assert (rows["head_parent"] == rows["tail_parent"]).all()
    assert (rows["fold"].to_numpy() == method.train.table.loc[rows["tail_parent"], "fold"].to_numpy()).all()


def test_the_plan_is_the_one_from_noise_with_parents_and_steps(methods: Methods) -> None:
    rows, plain = built(methods).plan(NEED, 3), methods["noise"]().plan(NEED, 3)
    assert tuple(rows.columns) == COLUMNS
    same = ["finding", "slot", "candidate", "seed", "fold", "view", "sex", "age"]
    pd.testing.assert_frame_equal(rows[same].reset_index(drop=True), plain[same].reset_index(drop=True))
    assert rows["tail_parent"].tolist() == plain["label_source"].tolist()
    long = built(methods, num_candidates=300, scheduler=factory("ddim", 50), strength=(0.001, 0.1, 0.25))
    shares = long.plan({"Hernia": 1}, 3)["last_steps"].value_counts(normalize=True)
    assert set(shares.index) == {1, 5, 12}
    assert shares.between(0.25, 0.42).all()


def test_the_control_repeats_the_parents(methods: Methods) -> None:
    from medlt.evaluation.arms import count_matched_control

    method = methods["edit"]()
    rows, table = method.plan(NEED, 3), method.train.table
    known = table[list(method.train.findings)].to_numpy(np.float32)
    pixels = torch.arange(len(table), dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 4, 4)
    real = TrainingSet(pixels, known, np.ones(len(table), np.float32), tuple(table.index))
    control = count_matched_control(rows, real, 0.3)
    at = [list(table.index).index(uid) for uid in rows["tail_parent"]]
    assert control.images[:, 0, 0, 0].tolist() == at
    np.testing.assert_array_equal(control.labels, known[at])


def test_view_sex_and_age_of_the_parent_reach_the_condition(methods: Methods) -> None:
    method = built(methods)
    table = method.train.table.assign(view="PA", sex="F", age=np.arange(len(method.train.table)) + 1.0)
    conditions: list[Any] = []
    inner = method.backbone.condition

    class Spy:
        null, digest = inner.null, inner.digest

        def __call__(self, vectors: Tensor, about: Any = ()) -> Tensor:
            conditions.extend(about)
            return inner(vectors, about)

    backbone = type(method.backbone)(method.backbone.network, Spy(), "sample", 2, "spied")
    collection = TrainTable(table, method.train.findings, method.train.tail)
    spied = built(methods, train=collection, backbone=backbone)
    rows = spied.plan(NEED, 3)
    images(spied, rows)
    expected = table.loc[rows["tail_parent"], ["view", "sex", "age"]].to_dict("records")
    pd.testing.assert_frame_equal(pd.DataFrame(conditions), pd.DataFrame(expected))


def test_a_partner_is_another_patient_with_the_finding_in_the_same_fold_and_view(methods: Methods) -> None:
    table = methods["edit"]().train.table.copy()
    table["view"] = ["PA", None, "AP"] * (len(table) // 3)
    collection = TrainTable(table, methods["edit"]().train.findings, ("Hernia", "Pleural Other"))
    rows = methods["edit"](train=collection, num_candidates=6).plan(NEED, 3)
    mixed = rows[rows["mixing_weight"] > 0]
    a, b = (table.loc[mixed[name]] for name in ("tail_parent", "head_parent"))
    frontal = [part["view"].notna().to_numpy() for part in (a, b)]
    assert 0 < len(mixed) < len(rows)
    assert mixed["mixing_weight"].max() < 0.5
    assert mixed["mixing_weight"].max() > 0.4
    assert (a["patient_id"].to_numpy() != b["patient_id"].to_numpy()).all()
    assert (a["fold"].to_numpy() == b["fold"].to_numpy()).all()
    assert (frontal[0] == frontal[1]).all()
    assert all(table.at[uid, finding] == 1 for uid, finding in zip(mixed["head_parent"], mixed["finding"], strict=True))
    assert mixed["parents"].tolist() == mixed[["tail_parent", "head_parent"]].to_numpy().tolist()
    alone = rows[rows["mixing_weight"] == 0]
    assert alone["parents"].tolist() == [[uid] for uid in alone["tail_parent"]]
    assert (alone["head_parent"] == alone["tail_parent"]).all()


def test_a_mixture_of_two_latents_is_labelled_as_it_is_mixed(methods: Methods) -> None:
    """Under the flat prior the latent is the mixture and its noise; a label known of one parent only is unknown."""
    method = built(methods, backbone=label_backbone(flat, 5), guidance_scale=1.0)
    table, names = method.train.table.copy(), list(method.train.findings)
    a, b = table.index[table["Hernia"] == 1][:2]
    table.loc[[a, b], names[:3]] = [[1.0, 0.0, 1.0], [0.0, np.nan, 1.0]]
    table.loc[[a, b], "No Finding"] = 0.0
    method = built(methods, train=TrainTable(table, method.train.findings, ("Hernia",)),
                   backbone=label_backbone(flat, 5), guidance_scale=1.0)  # fmt: skip
    row = method.plan({"Hernia": 1}, 3).iloc[[0]].assign(tail_parent=a, head_parent=b, mixing_weight=0.25, last_steps=4)
    mixed = labels(method, row).iloc[0]
    assert mixed["Effusion"] == pytest.approx(0.75)
    assert np.isnan(mixed["Mass"])
    assert mixed["Hernia"] == 1
    assert mixed["No Finding"] == 0
    z_a, z_b = method.latents([a]), method.latents([b])
    first = method.scheduler().timesteps[-4]
    noise = noise_like([seed_of("noise", int(row["seed"].iloc[0]))], (2, 8, 8))
    z = 0.75 * z_a + 0.25 * z_b + (1 / ABAR[first] - 1).sqrt() * noise
    expected = method.decode(method.standardiser.back(z))
    torch.testing.assert_close(images(method, row), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("scheduler", ["ddpm", "heun", "unipc", "deis"])
def test_rows_of_many_strengths_keep_their_bytes_under_multistep_schedulers(methods: Methods, scheduler: str) -> None:
    made = factory(scheduler, 10)
    rows = built(methods, scheduler=made).plan(NEED, 3)
    together = images(built(methods, scheduler=made, batch_size=len(rows)), rows)
    assert torch.equal(images(built(methods, scheduler=made, batch_size=7), rows.iloc[::-1]).flip(0), together)
    for i in (0, 5, len(rows) - 1):
        assert torch.equal(images(built(methods, scheduler=made), rows.iloc[[i]])[0], together[i])


def test_call_by_group_calls_equal_rows_together_and_keeps_their_order() -> None:
    met: list[set[int]] = []

    def double(x: Tensor, group: Tensor) -> Tensor:
        met.append(set(group.tolist()))
        return 2 * x + group[:, None]

    x, group = torch.arange(12.0).reshape(6, 2), torch.tensor([3, 1, 3, 2, 1, 3])
    assert torch.equal(call_by_group(double, 1)(x, group), 2 * x + group[:, None])
    assert met == [{1}, {2}, {3}]


def test_bad_parts_are_refused(methods: Methods) -> None:
    for strengths in ((), (0.0,), (0.2, 1.1)):
        with pytest.raises(InputError, match=r"strength is .* give one or more values above 0"):
            built(methods, strength=strengths)
    with pytest.raises(InputError, match=r"mixed is 0.7; give 0 \(no partner\) to 0.5"):
        built(methods, mixed=0.7)
    method = built(methods)
    with pytest.raises(InputError, match="head_parent 'a test row' is not a train row"):
        images(method, method.plan(NEED, 3).assign(head_parent="a test row"))


def test_a_partner_is_any_other_positive_that_fits(methods: Methods) -> None:
    """Against all pairs: another patient with the finding, in the same fold and projection."""
    base = methods["edit"]().train
    views = np.where(np.arange(len(base.table)) % 3, "PA", "LL")
    people = [f"p{i // 2}" for i in range(len(base.table))]
    table = base.table.assign(view=views, patient_id=people, fold=np.arange(len(base.table)) // 2 % 2)
    train = TrainTable(table, base.findings, base.tail)
    rows = built(methods, train=train, mixed=0.5, num_candidates=40).plan(NEED, 3)
    for finding, part in rows.groupby("finding"):
        positive = table.index[table[finding] == 1]
        for source, chosen in part.groupby("tail_parent")["head_parent"]:
            own = table.loc[source]
            fits = [
                uid
                for uid in positive
                if table.at[uid, "patient_id"] != own["patient_id"]
                and (table.at[uid, "fold"], table.at[uid, "view"]) == (own["fold"], own["view"])
            ]
            assert set(chosen) == set(fits or [source])
