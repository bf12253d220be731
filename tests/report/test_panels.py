"""Strips: the tiles hold what their names say."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medlt.report.panels import GAP, STAGES, png, save_panel, strip
from medlt.types import InputError

SIDE = 32


def stages() -> dict[str, torch.Tensor]:
    """Tail at 0.25, head at 0.75; CAMs cold on the left half, hot on the right; the mask takes the upper half."""
    images = {name: torch.full((1, SIDE, SIDE), 0.5) for name in STAGES}
    images["tail"], images["head"] = torch.full((1, SIDE, SIDE), 0.25), torch.full((1, SIDE, SIDE), 0.75)
    half = torch.zeros(1, SIDE, SIDE)
    half[..., SIDE // 2 :] = 1
    images["cam_tail"], images["cam_head"] = half, half.clone()
    images["mask"] = half.mT.flip(1).contiguous()
    return images


def tile(name: str, given: dict[str, torch.Tensor] | None = None) -> np.ndarray:
    left = STAGES.index(name) * (SIDE + GAP)
    return np.asarray(strip(given or stages(), SIDE))[:, left : left + SIDE].astype(int)


def test_tiles_stand_in_order_with_gaps() -> None:
    assert strip(stages(), SIDE).size == (7 * SIDE + 6 * GAP, SIDE)
    for name, value in (("tail", 64), ("head", 191), ("fused", 128), ("refined", 128)):
        assert (tile(name) == value).all()


@pytest.mark.parametrize(("cam", "gray"), [("cam_tail", 64), ("cam_head", 191)])
def test_a_cold_map_leaves_its_own_parent_untouched_and_a_hot_one_colours_it(cam: str, gray: int) -> None:
    drawn = tile(cam)
    assert (drawn[:, : SIDE // 2 - 2] == gray).all()
    hot = drawn[:, SIDE // 2 + 2 :]
    assert (hot[..., 0] > hot[..., 2]).all()  # inferno ends in yellow: red above blue


def test_the_mask_is_orange_over_the_tail_and_blue_over_the_head() -> None:
    drawn = tile("mask")
    upper, lower = drawn[: SIDE // 2 - 2, 2:-2], drawn[SIDE // 2 + 2 :, 2:-2]
    upper = upper[2:]  # the border is white
    assert (upper[..., 0] > upper[..., 2]).all()
    assert (lower[..., 2] > lower[..., 0]).all()
    assert lower.mean() > upper.mean()  # the head is the brighter parent


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_mask_of_one_parent_alone_is_drawn(share: float) -> None:
    drawn = tile("mask", stages() | {"mask": torch.full((1, SIDE, SIDE), share)})[4:-4, 4:-4]
    assert ((drawn[..., 0] > drawn[..., 2]) == bool(share)).all()


def test_values_out_of_range_or_not_finite_do_not_wrap() -> None:
    wild = torch.full((1, SIDE, SIDE), 1.2)
    wild[..., :4] = torch.nan
    drawn = tile("refined", stages() | {"refined": wild})
    assert (drawn[:, 4:] == 255).all()
    assert (drawn[:, :4] == 0).all()


def test_sizes_may_differ_between_stages() -> None:
    small = stages() | {"mask": torch.ones(1, 4, 4), "cam_tail": torch.zeros(1, 4, 4)}
    assert strip(small, SIDE).size == (7 * SIDE + 6 * GAP, SIDE)


def test_a_missing_stage_is_named() -> None:
    lacking = {name: image for name, image in stages().items() if name != "cam_head"}
    with pytest.raises(InputError, match="'cam_head' is missing"):
        strip(lacking)


def test_save_round_trips_and_no_uid_leaves_the_folder(tmp_path: Path) -> None:
    file = save_panel(tmp_path, "../../x/y", stages(), SIDE)
    written = list(tmp_path.rglob("*.png"))
    assert written == [tmp_path / file]
    assert written[0].parent == tmp_path / "panels"
    with Image.open(written[0]) as image:
        assert image.tobytes() == strip(stages(), SIDE).tobytes()
    assert written[0].read_bytes() == png(strip(stages(), SIDE))
