"""The contract of every method: the same tests for all of METHODS."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from medlt.checks.sanity import Duplicate
from medlt.checks.separation import parents_of
from medlt.data.manifest import Manifest
from medlt.files import read_table, write_table
from medlt.synthesis import METHODS
from medlt.synthesis.plan import TrainTable
from medlt.types import Batch, InputError, Synthesizer
from medlt.writer import DatasetWriter

NEED = {"Hernia": 4, "Pleural Other": 2}
GUIDES = ("minority", "features", "jepa", "longtail")
Methods = dict[str, Callable[..., Any]]
Guides = dict[str, Callable[..., Any]]


def whole(method: Synthesizer, rows: pd.DataFrame) -> Batch:
    parts = list(method.run(rows))
    tables = [pd.concat([getattr(part, name) for part in parts]) for name in ("rows", "labels")]
    return Batch(tables[0], torch.cat([part.images for part in parts]), tables[1])


def test_every_method_is_built_here(methods: Methods) -> None:
    assert set(methods) == set(METHODS)
    assert all(isinstance(make(), METHODS[name]) and isinstance(make(), Synthesizer) for name, make in methods.items())


@pytest.mark.parametrize("name", METHODS)
def test_equal_seeds_give_equal_images_and_others_others(methods: Methods, name: str) -> None:
    rows = methods[name]().plan(NEED, 3)
    pd.testing.assert_frame_equal(rows, methods[name]().plan(NEED, 3))
    first, again = (whole(methods[name](), rows) for _ in range(2))
    assert torch.equal(first.images, again.images)
    other = methods[name]().plan(NEED, 4)
    assert set(other.index).isdisjoint(rows.index)
    assert not torch.equal(whole(methods[name](), other).images, first.images)


@pytest.mark.parametrize("name", METHODS)
def test_a_row_alone_reversed_and_read_from_disk_gives_its_bytes(methods: Methods, name: str, tmp_path: Path) -> None:
    method = methods[name]()
    rows = method.plan(NEED, 3)
    together = whole(method, rows)
    rows.to_parquet(tmp_path / "plan.parquet")
    turned = whole(methods[name](batch_size=3), pd.read_parquet(tmp_path / "plan.parquet").iloc[::-1])
    assert torch.equal(together.images, turned.images.flip(0))
    for i in range(len(rows)):
        alone = whole(method, rows.iloc[[i]])
        assert torch.equal(alone.images[0], together.images[i])
        pd.testing.assert_frame_equal(alone.labels, together.labels.iloc[[i]])


@pytest.mark.parametrize("name", METHODS)
def test_train_rows_may_have_any_uid_from_plan_to_manifest(methods: Methods, name: str, tmp_path: Path) -> None:
    """Uids with blanks, commas, quotes and any letters: planned, read from disk, made, checked, written, published."""
    plain = methods[name]()
    rows = plain.train
    called = {uid: f'Viral Pneumonia-{i}, "é\u4f8b"' for i, uid in enumerate(rows.table.index)}
    own = {new: old for old, new in called.items()}
    changed: dict[str, Any] = {"train": TrainTable(rows.table.rename(index=called), rows.findings, rows.tail)}
    if name in ("fusion", "edit"):
        changed["latents"] = lambda uids: plain.latents([own[uid] for uid in uids])
    method = methods[name](**changed)
    write_table(tmp_path / "plan.parquet", method.plan(NEED, 3))
    plan = read_table(tmp_path / "plan.parquet")
    batch = whole(method, plan)
    read = parents_of(batch.rows)
    assert {uid for uids in read for uid in uids} <= set(called.values())
    assert all(len(uids) == (2 if name in ("fusion", "recompose") else len(uids)) >= 1 for uids in read)
    results = Duplicate(lambda uids: torch.rand(len(uids), 1, 16, 16))(batch)
    writer = DatasetWriter(tmp_path, models="untrained")
    writer.write(plan, batch, results, list(plan.index))
    kept = writer.kept()
    pd.testing.assert_series_equal(parents_of(kept), read)
    assert kept["seed"].tolist() == plan["seed"].tolist()
    new = {"patient_id": kept.index, "split": "train", "view": "PA", "synthetic": True}
    Manifest(kept.assign(**new), rows.findings, tmp_path).write(tmp_path / "manifest.parquet")
    pd.testing.assert_series_equal(parents_of(Manifest.read(tmp_path / "manifest.parquet").rows), read)


@pytest.mark.parametrize("name", METHODS)
def test_batches_are_whole(methods: Methods, name: str) -> None:
    method = methods[name]()
    rows = method.plan(NEED, 3)
    batch = whole(method, rows)
    assert batch.images.shape == (len(rows), 1, 16, 16)
    assert batch.images.dtype == torch.float32
    assert bool(batch.images.isfinite().all())
    assert batch.images.min() >= 0
    assert batch.images.max() <= 1
    assert list(batch.rows.index) == list(batch.labels.index) == list(rows.index)
    assert tuple(batch.labels.columns) == method.train.findings
    assert ((batch.labels >= 0) & (batch.labels <= 1) | batch.labels.isna()).all(axis=None)


@pytest.mark.parametrize("name", METHODS)
def test_the_plan_counts_and_grows_without_changing(methods: Methods, name: str) -> None:
    short, long = (methods[name]().plan({"Hernia": n, "Pleural Other": 0}, 3) for n in (2, 5))
    assert set(short["finding"]) == {"Hernia"}
    assert sorted(short["slot"].unique()) == [0, 1]
    assert len(short) == 2 * short["candidate"].nunique()
    pd.testing.assert_frame_equal(long.iloc[: len(short)], short)
    assert long.index.is_unique
    assert long["seed"].is_unique


@pytest.mark.parametrize("name", METHODS)
def test_rows_that_are_not_train_rows_are_refused(methods: Methods, name: str) -> None:
    method = methods[name]()
    rows, column = method.plan(NEED, 3), "tail_parent" if method.reads_real_images else "label_source"
    assert rows[column].isin(method.train.table.index).all()
    with pytest.raises(InputError, match="is not a train row"):
        list(method.run(rows.assign(**{column: "a test row"})))
    with pytest.raises(InputError, match="not a tail finding"):
        method.plan({"Mass": 1}, 0)


@pytest.mark.parametrize("name", METHODS)
def test_guidance_scale_one_is_the_conditional_denoiser_alone(methods: Methods, name: str) -> None:
    """At scale 1 the network gets as many rows as there are, at any other scale twice as many."""
    sizes: dict[float, set[int]] = {1.0: set(), 2.0: set()}
    for weight, seen in sizes.items():
        method = methods[name](guidance_scale=weight, guidance=())
        answer = method.backbone.network.answer
        method.backbone.network.answer = lambda x, t, c, answer=answer, seen=seen: (seen.add(len(x)), answer(x, t, c))[
            1
        ]
        whole(method, method.plan({"Hernia": 1}, 0))
    assert {2 * n for n in sizes[1.0]} == sizes[2.0]


@pytest.mark.parametrize("name", METHODS)
def test_the_guidance_interval_reaches_the_sampler_of_every_method(methods: Methods, name: str) -> None:
    """An empty one makes the images of the conditional network, the whole one those of guidance at every step."""
    own = methods[name](guidance=())
    rows = own.plan({"Hernia": 2}, 3)
    bare, guided = whole(methods[name](guidance=(), guidance_scale=1.0), rows).images, whole(own, rows).images
    for interval, expected in (((0.0, 1.0), guided), ((1.0, 1.0), bare)):
        assert torch.equal(whole(methods[name](guidance=(), guidance_interval=interval), rows).images, expected)
    some = whole(methods[name](guidance=(), guidance_interval=(0.0, 0.1)), rows).images
    assert not torch.equal(some, bare)
    assert not torch.equal(some, guided)


@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("name", METHODS)
def test_a_guide_of_weight_zero_is_no_guide_bit_for_bit(
    methods: Methods, guides: Guides, name: str, guide: str
) -> None:
    assert set(guides) == set(GUIDES)
    bare, off, on = (methods[name](guidance=g) for g in ((), (guides[guide](weight=0.0),), (guides[guide](),)))
    rows = bare.plan({"Hernia": 2}, 3)
    images = whole(bare, rows).images
    assert torch.equal(whole(off, rows).images, images)
    assert not torch.equal(whole(on, rows).images, images)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_with_other_guides_differs_in_nothing_else(methods: Methods, guides: Guides, name: str) -> None:
    bare, other = methods[name](guidance=()), (guides["minority"](),)
    rows, built = bare.plan({"Hernia": 2}, 3), methods[name](guidance=other)
    changed = bare.with_guidance(other)
    assert (type(changed), changed.guidance, bare.guidance) == (type(bare), other, ())
    assert torch.equal(whole(changed, rows).images, whole(built, rows).images)
    assert torch.equal(whole(changed.with_guidance(()), rows).images, whole(bare, rows).images)


@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_explains_are_images_of_its_rows(methods: Methods, name: str) -> None:
    method = methods[name]()
    rows = method.plan({"Hernia": 1}, 3)
    assert all(images.shape == (len(rows), 1, 16, 16) for images in method.explain(rows).values())
    assert bool(method.explain(rows)) == (name in ("fusion", "recompose"))


@pytest.mark.parametrize("name", METHODS)
def test_guides_compose_and_a_row_keeps_its_bytes(methods: Methods, guides: Guides, name: str) -> None:
    """Classifier-free guidance, minority and longtail guidance on any start, alone and in company."""
    both = (guides["minority"](), guides["longtail"]())
    method = methods[name](guidance=both)
    rows = method.plan(NEED, 3)
    together = whole(method, rows).images
    assert torch.equal(whole(methods[name](guidance=both, batch_size=2), rows.iloc[::-1]).images.flip(0), together)
    assert torch.equal(whole(method, rows.iloc[[3]]).images[0], together[3])
    for alone in both:
        assert not torch.equal(whole(methods[name](guidance=(alone,)), rows).images, together)


GUIDED = [name for name in METHODS if name not in ("fusion", "recompose", "diffult", "edit", "evolution")]


@pytest.mark.parametrize("kind", GUIDED)
def test_methods_that_only_guide_share_the_unguided_samplers_plan(methods: Methods, kind: str) -> None:
    """So that the same row with and without guidance can be laid side by side."""
    rows, plain = (methods[name]().plan(NEED, 3) for name in (kind, "noise"))
    shared = [column for column in rows if column != "uid"]
    pd.testing.assert_frame_equal(rows[shared].reset_index(drop=True), plain[shared].reset_index(drop=True))


def test_guides_that_want_the_network_gradient_compose(methods: Methods, guides: Guides) -> None:
    """A guide outside differentiates through the ones inside, also where one forward serves both."""
    both = (guides["minority"](), guides["longtail"](network=True))
    method = methods["noise"](guidance=both, guidance_scale=1.0)
    rows = method.plan({"Hernia": 2}, 3)
    assert bool(whole(method, rows).images.isfinite().all())
