"""The original latent-diffusion names of diffusers' tensors, written out by hand: the inverse of what is tested."""

import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

INSIDE = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
WHOLE = {
    "conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip
CLIP_TO_OPEN = {
    "self_attn.out_proj": "attn.out_proj", "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}  # fmt: skip


def unet_name(name: str, layers: int) -> str:
    """The UNet's: blocks counted through, each with a residual layer .0, attention .1, upsampling last."""
    for ours, theirs in WHOLE.items():
        if name.startswith(ours + "."):
            return name.replace(ours, theirs, 1)
    if match := re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", name):
        place = 1 if match[1] == "attentions" else 2 * int(match[2])
        return f"middle_block.{place}.{inside(match[3], match[1])}"
    match = re.match(r"(down|up)_blocks\.(\d)\.(\w+)\.(\d)\.(.*)", name)
    assert match
    level, kind, layer, rest = int(match[2]), match[3], int(match[4]), match[5]
    if kind == "downsamplers":
        return f"input_blocks.{(level + 1) * (layers + 1)}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":
        return f"output_blocks.{level * (layers + 1) + layers}.{2 if level else 1}.{rest}"
    block = level * (layers + 1) + layer + (match[1] == "down")
    side = "input_blocks" if match[1] == "down" else "output_blocks"
    return f"{side}.{block}.{int(kind == 'attentions')}.{inside(rest, kind)}"


def inside(rest: str, kind: str) -> str:
    if kind == "attentions":
        return rest
    head, tail = rest.split(".")
    return f"{INSIDE[head]}.{tail}"


def vae_name(name: str, levels: int) -> str:
    """The autoencoder's: the decoder's levels are counted from the full size."""
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{levels - 1 - int(m[1])}.block", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = name.replace("mid_block.attentions.0", "mid.attn_1")
    for ours, theirs in (("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")):
        name = name.replace(f"attn_1.{ours}", f"attn_1.{theirs}")
    return name


def open_clip(tensors: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """A text encoder as OpenCLIP names it, with the last layer that Stable Diffusion 2.x never reads."""
    plain = {k.removeprefix("text_model."): v for k, v in tensors.items()}
    width = plain["final_layer_norm.weight"].shape[0]
    out = {
        "positional_embedding": plain["embeddings.position_embedding.weight"],
        "token_embedding.weight": plain["embeddings.token_embedding.weight"],
        "ln_final.weight": plain["final_layer_norm.weight"],
        "ln_final.bias": plain["final_layer_norm.bias"],
        "text_projection": torch.ones(width, width),
        "logit_scale": torch.tensor(1.0),
    }
    for layer in range(layers + 1):
        source, target = f"encoder.layers.{min(layer, layers - 1)}.", f"transformer.resblocks.{layer}."
        for end in ("weight", "bias"):
            thirds = [plain[f"{source}self_attn.{x}_proj.{end}"] for x in "qkv"]
            out[f"{target}attn.in_proj_{end}"] = torch.cat(thirds)
            out |= {f"{target}{new}.{end}": plain[f"{source}{old}.{end}"].clone() for old, new in CLIP_TO_OPEN.items()}
    return out


def write_original(folder: Path, file: Path, *, layers: int, levels: int, clip_layers: int, is_open: bool) -> None:
    """A checkpoint folder as one file in the original layout, fp16."""
    unet = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    text = load_file(folder / "text_encoder" / "model.safetensors")
    vae = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    out = {f"model.diffusion_model.{unet_name(k, layers)}": v for k, v in unet.items()}
    for name, value in vae.items():
        conv = "attentions" in name and value.ndim == 2
        out[f"first_stage_model.{vae_name(name, levels)}"] = value[:, :, None, None] if conv else value
    if is_open:
        out |= {f"cond_stage_model.model.{k}": v for k, v in open_clip(text, clip_layers).items()}
    else:
        out |= {f"cond_stage_model.transformer.{k}": v for k, v in text.items()}
        out["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    out |= {"betas": torch.linspace(0, 1, 1000), "model_ema.decay": torch.tensor(0.99)}
    save_file({k: v.half() if v.is_floating_point() else v for k, v in out.items()}, file)
