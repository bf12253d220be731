"""The simplicial code is on the simplex, the networks look locally, and a file gives back what was put in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medlt.rng import torch_generator
from medlt.sparse.embedding import SimplicialCoder, evaluating, read_metadata
from medlt.types import InputError


def latents(n: int, channels: int = 2, side: int = 8) -> torch.Tensor:
    return torch.randn(n, channels, side, side, generator=torch_generator("latents", n, channels, side))


@settings(max_examples=15)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(2, 6), st.sampled_from([2, 4, 6]), st.floats(0.05, 2))
def test_a_code_is_on_the_simplex(n: int, groups: int, vocabulary: int, side: int, temperature: float) -> None:
    coder = SimplicialCoder(2, 3, groups=groups, vocabulary=vocabulary, temperature=temperature, width=4).eval()
    s = coder.code(latents(n, 2, side))
    assert s.shape == (n, groups, vocabulary, side, side)
    assert s.min() >= 0
    torch.testing.assert_close(s.sum(2), torch.ones(n, groups, side, side))
    assert coder.decode(s).shape == (n, 2, side, side)
    assert coder.classify(s).shape == (n, 3)
    assert coder.features(s).shape[2:] == (side, side)


def test_a_lower_temperature_is_sharper_and_chooses_the_same_words() -> None:
    coders = [SimplicialCoder(2, 3, groups=2, vocabulary=4, temperature=t, width=4).eval() for t in (1.0, 0.3, 0.1)]
    codes = [coder.code(latents(4)).detach() for coder in coders]
    sharp = [float(s.amax(2).mean()) for s in codes]
    assert sharp == sorted(sharp)
    assert sharp[0] < sharp[2] - 0.2
    assert all(torch.equal(s.argmax(2), codes[0].argmax(2)) for s in codes)


def test_weights_are_a_function_of_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = SimplicialCoder(2, 3, width=4, seed=7)
    torch.manual_seed(2)
    assert SimplicialCoder(2, 3, width=4, seed=7).digest == first.digest
    assert SimplicialCoder(2, 3, width=4, seed=8).digest != first.digest


def test_a_far_pixel_has_no_say() -> None:
    """Maps and masks mean a place only if code and features know no more than their neighbourhood."""
    coder = SimplicialCoder(2, 3, groups=2, vocabulary=4, width=4).eval()
    z = latents(1, 2, 24)
    changed = z.clone()
    changed[..., :2, :2] += 5.0
    with torch.no_grad():
        s, other = coder.code(z), coder.code(changed)
        assert not torch.equal(s[..., :2, :2], other[..., :2, :2])
        torch.testing.assert_close(s[..., 8:, 8:], other[..., 8:, 8:], atol=1e-6, rtol=0)
        near, far = coder.features(s), coder.features(other)
        torch.testing.assert_close(near[..., 12:, 12:], far[..., 12:, 12:], atol=1e-5, rtol=0)


def test_files_give_back_coder_and_notes(tmp_path: Path) -> None:
    coder = SimplicialCoder(2, 3, groups=2, vocabulary=4, temperature=0.2, width=4, seed=5)
    coder.train()
    coder.code(latents(8))  # moves the running statistics
    coder.save(tmp_path / "a.safetensors", note=[1, None])
    coder.save(tmp_path / "b.safetensors", note=[1, None])
    read = SimplicialCoder.load(tmp_path / "a.safetensors")
    assert not read.training
    assert read.config == coder.config
    assert read.digest == coder.digest
    assert read_metadata(tmp_path / "a.safetensors")["note"] == [1, None]
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    with evaluating(coder):
        assert torch.equal(read.code(latents(3)), coder.code(latents(3)))
    assert coder.training


def test_bad_input_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="5x5, but their sides must be even"):
        SimplicialCoder(2, 3, width=4).code(latents(1, 2, 5))
    with pytest.raises(InputError, match="10 is not a multiple of 4; give 12"):
        SimplicialCoder(2, 3, width=10)
    (tmp_path / "x.safetensors").write_bytes(b"not one")
    with pytest.raises(InputError, match="is not a sparse coder"):
        SimplicialCoder.load(tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="is not a sparse coder"):
        SimplicialCoder.load(tmp_path / "absent.safetensors")
