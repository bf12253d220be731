"""A denoiser that memorised transformed images is seen in its own view, and an ordinary one in no other."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from medlt.diffusion.backbone import Backbone
from medlt.privacy.audit.membership import calibrated, loss_scores, membership
from medlt.privacy.audit.rates import area
from medlt.privacy.audit.viewed import View, best_view, chosen_views, lowest_loss, sample_rows


def test_a_view_moves_mirrors_and_inverts() -> None:
    image = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    assert View()(image).equal(image)
    assert View(mirrored=True, inverted=True)(image).equal(1 - image.flip(-1))
    moved = View(down=6, across=-4)(image)  # 3 and -2 pixels of 32
    assert moved[..., 3:, :-2].equal(image[..., :-3, 2:])
    assert moved[..., 0, :-2].equal(image[..., 0, 2:])
    assert str(View(down=6, inverted=True)) == "inverted and shifted by (6, 0)/64"
    assert str(View()) == "as it is"


def test_the_view_of_lowest_loss_is_chosen_beside_the_image_itself() -> None:
    truth = View(down=5, across=-7, inverted=True)

    def loss(view: View) -> float:
        return abs(view.down - truth.down) + abs(view.across - truth.across) + 20 * (view[2:] != truth[2:])

    views = chosen_views(loss)
    assert views[:2] == [View(), truth]
    assert len(set(views)) == 4


def test_the_best_view_is_taken_at_each_timestep() -> None:
    one, other = np.array([[1.0, 2.0], [3.0, 0.0]]), np.array([[0.0, 5.0], [3.5, -1.0]])
    assert (best_view([one, other]) == [[1.0, 5.0], [3.5, 0.0]]).all()
    assert lowest_loss(np.array([5.0, 1.0, 2.0, 9.0])) == 1.0
    assert (sample_rows(10, np.random.default_rng(0), 4) < 10).all()


def scored(backbone: Backbone, pictures: Tensor) -> tuple[np.ndarray, np.ndarray, list[View]]:
    """Scores of the images as they are, those of the best view, and the views."""

    def scores(view: View, rows: Tensor, timesteps: tuple[int, ...], noises: int) -> np.ndarray:
        return loss_scores(backbone, (view(rows) - 0.5) / 0.15, seed=0, timesteps=timesteps, noises=noises)

    some = pictures[torch.from_numpy(sample_rows(len(pictures), np.random.default_rng(0)))]
    views = chosen_views(lambda view: lowest_loss(-scores(view, some, (200,), 1)[:, 0]))
    each = [scores(view, pictures, (50, 100, 200, 300), 2) for view in views]
    return calibrated(each[0]), calibrated(best_view(each)), views


@pytest.mark.parametrize(
    "truth", [View(inverted=True), pytest.param(View(down=8, across=8), marks=pytest.mark.slow)], ids=str
)
def test_memorised_transformed_images_are_recognised(
    images: Callable[..., Tensor], plainly: Callable[[Tensor, int], Backbone], truth: View
) -> None:
    """As they are, members of a denoiser that learnt 24 inverted or shifted images by heart look like others."""
    pictures, member = images(72, 0, size=16, sigma=1.2), np.arange(72) < 24
    backbone = plainly((truth(pictures[:24]) - 0.5) / 0.15, 400)
    own, best, views = scored(backbone, pictures)
    names, rng = [f"p{i}" for i in range(72)], np.random.default_rng(0)
    assert area(member, own, names, rng).value < 0.8
    result = membership(best, member, names, seed=0, views=tuple(map(str, views)))
    assert views[1] == truth
    assert result.auc.low > 0.85
    assert result.passed is False
    assert str(views[1]) in result.sentence


def test_an_untrained_denoiser_recognises_nobody_in_its_best_view(
    images: Callable[..., Tensor], plainly: Callable[[Tensor, int], Backbone]
) -> None:
    pictures = images(120, 0, size=16, sigma=1.2)
    _, best, _ = scored(plainly(torch.zeros(2, 1, 16, 16), 0), pictures)
    result = membership(best, np.arange(120) < 60, [f"p{i}" for i in range(120)], seed=0)
    assert result.passed is True
    assert result.auc.low < 0.5 < result.detectable < 0.65
    assert "the smallest AUC it could have detected is" in result.sentence
