"""Recomposition: real pixels to the bit, labels by what was carried and covered, heads in turn."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from medlt.data.regions import Regions
from medlt.localise.given import Given
from medlt.localise.measure import Localisation
from medlt.localise.trust import Trust
from medlt.synthesis.composite import composite
from medlt.synthesis.labels import recomposed_labels
from medlt.synthesis.lesions import Move, Variety
from medlt.synthesis.plan import TrainTable
from medlt.synthesis.recompose import VARIANTS, Recomposition
from medlt.types import Batch, InputError

NEED = {"Hernia": 8, "Pleural Other": 4}
BARE = {"strength": 0.0, "backbone": None, "standardiser": None, "encode": None, "decode": None, "scheduler": None}
STILL = {"variety": Variety(scale=1.0, rotation=0.0, shift=0.0)}
Methods = dict[str, Callable[..., Any]]
nan = float("nan")


def whole(method: Recomposition, rows: pd.DataFrame) -> Batch:
    parts = list(method.run(rows))
    tables = [pd.concat([getattr(part, name) for part in parts]) for name in ("rows", "labels")]
    return Batch(tables[0], torch.cat([part.images for part in parts]), tables[1])


def real(method: Recomposition, rows: pd.DataFrame, column: str) -> Tensor:
    return method.difference.pixels(rows[column].tolist())


def boxed(boxes: dict[str, dict[str, list[list[float]]]]) -> Localisation:
    """Localisation by boxes alone."""
    arrays = {finding: {uid: np.array(one) for uid, one in of.items()} for finding, of in boxes.items()}
    regions = Regions(boxes=arrays)
    return Localisation(Trust({"box": Given(regions, "box", (8, 8))}, (8, 8)), regions)


def made(methods: Methods, **changed: Any) -> Recomposition:
    method: Recomposition = methods["recompose"](**changed)
    return method


def lower_left(method: Recomposition, finding: str = "Hernia") -> Localisation:
    return boxed({finding: {uid: [[0.0, 0.75, 0.25, 1.0]] for uid in method.train.positive(finding)}})


@pytest.mark.parametrize("strength", [0.0, 0.5])
@pytest.mark.parametrize("variant", VARIANTS)
def test_pixels_that_nobody_changed_are_real_to_the_bit(methods: Methods, variant: str, strength: float) -> None:
    if not strength and variant in ("lesion", "surroundings"):
        with pytest.raises(InputError, match="needs a denoiser; give a strength above 0"):
            made(methods, variant=variant, **BARE)
        return
    method = made(methods, variant=variant, where=lower_left(made(methods)), **STILL, **({} if strength else BARE))
    rows = method.plan({"Hernia": 6}, 3)
    batch, panels = whole(method, rows), method.explain(rows)
    kept = real(method, rows, "tail_parent" if variant == "surroundings" else "head_parent")
    same = panels["mask"] == 0
    lesion, away = same[..., 12:, :4], same[..., :8, 10:]
    assert bool(lesion.all() if variant == "surroundings" else away.all())
    assert not bool(away.any() if variant == "surroundings" else lesion.any())
    assert torch.equal(batch.images[same], kept[same])
    assert not torch.equal(batch.images, kept)
    assert torch.equal(batch.images, panels["refined"])
    if not strength:
        assert torch.equal(batch.images, panels["fused"])


@pytest.mark.parametrize("seam", ["feather", "poisson"])
def test_a_still_paste_is_the_composite_under_the_given_box(methods: Methods, seam: str) -> None:
    base = made(methods)
    chosen = type(base.difference)(base.difference.pixels, base.difference.starts, 0.2, seam)
    method = made(methods, where=lower_left(base), difference=chosen, **BARE, **STILL)
    rows = method.plan({"Hernia": 4}, 3)
    mask = torch.zeros(8, 16, 16, dtype=torch.bool)
    mask[:, 12:, :4] = True
    expected = composite(real(method, rows, "head_parent"), real(method, rows, "tail_parent"),
                         chosen.soft(mask, 16), seam)  # fmt: skip
    assert torch.equal(whole(method, rows).images, expected)


def test_a_half_is_the_tail_images_half(methods: Methods) -> None:
    """The box is in the left half, which shows the patient's right."""
    sharp = made(methods).difference.__class__(
        made(methods).difference.pixels, made(methods).difference.starts, 0.0, "feather"
    )
    method = made(methods, variant="half", where=lower_left(made(methods)), difference=sharp, **BARE)
    rows = method.plan({"Hernia": 4}, 3)
    images = whole(method, rows).images
    assert torch.equal(images[..., :8], real(method, rows, "tail_parent")[..., :8])
    assert torch.equal(images[..., 8:], real(method, rows, "head_parent")[..., 8:])
    other = made(methods, variant="half", side="left", difference=sharp, **BARE)
    assert torch.equal(whole(other, rows).images[..., 8:], real(method, rows, "tail_parent")[..., 8:])


@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_of_every_variant_keep_their_bytes(methods: Methods, variant: str) -> None:
    method = made(methods, variant=variant, where=lower_left(made(methods)), num_candidates=1)
    rows = method.plan({"Hernia": 5}, 3)
    together = whole(method, rows)
    turned = whole(made(methods, variant=variant, where=method.where, batch_size=2), rows.iloc[::-1])
    assert torch.equal(turned.images.flip(0), together.images)
    alone = whole(method, rows.iloc[[2]])
    assert torch.equal(alone.images[0], together.images[2])
    pd.testing.assert_frame_equal(alone.labels, together.labels.iloc[[2]])
    pixels = {"paste": 2, "half": 2, "lesion": 1, "surroundings": 1}
    assert {len(uids) for uids in rows["parents"]} == {pixels[variant]}


def test_every_compatible_head_is_used_once_before_any_twice(methods: Methods) -> None:
    method = made(methods, matched=1.0, num_candidates=1, **BARE)
    rows = method.plan({"Hernia": 60}, 3)
    heads = method._heads("Hernia")
    seen: dict[str, int] = {}
    for tail, head in zip(rows["tail_parent"], rows["head_parent"], strict=True):
        assert head in heads[tail]
        assert seen.get(head, 0) == min(seen.get(one, 0) for one in heads[tail])
        seen[head] = seen.get(head, 0) + 1
    possible = {one for some in heads.values() for one in some}
    assert set(seen) == possible
    assert len(possible) == len(set(seen)) > 8
    assert max(seen.values()) - min(seen.values()) <= 1


def test_a_head_is_healthy_of_another_patient_and_of_one_fold(methods: Methods) -> None:
    method = made(methods)
    rows, table = method.plan(NEED, 3), method.train.table
    tail, head = (table.loc[rows[name]] for name in ("tail_parent", "head_parent"))
    assert (tail["patient_id"].to_numpy() != head["patient_id"].to_numpy()).all()
    assert (tail["fold"].to_numpy() == head["fold"].to_numpy()).all()
    assert (rows["fold"].to_numpy() == head["fold"].to_numpy()).all()
    assert all(table.at[uid, finding] == 0 for uid, finding in zip(rows["head_parent"], rows["finding"], strict=True))
    assert all(table.at[uid, finding] == 1 for uid, finding in zip(rows["tail_parent"], rows["finding"], strict=True))


def test_images_that_nobody_can_place_are_left_out_with_one_line(
    methods: Methods, caplog: pytest.LogCaptureFixture
) -> None:
    method = made(methods)
    placed = method.train.positive("Hernia")[:4]
    some = made(methods, where=boxed({"Hernia": {uid: [[0.1, 0.1, 0.4, 0.4]] for uid in placed}}), **BARE)
    with caplog.at_level(logging.WARNING):
        rows = some.plan({"Hernia": 8}, 3)
    assert set(rows["tail_parent"]) == set(placed)
    assert [one.message for one in caplog.records] == [
        "recompose: 6 of 10 images with Hernia have no usable mask, box, side or map and are left out"
    ]
    with pytest.raises(InputError, match="no image with Pleural Other has a usable mask, box, side or map; give masks"):
        some.plan({"Pleural Other": 1}, 3)


def test_without_a_head_in_the_fold_there_is_one_clear_error(methods: Methods) -> None:
    rows = made(methods).train
    alone = rows.table.assign(fold=np.where(rows.table["Hernia"] == 1, 0, 1))
    method = made(methods, train=TrainTable(alone, rows.findings, rows.tail), **BARE)
    with pytest.raises(InputError, match="no image with Hernia has a head in its fold and projection; lower"):
        method.plan({"Hernia": 1}, 3)


def test_bounds_of_a_finding_decide_its_label() -> None:
    """A finding of tail and head, 8 cases: what must be there, and what can be."""
    y_tail = np.array([[1, 1, 0, 0, nan, nan, 0, 1.0]])
    y_head = np.array([[0, 0, 1, 1, 0, 0, nan, nan]])
    taken = np.array([[0.9, 0.5, 0.9, 0.9, 0.1, 0.5, 0.1, 0.9]])
    left = np.array([[0.1, 0.9, 0.9, 0.5, 0.9, 0.9, 0.9, 0.9]])
    expected = np.array([[1, nan, 1, nan, 0, nan, nan, 1]], np.float32)
    np.testing.assert_array_equal(recomposed_labels(y_tail, y_head, taken, left), expected)
    unknown = recomposed_labels(np.array([[1.0, 0.0]]), np.array([[0.0, 0.0]]), np.full((1, 2), nan), np.ones((1, 2)))
    np.testing.assert_array_equal(unknown, [[nan, 0]])
    assert recomposed_labels(y_tail, y_head, taken, left, 0)[0, 0] == 0


def two(methods: Methods, boxes: Callable[[str, str], dict[str, dict[str, list[list[float]]]]], **labels: Any) -> Any:
    """One row of a tail image with Hernia and a head image, their labels, and boxes of (tail, head)."""
    method = made(methods, num_candidates=1, **BARE, **STILL)
    tail = method.train.positive("Hernia")[0]
    rows = method.plan({"Hernia": 1}, 3)
    head = str(rows["head_parent"].iloc[0])
    rows = rows.assign(tail_parent=tail)
    table = method.train.table.copy()
    table.loc[[tail, head], ["Effusion", "Mass", "Pleural Other", "No Finding"]] = 0.0
    table.loc[tail, "Hernia"], table.loc[head, "Hernia"] = 1.0, 0.0
    for name, (of_tail, of_head) in labels.items():
        table.loc[[tail, head], name] = [of_tail, of_head]
    train = TrainTable(table, method.train.findings, ("Hernia",))
    settled = made(methods, train=train, where=boxed(boxes(tail, head)), **BARE, **STILL)
    return whole(settled, rows)


SMALL, LARGE, AWAY = [[0.1, 0.1, 0.35, 0.35]], [[0.0, 0.0, 0.5, 0.5]], [[0.6, 0.6, 0.9, 0.9]]


def test_labels_are_the_lesions_finding_and_the_heads_own(methods: Methods) -> None:
    batch = two(methods, lambda tail, head: {"Hernia": {tail: SMALL}, "Mass": {head: AWAY}},
                Mass=(0.0, 1.0), Effusion=(0.0, nan))  # fmt: skip
    labels = batch.labels.iloc[0]
    assert labels[["Hernia", "Mass", "Pleural Other", "No Finding"]].tolist() == [1, 1, 0, 0]
    assert np.isnan(labels["Effusion"])
    row = batch.rows.iloc[0]
    assert row["localised_by"] == "box"
    assert row["lesion_carried"] == row["label_mass"] == 1.0
    assert row["label_reason"] == ""


def test_a_finding_of_the_head_that_the_lesion_covers_is_unknown(methods: Methods) -> None:
    batch = two(methods, lambda tail, head: {"Hernia": {tail: LARGE}, "Mass": {head: SMALL}}, Mass=(0.0, 1.0))
    assert batch.labels["Hernia"].item() == 1
    assert batch.labels["Mass"].item() == 0  # all of it is covered
    half = [[0.35, 0.1, 0.65, 0.3]]
    batch = two(methods, lambda tail, head: {"Hernia": {tail: LARGE}, "Mass": {head: half}}, Mass=(0.0, 1.0))
    assert np.isnan(batch.labels["Mass"].item())


def test_another_finding_of_the_tail_image_counts_by_what_was_taken_of_it(methods: Methods) -> None:
    for box, expected in ((SMALL, 1.0), (AWAY, 0.0), ([[0.3, 0.1, 0.7, 0.3]], nan)):
        batch = two(methods, lambda tail, _, box=box: {"Hernia": {tail: LARGE}, "Mass": {tail: box}}, Mass=(1.0, 0.0))
        np.testing.assert_equal(batch.labels["Mass"].item(), expected)
    # its place is unknown: a small lesion hardly takes any of it, half an image may
    assert two(methods, lambda tail, head: {"Hernia": {tail: SMALL}}, Mass=(1.0, 0.0)).labels["Mass"].item() == 0
    wide = [[0.0, 0.0, 1.0, 0.5]]
    assert np.isnan(two(methods, lambda tail, head: {"Hernia": {tail: wide}}, Mass=(1.0, 0.0)).labels["Mass"].item())


def test_a_lesion_that_leaves_the_image_has_no_hard_label(methods: Methods) -> None:
    method = made(methods, where=lower_left(made(methods)), **BARE)
    rows = method.plan({"Hernia": 1}, 3).iloc[[0]].assign(**{**vars(Move()), "right": -0.125})
    batch = whole(method, rows)
    assert np.isnan(batch.labels["Hernia"].item())
    assert batch.rows["label_mass"].item() == pytest.approx(0.5)
    assert batch.rows["label_reason"].item() == "0.50 of the finding was carried"


def test_redrawn_surroundings_keep_no_other_positive_label(methods: Methods) -> None:
    method = made(methods, variant="surroundings")
    rows = method.plan({"Hernia": 10}, 3)
    batch, table = whole(method, rows), method.train.table
    known = table.loc[rows["tail_parent"], list(method.train.findings)].to_numpy()
    own, labels = batch.labels["Hernia"].to_numpy(), batch.labels.to_numpy()
    assert (own == 1).all()
    others = [i for i, name in enumerate(method.train.findings) if name not in ("Hernia", "No Finding")]
    assert np.isnan(labels[:, others][known[:, others] == 1]).all()
    assert (labels[:, others][known[:, others] == 0] == 0).all()
    assert (known[:, others] == 1).any()


def test_the_lesion_variant_reads_no_pixel_of_the_case_that_gave_the_mask(methods: Methods) -> None:
    method = made(methods, variant="lesion", where=lower_left(made(methods)))
    rows = method.plan({"Hernia": 4}, 3)
    batch = whole(method, rows)
    assert (batch.labels["Hernia"] == 1).all()
    assert batch.rows["lesion_carried"].isna().all()
    assert rows["parents"].tolist() == [[uid] for uid in rows["head_parent"]]
    dark = method.difference.pixels

    def blacked(uids: Sequence[str]) -> Tensor:
        return torch.stack([dark([uid])[0] * (uid not in set(rows["tail_parent"])) for uid in uids])

    other = type(method.difference)(blacked, method.difference.starts, 0.1)
    again = made(methods, variant="lesion", where=method.where, difference=other)
    assert torch.equal(whole(again, rows).images, batch.images)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_denoiser_keeps_the_known_latent(methods: Methods, variant: str) -> None:
    """The lesion is in the cells of the lower left; the latent ends at its start in all cells that may not change."""
    latents: list[Tensor] = []
    method = made(methods, variant=variant, where=lower_left(made(methods)), **STILL)
    rows, decode = method.plan({"Hernia": 2}, 3), method.decode

    def recorded(z: Tensor) -> Tensor:
        latents.append(z)
        assert decode is not None
        return decode(z)

    recording = made(methods, variant=variant, where=method.where, decode=recorded, **STILL)
    whole(recording, rows)
    assert method.encode is not None
    moved = (torch.cat(latents) - method.encode(method.explain(rows)["fused"])).abs().amax(1)
    lesion, away = moved[:, 6:, :2], moved[:, :4, 5:]
    kept, free = (lesion, away) if variant == "surroundings" else (away, lesion)
    assert float(kept.max()) < 1e-5
    assert float(free.min()) > 1e-4


def test_without_a_strength_no_part_of_a_denoiser_is_needed(methods: Methods) -> None:
    method = made(methods, **BARE)
    assert whole(method, method.plan(NEED, 3)).images.isfinite().all()
    with pytest.raises(InputError, match="'swap' is not a variant; choose one of paste, half, lesion, surroundings"):
        made(methods, variant="swap")
