"""The embedding learns what it is trained for, comes back from its file, and its loss is the one it names."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from medlt.privacy.audit.embedding import FILE, PairLoss, SiameseNetwork, _Pairs, contrastive, fit_embedding
from medlt.privacy.audit.reidentify import verify
from medlt.privacy.audit.views import blurred, jpeg, noised, relit, training_view, warped
from medlt.rng import torch_generator
from medlt.store import Store
from medlt.training.runtime import Runtime, silent
from medlt.training.settings import WHOLE, BatchPart
from medlt.types import InputError, Progress


def at(folder: Path, seed: int = 0, progress: Progress = silent) -> dict[str, Any]:
    """Where and how an embedding is trained, and where it is kept."""
    return {"runtime": Runtime("cpu", "fp32", None, seed, progress), "store": Store(folder)}


def moved(images: Tensor, seed: int) -> Tensor:
    return warped(relit(images, torch_generator(seed), gamma=0.4), torch_generator(seed, 1), 0.1, 0.05, 0.04)


def bytes_of(images: Tensor) -> Tensor:
    return (images * 255).round().byte()


def test_views_of_an_image_lie_closer_than_other_images(images: Callable[..., Tensor], tmp_path: Path) -> None:
    """On images it never saw, views it never saw: nearly each finds its own, where raw pixels do not."""
    train, fresh = images(120, 1), images(60, 2)
    told: list[tuple[str, int, int]] = []
    small = {"steps": 40, "size": 32, "batch_size": 48}
    patients = [str(i) for i in range(120)]
    where = at(tmp_path, progress=lambda *said: told.append(said))
    embed = fit_embedding(bytes_of(train), patients, **where, **small)
    assert told[-1] == ("embedding", 40, 40)
    view = moved(fresh, 3)
    found = embed(view) @ embed(fresh).T
    assert torch.allclose(embed(fresh).norm(dim=1), torch.ones(60), atol=1e-5)
    assert float((found.argmax(1) == torch.arange(60)).float().mean()) > 0.8
    off = found[~torch.eye(60, dtype=torch.bool)]
    assert float((found.diagonal() > off.quantile(0.99)).float().mean()) > 0.7
    where = at(tmp_path, progress=lambda *said: pytest.fail("trained again"))
    again = fit_embedding(bytes_of(train), patients, **where, **small)
    assert again.digest == embed.digest
    assert again(fresh).equal(embed(fresh))
    assert embed(bytes_of(fresh)).allclose(embed(bytes_of(fresh).float() / 255), atol=1e-6)
    assert embed(fresh[:0]).shape == (0, 128)
    assert len(Store(tmp_path).folders("embedding")) == 1


SMALL: dict[str, Any] = {"steps": 4, "size": 16, "batch_size": 8}


def test_a_flipped_byte_is_found_set_aside_and_made_again(
    images: Callable[..., Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    some, names = bytes_of(images(12, 1)), [str(i) for i in range(12)]
    first = fit_embedding(some, names, **at(tmp_path), **SMALL)
    (place,) = Store(tmp_path).folders("embedding")
    whole = (place / FILE).read_bytes()
    damaged = whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:]
    (place / FILE).write_bytes(damaged)
    assert fit_embedding(some, names, **at(tmp_path), **SMALL).digest == first.digest
    assert (place / FILE).read_bytes() == whole
    assert (place.with_suffix(".damaged-1") / FILE).read_bytes() == damaged
    assert f"{place / FILE} is damaged" in caplog.text


def test_other_pixels_patients_or_seeds_are_another_embedding(images: Callable[..., Tensor], tmp_path: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    some, names = bytes_of(images(12, 1)), [str(i) for i in range(12)]
    other = some.clone()
    other[7, 0, 3, 3] ^= 1
    made = [fit_embedding(some, names, **at(tmp_path), **SMALL), fit_embedding(other, names, **at(tmp_path), **SMALL)]
    made += [fit_embedding(some, [*names[:-1], "0"], **at(tmp_path), **SMALL)]
    made += [fit_embedding(some, names, **at(tmp_path, seed=1), **SMALL)]
    assert len(Store(tmp_path).folders("embedding")) == 4
    assert len({one.digest for one in made}) == 4
    assert torch.equal(torch.get_rng_state(), before)
    apart = fit_embedding(some, names, **at(tmp_path / "again"), **SMALL)
    assert apart.digest == made[0].digest


@torch.no_grad()
def test_the_loss_of_a_step_is_a_function_of_seed_and_step_and_parts_keep_partners(
    images: Callable[..., Tensor],
) -> None:
    """A half of a batch is the loss of its own pairs: where it is cut no image loses its partner."""
    some, of = bytes_of(images(16, 1)), np.repeat(np.arange(8), 2)
    network = SiameseNetwork(16)
    loss = PairLoss(some, of, 8, 16, 0.1, 0)
    assert float(loss(network, 3, WHOLE)) == float(PairLoss(some, of, 8, 16, 0.1, 0)(network, 3, WHOLE))
    assert float(loss(network, 3, WHOLE)) != float(loss(network, 4, WHOLE))
    fooled = torch.nn.Module()
    fooled.register_parameter("weight", torch.nn.Parameter(torch.zeros(1)))
    fooled.forward = lambda seen: torch.eye(len(seen) // 2).repeat(2, 1) + 0 * fooled.weight  # type: ignore[method-assign]
    for part in (BatchPart(0, 2), BatchPart(1, 2)):  # four pairs, partners alike and all others at right angles
        expected = float(np.log1p(6 * np.exp(-10.0)))
        assert float(loss(fooled, 3, part)) == pytest.approx(expected, rel=1e-3)


def test_images_of_a_patient_are_learnt_to_lie_together(images: Callable[..., Tensor], tmp_path: Path) -> None:
    """Two images share half of their pattern: patients left out of training are told apart better than chance."""
    bodies, parts = images(80, 5, sigma=3.0), images(160, 6, sigma=1.5)
    twice = (bodies.repeat(2, 1, 1, 1) + parts) / 2
    patients = [f"p{i}" for i in range(80)] * 2
    found = verify(bytes_of(twice), patients, **at(tmp_path), rate=0.1, steps=30, size=32, batch_size=40)
    assert len(Store(tmp_path).folders("embedding")) == 2
    assert found.pairs == 80
    assert found.gallery == 40
    assert found.auc.low > 0.8
    assert found.recall.value > 0.05  # by chance a fortieth of the rate


def test_contrastive_is_the_supervised_contrastive_loss_of_pairs() -> None:
    """arXiv 2004.11362, equation 2, with one positive an anchor, written as loops."""
    vectors = functional.normalize(torch.randn(8, 5, generator=torch.Generator().manual_seed(0)))
    total = 0.0
    for i in range(8):
        others = [float(torch.exp(vectors[i] @ vectors[j] / 0.2)) for j in range(8) if j != i]
        total -= np.log(float(torch.exp(vectors[i] @ vectors[(i + 4) % 8] / 0.2)) / sum(others))
    assert float(contrastive(vectors, 0.2)) == pytest.approx(total / 8, rel=1e-5)


def test_batches_hold_a_patient_once_and_two_of_their_images() -> None:
    of = np.array([0, 0, 0, 1, 2, 2, 3, 4, 5, 6, 7])
    pairs = _Pairs(of, 6)
    for step in range(30):
        left, right = pairs.draw(np.random.default_rng(step))
        assert len(left) == 6 == len(set(of[left].tolist()))
        assert (of[left] == of[right]).all()
        several = np.isin(of[left], [0, 2])
        assert several.sum() == 2
        assert (left[several] != right[several]).all()
        assert (left[~several] == right[~several]).all()


def test_views_do_what_they_say(images: Callable[..., Tensor]) -> None:
    some, draw = images(4, 0), torch_generator
    assert warped(some, draw(0)).allclose(some, atol=1e-5)
    assert relit(some, draw(0)).allclose(some.clamp(1e-3, 1), atol=1e-6)
    assert noised(some, draw(0), 0.0).equal(some)
    assert float((noised(some * 0 + 0.5, draw(0), 0.05) - 0.5).std()) == pytest.approx(0.05, rel=0.05)
    assert (jpeg(some, 95) - some).abs().max() < 0.05
    impulse = torch.zeros(1, 1, 33, 33)
    impulse[..., 16, 16] = 1
    spread = blurred(impulse, 2.0)[0, 0]
    where = torch.arange(33.0) - 16
    assert float(spread.sum()) == pytest.approx(1, abs=1e-5)
    assert float((spread.sum(0) * where**2).sum()) == pytest.approx(4, rel=0.05)
    assert training_view(some, draw(1)).equal(training_view(some, draw(1)))
    assert not training_view(some, draw(1)).equal(training_view(some, draw(2)))
    right = warped(torch.zeros(64, 1, 32, 32).index_fill_(3, torch.tensor([16]), 1.0), draw(0), shift=0.25)
    centres = (right[:, 0].sum(1) * torch.arange(32.0)).sum(1) / right[:, 0].sum((1, 2))
    assert 4 < float((centres - 16).abs().max()) < 9


@pytest.mark.parametrize(("n", "patients"), [(7, 7), (9, 8)])
def test_bad_input(images: Callable[..., Tensor], n: int, patients: int, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        fit_embedding(bytes_of(images(n, 0)), [str(i) for i in range(patients)], **at(tmp_path), size=32)
    assert not list(tmp_path.iterdir())


@pytest.mark.real_data
@pytest.mark.slow
def test_real_patients_are_told_apart(real_data: Path, tmp_path: Path) -> None:
    """ChestX-ray14, patients held out of the embedding: pairs are ranked well above chance."""
    from PIL import Image

    table = pd.read_csv(real_data / "nih14" / "labels.csv")
    pixels = [np.asarray(Image.open(real_data / "nih14" / p).convert("L").resize((64, 64))) for p in table["path"]]
    found = verify(torch.from_numpy(np.stack(pixels))[:, None], table["patient_id"].tolist(), **at(tmp_path))
    assert found.auc.low > 0.75
