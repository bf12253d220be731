"""What a codec keeps of a finding, against closed forms: blurs and gains whose effect on a lesion is known."""

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from medlt.checks.codec import Amplitudes, CodecRule, by_ring, by_twin, codec_table, contrast, ring
from medlt.diffusion.pixels import PixelCodec
from medlt.rng import numpy_generator, torch_generator

SIZE, N = 32, 12
PATIENTS = [f"p{i}" for i in range(N)]
FINDINGS = ("Mass", "Nodule")


def waves(frequency: int, n: int = N) -> Tensor:
    """Images [n,1,S,S]: a wave of so many periods, shifted and of another amplitude in each."""
    phase = torch.arange(n).double()[:, None] / n * 2 * math.pi
    x = torch.arange(SIZE).double()[None] / SIZE * 2 * math.pi * frequency
    height = 0.1 + 0.02 * torch.arange(n)[:, None]
    return (0.5 + height * torch.cos(x + phase))[:, None, None].expand(n, 1, SIZE, SIZE)


def blur(images: Tensor, sigma: float) -> Tensor:
    """A Gaussian blur on a ring of pixels: it multiplies a wave of k periods by exp(-(2 pi k sigma / S)^2 / 2)."""
    k = torch.fft.fftfreq(SIZE).double() * 2 * math.pi * sigma
    factor = torch.exp(-(k[:, None] ** 2 + k[None] ** 2) / 2)
    return torch.fft.ifft2(torch.fft.fft2(images) * factor).real


def masks(n: int = N) -> Tensor:
    """A square of another place and size in each image."""
    made = torch.zeros(n, SIZE, SIZE)
    for i in range(n):
        made[i, 8 : 14 + i % 3, 6 + i : 11 + i] = 1
    return made


@pytest.mark.parametrize(("frequency", "sigma"), [(1, 2.0), (3, 1.5), (5, 0.7), (2, 4.0)])
def test_a_blur_keeps_the_contrast_that_fourier_says(frequency: int, sigma: float) -> None:
    x = waves(frequency)
    kept, low, high = by_ring(x, blur(x, sigma), masks(), PATIENTS).kept(200, numpy_generator(0))
    expected = math.exp(-((2 * math.pi * frequency * sigma / SIZE) ** 2) / 2)
    assert kept == pytest.approx(expected, abs=1e-9)
    assert low == pytest.approx(expected, abs=1e-9)
    assert high == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("frequency", "sigma"), [(1, 2.0), (3, 1.5), (5, 0.7)])
def test_a_blur_keeps_the_difference_from_the_twin_that_fourier_says(frequency: int, sigma: float) -> None:
    """The rest of the image, which the twin has too, plays no part."""
    rest = torch.rand(N, 1, SIZE, SIZE, generator=torch_generator("rest")).double()
    x = rest + waves(frequency) - 0.5
    kept, *_ = by_twin(x, rest, blur(x, sigma), blur(rest, sigma), PATIENTS).kept(100, numpy_generator(0))
    assert kept == pytest.approx(math.exp(-((2 * math.pi * frequency * sigma / SIZE) ** 2) / 2), abs=1e-9)


@given(gain=st.floats(-0.5, 1.5), offset=st.floats(-1, 1))
def test_a_gain_is_the_share_that_is_kept_and_an_offset_nothing(gain: float, offset: float) -> None:
    x = torch.rand(N, 1, SIZE, SIZE, generator=torch_generator("x")).double()
    twin = x - 0.2 * masks()[:, None]
    for seen in (
        by_ring(x, gain * x + offset, masks(), PATIENTS),
        by_twin(x, twin, gain * x + offset, gain * twin + offset, PATIENTS),
    ):
        kept, low, high = seen.kept(50, numpy_generator(1))
        assert kept == pytest.approx(gain, abs=1e-6)
        assert low <= kept + 1e-9
        assert high >= kept - 1e-9


def test_a_codec_that_erases_lesions_keeps_none_of_their_difference() -> None:
    rest = torch.rand(N, 1, SIZE, SIZE, generator=torch_generator("rest"))
    x = rest + 0.2 * masks()[:, None]
    assert by_twin(x, rest, rest, rest, PATIENTS).kept(50, numpy_generator(0))[0] == 0


def test_an_erased_pixel_of_the_lesion_counts_by_its_area() -> None:
    """Half of a flat lesion is erased: half of its energy, and so half of the contrast, is left."""
    rest = torch.full((1, 1, 8, 8), 0.3)
    x, half = rest.clone(), rest.clone()
    x[..., 2:6, 2:6] += 0.2
    half[..., 2:6, 2:4] += 0.2
    seen = by_twin(x, rest, half, rest, ["p"])
    assert seen.kept(10, numpy_generator(0))[0] == pytest.approx(0.5)
    assert float(seen.real[0]) == pytest.approx(math.sqrt(16 * 0.04), rel=1e-5)


def test_the_ring_is_outside_the_mask_and_as_wide_as_it_says() -> None:
    mask = torch.zeros(1, 9, 9)
    mask[0, 4, 4] = 0.5  # a share: the pixel belongs to the inside
    around = ring(mask, 2)
    assert around[0, 4, 4] == 0
    assert around.sum() == 24
    assert around[0, 2:7, 2:7].sum() == 24


def test_contrast_is_the_inside_minus_the_ring_and_unknown_where_there_is_no_mask() -> None:
    image = torch.full((3, 1, 16, 16), 0.2)
    mask = torch.zeros(3, 16, 16)
    mask[:, 6:10, 6:10] = 1
    image[0, 0, 6:10, 6:10] = 0.7
    image[1, 0, 6:10, 6:10] = 0.1
    mask[2] = torch.nan
    values = contrast(image, mask)
    assert values[:2] == pytest.approx([0.5, -0.1])
    assert np.isnan(values[2])
    seen = by_ring(image, 0.5 * image, mask, ["a", "b", "c"])
    assert seen.patients == ("a", "b")
    assert (seen.real >= 0).all()
    assert seen.decoded / seen.real == pytest.approx([0.5, 0.5])


def test_a_lesion_counts_by_its_amplitude() -> None:
    seen = Amplitudes(np.array([1.0, 3.0]), np.array([1.0, 0.0]), ("a", "b"), "ring")
    assert seen.kept(10, numpy_generator(0))[0] == 0.25


def test_few_patients_have_no_interval_and_none_no_value() -> None:
    two = Amplitudes(np.ones(4), np.full(4, 0.5), ("a", "a", "b", "b"), "twin").kept(10, numpy_generator(0))
    assert two[0] == 0.5
    assert np.isnan(two[1:]).all()
    assert np.isnan(Amplitudes(np.ones(0), np.ones(0), (), "twin").kept(10, numpy_generator(0))).all()


def row(**changes: float) -> dict[str, float]:
    """The row of a finding of which nothing is known but `changes`."""
    names = ("contrast", "contrast_low", "contrast_high", "auroc_real", "auroc_decoded", "auroc_difference",
             "auroc_low", "auroc_high")  # fmt: skip
    return {**dict.fromkeys(names, math.nan), **changes}


SURE = {"contrast": 0.95, "contrast_low": 0.9, "contrast_high": 0.99}
SOFT = {"contrast": 0.5, "contrast_low": 0.4, "contrast_high": 0.7}
SAME = {"auroc_real": 0.9, "auroc_decoded": 0.9, "auroc_difference": 0.0, "auroc_low": -0.02, "auroc_high": 0.02}
FALLS = {"auroc_real": 0.87, "auroc_decoded": 0.77, "auroc_difference": -0.1, "auroc_low": -0.16, "auroc_high": -0.04}
LITTLE = {"auroc_real": 0.87, "auroc_decoded": 0.85, "auroc_difference": -0.02, "auroc_low": -0.03, "auroc_high": -0.01}
RULES = {
    "contrast is lost": (SOFT, "lost"),
    "contrast is lost though a verifier sees it": (SAME | SOFT, "lost"),
    "AUROC falls though the contrast is kept": (SURE | FALLS, "lost"),
    "AUROC falls a little": (SURE | LITTLE, "kept"),
    "both are kept": (SURE | SAME, "kept"),
    "contrast is kept and AUROC unknown": (SURE, "kept"),
    "AUROC is kept and contrast unknown": (SAME, "kept"),
    "contrast of two patients": (SAME | {"contrast": 0.3}, "unclear"),
    "a wide interval of contrast": ({"contrast": 0.7, "contrast_low": 0.5, "contrast_high": 0.9}, "unclear"),
    "AUROC falls of a verifier at chance": (SURE | FALLS | {"auroc_real": 0.55, "auroc_decoded": 0.45}, "kept"),
    "only a verifier at chance": (SAME | {"auroc_real": 0.55}, "unclear"),
    "a wide interval of AUROC": (SURE | SAME | {"auroc_low": -0.3}, "unclear"),
    "nothing is known": ({}, "unclear"),
}


@pytest.mark.parametrize("name", RULES)
def test_the_rule_is_this_table(name: str) -> None:
    given, expected = RULES[name]
    status, reason = CodecRule(contrast=0.8, auroc=0.05, visible=0.6).status(row(**given))
    assert status == expected
    assert bool(reason) == (status != "kept")


def scores(decode: Callable[[Tensor], Tensor], n: int = 120) -> tuple[np.ndarray, np.ndarray, np.ndarray, Amplitudes]:
    """Truth, a verifier's scores of real and decoded images, and amplitudes: discs that stand for a Mass."""
    truth = np.stack([np.arange(n) % 2, np.arange(n) % 3 == 0], 1).astype(float)
    noise = torch.rand(n, 1, SIZE, SIZE, generator=torch_generator("noise"))
    mask = torch.zeros(n, SIZE, SIZE)
    mask[:, 10:16, 12:20] = 1
    x = 0.4 + 0.1 * noise + 0.05 * (mask * torch.tensor(truth[:, :1, None])).float()[:, None]
    back = decode(x)
    seen = [np.stack([contrast(image, mask), np.linspace(0, 1, n)], 1) for image in (x, back)]
    at = np.flatnonzero(truth[:, 0] == 1)
    lesions = by_ring(x[at], back[at], mask[at], [str(i) for i in at])
    return truth, seen[0], seen[1], lesions


def measured(decode: Callable[[Tensor], Tensor]) -> pd.DataFrame:
    truth, real, decoded, lesions = scores(decode)
    return codec_table(
        FINDINGS, {"Mass": lesions}, truth, real, decoded, [str(i) for i in range(len(truth))],
        rule=CodecRule(), n_bootstrap=200, rng=numpy_generator(3),
    )  # fmt: skip


def test_a_codec_that_erases_lesions_is_named_by_both_measures() -> None:
    """Each image becomes its own mean plus noise of its own."""
    other = torch.rand(120, 1, SIZE, SIZE, generator=torch_generator("other"))
    table = measured(lambda x: x.mean((2, 3), keepdim=True) + 0.02 * other)
    mass = table.loc["Mass"]
    assert mass["status"] == "lost"
    assert mass["contrast_high"] < 0.2
    assert mass["auroc_real"] > 0.95
    assert mass["auroc_high"] < -0.2
    assert table.loc["Nodule", "status"] != "lost"  # its scores do not depend on the image
    assert list(table["lesions"]) == [60, 0]


@pytest.mark.parametrize("patch", [1, 2])
def test_the_identity_is_never_named(patch: int) -> None:
    codec = PixelCodec(patch, "cpu")
    table = measured(lambda x: codec.decode(codec.latents(codec.moments(x))))
    assert list(table["status"]) == ["kept", "unclear"]  # the verifier is at chance of a Nodule
    assert table.loc["Mass", "contrast"] == pytest.approx(1, abs=1e-4)
    assert table["auroc_difference"].abs().max() == 0


def test_without_a_verifier_the_contrast_decides() -> None:
    truth, *_, lesions = scores(lambda x: 0.5 * x)
    empty = np.zeros((0, 2))
    table = codec_table(FINDINGS, {"Mass": lesions}, truth, empty, empty, [str(i) for i in range(len(truth))],
                        rule=CodecRule(), n_bootstrap=50, rng=numpy_generator(3))  # fmt: skip
    assert list(table["status"]) == ["lost", "unclear"]
    assert table["auroc_real"].isna().all()


def test_unknown_labels_are_left_out() -> None:
    truth, real, decoded, _ = scores(lambda x: x)
    hidden, wrong = truth.copy(), real.copy()
    hidden[::4, 0], wrong[::4, 0] = np.nan, 9.0
    known = np.flatnonzero(~np.isnan(hidden[:, 0]))

    def auroc(truth: np.ndarray, real: np.ndarray, decoded: np.ndarray) -> float:
        patients, rng = [str(i) for i in range(len(truth))], numpy_generator(3)
        table = codec_table(FINDINGS, {}, truth, real, decoded, patients, rule=CodecRule(), n_bootstrap=50, rng=rng)
        return float(table.loc["Mass", "auroc_real"])

    assert auroc(hidden, wrong, decoded) == pytest.approx(auroc(truth[known], real[known], decoded[known]))
    assert auroc(truth, wrong, decoded) != pytest.approx(auroc(hidden, wrong, decoded))
