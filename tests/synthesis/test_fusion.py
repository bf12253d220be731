"""run is a function of each row alone, and follows the plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from medlt.data.regions import Regions
from medlt.diffusion.schedulers import NAMES, draws_noise, factory
from medlt.localise.measure import FLOOR, GRID, Localisation, Quality
from medlt.localise.trust import Trust
from medlt.rng import noise_like, seed_of
from medlt.synthesis.fuse import coins, fuse, masks
from medlt.synthesis.fusion import PANELS, LatentFusion
from medlt.synthesis.labels import cam_share
from medlt.testing import label_backbone
from medlt.types import Batch, InputError, Synthesizer

Build = Callable[..., LatentFusion]
NEED = {"Hernia": 4, "Pleural Other": 2}


def whole(method: LatentFusion, rows: pd.DataFrame) -> Batch:
    batches = list(method.run(rows))
    return Batch(*(join([getattr(b, name) for b in batches]) for name, join in (
        ("rows", pd.concat), ("images", torch.cat), ("labels", pd.concat))))  # fmt: skip


def test_it_is_a_synthesizer_that_reads_real_images(build: Build) -> None:
    assert isinstance(build(), Synthesizer)
    assert build().reads_real_images is True


def test_a_row_alone_gives_the_bytes_it_gives_among_all(build: Build) -> None:
    method = build()
    rows = method.plan(NEED, 3)
    together = whole(method, rows)
    for i in range(len(rows)):
        alone = whole(method, rows.iloc[[i]])
        assert torch.equal(alone.images[0], together.images[i])
        pd.testing.assert_frame_equal(alone.labels, together.labels.iloc[[i]])
        pd.testing.assert_frame_equal(alone.rows, together.rows.iloc[[i]])


def test_view_sex_and_age_of_the_tail_image_are_in_the_plan_and_reach_the_condition(build: Build) -> None:
    method = build()
    table = method.train.table.assign(view="PA", sex="F", age=np.arange(len(method.train.table)) + 1.0)
    table.loc[table.index[::2], "sex"] = np.nan
    seen: list[Any] = []
    inner = method.backbone.condition

    class Spy:
        null, digest = inner.null, inner.digest

        def __call__(self, labels: torch.Tensor, about: Any = ()) -> torch.Tensor:
            seen.extend(about)
            return inner(labels, about)

    spied = build(train=replace(method.train, table=table), backbone=replace(method.backbone, condition=Spy()))
    rows = spied.plan(NEED, 3)
    list(spied.run(rows))
    expected = table.loc[rows["tail_parent"], ["view", "sex", "age"]].to_dict("records")
    pd.testing.assert_frame_equal(pd.DataFrame(seen), pd.DataFrame(expected))
    pd.testing.assert_frame_equal(rows[["view", "sex", "age"]].reset_index(drop=True), pd.DataFrame(expected))
    assert build().plan(NEED, 3)[["view", "sex", "age"]].isna().all().all()


# dpm++: diffusers calls numpy on tensors in a way numpy 2 deprecates.
@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")
@pytest.mark.parametrize("scheduler", NAMES)
def test_order_and_batch_size_change_nothing(build: Build, scheduler: str) -> None:
    made = factory(scheduler, 75)
    rows = build().plan(NEED, 3)
    straight = whole(build(batch_size=5, scheduler=made), rows)
    turned = whole(build(batch_size=3, scheduler=made), rows.iloc[::-1])
    assert torch.equal(straight.images, turned.images.flip(0))
    pd.testing.assert_frame_equal(straight.labels, turned.labels.iloc[::-1])


@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")
@pytest.mark.parametrize("scheduler", NAMES)
def test_noise_on_the_way_comes_from_the_rows_seed(build: Build, scheduler: str) -> None:
    """All random numbers of refinement come from the seed; without renoising, only a stochastic scheduler uses them."""
    method = build(scheduler=factory(scheduler, 20), renoise=False)
    rows = method.plan({"Hernia": 1}, 3).iloc[[0]]
    fused = method._fuse(rows)
    first, again, other = (method._refine(rows.assign(seed=seed), fused) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    drawn = draws_noise(method.scheduler()) and scheduler != "sa"  # which draws between timesteps 200 and 800 only
    assert torch.equal(first, other) is not drawn


def test_the_plan_survives_parquet(build: Build, tmp_path) -> None:
    method = build()
    rows = method.plan(NEED, 3)
    rows.to_parquet(tmp_path / "plan.parquet")
    read = pd.read_parquet(tmp_path / "plan.parquet")
    pd.testing.assert_frame_equal(rows, read)
    assert torch.equal(whole(method, rows).images, whole(method, read).images)


def test_batches_are_whole(build: Build) -> None:
    rows = build().plan(NEED, 3)
    batch = whole(build(), rows)
    assert batch.images.shape == (len(rows), 1, 16, 16)
    assert batch.images.dtype == torch.float32
    assert batch.images.min() >= 0
    assert batch.images.max() <= 1
    assert batch.rows.index.equals(rows.index)
    assert batch.labels.index.equals(rows.index)
    assert tuple(batch.labels.columns) == build().train.findings
    assert (batch.labels["No Finding"] == 0).all()
    assert batch.rows[["mask_share", "tail_mass"]].stack().between(0, 1).all()


def test_one_row_step_by_step(build: Build) -> None:
    """Guidance, noise, scheduler and un-standardising written out for a single row."""
    method = build(guidance_scale=2.0, labels="tail", difference=None)
    row = method.plan({"Hernia": 1}, 3).iloc[[0]]
    coder, explainer, names = method.coder.eval(), method.explainer, method.train.findings
    with torch.no_grad():
        a, b = (coder.code(method.latents([row[name].iloc[0]])) for name in ("tail_parent", "head_parent"))
        cams = [
            explainer.maps(s, np.array([names.index(row[c].iloc[0])])) for s, c in ((a, "finding"), (b, "head_finding"))
        ]
        tail, generic = masks(*cams, row["tail_threshold"].tolist(), row["head_threshold"].tolist())
        s, omega = fuse(a, b, tail, generic, coins(row["seed"].tolist(), row["tail_probability"].tolist(), (8, 8)))
        z = coder.decode(s)
        scheduler = method.scheduler()
        steps = scheduler.timesteps[-3:]
        abar = scheduler.alphas_cumprod[steps[0]]
        x = abar.sqrt() * z + (1 - abar).sqrt() * noise_like([seed_of("noise", int(row["seed"].iloc[0]))], (2, 8, 8))
        batch = next(iter(method.run(row)))
        prompt = method.backbone.condition(torch.tensor(batch.labels.to_numpy()).float())
        for t in steps.tolist():
            free, conditional = method.backbone.denoiser()(x, t), method.backbone.denoiser(prompt)(x, t)
            x0 = free + 2.0 * (conditional - free)
            x = scheduler.step(x0, t, x).prev_sample
        image = method.decode(method.standardiser.back(x0))
    torch.testing.assert_close(batch.images, image, atol=1e-5, rtol=1e-5)
    assert batch.rows["mask_share"].iloc[0] == pytest.approx(float(omega.float().mean()))
    assert batch.rows["tail_mass"].iloc[0] == pytest.approx(cam_share(cams[0], omega)[0])
    table = method.train.table
    for name in set(names) - {"No Finding"}:
        y_a, y_b = (table.at[row[c].iloc[0], name] for c in ("tail_parent", "head_parent"))
        expected = 1.0 if y_a == 1 else 0.0 if y_b == 0 else np.nan
        assert batch.labels[name].iloc[0] == pytest.approx(expected, nan_ok=True)


def test_a_denoiser_in_codec_space_is_given_codec_latents(build: Build) -> None:
    """A denoiser that returns its input leaves the fused latent alone, in whichever space it works."""

    def still(space: str) -> dict[str, Any]:
        return {"backbone": label_backbone(lambda x, t, c: x, 5, space=space), "strength": 0.05, "renoise": False,
                "difference": None}  # fmt: skip

    rows = build().plan(NEED, 3)
    shown = build(**still("standardised")).explain(rows)
    torch.testing.assert_close(shown["fused"], shown["refined"])
    codec = build(**still("codec")).explain(rows)
    torch.testing.assert_close(codec["refined"], shown["refined"], atol=1e-6, rtol=1e-6)
    seen: list[torch.Tensor] = []

    for space in ("codec", "standardised"):
        spy = label_backbone(lambda x, t, c: (seen.append(x), x)[1], 5, space=space)
        list(build(**still(space) | {"backbone": spy}).run(rows.iloc[:1]))
    torch.testing.assert_close(seen[0][:1], seen[-1][:1] * 2.0 + 0.25)


def measured(method: LatentFusion, low: float = 0.9, curve: np.ndarray = GRID) -> Localisation:
    """The method's own localisation, with this quality for every finding. With L(u) = u, mass is worth itself."""
    one = Quality(max(low, 0.9), low, 1.0, {"somebody": curve})
    return Localisation(method.where.trust, measured={("code", name): one for name in method.train.findings})


def worth_itself(share: float, area: float) -> float:
    """The mass of a map with the floor of calibration."""
    return (1 - FLOOR) * share + FLOOR * area


def test_cam_mass_labels_hold_the_mass_of_a_map_that_is_worth_itself(build: Build) -> None:
    batch = whole(build(labels="cam_mass", localisation=measured(build())), build().plan(NEED, 3))
    assert len(batch.rows) > 0
    for uid, row in batch.rows.iterrows():
        label, share = batch.labels.at[uid, row["finding"]], worth_itself(row["tail_mass"], row["mask_share"])
        assert row["label_mass"] == pytest.approx(share, abs=1e-6)
        assert np.isnan(label) == (0.2 < share < 0.8)
        assert np.isnan(label) or label == pytest.approx(share, abs=1e-6)
    assert (batch.rows["label_reason"] == "").all()


def test_a_map_that_is_measured_to_be_wrong_moves_its_mass_elsewhere(build: Build) -> None:
    """L = 0 up to the last cells: the finding is where the map has least. The label follows, and not the map's mass."""
    rows = build(rule="tail_only").plan(NEED, 3)
    wrong = measured(build(), curve=np.where(GRID < 0.96, 0.0, 25 * (GRID - 0.96)))
    batch = whole(build(rule="tail_only", labels="cam_mass", localisation=wrong), rows)
    assert (batch.rows["label_mass"] < 0.05).all()
    assert batch.rows["tail_mass"].max() > 0.5


@pytest.mark.parametrize(("low", "why"), [(0.5, "at chance"), (0.49, "at chance"), (None, "not measured")])
def test_a_map_at_chance_or_never_measured_gives_no_label(build: Build, low: float | None, why: str) -> None:
    known = build().where if low is None else measured(build(), low)
    rows = build().plan(NEED, 3)
    batch = whole(build(labels="cam_mass", localisation=known), rows)
    assert all(np.isnan(batch.labels.at[uid, finding]) for uid, finding in rows["finding"].items())
    assert set(batch.rows["label_reason"]) == {f"the map of stage code is {why}"}
    assert batch.rows["label_mass"].isna().all()
    kept = whole(build(labels="measured", localisation=known), rows)
    labels = [kept.labels.at[uid, finding] for uid, finding in rows["finding"].items()]
    assert np.isnan(labels).all() if low is not None else labels == [1.0] * len(rows)


def quarter(method: LatentFusion) -> Regions:
    """The finding of every train image is in the upper left quarter."""
    box = np.array([[0.0, 0.0, 0.5, 0.5]])
    return Regions(
        boxes={name: dict.fromkeys(map(str, method.train.table.index), box) for name in method.train.findings}
    )


def test_tail_only_takes_the_largest_cells_of_the_map_and_no_coin(build: Build) -> None:
    method = build(rule="tail_only")
    rows = method.plan(NEED, 3)
    mask = method.explain(rows)["mask"][:, 0, ::2, ::2].bool()
    maps = method.where.trust.locate(rows["tail_parent"].tolist(), rows["finding"].tolist()).maps
    for one, taken, area in zip(maps, mask, rows["tail_area"], strict=True):
        count = min(round(area * 64), int((one > 0).sum()))
        assert int(taken.sum()) == count
        assert count == 0 or one[taken].min() >= one[~taken].max()


def test_a_given_mask_is_taken_whole_and_its_share_is_the_label(build: Build) -> None:
    regions = quarter(build())
    trust = Trust({"mask": lambda uids, finding: regions.masks(uids, finding, (8, 8))}, (8, 8))
    known = Localisation(trust, regions)
    rows = build().plan(NEED, 3)
    for rule in ("cam_mass", "lesion_carried", "measured"):
        batch = whole(build(rule="tail_only", localisation=known, labels=rule), rows)
        assert (batch.rows["localised_by"] == "mask").all()
        assert (batch.rows[["lesion_carried", "label_mass", "tail_mass"]] == 1.0).all(axis=None)
        assert (batch.rows["mask_share"] == 0.25).all()
        assert all(batch.labels.at[uid, finding] == 1 for uid, finding in rows["finding"].items())


def test_the_share_of_a_given_mask_is_measured_whoever_made_the_map(build: Build) -> None:
    method = build()
    rows = method.plan(NEED, 3)
    known = Localisation(method.where.trust, quarter(method))
    batch = whole(build(localisation=known, labels="lesion_carried"), rows)
    mask = method.explain(rows)["mask"][:, 0, ::2, ::2]
    np.testing.assert_allclose(batch.rows["lesion_carried"], mask[:, :4, :4].mean((1, 2)), atol=1e-6)
    np.testing.assert_allclose(batch.rows["label_mass"], batch.rows["lesion_carried"])
    assert (batch.rows["localised_by"] == "code").all()
    assert batch.rows["lesion_carried"].between(0.01, 0.99).any()


def test_a_head_finding_is_weighed_by_its_own_pixels(build: Build) -> None:
    """Its mass is that of its map in the head image, on the pixels that were not taken from the tail image."""
    method = build(localisation=measured(build()))
    rows, table, names = method.plan(NEED, 3), method.train.table, method.train.findings
    batch, mask = whole(method, rows), method.explain(rows)["mask"][:, 0, ::2, ::2].bool()
    weighed = 0
    for i, (uid, row) in enumerate(rows.iterrows()):
        for k, name in enumerate(names[:2]):
            y_a, y_b = (table.at[row[c], name] for c in ("tail_parent", "head_parent"))
            if y_b == 1 and y_a == 0:
                cam = method.explainer.maps_of([row["head_parent"]], np.array([k]))[0].reshape(8, 8)
                rest = ~mask[i].numpy()
                share = worth_itself(cam[rest].sum() / cam.sum(), rest.mean())
                label = batch.labels.at[uid, name]
                assert np.isnan(label) if 0.2 < share < 0.8 else label == pytest.approx(share, abs=1e-5)
                weighed += 1
    assert weighed >= 5


def test_explain_shows_what_run_makes(build: Build) -> None:
    method = build()
    rows = method.plan(NEED, 3)
    shown = method.explain(rows)
    assert tuple(shown) == PANELS
    assert all(panel.shape == (len(rows), 1, 16, 16) for panel in shown.values())
    assert all(0 <= float(panel.min()) and float(panel.max()) <= 1 for panel in shown.values())
    batch = whole(method, rows)
    assert torch.equal(shown["refined"], batch.images)
    share = shown["mask"].mean((1, 2, 3)).numpy()
    assert share == pytest.approx(batch.rows["mask_share"].to_numpy(), abs=1e-6)


def test_the_parents_are_shown_as_they_are_and_decoded_where_their_pixels_are_not_known(build: Build) -> None:
    method = build()
    rows = method.plan(NEED, 3)
    shown, decoded = method.explain(rows), build(difference=None).explain(rows)
    assert method.difference is not None
    for stage in ("tail", "head"):
        uids = rows[f"{stage}_parent"].tolist()
        assert torch.equal(shown[stage], method.difference.pixels(uids))
        tiles = method.decode(method.standardiser.back(method.latents(uids)))
        torch.testing.assert_close(decoded[stage], tiles)
    codes = method.codes(rows)
    for stage in ("tail", "head", "fused"):
        torch.testing.assert_close(codes[f"decoded_{stage}"], decoded[stage])
        assert codes[f"code_{stage}"].dtype == torch.int64
    soft = method.difference.soft(shown["mask"][:, 0].bool(), 16)
    torch.testing.assert_close(shown["fused"][soft == 0], shown["head"][soft == 0])
    assert not torch.equal(shown["fused"], shown["head"])


def test_bad_parts_are_refused(build: Build) -> None:
    method = build()
    rows = method.plan(NEED, 3)
    with pytest.raises(InputError, match="head_parent 'lost' is not a train row"):
        list(method.run(rows.assign(head_parent="lost")))
    with pytest.raises(InputError, match=r"strength is 1\.05"):
        build(strength=1.05)
    with pytest.raises(InputError, match="labels: 'best' is not a rule"):
        list(build(labels="best").run(rows))
    with pytest.raises(InputError, match="cam: 'attention' is unknown"):
        list(build(cam="attention").run(rows))
