"""What a run shows of itself: tables, stages of its images, and what may leave it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import medlt


@pytest.fixture(scope="module")
def fused(
    tiny_collection: medlt.Collection, tiny_settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> medlt.Run:
    """A finished run of latent fusion. Tests only read it."""
    brief = {"networks": 2, "steps": 4, "code_steps": 4}
    method = {"kind": "fusion", "num_inference_steps": 8, "strength": 0.2, "localise": brief}
    given = {**tiny_settings, "method": method, "output_dir": tmp_path_factory.mktemp("runs") / "fused"}
    return medlt.augment(tiny_collection, progress=False, **given)


def test_the_last_stage_is_the_image(fused: medlt.Run) -> None:
    kept = fused.images()
    uids = [str(uid) for uid in (*fused.plan.index[:3], *kept.rows.index)]
    assert len(kept)
    stages = fused.explain(uids)
    for i, uid in enumerate(uids):
        if uid in kept.rows.index:
            stored = np.asarray(Image.open(kept.manifest.file(uid)))
            np.testing.assert_array_equal((stages["refined"][i, 0] * 255).round().byte().numpy(), stored)
    again = fused.explain(uids[::-1])
    assert all(torch.equal(again[name].flip(0), stages[name]) for name in stages)


def test_the_fused_code_has_the_tokens_of_its_parents(fused: medlt.Run) -> None:
    stages = fused.explain(fused.plan.index[:4])
    tail, head, fused = (stages[f"code_{part}"] for part in ("tail", "head", "fused"))
    step = stages["mask"].shape[-1] // tail.shape[-1]
    inside = stages["mask"][:, :, ::step, ::step].bool().expand_as(tail)
    assert torch.equal(fused, torch.where(inside, tail, head))
    assert (tail != head).any()


@pytest.mark.parametrize(("uids", "problem"), [((), "no uid"), (("x",), "has no image 'x'")])
def test_stages_of_no_image_are_refused(uids: tuple[str, ...], problem: str, fused: medlt.Run) -> None:
    with pytest.raises(medlt.InputError, match=problem):
        fused.explain(uids)


def test_a_table_that_is_not_there_is_named(tiny_run: medlt.Run) -> None:
    assert tiny_run.table("checks").equals(tiny_run.checks)
    with pytest.raises(medlt.InputError, match=r"no such table; did you mean 'quality'\?"):
        tiny_run.table("qualty")


def test_a_release_is_verified_and_a_changed_byte_is_seen(tiny_run: medlt.Run, tmp_path: Path) -> None:
    record = medlt.release(tiny_run, tmp_path / "out")
    assert record["claim"]["epsilon"] is None
    assert medlt.verify_release(tmp_path / "out")["problems"] == []
    (tmp_path / "out" / "MODEL_CARD.md").write_text("changed")
    problems = medlt.verify_release(tmp_path / "out")["problems"]
    assert any("MODEL_CARD.md" in one for one in problems)


def test_masks_and_files_of_a_collection(tiny_collection: medlt.Collection) -> None:
    rows = tiny_collection.manifest.split("train").rows
    name = next(name for name in tiny_collection.findings if (rows[name] == 1).any() and f"mask_{name}" in rows)
    positives = rows.index[rows[name] == 1]
    files = tiny_collection.paths(name)
    assert list(files) == [tiny_collection.manifest.file(str(uid)) for uid in positives]
    stored = np.asarray(Image.open(tiny_collection.manifest.root / rows.at[positives[0], f"mask_{name}"])) > 0
    np.testing.assert_array_equal(tiny_collection.mask(str(positives[0]), name, len(stored)), stored)
    negative = rows.index[rows[name] == 0][0]
    with pytest.raises(medlt.InputError, match="no mask or box"):
        tiny_collection.mask(str(negative), name)
    with pytest.raises(medlt.InputError, match="no finding 'Hernai'"):
        tiny_collection.paths("Hernai")
