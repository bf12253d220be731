"""What is saved is whole, opens in diffusers, comes back equal, and is a function of what was given."""

import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from medlt.diffusion.codec import load_codec
from medlt.diffusion.noise import NoiseSchedule
from medlt.diffusion.stable import network
from medlt.diffusion.stable.infer import text_settings
from medlt.diffusion.stable.load import load_stable_diffusion
from medlt.diffusion.stable.save import save_stable_diffusion
from medlt.diffusion.stable.untrained import FORMATS, unet_config, untrained, vae_config
from medlt.files import whole_folder
from medlt.testing import tiny_autoencoder_tiny
from medlt.types import InputError

Open = Callable[..., Any]
SMALL: dict[str, Any] = {"widths": (32, 64), "layers": 1, "text_width": 32, "text_layers": 1}


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_saved_model_comes_back(checkpoint: Path, pipeline: Open, tmp_path: Path) -> None:
    model = load_stable_diffusion(checkpoint)
    with torch.no_grad():
        model.unet.conv_in.weight *= 2
    save_stable_diffusion(model, tmp_path / "new", vae=checkpoint)
    again, pipe = load_stable_diffusion(tmp_path / "new"), pipeline(tmp_path / "new")
    for network_, theirs, ours in (("unet", pipe.unet, model.unet), ("text", pipe.text_encoder, model.text_encoder)):
        held = theirs.state_dict()
        assert all(torch.equal(value, held[name]) for name, value in ours.state_dict().items()), network_
    assert torch.equal(again.unet.conv_in.weight, model.unet.conv_in.weight)
    assert (again.prediction, again.noise) == (model.prediction, model.noise)
    assert (
        again.tokenizer("edema", padding="max_length").input_ids
        == pipe.tokenizer("edema", padding="max_length").input_ids
    )
    assert again.tokenizer.pad_token_id == model.tokenizer.pad_token_id
    image = pipe("edema", num_inference_steps=2, height=32, width=32, output_type="np").images
    assert image.shape == (1, 32, 32, 3)
    save_stable_diffusion(model, tmp_path / "twice", vae=checkpoint / "vae")
    assert contents(tmp_path / "twice") == contents(tmp_path / "new")
    assert not any(str(tmp_path).encode() in data for data in contents(tmp_path / "new").values())


def test_without_an_autoencoder_diffusers_takes_one(tmp_path: Path, pipeline: Open) -> None:
    assert pipeline(untrained(tmp_path / "model", **SMALL), vae=None).vae is None


def test_nothing_is_overwritten_or_half_written(sd15: Path, tmp_path: Path) -> None:
    model = load_stable_diffusion(sd15)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "mine").write_text("")
    with pytest.raises(InputError, match="exists already; give another folder"):
        save_stable_diffusion(model, tmp_path / "old", vae=None)
    with pytest.raises(InputError, match="has no autoencoder"):
        save_stable_diffusion(model, tmp_path / "new", vae=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        save_stable_diffusion(model, tmp_path / "file" / "new", vae=None)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "old"]


def test_an_adapter_is_not_saved_as_weights(sd15: Path, tmp_path: Path) -> None:
    from peft import LoraConfig

    model = load_stable_diffusion(sd15)
    model.unet.add_adapter(LoraConfig(target_modules=["to_q"]))
    with pytest.raises(ValueError, match="still has an adapter"):
        save_stable_diffusion(model, tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("version", ["1.5", "2.1"])
def test_untrained_models_are_functions_of_their_arguments(tmp_path: Path, version: Any) -> None:
    sizes = SMALL | ({"widths": (64, 64)} if version == "2.1" else {})
    state = torch.get_rng_state()
    folders = [untrained(tmp_path / f"{i}", version=version, seed=seed, **sizes) for i, seed in enumerate((0, 0, 1))]
    assert torch.equal(torch.get_rng_state(), state)
    one, same, other = map(contents, folders)
    assert one == same
    assert {name for name in one if one[name] != other[name]} == {
        "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors",
    }  # fmt: skip


def test_untrained_widths(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"widths .32, 48.: give one or more multiples of 32"):
        untrained(tmp_path / "model", widths=(32, 48))
    with pytest.raises(InputError, match="give one or more multiples of 32"):
        untrained(tmp_path / "model", widths=())
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    own = f".model.{platform.node()}"
    for name in (f"{own}.{ended.pid}.tmp", f"{own}.{os.getppid()}.tmp", ".model.elsewhere.1.tmp", ".other.1.tmp"):
        (tmp_path / name).mkdir()
    with whole_folder(tmp_path / "model") as fresh:
        (fresh / "part").touch()
    kept = {"model", f"{own}.{os.getppid()}.tmp", ".model.elsewhere.1.tmp", ".other.1.tmp"}
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_a_broken_tokenizer_makes_no_model(tmp_path: Path, sd15: Path) -> None:
    words = Path(shutil.copytree(sd15 / "tokenizer", tmp_path / "words"))
    (words / "vocab.json").write_text("{")
    with pytest.raises(InputError, match="holds no CLIP tokenizer"):
        untrained(tmp_path / "model", tokenizer=words, **SMALL)
    assert not (tmp_path / "model").exists()


def test_untrained_models_take_what_is_given(tmp_path: Path, sd15: Path) -> None:
    tiny = tiny_autoencoder_tiny(latent_channels=6)
    tiny.save_pretrained(tmp_path / "codec")
    noise = NoiseSchedule(zero_terminal=True)
    folder = untrained(
        tmp_path / "model", prediction="v_prediction", channels=6, vae=tmp_path / "codec", noise=noise,
        tokenizer=sd15 / "tokenizer", **SMALL,
    )  # fmt: skip
    model = load_stable_diffusion(folder)
    assert (model.prediction, model.channels, model.noise) == ("v_prediction", 6, noise)
    assert load_codec(folder, "cpu").channels == 6


def test_the_small_tokenizer_reads_any_text(sd15: Path, pipeline: Open) -> None:
    tokenizer = load_stable_diffusion(sd15).tokenizer
    for text in ("chest radiograph, PA view, with pleural effusion", "Überraschung! 50% (ß)"):
        ids = tokenizer(text).input_ids
        assert ids[0] == tokenizer.bos_token_id
        assert ids[-1] == tokenizer.eos_token_id
        assert tokenizer.unk_token_id not in ids[1:-1]
        said = tokenizer.decode(ids, skip_special_tokens=True)
        assert said.replace(" ", "").strip() == text.lower().replace(" ", "")
    text = "chest radiograph with pleural effusion"
    assert len(tokenizer(text).input_ids) < len(text) / 3


@pytest.mark.parametrize(
    ("version", "told", "read"),
    [
        ("1.5", {"attention_head_dim": 8, "use_linear_projection": False}, ("quick_gelu", 12, 3072)),
        ("2.1", {"attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True}, ("gelu", 16, 4096)),
    ],
)
def test_the_full_size_has_the_published_settings(version: Any, told: dict[str, Any], read: tuple[Any, ...]) -> None:
    """What no parameter count shows; values of the published config.json files."""
    form = FORMATS[version]
    said = unet_config(form, (320, 640, 1280, 1280), 2, form.text_width, 4)
    assert {key: said[key] for key in told} == told
    words = text_settings(49408, form.text_width, form.text_layers, 4 * form.text_width, form.activation)
    assert (words["hidden_act"], words["num_attention_heads"], words["intermediate_size"]) == read


PUBLISHED = {"1.5": (859_520_964, 123_060_480), "2.1": (865_910_724, 340_387_840)}


@pytest.mark.parametrize("version", ["1.5", "2.1"])
def test_the_full_size_is_the_published_one(version: Any) -> None:
    """Parameter counts of the published checkpoints, on the meta device."""
    form = FORMATS[version]
    unet = network.empty("unet", unet_config(form, (320, 640, 1280, 1280), 2, form.text_width, 4), "here")
    words = text_settings(49408, form.text_width, form.text_layers, 4 * form.text_width, form.activation)
    text = network.empty("text_encoder", words, "here")
    vae = network.empty("vae", vae_config((128, 256, 512, 512), 4), "here")
    counts = [sum(p.numel() for p in net.parameters()) for net in (unet, text, vae)]
    assert counts == [*PUBLISHED[version], 83_653_863]


@pytest.mark.slow
def test_the_full_size_runs(tmp_path: Path) -> None:
    """SD 1.5 with chance for weights: written, loaded, and asked once at 64x64 latents."""
    model = load_stable_diffusion(untrained(tmp_path / "full"))
    shutil.rmtree(tmp_path / "full")  # 4 GB
    with torch.no_grad():
        said = model.text_encoder(torch.zeros(1, 77, dtype=torch.int64)).last_hidden_state
        answer = model.unet(torch.randn(1, 4, 64, 64), torch.tensor([500]), encoder_hidden_states=said).sample
    assert said.shape == (1, 77, 768)
    assert answer.shape == (1, 4, 64, 64)
    assert answer.isfinite().all()


@pytest.mark.real_data
@pytest.mark.parametrize("version", ["1.5", "2.1"])
def test_the_published_tokenizer(tmp_path: Path, real_data: Path, pipeline: Open, version: Any) -> None:
    weights = real_data / "weights"
    sizes = SMALL | ({"widths": (64, 64)} if version == "2.1" else {})
    folder = untrained(
        tmp_path / "model", version=version, tokenizer=weights / "clip_tokenizer", vae=weights / "taesd_diffusers",
        **sizes,
    )  # fmt: skip
    model, pipe = load_stable_diffusion(folder), pipeline(folder)
    assert len(model.tokenizer) == model.text_encoder.config.vocab_size == 49408
    said = model.tokenizer("chest x-ray", padding="max_length").input_ids
    assert said[:6] == [49406, 10563, 343, 268, 3077, 49407]
    assert set(said[6:]) == {49407 if version == "1.5" else 0}
    assert pipe("edema", num_inference_steps=1, height=64, width=64, output_type="np").images.shape == (1, 64, 64, 3)
    assert load_codec(folder, "cpu").channels == 4
