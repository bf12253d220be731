"""Maps: a batch is what one at a time is, they look where the finding was planted, and methods are what they claim."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medlt.rng import torch_generator
from medlt.sparse.cam import MAPS, class_activation_map, normalise
from medlt.sparse.embedding import SimplicialCoder
from medlt.sparse.iterated import Iterated
from medlt.types import InputError

CODER = SimplicialCoder(2, 3, groups=2, vocabulary=4, temperature=0.5, width=8, seed=2)


@pytest.mark.parametrize("method", sorted(MAPS))
@settings(max_examples=8)
@given(st.integers(1, 5), st.integers(0, 100))
def test_a_batch_equals_one_at_a_time(method: str, n: int, seed: int) -> None:
    z = torch.randn(n, 2, 6, 8, generator=torch_generator(seed))
    finding = torch.randint(3, (n,), generator=torch_generator(seed, "finding"))
    batch = class_activation_map(CODER, z, finding, method)
    alone = [class_activation_map(CODER, z[i : i + 1], finding[i : i + 1], method) for i in range(n)]
    torch.testing.assert_close(batch, torch.cat(alone), atol=1e-4, rtol=1e-4)
    assert batch.shape == (n, 6, 8)
    assert batch.min() >= 0
    assert batch.max() <= 1


def test_gradcam_is_the_head_s_weights_on_the_features() -> None:
    """With a global mean and a linear head, d logit_c / d f_k = w_ck / (h w): the map is that of Zhou et al. (CAM)."""
    z, finding = torch.randn(3, 2, 8, 8, generator=torch_generator("linear")), torch.tensor([2, 0, 1])
    with torch.no_grad():
        features = CODER.eval().features(CODER.code(z))
        maps = torch.einsum("bk,bkhw->bhw", CODER.classifier.head.weight[finding], features)
    for method in ("gradcam", "hirescam"):
        torch.testing.assert_close(class_activation_map(CODER, z, finding, method), normalise(maps))


def test_layercam_counts_only_supporting_channels() -> None:
    z, finding = torch.randn(2, 2, 8, 8, generator=torch_generator("layer")), torch.tensor([1, 2])
    with torch.no_grad():
        features = CODER.eval().features(CODER.code(z))
        maps = torch.einsum("bk,bkhw->bhw", CODER.classifier.head.weight[finding].relu(), features)
    torch.testing.assert_close(class_activation_map(CODER, z, finding, "layercam"), normalise(maps))


def test_eigencam_finds_a_planted_direction() -> None:
    """One channel varies strongly over space: the map is that channel's variation, whatever the gradient."""
    features = torch.randn(2, 4, 5, 5, generator=torch_generator("eigen")) * 0.01
    pattern = torch.rand(2, 5, 5, generator=torch_generator("pattern"))
    features[:, 1] += 10 * pattern
    maps = normalise(MAPS["eigencam"](features, torch.zeros_like(features)))
    expected = normalise(pattern - pattern.mean((1, 2), keepdim=True))
    torch.testing.assert_close(maps, expected, atol=0.02, rtol=0)


@pytest.mark.parametrize("method", ["gradcam", "hirescam", "layercam"])
def test_maps_peak_where_the_finding_was_planted(
    learnt: tuple[Iterated, Path], toy_latents: tuple, method: str
) -> None:
    _, _, z, y = toy_latents
    both = torch.from_numpy(np.flatnonzero((y == 1).all(1)))
    assert len(both) >= 5
    for c in (0, 1):
        maps = class_activation_map(learnt[0].coder, z[both], torch.full((len(both),), c), method)
        corners = maps[:, :4, :4].mean((1, 2)), maps[:, 4:, 4:].mean((1, 2))
        assert (corners[c] > corners[1 - c]).double().mean() > 0.9
        peak = maps.flatten(1).argmax(1)
        inside = (peak // 8 < 4) & (peak % 8 < 4) if c == 0 else (peak // 8 >= 4) & (peak % 8 >= 4)
        assert inside.double().mean() > 0.75


def test_no_evidence_is_an_empty_map() -> None:
    assert normalise(torch.full((1, 3, 3), -2.0)).tolist() == torch.zeros(1, 3, 3).tolist()
    assert normalise(torch.full((1, 3, 3), 2.0)).isfinite().all()


def test_an_unknown_method_is_told() -> None:
    with pytest.raises(InputError, match="'attention' is unknown; choose one of gradcam"):
        class_activation_map(CODER, torch.zeros(1, 2, 4, 4), torch.tensor([0]), "attention")
