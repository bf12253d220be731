"""Checkpoint folders: loaded like diffusers' own pipeline, or refused in one line that says how to mend it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from medlt.diffusion.noise import NoiseSchedule
from medlt.diffusion.prompts import Prompts
from medlt.diffusion.stable import files
from medlt.diffusion.stable.load import fits, load_stable_diffusion, validate_folder
from medlt.testing import IdentityCodec
from medlt.types import InputError

Open = Callable[..., Any]
Asked = tuple[torch.Tensor, torch.Tensor]
PROMPTS = Prompts(("Edema", "Hernia"))
LABELS = torch.tensor([[1.0, 0.0], [0.0, 1.0]])


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("text", ["frozen", "trained"])
def test_a_backbone_says_what_the_pipeline_says(checkpoint: Path, pipeline: Open, asked: Asked, text: Any) -> None:
    model, pipe = load_stable_diffusion(checkpoint), pipeline(checkpoint)
    backbone = model.backbone(PROMPTS, text)
    said = PROMPTS(LABELS)
    told, nothing = pipe.encode_prompt(said, "cpu", 1, True, negative_prompt=["", ""])
    with torch.no_grad():
        ours = backbone.network(*asked, backbone.condition(LABELS))
        null = backbone.network(*asked, backbone.condition.null.expand(2, *backbone.condition.null.shape))
        assert torch.allclose(ours, pipe.unet(*asked, encoder_hidden_states=told).sample, atol=1e-5)
        assert torch.allclose(null, pipe.unet(*asked, encoder_hidden_states=nothing).sample, atol=1e-5)
    assert not torch.allclose(ours, null, atol=1e-5)
    assert backbone.prediction == pipe.scheduler.config.prediction_type
    assert torch.allclose(backbone.noise.abar(), pipe.scheduler.alphas_cumprod, atol=1e-6)
    assert (backbone.channels, backbone.space) == (4, "codec")


def test_the_schedule_is_the_folders_own(copy: Path, pipeline: Open) -> None:
    edit(
        copy / "scheduler" / "scheduler_config.json",
        _class_name="DDIMScheduler", beta_schedule="linear", beta_start=0.001, beta_end=0.02,
        prediction_type="v_prediction", rescale_betas_zero_snr=True, num_train_timesteps=500,
    )  # fmt: skip
    edit(copy / "model_index.json", scheduler=["diffusers", "DDIMScheduler"])
    model = load_stable_diffusion(copy)
    assert model.prediction == "v_prediction"
    assert model.noise == NoiseSchedule("linear", 0.001, 0.02, 500, zero_terminal=True)
    assert torch.allclose(model.noise.abar(), pipeline(copy).scheduler.alphas_cumprod, atol=1e-6)


def half(folder: Path) -> None:
    """Weights as fp16 variant files, as published folders have them."""
    for part, stem in (("unet", files.UNET), ("text_encoder", files.TEXT)):
        plain = folder / part / f"{stem}.safetensors"
        tensors = {k: v.half() for k, v in load_file(plain).items()}
        save_file(tensors, folder / part / f"{stem}.fp16.safetensors", {"format": "pt"})
        plain.unlink()
        edit(folder / part / "config.json", torch_dtype="float16")


def sharded(folder: Path, variant: str = "") -> None:
    """Weights as two shards and an index."""
    for part, stem in (("unet", files.UNET), ("text_encoder", files.TEXT)):
        plain = next((folder / part).glob(f"{stem}*.safetensors"))
        tensors = load_file(plain)
        plain.unlink()
        names = sorted(tensors)
        cuts = {f"{stem}{variant}-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
        for file, own in cuts.items():
            save_file({k: tensors[k] for k in own}, folder / part / file, {"format": "pt"})
        index = {"metadata": {}, "weight_map": {k: file for file, own in cuts.items() for k in own}}
        (folder / part / f"{stem}.safetensors.index{variant}.json").write_text(json.dumps(index))


@pytest.mark.parametrize("form", ["fp16", "sharded", "fp16 sharded"])
def test_other_forms_of_the_same_weights(copy: Path, pipeline: Open, form: str) -> None:
    if "fp16" in form:
        half(copy)
    if "sharded" in form:
        sharded(copy, ".fp16" if "fp16" in form else "")
    model = load_stable_diffusion(copy)
    pipe = pipeline(copy, variant="fp16" if "fp16" in form else None)
    for ours, theirs in ((model.unet, pipe.unet), (model.text_encoder, pipe.text_encoder)):
        held = theirs.float().state_dict()
        assert all(torch.equal(value, held[name]) for name, value in ours.state_dict().items())
    assert {p.dtype for p in model.unet.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in model.unet.parameters())
    assert any(".safetensors.index" in name for name in model.files) == ("sharded" in form)


def test_every_file_is_hashed(copy: Path) -> None:
    import hashlib

    model = load_stable_diffusion(copy)
    there = {p.relative_to(copy).as_posix() for p in copy.rglob("*") if p.is_file() and "vae" not in p.parts}
    assert set(model.files) == there
    for name, told in model.files.items():
        assert told == hashlib.sha256((copy / name).read_bytes()).hexdigest()
    assert load_stable_diffusion(copy).digest == model.digest
    edit(copy / "model_index.json", _diffusers_version="0.1")
    assert load_stable_diffusion(copy).digest != model.digest


def test_text_encoders_of_older_transformers_load_to_the_same_weights(copy: Path) -> None:
    """With the buffer they kept, and with names that lack the prefix."""
    now = load_stable_diffusion(copy).text_encoder.state_dict()
    file = copy / "text_encoder" / "model.safetensors"
    tensors = load_file(file) | {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    for written in (tensors, {k.removeprefix("text_model."): v for k, v in tensors.items()}):
        save_file(written, file, {"format": "pt"})
        held = load_stable_diffusion(copy).text_encoder.state_dict()
        assert held.keys() == now.keys()
        assert all(torch.equal(held[name], now[name]) for name in now)


def test_a_codec_must_have_the_models_channels(sd15: Path) -> None:
    model = load_stable_diffusion(sd15)
    fits(model, IdentityCodec(2))
    with pytest.raises(InputError, match="4 latent channels and the codec makes 16"):
        fits(model, IdentityCodec(4))


def gone(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def without_text_encoder(folder: Path) -> None:
    shutil.rmtree(folder / "text_encoder")


def pickled(folder: Path) -> None:
    (folder / "unet" / f"{files.UNET}.safetensors").rename(folder / "unet" / f"{files.UNET}.bin")


def cut(folder: Path) -> None:
    file = folder / "unet" / f"{files.UNET}.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def scribbled(folder: Path) -> None:
    (folder / "unet" / f"{files.UNET}.safetensors").write_bytes(b"no weights at all, only words" * 9)


def nearly_empty(folder: Path) -> None:
    (folder / "unet" / f"{files.UNET}.safetensors").write_bytes(b"\x01")


def pointer(folder: Path) -> None:
    (folder / "unet" / f"{files.UNET}.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0"
    )


def bad_json(folder: Path) -> None:
    (folder / "unet" / "config.json").write_text("{")


def told(name: str, **changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / name, **changes)


def other_weights(folder: Path) -> None:
    edit(folder / "unet" / "config.json", layers_per_block=2)


def wider(folder: Path) -> None:
    edit(folder / "unet" / "config.json", block_out_channels=[32, 96])


def lost_shard(folder: Path) -> None:
    sharded(folder)
    (folder / "unet" / f"{files.UNET}-00002-of-00002.safetensors").unlink()


def two_tokens(folder: Path) -> None:
    (folder / "tokenizer" / "vocab.json").write_text('{"<|startoftext|>": 0, "<|endoftext|>": 1}')
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")


def not_numbers(folder: Path) -> None:
    file = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    tensors["text_model.final_layer_norm.bias"][3] = float("nan")
    save_file(tensors, file, {"format": "pt"})


def nested(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text("[" * 200_000) and None


def with_header(file: Path, change: Callable[[Any], Any]) -> None:
    """Write a safetensors file's header anew."""
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    text = change(json.loads(data[8 : 8 + length]))
    new = (text if isinstance(text, str) else json.dumps(text)).encode()
    file.write_bytes(len(new).to_bytes(8, "little") + new + data[8 + length :])


def header(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    return lambda folder: with_header(folder / "unet" / f"{files.UNET}.safetensors", change)


def entry(**changes: Any) -> Callable[[Path], None]:
    return header(lambda told: told | {"conv_in.weight": told["conv_in.weight"] | changes})


def shards(*names: Any) -> Callable[[Path], None]:
    def put(folder: Path) -> None:
        (folder / "unet" / f"{files.UNET}.safetensors").unlink()
        index = folder / "unet" / f"{files.UNET}.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": dict(enumerate(names))}))

    return put


def without_padding(folder: Path) -> None:
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        edit(folder / "tokenizer" / name, pad_token=None)


def far_token(folder: Path) -> None:
    words = json.loads((folder / "tokenizer" / "vocab.json").read_text())
    edit(folder / "tokenizer" / "vocab.json", **{next(iter(words)): 10**6})


SCHEDULER = "scheduler/scheduler_config.json"
BROKEN: list[tuple[Callable[[Path], None], str]] = [
    (shutil.rmtree, "does not exist; give a diffusers folder or a .safetensors file"),
    (gone("model_index.json"), "lacks model_index.json; copy them under these same names"),
    (gone("unet/config.json"), "lacks unet/config.json; copy"),
    (gone("tokenizer/vocab.json"), "lacks tokenizer/vocab.json; copy"),
    (gone("tokenizer/tokenizer_config.json"), "lacks tokenizer/tokenizer_config.json; copy"),
    (gone(SCHEDULER), "lacks scheduler/scheduler_config.json; copy"),
    (without_text_encoder, "lacks text_encoder/config.json, text_encoder/model.safetensors; copy"),
    (pickled, "holds pickled unet/diffusion_pytorch_model.bin, which is never opened; on a machine you trust"),
    (not_numbers, "text_encoder: final_layer_norm.bias holds NaN or infinity"),
    (lost_shard, "lacks unet/diffusion_pytorch_model-00002-of-00002.safetensors; copy"),
    (cut, "bytes, but its header needs .*; it was cut short: copy it again"),
    (scribbled, "is cut short or no safetensors file"),
    (nearly_empty, "is cut short or no safetensors file .1 bytes."),
    (pointer, "is a Git LFS pointer, not the weights; run `git lfs pull`"),
    (bad_json, "config.json cannot be read as JSON"),
    (other_weights, "tensors are missing, first .*; config and weights belong to different networks"),
    (wider, r"is \[64.*\], but the config says \[96.*\]; config and weights belong to different networks"),
    (told("unet/config.json", block_out_channels=[33, 66]), "describes no network"),
    (told("unet/config.json", down_block_types=["Nothing"] * 2), "describes no network"),
    (told("text_encoder/config.json", hidden_size="wide"), "cross_attention_dim is 32 and the text encoder is wide"),
    (told("text_encoder/config.json", num_hidden_layers="two"), "describes no network"),
    (told("text_encoder/config.json", num_hidden_layers=1), "tensors are not in the config"),
    (told("unet/config.json", in_channels=9), "9 channels in and 4 out: this is an inpainting model; use the plain"),
    (told("unet/config.json", cross_attention_dim=1024), "cross_attention_dim is 1024 and the text encoder is 32 wide"),
    (told("unet/config.json", time_cond_proj_dim=256), "time_cond_proj_dim is 256, which Stable Diffusion 1.x"),
    (told(SCHEDULER, prediction_type="flow_prediction"), "'flow_prediction'; only epsilon, v_prediction, sample"),
    (told(SCHEDULER, beta_schedule="squaredcos_cap_v2"), "'squaredcos_cap_v2'; only scaled_linear and linear"),
    (told(SCHEDULER, trained_betas=[0.1]), "only scaled_linear and linear"),
    (told(SCHEDULER, beta_end=None), "is not a number"),
    (told(SCHEDULER, beta_end=-1), "are not a noise schedule"),
    (told(SCHEDULER, num_train_timesteps=0), "are not a noise schedule"),
    (told(SCHEDULER, rescale_betas_zero_snr=True), "epsilon cannot start from pure noise"),
    (told(SCHEDULER, num_train_timesteps=float("inf")), "num_train_timesteps is not a number"),
    (told(SCHEDULER, num_train_timesteps=10**12), "are not a noise schedule"),
    (two_tokens, "has a vocabulary of 2 tokens, the text encoder"),
    (far_token, "has a vocabulary of 1000001 tokens, the text encoder"),
    (without_padding, "names no pad_token or eos_token"),
    *((told("tokenizer/tokenizer_config.json", model_max_length=n), "model_max_length is") for n in ("abc", 0, -5)),
    *((nested(name), "cannot be read as JSON") for name in files.CONFIGS),
    (nested("tokenizer/tokenizer_config.json"), "holds no CLIP tokenizer"),
    (header(lambda said: "[" * 200_000), "its header is not readable"),
    (header(lambda said: said | {"__metadata__": [1]}), "its header is not readable"),
    *((entry(shape=shape), "its header is not readable") for shape in (5, None, ["a"], [-1], [2**70])),
    *((entry(data_offsets=place), "its header is not readable") for place in (["a", "b"], [None, None], [0], 7)),
    (entry(dtype=3), "its header is not readable"),
    (entry(dtype="I32"), "conv_in.weight is not floating point"),
    *((shards(name), "weight_map is missing or broken") for name in ({"b": 1}, 1, "../x.safetensors", "..", "")),
    *((told("model_index.json", unet=said), "unet None., which is not loaded") for said in ({"a": 1}, 5, [])),
    (told("model_index.json", text_encoder=[{}, {}]), "text_encoder {}., which is not loaded"),
    (
        told(
            "model_index.json", _class_name="StableDiffusionXLPipeline",
            text_encoder_2=["transformers", "CLIPTextModelWithProjection"],
        ),
        "is a StableDiffusionXLPipeline .text_encoder_2., which is not loaded",
    ),
    (
        told("model_index.json", _class_name="FluxPipeline", unet=None, transformer=["diffusers", "FluxTransformer2D"]),
        "is a FluxPipeline .unet None, transformer., which is not loaded; give a Stable Diffusion 1.x or 2.x folder",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("break_it", "message"), BROKEN, ids=[message[:24] for _, message in BROKEN])
def test_what_does_not_load_says_why(copy: Path, break_it: Callable[[Path], None], message: str) -> None:
    break_it(copy)
    with pytest.raises(InputError, match=message) as error:
        load_stable_diffusion(copy)
    assert "\n" not in str(error.value)


def test_a_config_chooses_no_code(sd15: Path, copy: Path) -> None:
    """transformers would fetch and run a kernel of this name; what is loaded stays what it was."""
    evil = dict.fromkeys(("attn_implementation", "_attn_implementation", "_attn_implementation_internal"), "x/kernel")
    edit(copy / "text_encoder" / "config.json", **evil, torch_dtype="evil", quantization_config={"quant_method": "x"})
    ours, plain = (load_stable_diffusion(folder).text_encoder for folder in (copy, sd15))
    assert ours.config.to_dict() == plain.config.to_dict()
    assert ours.config._attn_implementation == plain.config._attn_implementation == "sdpa"


def test_a_look_tells_the_same_without_reading_a_weight(sd15: Path, copy: Path) -> None:
    not_numbers(copy)
    seen, model = validate_folder(copy), load_stable_diffusion(sd15)
    assert all(value.is_meta for value in (*seen.unet.parameters(), *seen.text_encoder.parameters()))
    assert (seen.channels, seen.prediction, seen.noise) == (model.channels, model.prediction, model.noise)
    assert seen.tokenizer.get_vocab() == model.tokenizer.get_vocab()
    fits(seen, IdentityCodec(2))
    with pytest.raises(InputError, match="prediction is v_prediction"):
        validate_folder(sd15, prediction="v_prediction")
    with pytest.raises(InputError, match="does not exist or holds no pytorch_lora_weights"):
        validate_folder(sd15, loras=[sd15])


def test_a_folder_says_its_prediction_itself(sd15: Path) -> None:
    assert load_stable_diffusion(sd15, prediction="epsilon").prediction == "epsilon"
    with pytest.raises(
        InputError, match="has prediction_type epsilon, but prediction is v_prediction; remove prediction"
    ):
        load_stable_diffusion(sd15, prediction="v_prediction")


def test_nothing_pickled_is_read_beside_safetensors(copy: Path) -> None:
    (copy / "unet" / f"{files.UNET}.bin").write_bytes(b"not to be opened")
    assert f"unet/{files.UNET}.bin" not in load_stable_diffusion(copy).files
