"""A trained generator leaves as a MONAI bundle and in diffusers' format, and makes what our sampler makes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from PIL import Image
from torch import Tensor

import medlt
from medlt.diffusion.attributes import ATTRIBUTES, encode
from medlt.diffusion.backbone import EVERYWHERE
from medlt.diffusion.labels import LabelUNet
from medlt.diffusion.prompts import Prompts
from medlt.diffusion.sampler import from_noise, sample
from medlt.diffusion.schedulers import factory
from medlt.diffusion.stable.load import load_stable_diffusion
from medlt.export.generator import columns, decode, unit_noise
from medlt.export.parts import scheduler_config
from medlt.recipes.generator import TrainedGenerator, open_generator
from medlt.testing import tiny_autoencoder_kl, tiny_autoencoder_tiny

STEPS, SCALE, SEEDS = 7, 2.5, (3, 11)
INTERVAL = (0.2, 0.8)


@pytest.fixture(scope="module")
def generator(tiny_run: medlt.Run) -> TrainedGenerator:
    """What the tiny run trained."""
    return open_generator(tiny_run.folder)


@pytest.fixture(scope="module")
def pipeline_folder(tiny_run: medlt.Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run in diffusers' format."""
    return tiny_run.export("diffusers", tmp_path_factory.mktemp("diffusers") / "out")


@pytest.fixture(scope="module")
def bundle(tiny_run: medlt.Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run as a MONAI bundle."""
    return tiny_run.export("monai-bundle", tmp_path_factory.mktemp("bundle") / "out")


def ours(trained: TrainedGenerator, finding: str, interval: tuple[float, float] = EVERYWHERE, **about: Any) -> Tensor:
    """Images [2,1,H,W] that medlt's own sampler makes of the seeds' noise."""
    labels = torch.zeros(len(SEEDS), len(trained.findings))
    labels[:, trained.findings.index(finding)] = 1
    backbone = trained.network.backbone()
    scheduler = factory("ddim", STEPS, backbone.noise)()
    noise = unit_noise(SEEDS, (trained.codec.channels, *trained.latent_size))
    guided = backbone.guided(backbone.condition(labels, [about] * len(SEEDS)), SCALE, interval)
    return trained.codec.decode(trained.standardiser.back(sample(guided, from_noise(noise, scheduler), scheduler)))


def shown(pictures: list[Image.Image]) -> Tensor:
    return torch.stack([torch.from_numpy(np.array(picture))[None] for picture in pictures]).float() / 255


def test_the_pipeline_makes_the_images_of_our_sampler(pipeline_folder: Path, generator: TrainedGenerator) -> None:
    pipeline: Any = DiffusionPipeline.from_pretrained(
        pipeline_folder, custom_pipeline=str(pipeline_folder), trust_remote_code=True
    )
    pictures = pipeline({"Mass": 1}, seeds=SEEDS, num_inference_steps=STEPS, guidance_scale=SCALE)
    expected = ours(generator, "Mass")
    assert float(expected.std()) > 0.01
    torch.testing.assert_close(shown(pictures), expected, atol=0.6 / 255, rtol=0)
    same = {"seeds": SEEDS, "num_inference_steps": STEPS, "guidance_scale": SCALE}
    some = shown(pipeline({"Effusion": 1}, **same, guidance_interval=INTERVAL))
    torch.testing.assert_close(some, ours(generator, "Effusion", INTERVAL), atol=0.6 / 255, rtol=0)
    assert not torch.equal(some, shown(pipeline({"Effusion": 1}, **same)))
    assert not torch.equal(some, shown(pictures))
    assert "guidance_interval=[0.0, 1.0]" in (pipeline_folder / "README.md").read_text()
    with pytest.raises(ValueError, match="'Masss' is not a finding"):
        pipeline({"Masss": 1})


KNOWN = {"view": "AP", "sex": "F", "age": 81}


def test_view_sex_and_age_are_asked_for_like_findings(pipeline_folder: Path, generator: TrainedGenerator) -> None:
    pipeline: Any = DiffusionPipeline.from_pretrained(
        pipeline_folder, custom_pipeline=str(pipeline_folder), trust_remote_code=True
    )
    options = {"seeds": SEEDS, "num_inference_steps": STEPS, "guidance_scale": SCALE}
    pictures = shown(pipeline({"Mass": 1, **KNOWN}, **options))
    torch.testing.assert_close(pictures, ours(generator, "Mass", **KNOWN), atol=0.6 / 255, rtol=0)
    assert not torch.equal(pictures, shown(pipeline({"Mass": 1}, **options)))


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_the_exported_file_encodes_attributes_as_medlt_does(name: str) -> None:
    values = [
        "PA",
        "ap",
        " Frontal",
        "LL",
        "lateral",
        "LPO",
        "",
        None,
        float("nan"),
        "F",
        "male",
        "W",
        0,
        35.5,
        120,
        121,
        -1,
    ]
    for value in values:
        assert columns(name, value) == pytest.approx(encode((name,), [{name: value}], 1)[0].tolist()), value


@pytest.mark.parametrize(
    "noise", [{}, {"rescale_betas_zero_snr": True}, {"rescale_betas_zero_snr": True, "shift": 0.25}]
)
def test_the_exported_scheduler_has_the_noise_levels_of_the_network(noise: dict[str, Any], tmp_path: Path) -> None:
    network = LabelUNet(4, 2, width=8, **noise)
    DDIMScheduler(**scheduler_config(network)).save_pretrained(tmp_path)
    levels: Any = DDIMScheduler.from_pretrained(tmp_path).alphas_cumprod
    torch.testing.assert_close(levels, network.noise.abar(), atol=1e-6, rtol=1e-3)
    assert (float(levels[-1]) == 0) == bool(noise)


def test_stock_diffusers_loads_every_part(pipeline_folder: Path, generator: TrainedGenerator) -> None:
    unet: Any = UNet2DModel.from_pretrained(pipeline_folder, subfolder="unet")
    vae: Any = AutoencoderKL.from_pretrained(pipeline_folder, subfolder="vae")
    scheduler: Any = DDIMScheduler.from_pretrained(pipeline_folder, subfolder="scheduler")
    for name, value in generator.network.unet.state_dict().items():
        assert torch.equal(unet.state_dict()[name], value)
    for name, value in generator.codec.network.state_dict().items():
        assert torch.equal(vae.state_dict()[name], value)
    assert scheduler.config.prediction_type == "v_prediction"
    torch.testing.assert_close(scheduler.alphas_cumprod, generator.network.backbone().noise.abar(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("trailing", [2, 6, 7, 10, 25, 50])
def test_the_scheduler_takes_our_timesteps(pipeline_folder: Path, trailing: int) -> None:
    scheduler: Any = DDIMScheduler.from_pretrained(pipeline_folder, subfolder="scheduler")
    scheduler.set_timesteps(trailing)
    assert scheduler.timesteps.tolist() == factory("ddim", trailing)().timesteps.tolist()


@pytest.mark.parametrize(
    "changes", [{}, {"shift_factor": 0.3}, {"latents_mean": [0.1, 0.2, 0.3, 0.4], "latents_std": [1.0, 2.0, 0.5, 1.5]}]
)
def test_decoding_is_that_of_our_codec(changes: dict[str, Any]) -> None:
    from medlt.diffusion.codec import AutoencoderCodec

    network = tiny_autoencoder_kl(**changes)
    z = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(decode(network, z), AutoencoderCodec(network, "cpu").decode(z), atol=1e-5, rtol=0)
    small = tiny_autoencoder_tiny()
    torch.testing.assert_close(decode(small, z), AutoencoderCodec(small, "cpu").decode(z), atol=1e-5, rtol=0)


def test_monai_runs_the_bundle(bundle: Path, generator: TrainedGenerator, tiny_run: medlt.Run) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", "--config_file", "configs/inference.json",
               "--labels", "{'Mass': 1}", "--seeds", str(list(SEEDS)), "--num_inference_steps", str(STEPS),
               "--guidance_scale", str(SCALE), "--guidance_interval", str(list(INTERVAL))]  # fmt: skip
    config = json.loads((bundle / "configs" / "inference.json").read_text())
    assert config["guidance_interval"] == [0, 1]
    subprocess.run(command, cwd=bundle, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    files = [bundle / "eval" / f"synthetic-{seed}.png" for seed in SEEDS]
    pictures = [Image.open(file) for file in files]
    torch.testing.assert_close(shown(pictures), ours(generator, "Mass", INTERVAL), atol=0.6 / 255, rtol=0)
    text = pictures[0].text  # type: ignore[attr-defined]
    assert text["Synthetic"] == "true"
    assert text["Run"] == tiny_run.id != ""
    assert text["Seed"] == str(SEEDS[0])
    assert text["UID"] == f"synthetic-{SEEDS[0]}" == files[0].stem


def test_the_bundle_needs_no_medlt(bundle: Path) -> None:
    scripts = [path.read_text() for path in (bundle / "scripts").glob("*.py")]
    assert scripts
    assert not any("import medlt" in text or "from medlt" in text for text in scripts)
    for value in torch.load(bundle / "models" / "model.pt", weights_only=True).values():
        assert isinstance(value, Tensor)


TENSOR = {
    "type": "object",
    "properties": {
        "type": {"type": "string"},
        "format": {"type": "string"},
        "modality": {"type": "string"},
        "num_channels": {"type": "integer", "minimum": 1},
        "spatial_shape": {"type": "array", "items": {"type": ["integer", "string"]}},
        "dtype": {"type": "string"},
        "value_range": {"type": "array", "items": {"type": "number"}},
        "is_patch_data": {"type": "boolean"},
        "channel_def": {"type": "object", "additionalProperties": {"type": "string"}},
    },
    "required": ["type", "format", "num_channels", "spatial_shape", "dtype", "value_range", "is_patch_data"],
}
TEXT = ("version", "monai_version", "pytorch_version", "numpy_version", "task", "description", "authors", "copyright")
SCHEMA = {
    "type": "object",
    "properties": {
        **{name: {"type": "string", "minLength": 1} for name in TEXT},
        "changelog": {"type": "object", "additionalProperties": {"type": "string"}},
        "required_packages_version": {"type": "object", "additionalProperties": {"type": "string", "minLength": 1}},
        "network_data_format": {
            "type": "object",
            "properties": {
                "inputs": {"type": "object", "additionalProperties": TENSOR},
                "outputs": {"type": "object", "additionalProperties": TENSOR, "minProperties": 1},
            },
            "required": ["inputs", "outputs"],
        },
    },
    "required": [*TEXT, "changelog", "required_packages_version", "network_data_format"],
}
"""Of metadata.json, as MONAI's bundle specification describes it."""


def test_the_metadata_is_what_monai_specifies(bundle: Path, tiny_run: medlt.Run, tmp_path: Path) -> None:
    from monai.bundle import verify_metadata

    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    given = {**metadata, "schema": "https://example.org/schema.json"}
    (tmp_path / "metadata.json").write_text(json.dumps(given))
    with pytest.warns(UserWarning, match="No hash value"):
        verify_metadata(meta_file=tmp_path / "metadata.json", filepath=tmp_path / "schema.json")
    assert metadata["network_data_format"]["outputs"]["image"]["spatial_shape"] == [32, 32]
    assert metadata["findings"] == list(tiny_run.findings)
    assert metadata["provenance"]["synthetic"] is True
    assert metadata["provenance"]["run"] == tiny_run.id
    privacy = metadata["provenance"]["privacy"]
    assert (privacy["epsilon"], privacy["delta"], privacy["ledger"]) == (None, None, None)
    assert "No privacy is claimed" in privacy["sentence"]
    assert "No privacy is claimed" in (bundle / "docs" / "README.md").read_text()


def test_an_export_is_not_overwritten_and_whole(tiny_run: medlt.Run, bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(medlt.InputError, match="exists already"):
        tiny_run.export("monai-bundle", bundle)
    for name in ("MODEL_CARD.md", "DATASHEET.md", "provenance.json"):
        assert (bundle / name).is_file()
    with pytest.raises(medlt.InputError, match=r"'difusers'; did you mean 'diffusers'\? use one of imagefolder"):
        tiny_run.export("difusers", tmp_path / "out")
    with pytest.raises(medlt.InputError, match="leave real out"):
        tiny_run.export("diffusers", tmp_path / "out", real=True)
    assert not (tmp_path / "out").exists()
    assert list(tmp_path.iterdir()) == []


PRIVACY = {
    "epsilon": 8.0,
    "delta": 1e-5,
    "patients": 24,
    "findings": ["Mass", "Nodule"],
    "noise_multiplicity": 1,
    "grad_sample_mode": "bookkeeping",
    "max_physical_batch_size": 16,
}


def test_a_private_generator_carries_its_ledger_and_claim(
    tiny_collection: medlt.Collection, tiny_settings: dict[str, Any], tmp_path: Path
) -> None:
    own = {name: value for name, value in tiny_settings.items() if name != "checks"}
    own |= {name: {**own[name], "steps": 2, "batch_size": 4} for name in ("codec", "denoiser")}
    run = medlt.finetune(tiny_collection, output_dir=tmp_path / "run", privacy=PRIVACY, progress=False, **own)
    out = run.export("monai-bundle", tmp_path / "bundle")
    metadata = json.loads((out / "configs" / "metadata.json").read_text())
    privacy = metadata["provenance"]["privacy"]
    claim = run.claim
    assert claim.epsilon is not None
    assert (privacy["epsilon"], privacy["delta"]) == (claim.epsilon, 1e-5)
    assert 0 < privacy["epsilon"] <= 8
    assert {one["stage"] for one in privacy["ledger"]["mechanisms"]} == {"codec", "denoiser"}
    assert privacy["ledger"]["epsilon"] == claim.epsilon
    rows = json.loads((run.folder / "ledger.json").read_text())["mechanisms"][0]["data"]
    assert rows
    for file in out.rglob("*.*"):
        assert rows.encode() not in file.read_bytes()
    assert claim.sentence in (out / "docs" / "README.md").read_text()


STABLE: dict[str, Any] = {
    "kind": "stable-diffusion",
    "model": {"kind": "untrained", "widths": [32, 32], "text_width": 32, "text_layers": 1},
    "train": "full",
    "steps": 2,
    "batch_size": 4,
    "checkpoint_every": 2,
    "warmup_steps": 0,
}


@pytest.mark.slow
def test_stable_diffusion_leaves_as_a_stable_diffusion_pipeline(
    tiny_collection: medlt.Collection, tiny_settings: dict[str, Any], tmp_path: Path
) -> None:
    settings = {**tiny_settings, "denoiser": STABLE}
    run = medlt.finetune(tiny_collection, output_dir=tmp_path / "run", progress=False, **settings)
    out = run.export("diffusers", tmp_path / "out")
    assert json.loads((out / "provenance.json").read_text())["synthetic"] is True
    with pytest.raises(medlt.InputError, match="Stable Diffusion"):
        run.export("monai-bundle", tmp_path / "bundle")
    pipeline: Any = StableDiffusionPipeline.from_pretrained(out, safety_checker=None, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    model = load_stable_diffusion(out)
    backbone = model.backbone(Prompts(run.findings))
    labels = torch.zeros(1, len(run.findings))
    labels[0, run.findings.index("Mass")] = 1
    noise = unit_noise(SEEDS[:1], (4, 8, 8))
    steps = 5  # a count at which stock DDIM leaves no noise with trailing timesteps
    scheduler = factory("ddim", steps, backbone.noise)()
    guided = backbone.guided(backbone.condition(labels), SCALE)
    latents = sample(guided, from_noise(noise, scheduler), scheduler)
    prompt = Prompts(run.findings)(labels)[0]
    stock = DDIMScheduler.from_pretrained(out, subfolder="scheduler")
    ending = {"timestep_spacing": "trailing", "set_alpha_to_one": True}
    pipeline.scheduler = DDIMScheduler.from_config(stock.config, **ending)
    theirs = pipeline(prompt, latents=noise, num_inference_steps=steps, guidance_scale=SCALE, output_type="latent")[0]
    torch.testing.assert_close(theirs, latents, atol=1e-3, rtol=1e-4)


@pytest.mark.slow
def test_lora_leaves_as_a_file_for_its_base_model(
    tiny_collection: medlt.Collection, tiny_settings: dict[str, Any], tmp_path: Path
) -> None:
    denoiser = {**STABLE, "train": "lora", "rank": 2, "learning_rate": 0.01}
    settings = {**tiny_settings, "denoiser": denoiser}
    run = medlt.finetune(tiny_collection, output_dir=tmp_path / "run", progress=False, **settings)
    out = run.export("diffusers", tmp_path / "out")
    assert "load_lora_weights" in (out / "README.md").read_text()
    base = next((run.folder / "artifacts" / "untrained").glob("*/model"))
    model = load_stable_diffusion(base, loras=(run.folder / "denoiser",))
    bare: Any = UNet2DConditionModel.from_pretrained(base, subfolder="unet")
    noise, text = torch.randn(1, 4, 8, 8), torch.randn(1, 77, 32)
    before = bare(noise, 500, text).sample
    bare.load_lora_adapter(out / "pytorch_lora_weights.safetensors", prefix="unet")
    after = bare(noise, 500, text).sample
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, model.unet(noise, 500, text).sample, atol=1e-5, rtol=1e-4)
    weights = run.folder / "denoiser" / "pytorch_lora_weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(medlt.InputError, match=r"pytorch_lora_weights\.safetensors: is not what this run made"):
        run.export("diffusers", tmp_path / "damaged")
    assert not (tmp_path / "damaged").exists()
