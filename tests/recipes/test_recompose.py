"""Recomposition end to end: real bytes outside the mask, nothing trained that is not needed, every variant."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from medlt.config import Recompose, RunConfig, parse
from medlt.data.manifest import Manifest
from medlt.recipes._cohort import open_cohort
from medlt.recipes._learn import learn
from medlt.recipes._localise import localise
from medlt.recipes._methods import build_method
from medlt.recipes._setup import opened
from medlt.recipes.augment import check, main
from medlt.training.runtime import silent
from medlt.types import InputError
from medlt.writer import to_uint8

Tiny = Callable[[Path], RunConfig]


def changed(tiny: Tiny, out: Path, **method: Any) -> RunConfig:
    """The tiny config with recomposition on pixels of the phantom."""
    config = tiny(out).model_dump(mode="json", exclude={"method", "codec", "checks"})
    checks = {"folds": 2, "verifier_quantile": 0.01}
    localised = {"networks": 2, "steps": 4}
    return parse(config | {"method": {"kind": "recompose", "localise": localised} | method, "checks": checks,
                           "codec": {"kind": "identity", "patch": 4}})  # fmt: skip


@pytest.fixture(scope="module", params=[None, 64], ids=["at the size of the run", "at twice that size"])
def image_size(request: pytest.FixtureRequest) -> int | None:
    size: int | None = request.param
    return size


@pytest.fixture(scope="module")
def pasted(tiny: Tiny, image_size: int | None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return main(changed(tiny, tmp_path_factory.mktemp("pasted") / "run", image_size=image_size))


def test_a_paste_trains_no_codec_no_denoiser_no_sparse_code_and_no_map(pasted: Path) -> None:
    """Every positive of the phantom has its mask. The verifiers remain."""
    record = json.loads((pasted / "run.json").read_text())
    assert set(record["digests"]) == {"manifest", "codec", "localise"}
    kinds = {folder.name for folder in (pasted / "artifacts").iterdir()}
    assert not {"denoiser", "sparse", "code_classifier", "codec"} & kinds
    assert len(list((pasted / "artifacts" / "classifier").glob("*/*.safetensors"))) == 2


def test_saved_images_are_the_heads_bytes_outside_the_mask(
    pasted: Path, image_size: int | None, tiny: Tiny, method_of: Callable[[RunConfig], Any]
) -> None:
    plan = pd.read_parquet(pasted / "plan.parquet")
    kept = [path.stem for path in sorted((pasted / "images").glob("*.png"))]
    assert kept
    rows, method = plan.loc[kept], method_of(changed(tiny, pasted, image_size=image_size))
    real, panels = method.difference.pixels(rows["head_parent"].tolist()), method.explain(rows)
    stored = np.stack([np.asarray(Image.open(pasted / "images" / f"{uid}.png")) for uid in kept])
    outside = panels["mask"][:, 0].numpy() == 0
    assert stored.shape[1:] == (image_size or 32,) * 2
    np.testing.assert_array_equal(stored[outside], to_uint8(real)[outside])
    np.testing.assert_array_equal(stored, to_uint8(panels["refined"]))
    assert (stored != to_uint8(real)).any((1, 2)).all()
    assert 0.1 < outside.mean() < 1


def test_pasted_rows_say_what_they_carry(pasted: Path) -> None:
    rows = Manifest.read(pasted / "manifest.parquet").rows
    made = rows[rows["synthetic"]]
    assert (made["method"] == "recompose").all()
    assert (made["localised_by"] == "mask").all()
    own = np.array([row[row["finding"]] for _, row in made.iterrows()], float)
    unsure = np.isnan(own)
    assert (own[~unsure] == 1).all()
    assert (made["label_mass"][~unsure] >= 0.8).all()
    assert (made["label_reason"][unsure] != "").all()
    patients = [rows.loc[made[name], "patient_id"].to_numpy() for name in ("tail_parent", "head_parent")]
    assert (patients[0] != patients[1]).all()
    table = pd.read_parquet(pasted / "localisation.parquet")
    assert "lesion_carried" in set(table["metric"])


@pytest.mark.parametrize("variant", ["paste", "half", "lesion", "surroundings"])
def test_every_variant_refines_with_the_denoiser_of_a_run(
    variant: str, tiny: Tiny, trained: Path, tmp_path: Path, method_of: Callable[[RunConfig], Any]
) -> None:
    config = tiny(tmp_path / "run").model_dump(mode="json", exclude={"method", "checks", "artifacts_dir"})
    method = {"kind": "recompose", "variant": variant, "strength": 0.5, "num_inference_steps": 6}
    made = method_of(parse(config | {"method": method, "artifacts_dir": str(trained), "checks": {"folds": 2}}))
    need = dict.fromkeys(made.train.tail[:2], 2)
    rows = made.plan(need, 3)
    batches, panels = list(made.run(rows)), made.explain(rows)
    images = np.concatenate([to_uint8(batch.images) for batch in batches])
    kept = to_uint8(
        made.difference.pixels(rows["tail_parent" if variant == "surroundings" else "head_parent"].tolist())
    )
    same = panels["mask"][:, 0].numpy() == 0
    np.testing.assert_array_equal(images[same], kept[same])
    assert (images != kept).any((1, 2)).all()


@pytest.mark.parametrize("kind", ["edit", "fusion", "lesion"])
def test_a_larger_image_has_real_pixels_and_the_enlarged_change_of_the_small_one(
    kind: str, tiny: Tiny, trained: Path, tmp_path: Path, method_of: Callable[[RunConfig], Any]
) -> None:
    config = tiny(tmp_path / "run").model_dump(mode="json", exclude={"method", "checks", "artifacts_dir", "output_dir"})
    chosen = {
        "edit": {"kind": "edit", "strength": 0.5},
        "fusion": {"kind": "fusion", "strength": 0.5, "feather": 0, "localise": {"order": ["mask"]}},
        "lesion": {"kind": "recompose", "variant": "lesion", "strength": 0.5, "feather": 0},
    }[kind] | {"num_inference_steps": 6}
    small, large = (
        method_of(parse(config | {"method": chosen | {"image_size": size}, "artifacts_dir": str(trained),
                                  "output_dir": str(tmp_path / str(size)), "checks": {"folds": 2}}))
        for size in (None, 64)
    )  # fmt: skip
    rows = small.plan(dict.fromkeys(small.train.tail[:2], 2), 3)
    a, b = (torch.cat([batch.images for batch in one.run(rows)]) for one in (small, large))
    assert a.shape[-1] == 32
    assert b.shape[-1] == 64
    parent = "tail_parent" if kind == "edit" else "head_parent"
    changes = [image - one.difference.pixels(rows[parent].tolist()) for one, image in ((small, a), (large, b))]
    if kind == "edit":
        clipped = interpolate(((a == 0) | (a == 1)).float(), (64, 64), mode="bilinear") > 0
        clear = ~clipped & (b > 0) & (b < 1)
        torch.testing.assert_close(changes[1][clear], interpolate(changes[0], (64, 64), mode="bilinear")[clear])
        assert clear.float().mean() > 0.2
    else:
        untouched = large.explain(rows)["mask"] == 0
        assert (changes[1][untouched] == 0).all()
        assert (changes[1] != 0).flatten(1).any(1).all()
        assert 0.1 < untouched.float().mean() < 1


@pytest.mark.parametrize(
    "method",
    [{"image_size": 16}, {"kind": "edit", "image_size": 64, "decoding": "plain"}],
)
def test_a_size_that_real_pixels_cannot_have_is_refused(method: dict[str, Any], tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(tmp_path / "run").model_dump(mode="json", exclude={"method"}) | {"size": 128}
    with pytest.raises(InputError, match="image_size"):
        parse(config | {"method": {"kind": "recompose"} | method})


def test_half_an_image_needs_a_side_and_no_map(tiny: Tiny, tmp_path: Path) -> None:
    """Masks are taken away; the column side_FINDING, or one side for all, then says enough."""
    config = changed(tiny, tmp_path / "run", variant="half")
    with opened(config, silent) as run:
        learnt = learn(run, open_cohort(run, check(config)))
        manifest = learnt.cohort.manifest.without_regions()
        finding = learnt.cohort.tail[0]
        sides = pd.Series("left", manifest.rows.index)
        rows = manifest.rows.assign(**{f"side_{name}": sides for name in learnt.cohort.tail})
        cohort = type(learnt.cohort)(
            Manifest(rows, manifest.findings, manifest.root), learnt.cohort.targets, pixels=learnt.cohort.pixels
        )
        bare = type(learnt)(cohort, learnt.latents, learnt.verifiers, None)
        before = set(run.store.folders("classifier"))
        by_side = localise(run, bare, Recompose(variant="half"), None)
        uids = cohort.train.rows.index[cohort.train.rows[finding] == 1].tolist()
        located = by_side.localisation.trust.locate(uids, [finding] * len(uids))
        assert set(located.stages) == {"side"}
        middle = located.maps.shape[-1] // 2
        assert bool((located.maps[..., middle:] == 1).all())
        assert bool((located.maps[..., :middle] == 0).all())
        given = localise(run, bare, Recompose(variant="half", side="right"), None)
        assert given.digest != by_side.digest or given.localisation.measured == {}
        assert set(run.store.folders("classifier")) == before


def test_the_stage_code_needs_the_sparse_code(tiny: Tiny, tmp_path: Path) -> None:
    config = changed(tiny, tmp_path / "run")
    with opened(config, silent) as run:
        learnt = learn(run, open_cohort(run, check(config)))
        stripped = learnt.cohort.manifest.without_regions()
        cohort = type(learnt.cohort)(stripped, learnt.cohort.targets, pixels=learnt.cohort.pixels)
        bare = type(learnt)(cohort, learnt.latents, learnt.verifiers, None)
        by_code = Recompose.model_validate({"localise": {"order": ["code"]}})
        with pytest.raises(InputError, match="stage code needs the sparse code; remove it"):
            localise(run, bare, by_code, None).localisation.trust.locate(["u"], [cohort.tail[0]])
        named = build_method(run, learnt)
        assert "sparse" not in named.models


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"variant": "lesion"}, "variant lesion needs a denoiser; give a strength above 0, such as 0.6"),
        (
            {"guidance": [{"kind": "minority"}]},
            "guidance needs a denoiser; give a strength above 0, or remove guidance",
        ),
        ({"side": "left"}, "side is for variant half, not paste; remove it"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tiny: Tiny, tmp_path: Path, method: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        changed(tiny, tmp_path / "run", **method)


def test_a_paste_is_no_copy_of_its_head_by_default_and_a_private_run_has_none(tiny: Tiny, tmp_path: Path) -> None:
    assert changed(tiny, tmp_path / "run").checks.max_correlation == 0.99999
    config = tiny(tmp_path / "run").model_dump(mode="json", exclude={"method", "checks"})
    assert parse(config | {"method": "fusion"}).checks.max_correlation == 0.99999
    assert parse(config | {"method": {"decoding": "plain"}}).checks.max_correlation == 0.995
    assert parse(config | {"method": "edit"}).checks.max_correlation == 0.995
    with pytest.raises(InputError, match="method recompose does not declare that private runs may use it"):
        parse(
            config
            | {"method": "recompose", "privacy": {"epsilon": 8, "delta": 1e-5, "patients": 24, "findings": ["Mass"]}}
        )
