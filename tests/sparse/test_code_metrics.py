"""Each column of the health table against a case where its value is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from medlt.rng import numpy_generator, torch_generator
from medlt.sparse import code_metrics
from medlt.sparse.embedding import SimplicialCoder


class Spoken(SimplicialCoder):
    """Says given logits, [N,L,V,h,w], in the place of an encoder; z holds the row number."""

    def __init__(self, said: torch.Tensor) -> None:
        super().__init__(1, 2, groups=said.shape[1], vocabulary=said.shape[2], width=4)
        self.said = said

    def logits(self, z: torch.Tensor) -> torch.Tensor:
        return self.said[z[:, 0, 0, 0].long()]


def numbered(n: int) -> torch.Tensor:
    return torch.arange(n).float()[:, None, None, None].expand(n, 1, 2, 2)


def certain(words: torch.Tensor, vocabulary: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(words, vocabulary).movedim(-1, 2).float() * 100


def test_uniform_and_certain_codes() -> None:
    uniform, _, _ = code_metrics.read_code(Spoken(torch.zeros(3, 2, 5, 2, 2)), numbered(3))
    assert uniform["mean_max_probability"] == pytest.approx(0.2)
    assert uniform["entropy"] == pytest.approx(math.log(5))
    one_word, _, _ = code_metrics.read_code(Spoken(certain(torch.ones(3, 2, 2, 2, dtype=torch.long), 5)), numbered(3))
    assert one_word["mean_max_probability"] == pytest.approx(1.0)
    assert one_word["entropy"] == pytest.approx(0.0, abs=1e-6)
    assert one_word["tokens_used"] == pytest.approx(1.0)
    words = torch.arange(24).view(3, 2, 2, 2) % 4
    four, _, _ = code_metrics.read_code(Spoken(certain(words, 5)), numbered(3))
    assert four["tokens_used"] == pytest.approx(4.0)


def test_agreement_counts_equal_words() -> None:
    words = torch.zeros(100, 2, 2, 2, dtype=torch.long)
    other = words.clone()
    other[:25] = 1
    student, teacher = Spoken(certain(words, 3)), Spoken(certain(other, 3))
    assert code_metrics.agreement(student, teacher, numbered(100)) == pytest.approx(0.75)
    assert code_metrics.agreement(student, student, numbered(100)) == 1.0


def test_reconstruction_is_the_mean_absolute_error() -> None:
    coder = SimplicialCoder(2, 2, groups=2, vocabulary=3, width=4).eval()
    z = torch.randn(70, 2, 4, 4, generator=torch_generator("z"))
    expected = (coder.decode(coder.code(z)) - z).abs().mean()
    told, scores, pooled = code_metrics.read_code(coder, z)
    assert told["reconstruction_l1"] == pytest.approx(float(expected.detach()), rel=1e-5)
    assert scores.shape == (70, 2)
    assert pooled.reshape(70, 2, 3).sum(2) == pytest.approx(np.ones((70, 2)), rel=1e-5)


def test_macro_ap_masks_unknown_and_skips_findings_without_a_positive() -> None:
    truth = np.array([[1, 0, np.nan], [0, 0, 1], [1, np.nan, 0], [np.nan, 0, 0]])
    score = np.array([[0.9, 0.1, 0.9], [0.5, 0.9, 0.5], [0.1, 0.3, 0.7], [1.0, 0.2, 0.1]])
    assert code_metrics.macro_ap(truth, score) == pytest.approx((1 / 2 * (1 + 2 / 3) + 1 / 2) / 2)
    assert math.isnan(code_metrics.macro_ap(truth * 0, score))


def test_topographic_similarity_is_one_for_words_that_count_distance() -> None:
    """Rows are levels 0..7 said in unary: the words that differ between two rows are as many as the levels apart."""
    level = torch.arange(8)
    words = (level[:, None] > torch.arange(7)).long()[:, :, None, None].expand(8, 7, 2, 2)
    coder = Spoken(certain(words, 2))
    assert code_metrics.topographic_similarity(coder, numbered(8)) == pytest.approx(1.0)
    mute = Spoken(certain(torch.zeros_like(words), 2))
    assert math.isnan(code_metrics.topographic_similarity(mute, numbered(8)))


def test_the_probe_finds_what_is_there_and_nothing_else() -> None:
    rng = numpy_generator("probe")
    truth = (rng.random((300, 2)) < 0.3).astype(np.float32)
    codes = rng.normal(size=(300, 4))
    codes[:, 0] += 5 * truth[:, 0]
    truth[::7, 0] = np.nan
    first, both = truth.copy(), truth
    first[:, 1] = np.nan
    assert code_metrics.probe_ap(codes[:200], first[:200], codes[200:], first[200:]) > 0.95
    assert 0.55 < code_metrics.probe_ap(codes[:200], both[:200], codes[200:], both[200:]) < 0.8


def test_a_word_that_is_all_but_never_said_does_not_break_the_probe() -> None:
    codes = np.random.default_rng(0).random((40, 3)).astype(np.float32)
    codes[:, 1] = 0
    codes[3, 1] = 1e-44
    truth = (codes[:, :1] > 0.5).astype(np.float32)
    assert code_metrics.probe_ap(codes, truth, codes, truth) == pytest.approx(1.0)
