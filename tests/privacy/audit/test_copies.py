"""Copies are found among fresh images, none where there are none, and nothing is said where planted ones are missed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Generator, Tensor
from torch.nn import functional

from medlt.privacy.audit.copies import CopySearch, search_copies
from medlt.privacy.audit.plants import COMMON, img2img, round_trip
from medlt.privacy.audit.search import isolated, low_pass, measures
from medlt.privacy.audit.views import noised, warped
from medlt.rng import torch_generator
from medlt.types import InputError

NOISE = {"noise": lambda images, draw: noised(images, draw, 0.05)}


def fine(images: Tensor) -> Tensor:
    """A second measure, of finer pixels, in the embedding's place."""
    return low_pass(images, 16)


def cheap(references: Tensor, owner: Tensor) -> Any:
    """Two measures without transformations, for what does not depend on them."""
    return {(name,): isolated(embed, references, owner) for name, embed in (("fine", fine), ("pixels", low_pass))}


def asked(
    synthetic: Tensor, train: Tensor, held: Tensor, seed: int = 0, search: Any = cheap, **changes: Any
) -> CopySearch:
    names = {"uids": "s", "train_patients": "t", "held_out_patients": "h"}
    sizes = zip(names.items(), (synthetic, train, held), strict=True)
    settings = {key: [f"{letter}{i}" for i in range(len(part))] for (key, letter), part in sizes}
    settings |= {"plants": NOISE, "planted": 30} | changes
    return search_copies(search, synthetic, train, held, seed=seed, **settings)


def test_fresh_images_are_no_copies_and_planted_ones_are_seen(images: Callable[..., Tensor]) -> None:
    train, held, fresh = images(150, 1), images(120, 2), images(80, 3)
    found = asked(fresh, train, held, plants=NOISE | {"jpeg": COMMON["JPEG of quality 30"]})
    assert found.conclusion == "no copies detected"
    assert found.passed is True
    assert found.hits <= 5
    assert found.unmistakable == 0
    assert (found.plants["recall"] == 1).all()
    assert (found.plants["named"] == 1).all()
    assert found.measured.low < found.rate < found.measured.high
    assert 0 < found.hidden < 0.2
    assert found.sentence.startswith("No copies detected")


def test_a_twelfth_of_copies_is_found_by_name(images: Callable[..., Tensor]) -> None:
    train, held = images(150, 1), images(120, 2)
    copied = warped(noised(train[30:40], torch_generator(0), 0.05), torch_generator(1), angle=0.02)
    found = asked(torch.cat([images(110, 3), copied]), train, held)
    assert found.conclusion == "copies detected"
    assert found.passed is False
    last = found.images.iloc[-10:]
    assert last["hit"].all()
    assert (last["copied"] == "train").all()
    assert last["row"].tolist() == list(range(30, 40))
    assert found.p < 0.05
    assert found.leaning.value > 0.5


def test_one_plain_copy_among_many_is_enough(images: Callable[..., Tensor]) -> None:
    train = images(150, 1)
    found = asked(torch.cat([images(110, 3), train[7:8]]), train, images(120, 2))
    assert found.unmistakable == 1
    assert found.conclusion == "copies detected"
    assert found.images["row"].iloc[-1] == 7


def test_the_error_rate_is_what_it_says(images: Callable[..., Tensor]) -> None:
    """Exchangeable images over many nulls: hits at the stated rate, and copies claimed in at most one of twenty.

    The limit is the fifth lowest of 100 distances, each the best of two measures: 5 of 101 new ones are below.
    """
    some, hits, claimed = images(4000, 9, size=8, sigma=0.8), [], []
    for seed in range(60):
        rows = torch.from_numpy(np.random.default_rng(seed).permutation(4000))
        synthetic, train, held = some[rows[:60]], some[rows[60:160]], some[rows[160:260]]
        found = asked(synthetic, train, held, seed, rate=0.05, planted=2)
        assert found.expected == pytest.approx(60 * 5 / 101)
        hits.append(found.hits / 60)
        claimed.append(found.p < 0.05)
    assert 0.75 * 5 / 101 < np.mean(hits) < 1.25 * 5 / 101
    assert np.mean(claimed) <= 0.1


def test_a_given_encoder_is_one_more_measure_and_detects_what_only_it_sees(images: Callable[..., Tensor]) -> None:
    """Copies whose pixels are shuffled alike are like nothing to the other measures."""
    train, held, fresh = images(150, 1), images(120, 2), images(80, 3)
    order = torch.randperm(32 * 32, generator=torch.Generator().manual_seed(0))

    def shuffled(one: Tensor) -> Tensor:
        return one.flatten(2)[..., order].view(one.shape)

    def encoder(shown: Tensor) -> Tensor:  # sees through the shuffle: the sorted pixels are unchanged by it
        ordered = shown.float().flatten(1).sort(1).values
        return functional.normalize(ordered - ordered.mean(1, keepdim=True))

    made = torch.cat([shuffled(train[:20]), fresh])
    alone, given = (asked(made, train, held, search=measures(fine, one)) for one in (None, encoder))
    assert alone.images["hit"].to_numpy()[:20].mean() < 0.2
    assert given.images["hit"].to_numpy()[:20].mean() > 0.9
    assert set(given.images.loc[given.images["hit"], "measure"]) == {"encoder"}


def test_missed_plants_forbid_a_conclusion_unless_they_are_out_of_reach(images: Callable[..., Tensor]) -> None:
    train, held, fresh = images(150, 1), images(120, 2), images(80, 3)
    other = {"another image": lambda shown, draw: torch.rand(shown.shape, generator=draw)}
    found = asked(fresh, train, held, plants=NOISE | other)
    assert found.conclusion == "cannot conclude"
    assert found.passed is None
    assert "another image: recall 0" in found.sentence
    told = asked(fresh, train, held, plants=NOISE | other, required=["noise"])
    assert told.conclusion == "no copies detected"
    assert told.plants.loc["another image", "recall"] < 0.2
    assert asked(fresh, train, held, plants={}).conclusion == "cannot conclude"


def test_bytes_or_floats_and_the_same_again(images: Callable[..., Tensor]) -> None:
    parts = [(images(n, seed) * 255).round().byte() for n, seed in ((40, 3), (60, 1), (60, 2))]
    one, two = asked(*parts), asked(*[part.float() / 255 for part in parts])
    words = ["measure", "copied"]
    assert np.allclose(one.images.drop(columns=words).astype(float), two.images.drop(columns=words).astype(float))
    assert asked(*parts).images.equals(one.images)


def test_images_of_one_held_out_patient_count_once(images: Callable[..., Tensor]) -> None:
    held = images(20, 2).repeat_interleave(10, 0)
    found = asked(images(40, 3), images(60, 1), held, held_out_patients=[f"h{i // 10}" for i in range(200)])
    assert found.held_out == 20
    assert found.rate == pytest.approx(1 / 11)


def test_an_overtrained_model_is_caught_and_strangers_are_not(overtrained: Any) -> None:
    """Eleven images seen hundreds of times: its samples are copies of them, and of no image it was not shown."""
    latents, made = overtrained.latents, overtrained.samples
    pictures, samples = (latents * 0.15 + 0.5).clamp(0, 1), (made * 0.15 + 0.5).clamp(0, 1)
    caught = asked(samples, pictures[:11], pictures[60:], rate=0.03)
    assert caught.conclusion == "copies detected"
    assert caught.hits > 24
    assert caught.leaning.low > 0.5
    never = asked(samples, pictures[11:60], pictures[60:], rate=0.03)
    assert never.conclusion == "no copies detected"


def test_codec_and_denoiser_plants(overtrained: Any) -> None:
    """One step from a member leads back to it; the whole way from noise need not."""
    from medlt.diffusion.schedulers import factory

    pictures = (overtrained.latents * 0.15 + 0.5).clamp(0, 1)
    ends = (lambda images: (images - 0.5) / 0.15, lambda latents: latents * 0.15 + 0.5)
    draw: Callable[[], Generator] = lambda: torch_generator("plants")  # noqa: E731
    assert round_trip(*ends)(pictures[:4], draw()).allclose(pictures[:4], atol=1e-6)
    schedule = factory("ddim", 15)
    gentle = img2img(*ends, overtrained.backbone.denoiser(), schedule, 2)
    harsh = img2img(*ends, overtrained.backbone.denoiser(), schedule, 15)
    near, far = (float((p(pictures[:11], draw()) - pictures[:11]).square().mean()) for p in (gentle, harsh))
    assert near < 0.5 * far
    assert gentle(pictures[:3], draw()).equal(gentle(pictures[:3], draw()))


@pytest.mark.parametrize(("n", "train", "held"), [(0, 20, 20), (5, 2, 20), (5, 20, 7)])
def test_too_little_is_refused(images: Callable[..., Tensor], n: int, train: int, held: int) -> None:
    with pytest.raises(InputError, match="too few to search"):
        asked(images(20, 1)[:n], images(20, 2)[:train], images(20, 3)[:held])
    with pytest.raises(InputError, match="one each"):
        asked(images(5, 1), images(20, 2), images(20, 3), uids=["a"])


def pieces(images: Tensor, turn: int = 1) -> Tensor:
    """Left halves of images beside right halves of others."""
    return torch.cat([images[..., : images.shape[-1] // 2], images.roll(turn, 0)[..., images.shape[-1] // 2 :]], 3)


CONSTRUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "inverted": lambda x: 1 - x,
    "shifted by 6 of 64 pixels": lambda x: x.roll((6, 6), (2, 3)),
    "left half of one, right half of another": pieces,
    "mirrored": lambda x: x.flip(-1),
    "blend": lambda x: (x + x.roll(1, 0)) / 2,
}


def test_transformed_copies_of_train_and_of_held_out_images_are_hits_and_other_patients_are_not(
    images: Callable[..., Tensor],
) -> None:
    train, held, fresh = (images(n, seed, size=64, sigma=2.5) for n, seed in ((110, 1), (100, 2), (40, 3)))
    made = {name: change(train[:12]) for name, change in CONSTRUCTIONS.items()}
    made["verbatim held-out"] = held[:12]
    made["inverted held-out"] = 1 - held[12:24]
    result = asked(torch.cat([fresh, *made.values()]), train, held, search=measures(fine), planted=8)
    assert result.conclusion == "copies detected"
    assert result.images["hit"].iloc[:40].sum() <= 3
    for position, name in enumerate(made):
        rows = result.images.iloc[40 + 12 * position : 52 + 12 * position]
        assert rows["hit"].mean() > 0.9, name
        assert (rows["copied"] == ("held-out" if "held-out" in name else "train")).all()
    assert result.counts["hits_on_held_out"] >= 22


def test_no_copies_is_said_of_the_planted_kinds_only(images: Callable[..., Tensor]) -> None:
    result = asked(images(80, 3), images(150, 1), images(120, 2))
    assert result.sentence.endswith("that it could have detected: noise. Nothing is known of other kinds")
    assert 0 < result.detectable < 0.1
    most = round(result.detectable * 80)
    copied = torch.cat([images(80, 3)[most:], images(150, 1)[: most + 1] * 0.9])
    assert asked(copied, images(150, 1), images(120, 2)).p < 0.05


@pytest.mark.real_data
@pytest.mark.slow
def test_real_patients_are_no_copies_of_each_other_and_all_constructions_are_detected(real_data: Path) -> None:
    """ChestX-ray14: test patients in the place of synthetic images are hit at the stated rate, copies nearly all."""
    table = pd.read_csv(real_data / "nih14" / "labels.csv")
    pixels = [np.asarray(Image.open(real_data / "nih14" / p).convert("L").resize((64, 64))) for p in table["path"]]
    shown, split = torch.from_numpy(np.stack(pixels))[:, None], table["split"].to_numpy()
    train, val, test = (shown[torch.from_numpy(split == name)] for name in ("train", "val", "test"))
    names = {f"{part}_patients": table["patient_id"][split == name].tolist()
             for part, name in (("train", "train"), ("held_out", "val"))}  # fmt: skip
    _, first = np.unique(table["patient_id"][split == "test"], return_index=True)
    fresh, own = test[torch.from_numpy(first)][:150], train[:40].float() / 255
    made = {name: change(own) for name, change in CONSTRUCTIONS.items()}
    made["verbatim validation patients"] = val[:40].float() / 255
    synthetic = torch.cat([fresh.float() / 255, *made.values()])
    result = asked(synthetic, train, val, search=measures(fine), plants=COMMON, planted=50, **names)
    assert result.images["hit"].iloc[:150].mean() < 0.05
    for position, name in enumerate(made):
        assert result.images["hit"].iloc[150 + 40 * position : 190 + 40 * position].mean() >= 0.9, name
    assert result.plants["recall"].min() >= 0.9
