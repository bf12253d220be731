"""Pixel diffusion from end to end: the identity as the codec, latent fusion on it, and its export."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor

from medlt.config import RunConfig, parse
from medlt.data.manifest import Manifest
from medlt.diffusion.pixels import PixelCodec
from medlt.diffusion.sampler import from_noise, sample
from medlt.diffusion.schedulers import factory
from medlt.export import export
from medlt.export.generator import LabelPipeline, unit_noise
from medlt.recipes.augment import main
from medlt.recipes.generator import TrainedGenerator, open_generator

pytestmark = pytest.mark.slow
SEEDS, STEPS = (3, 11), 5


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[[Path], RunConfig]) -> Path:
    """A run of latent fusion whose latents are blocks of 2 x 2 pixels."""
    config = tiny(tmp_path_factory.mktemp("pixels") / "run")
    tree = config.model_dump() | {"codec": {"kind": "identity", "patch": 2}, "evaluation": None}
    return main(parse(tree))


@pytest.fixture(scope="module")
def generator(run: Path) -> TrainedGenerator:
    """What it trained."""
    return open_generator(run)


def test_fusion_makes_images_of_pixels_and_the_codec_loses_nothing(run: Path, generator: TrainedGenerator) -> None:
    summary = json.loads((run / "run.json").read_text())
    assert summary["codec_check"]["lost"] == {}
    assert summary["digests"]["codec"] == PixelCodec(2, "cpu").digest == generator.codec.digest
    assert generator.latent_size == (16, 16)
    made = Manifest.read(run / "manifest.parquet").rows.query("synthetic")
    assert len(made) == summary["counts"]["kept"] > 0
    with Image.open(run / made["path"].iloc[0]) as image:
        assert image.size == (32, 32)
    assert "the identity as its codec" in (run / "MODEL_CARD.md").read_text()


def ours(trained: TrainedGenerator) -> Tensor:
    """Images that medlt's own sampler makes of the seeds' noise, with a Mass."""
    labels = torch.zeros(len(SEEDS), len(trained.findings))
    labels[:, trained.findings.index("Mass")] = 1
    backbone = trained.network.backbone()
    scheduler = factory("ddim", STEPS, backbone.noise)()
    noise = unit_noise(SEEDS, (trained.codec.channels, *trained.latent_size))
    z = sample(backbone.guided(backbone.condition(labels), 2.0), from_noise(noise, scheduler), scheduler)
    return trained.codec.decode(trained.standardiser.back(z))


def shown(pictures: list[Image.Image]) -> Tensor:
    """Pictures as images in [0,1]."""
    return torch.stack([torch.from_numpy(np.array(one))[None] for one in pictures]).float() / 255


def test_the_pipeline_without_a_vae_makes_the_images_of_our_sampler(
    run: Path, generator: TrainedGenerator, tmp_path: Path
) -> None:
    folder = export(run, "diffusers", tmp_path / "out")
    assert not (folder / "vae").exists()
    assert json.loads((folder / "model_index.json").read_text())["vae"] == [None, None]
    stock: Any = DiffusionPipeline.from_pretrained(folder, custom_pipeline=str(folder), trust_remote_code=True)
    expected = ours(generator)
    assert float(expected.std()) > 0.01
    for pipeline in (stock, LabelPipeline.from_folder(folder)):
        pictures = pipeline({"Mass": 1}, seeds=SEEDS, num_inference_steps=STEPS, guidance_scale=2.0)
        torch.testing.assert_close(shown(pictures), expected, atol=0.6 / 255, rtol=0)


def test_the_bundle_without_a_vae_holds_the_same_network(
    run: Path, generator: TrainedGenerator, tmp_path: Path
) -> None:
    from medlt.export.generator import Generator

    folder = export(run, "monai-bundle", tmp_path / "out")
    definition = json.loads((folder / "configs" / "inference.json").read_text())["network_def"]
    assert definition["vae"] is None
    network = Generator(**{name: part for name, part in definition.items() if name != "_target_"}).eval()
    network.load_state_dict(torch.load(folder / "models" / "model.pt", weights_only=True))
    made = network.generate({"Mass": 1}, SEEDS, STEPS, 2.0)
    torch.testing.assert_close(made, ours(generator), atol=1e-4, rtol=0)
