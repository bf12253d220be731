"""Adapters in every written form change the weights by alpha / r B A, as diffusers' pipeline has it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from medlt.diffusion.stable.load import StableDiffusion, load_stable_diffusion, validate_folder
from medlt.diffusion.stable.save import save_lora
from medlt.types import InputError

Open = Callable[..., Any]
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
WORDS = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1"]


def adapted(folder: Path, rank: int = 4, alpha: float = 6, conv: bool = False, seed: int = 0) -> StableDiffusion:
    """A model that carries adapters in both networks, with chance in every matrix."""
    from peft import LoraConfig

    model = load_stable_diffusion(folder)
    layers = ATTENTION + (["conv1", "proj_in", "time_emb_proj"] if conv else [])
    model.unet.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=layers))
    model.text_encoder.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=WORDS))
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for network in (model.unet, model.text_encoder):
            for name, value in sorted(network.named_parameters()):
                if "lora_" in name:
                    value.copy_(torch.randn(value.shape, generator=draw) * 0.1)
    return model


def outputs(unet: Any, text_encoder: Any) -> tuple[Tensor, Tensor]:
    x = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    ids = torch.arange(2 * 77).reshape(2, 77)
    with torch.no_grad():
        said = text_encoder(ids).last_hidden_state
        return said, unet(x, torch.tensor([3, 900]), encoder_hidden_states=said).sample


def close(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> bool:
    return all(torch.allclose(a, b, atol=1e-4) for a, b in zip(one, other, strict=True))


def of(model: StableDiffusion) -> tuple[Tensor, Tensor]:
    return outputs(model.unet, model.text_encoder)


@pytest.mark.parametrize("conv", [False, True])
def test_an_adapter_comes_back_as_it_was_saved(checkpoint: Path, pipeline: Open, tmp_path: Path, conv: bool) -> None:
    model = adapted(checkpoint, conv=conv)
    file = save_lora(model.unet, tmp_path / "lora", model.text_encoder)
    bare, fused = load_stable_diffusion(checkpoint), load_stable_diffusion(checkpoint, loras=[tmp_path / "lora"])
    assert close(of(fused), of(model))
    assert not close(of(bare), of(model))
    pipe = pipeline(checkpoint)
    pipe.load_lora_weights(tmp_path / "lora")
    assert close(outputs(pipe.unet, pipe.text_encoder), of(model))
    assert fused.digest != bare.digest
    assert fused.files.keys() - bare.files.keys() == {"loras/0/pytorch_lora_weights.safetensors"}
    assert not any("lora" in name for name, _ in fused.unet.named_modules())
    first = file.read_bytes()
    assert save_lora(model.unet, tmp_path / "lora", model.text_encoder).read_bytes() == first


def kohya(folder: Path, target: Path, alpha: float) -> None:
    """A diffusers file under kohya's names, alpha a tensor of each layer."""
    out = {}
    for key, value in load_file(folder / "pytorch_lora_weights.safetensors").items():
        layer, side = key.rsplit(".lora_", 1)
        prefix, name = layer.split(".", 1)
        flat = ("lora_unet_" if prefix == "unet" else "lora_te_") + name.replace(".", "_")
        out[f"{flat}.lora_{'down' if side.startswith('A') else 'up'}.weight"] = value
        out[f"{flat}.alpha"] = torch.tensor(alpha)
    save_file(out, target)


def old_names(folder: Path, target: Path) -> None:
    """A diffusers file under the names of diffusers 0.2x, which tell no alpha."""
    out = {}
    for key, value in load_file(folder / "pytorch_lora_weights.safetensors").items():
        side = "down" if ".lora_A." in key else "up"
        head = key.split(".lora_")[0]
        tail = f".lora_linear_layer.{side}.weight" if key.startswith("text") else f".lora.{side}.weight"
        out[head + tail] = value
    save_file(out, target)


def older_names(folder: Path, target: Path) -> None:
    """A diffusers file under the names of attention processors."""
    out = {}
    for key, value in load_file(folder / "pytorch_lora_weights.safetensors").items():
        side = "down" if ".lora_A." in key else "up"
        block, layer = key.split(".lora_")[0].removesuffix(".0").rsplit(".", 1)
        if key.startswith("unet."):
            out[f"{block}.processor.{layer}_lora.{side}.weight"] = value
        elif layer != "fc1":
            new = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}[layer]
            out[f"{block}.{new}_lora.{side}.weight"] = value
        else:
            out[f"{block}.{layer}.lora_linear_layer.{side}.weight"] = value
    save_file(out, target)


def peft_names(folder: Path, target: Path) -> None:
    """The UNet's half as peft itself writes it, with its settings beside it."""
    held = load_file(folder / "pytorch_lora_weights.safetensors")
    own = {k.replace("unet.", "base_model.model.", 1): v for k, v in held.items() if k.startswith("unet.")}
    (target.parent / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 6}))
    save_file(own, target.with_name("adapter_model.safetensors"))


@pytest.mark.parametrize("alpha", [4.0, 1.0])
@pytest.mark.parametrize("conv", [False, True])
def test_kohyas_names(sd15: Path, tmp_path: Path, alpha: float, conv: bool) -> None:
    model = adapted(sd15, alpha=alpha, conv=conv)
    save_lora(model.unet, tmp_path, model.text_encoder)
    kohya(tmp_path, tmp_path / "kohya.safetensors", alpha)
    assert close(of(load_stable_diffusion(sd15, loras=[tmp_path / "kohya.safetensors"])), of(model))


@pytest.mark.parametrize("rename", [old_names, older_names])
def test_diffusers_earlier_names(sd15: Path, pipeline: Open, tmp_path: Path, rename: Any) -> None:
    model = adapted(sd15, alpha=4)
    save_lora(model.unet, tmp_path, model.text_encoder)
    rename(tmp_path, tmp_path / "old.safetensors")
    assert close(of(load_stable_diffusion(sd15, loras=[tmp_path / "old.safetensors"])), of(model))
    pipe = pipeline(sd15)
    pipe.load_lora_weights(tmp_path / "old.safetensors")
    assert close(outputs(pipe.unet, pipe.text_encoder), of(model))


def test_pefts_own_folder(sd15: Path, tmp_path: Path) -> None:
    model = adapted(sd15, alpha=6)
    save_lora(model.unet, tmp_path / "from")
    (tmp_path / "to").mkdir()
    peft_names(tmp_path / "from", tmp_path / "to" / "x")
    ours = load_stable_diffusion(sd15, loras=[tmp_path / "to"])
    assert close(outputs(ours.unet, model.text_encoder), of(model))


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")  # diffusers' own second adapter
def test_several_with_weights(sd15: Path, pipeline: Open, tmp_path: Path) -> None:
    for seed, name in ((0, "a"), (1, "b")):
        model = adapted(sd15, seed=seed, rank=2 + seed)
        save_lora(model.unet, tmp_path / name, model.text_encoder)
    ours = load_stable_diffusion(sd15, loras=[(tmp_path / "a", 0.7), (tmp_path / "b", -0.4)])
    pipe = pipeline(sd15)
    for name in ("a", "b"):
        pipe.load_lora_weights(tmp_path / name, adapter_name=name)
    pipe.set_adapters(["a", "b"], [0.7, -0.4])
    assert close(of(ours), outputs(pipe.unet, pipe.text_encoder))
    swapped = load_stable_diffusion(sd15, loras=[(tmp_path / "a", 0.8), (tmp_path / "b", -0.4)])
    assert swapped.digest != ours.digest
    assert {n for n in ours.files if "lora" in n} == {f"loras/{i}/pytorch_lora_weights.safetensors" for i in range(2)}


def test_patterns_and_rank_stabilisation(sd15: Path, tmp_path: Path) -> None:
    from peft import LoraConfig

    model = load_stable_diffusion(sd15)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=ATTENTION, alpha_pattern={"to_q": 2}, use_rslora=True)
    model.unet.add_adapter(config)
    with torch.no_grad():
        for name, value in model.unet.named_parameters():
            if "lora_B" in name:
                value.fill_(0.01)
    save_lora(model.unet, tmp_path)
    assert close(of(load_stable_diffusion(sd15, loras=[tmp_path])), of(model))


@pytest.fixture(scope="module")
def adapter(sd15: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the UNet."""
    return save_lora(adapted(sd15).unet, tmp_path_factory.mktemp("adapter"))


def alpha_of(tensors: dict[str, Tensor]) -> str:
    return min(tensors).split(".lora_")[0] + ".alpha"


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (lambda t: {k.replace("down_blocks.0", "down_blocks.7"): v for k, v in t.items()}, "is for another model: it"),
        (lambda t: {k: torch.cat([v, v], 1) if "lora_A" in k else v for k, v in t.items()}, "is for another model: .*"),
        (lambda t: {k: torch.cat([v, v]) if "lora_B" in k else v for k, v in t.items()}, "is for another model: .*"),
        (lambda t: {k: v for k, v in t.items() if "to_q.lora_A" not in k}, "lacks one of its two matrices"),
        (lambda t: t | {"unet.x.lora_magnitude_vector": torch.zeros(1)}, "DoRA and LyCORIS are not supported"),
        (lambda t: {"lora_unet_x.hada_w1_a": torch.zeros(1)}, "DoRA and LyCORIS are not supported"),
        (lambda t: {}, "is empty"),
        (lambda t: {k: v / 0 for k, v in t.items()}, "NaN or infinite"),
        (lambda t: {k: v * 1e30 for k, v in t.items()}, "NaN or infinite"),
        (lambda t: {k: v.int() for k, v in t.items()}, "are not floating point"),
        (lambda t: {k: v[:0] for k, v in t.items()}, "are not floating point"),
        (lambda t: {k: v.flatten() for k, v in t.items()}, "are not floating point"),
        (lambda t: {k: v[0, 0].clone() for k, v in t.items()}, "are not floating point"),
        (lambda t: t | {alpha_of(t): torch.tensor(float("nan"))}, "NaN or infinite"),
        (lambda t: t | {alpha_of(t): torch.ones(3)}, "its settings .* are not readable"),
    ],
)
def test_what_is_no_adapter_of_this_model(sd15: Path, adapter: Path, tmp_path: Path, how: Any, message: str) -> None:
    save_file(how(load_file(adapter)), tmp_path / "changed.safetensors")
    with pytest.raises(InputError, match=message) as error:
        load_stable_diffusion(sd15, loras=[tmp_path / "changed.safetensors"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"unet.lora_alpha": "x"}, "its settings .* are not readable"),
        ({"unet.lora_alpha": [1]}, "its settings .* are not readable"),
        ({"unet.alpha_pattern": 5}, "its settings .* are not readable"),
        ({"unet.alpha_pattern": {"to_q": "x"}}, "its settings .* are not readable"),
        ([1], "its settings .* are not readable"),
        ("[" * 100_000, "its settings .* are not readable"),
        ({"unet.lora_alpha": float("nan")}, "NaN or infinite"),
        ({"unet.lora_alpha": float("inf")}, "NaN or infinite"),
        ({"unet.lora_alpha": 1e300}, "NaN or infinite"),
    ],
)
def test_strange_settings(sd15: Path, adapter: Path, tmp_path: Path, settings: Any, message: str) -> None:
    text = settings if isinstance(settings, str) else json.dumps(settings)
    save_file(load_file(adapter), tmp_path / "told.safetensors", {"lora_adapter_metadata": text})
    with pytest.raises(InputError, match=message) as error:
        load_stable_diffusion(sd15, loras=[tmp_path / "told.safetensors"])
    assert "\n" not in str(error.value)
    if "settings" in message:
        with pytest.raises(InputError, match=message):
            validate_folder(sd15, loras=[tmp_path / "told.safetensors"])


def test_a_look_finds_another_models_adapter(sd15: Path, adapter: Path, tmp_path: Path) -> None:
    validate_folder(sd15, loras=[adapter, (adapter, 0.5)])
    tensors = {k: torch.cat([v, v], 1) if "lora_A" in k else v for k, v in load_file(adapter).items()}
    save_file(tensors, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="is for another model"):
        validate_folder(sd15, loras=[tmp_path / "other.safetensors"])


def test_files_that_are_none(sd15: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"does not exist or holds no pytorch_lora_weights.safetensors"):
        load_stable_diffusion(sd15, loras=[tmp_path])
    (tmp_path / "lora.bin").write_bytes(b"not to be opened")
    with pytest.raises(InputError, match="pickled files are never opened"):
        load_stable_diffusion(sd15, loras=[tmp_path / "lora.bin"])
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    with pytest.raises(InputError, match="is cut short or no safetensors file"):
        load_stable_diffusion(sd15, loras=[tmp_path / "cut.safetensors"])


def test_there_must_be_an_adapter_to_save(sd15: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no network has an adapter"):
        save_lora(load_stable_diffusion(sd15).unet, tmp_path)
