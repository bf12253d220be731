"""Broken, foreign and hostile checkpoints, and configs as users get them wrong: one line, exit 2, nothing left."""

import json
import os
import pickle
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner, Result

from medlt.cli import app
from medlt.diffusion.stable.untrained import untrained
from medlt.files import read_tensors, write_tensors

UNET, TEXT = "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"
VAE, LORA = "vae/diffusion_pytorch_model.safetensors", "lora/pytorch_lora_weights.safetensors"
DEEP = "[" * 200_000
LAYER = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
Break = Callable[[Path], object]
Header = dict[str, Any]


class Bomb:
    """What unpickles to a folder `exploded` in the working directory."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, ("exploded",)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint with its autoencoder, a LoRA for it, and 24 images in a table; never changed."""
    place = tmp_path_factory.mktemp("sound")
    untrained(place / "model", widths=[32, 32], layers=1, text_width=32, text_layers=1, vae=[8, 8])
    adapter = {f"{LAYER}.lora_A.weight": torch.ones(2, 32), f"{LAYER}.lora_B.weight": torch.zeros(32, 2)}
    write_tensors(place / "model" / LORA, adapter)
    splits = ["train", "train", "train", "train", "val", "test"]
    rows = []
    for i in range(24):
        Image.fromarray(np.full((40, 40), 10 * i, np.uint8)).save(place / f"i{i}.png")
        row = {"uid": f"i{i}", "path": f"i{i}.png", "patient_id": f"p{i // 2}", "split": splits[i // 2 % 6]}
        rows.append(row | {"view": "PA", "sex": "M", "age": 40, "Mass": int(i % 2 == 0), "Hernia": int(i % 4 == 1)})
    pd.DataFrame(rows).to_csv(place / "table.csv", index=False)
    return place


@pytest.fixture
def place(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a copy of the checkpoint, from which no network is reached and no pickle opened."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(sound / "model", tmp_path / "model")
    return tmp_path


def config_of(sound: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """A fine-tuning by LoRA on the copied checkpoint, with `section.key` changes."""
    tree: dict[str, Any] = {
        "evaluation": None, "output_dir": "run", "size": 32, "threads": 1,
        "data": {"kind": "csv", "table": str(sound / "table.csv"), "findings": ["Mass", "Hernia"]},
        "codec": {"kind": "folder", "path": "model"},
        "denoiser": {"kind": "stable-diffusion", "model": {"kind": "folder", "path": "model"}, "train": "none"},
        "method": {"kind": "noise", "num_inference_steps": 2},
        "targets": {"tail_below": 30, "head_above": 40, "count": 20, "max_per_finding": 2, "num_candidates": 1},
        "checks": {"folds": 2}, "classifier": {"size": 32, "steps": 2, "batch_size": 4},
    }  # fmt: skip
    for key, value in changes.items():
        *parents, last = key.split(".")
        section = tree
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = value
    return tree


def run(sound: Path, changes: dict[str, Any], *command: str) -> Result:
    """`medlt run`, or another command, on the config."""
    Path("config.yaml").write_text(yaml.safe_dump(config_of(sound, changes)))
    return CliRunner().invoke(app, [*(command or ("run",)), "config.yaml", "-q"])


def content(folder: Path) -> dict[str, bytes]:
    """Every file's bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def assert_one_line(result: Result, message: str) -> None:
    """Exit code 2, and exactly one line on stderr, which holds `message`."""
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("medlt: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert not Path("exploded").exists()


def text(name: str, value: str) -> Break:
    """This text in the place of a file."""
    return lambda model: (model / name).write_text(value)


def setting(name: str, **changes: Any) -> Break:
    """Other values in a JSON file."""

    def edit(model: Path) -> None:
        path = model / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def cut(name: str) -> Break:
    """A file without its last bytes."""
    return lambda model: (model / name).write_bytes((model / name).read_bytes()[:-100])


def pickled(name: str) -> Break:
    """A pickle that runs code, under this name."""
    return lambda model: (model / name).write_bytes(pickle.dumps(Bomb()))


def moved(old: str, new: str) -> Break:
    """A pickle under another name in the place of a file."""

    def edit(model: Path) -> None:
        (model / old).unlink()
        pickled(new)(model)

    return edit


def gone(name: str) -> Break:
    """A folder that was not copied."""
    return lambda model: shutil.rmtree(model / name)


def header(change: Callable[[Header], object], name: str = UNET) -> Break:
    """A safetensors file with a false header."""

    def edit(model: Path) -> None:
        data = (model / name).read_bytes()
        end = 8 + int.from_bytes(data[:8], "little")
        entries = json.loads(data[8:end])
        made = change(entries)
        new = made.encode() if isinstance(made, str) else json.dumps(entries).encode()
        (model / name).write_bytes(len(new).to_bytes(8, "little") + new + data[end:])

    return edit


def first(**changes: Any) -> Break:
    """Another entry of conv_in.weight in the UNet's header."""
    return header(lambda entries: entries["conv_in.weight"].update(changes))


def weights(name: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Break:
    """Other tensors in a file."""
    return lambda model: write_tensors(model / name, change(read_tensors(model / name)))


def scaled(factor: float, part: str = "") -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The tensors whose name holds `part` times a factor."""
    return lambda held: {name: value * factor if part in name else value for name, value in held.items()}


def shards(**named: Any) -> Break:
    """The UNet's weights behind an index of shards."""

    def edit(model: Path) -> None:
        (model / UNET).unlink()
        (model / "unet/diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": named}))

    return edit


def linked(target: str) -> Break:
    """A symbolic link in the place of the UNet's weights."""

    def edit(model: Path) -> None:
        (model / UNET).unlink()
        (model / UNET).symlink_to(target)

    return edit


SCHEDULE, INDEX = "scheduler/scheduler_config.json", "model_index.json"
TOKENS = "tokenizer/tokenizer_config.json"
LORAS = {"denoiser.model.loras": ["model/lora"]}
BROKEN: dict[str, tuple[Break, str]] = {
    "flow": (setting(SCHEDULE, prediction_type="flow_prediction"), "flow_prediction"),
    "betas that are text": (setting(SCHEDULE, beta_start="abc"), "scheduler_config.json"),
    "betas that are no number": (setting(SCHEDULE, beta_end=float("nan")), "scheduler_config.json"),
    "endless timesteps": (setting(SCHEDULE, num_train_timesteps=float("inf")), "scheduler_config.json"),
    "10^12 timesteps": (setting(SCHEDULE, num_train_timesteps=10**12), "scheduler_config.json"),
    "no text encoder": (gone("text_encoder"), "lacks text_encoder/config.json"),
    "no tokenizer": (gone("tokenizer"), "lacks tokenizer/vocab.json"),
    "no autoencoder": (gone("vae"), "vae does not exist"),
    "vocabulary": (text("tokenizer/vocab.json", "{"), "no CLIP tokenizer"),
    "merges": (text("tokenizer/merges.txt", "\x00 a\n"), "tokenizer"),
    "tokenizer length text": (setting(TOKENS, model_max_length="abc"), "tokenizer"),
    "tokenizer length negative": (setting(TOKENS, model_max_length=-5), "tokenizer"),
    "index no JSON": (text(INDEX, "hello"), "cannot be read as JSON"),
    "index a list": (text(INDEX, "[1]"), "holds no JSON object"),
    "index deep": (text(INDEX, DEEP), INDEX),
    "index strange": (setting(INDEX, unet={"a": 1}), "UNet2DConditionModel"),
    "index names code": (setting(INDEX, unet=["os", "system"]), "system"),
    "unet config deep": (text("unet/config.json", DEEP), "unet/config.json"),
    "unet config a list": (text("unet/config.json", "[1]"), "holds no JSON object"),
    "inpainting": (setting("unet/config.json", in_channels=9), "an inpainting model"),
    "unet blocks": (setting("unet/config.json", down_block_types=["os.system", "x"]), "describes no network"),
    "unet groups": (setting("unet/config.json", norm_num_groups=0), "describes no network"),
    "unet widths": (setting("unet/config.json", block_out_channels=[]), "describes no network"),
    "unet too small": (setting("unet/config.json", block_out_channels=[32, 64]), "different networks"),
    "text encoder deep": (text("text_encoder/config.json", DEEP), "text_encoder/config.json"),
    "text encoder wide": (setting("text_encoder/config.json", hidden_size=64), "different models"),
    "codec config deep": (text("vae/config.json", DEEP), "vae/config.json"),
    "codec names code": (setting("vae/config.json", _class_name="os.system"), "'os.system', which is not a codec"),
    "codec names a UNet": (setting("vae/config.json", _class_name="UNet2DConditionModel"), "which is not a codec"),
    "codec widths": (setting("vae/config.json", block_out_channels=[]), "vae"),
    "codec scale": (setting("vae/config.json", scaling_factor="x"), "vae"),
    "codec scale 0": (setting("vae/config.json", scaling_factor=0), "vae"),
    "codec means": (setting("vae/config.json", latents_mean=[0.0] * 7), "vae"),
    "codec cut": (cut(VAE), "cannot be loaded"),
    "codec pickled": (moved(VAE, "vae/diffusion_pytorch_model.bin"), "a pickled .bin is not read"),
    "codec a pickle within": (pickled(VAE), "cannot be loaded"),
    "codec NaN": (weights(VAE, scaled(float("nan"), "decoder")), "vae"),
    "cut": (cut(UNET), "was cut short"),
    "empty file": (text(UNET, ""), "cut short or no safetensors file"),
    "a pointer": (text(UNET, "version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    "pickled": (moved(UNET, "unet/diffusion_pytorch_model.bin"), "which is never opened"),
    "a pickle within": (pickled(UNET), "no safetensors file"),
    "header too long": (lambda model: (model / UNET).write_bytes(b"\xff" * 500), "cut short or no safetensors file"),
    "header deep": (header(lambda entries: DEEP), "safetensors"),
    "header a list": (header(lambda entries: "[1, 2]"), "its header is not readable"),
    "shape a number": (first(shape=5), "safetensors"),
    "shape negative": (first(shape=[-32, -4, 3, 3]), "unet"),
    "offsets text": (first(data_offsets=["a", "b"]), "safetensors"),
    "integers": (first(dtype="I32"), "unet"),
    "shards strange": (shards(a={"b": 1}), "index.json"),
    "shards mixed": (shards(a=1, b="x.safetensors"), "index.json"),
    "a link to nowhere": (linked("/nowhere"), "lacks unet/diffusion_pytorch_model.safetensors"),
    "a link to a device": (linked("/dev/zero"), "lacks unet/diffusion_pytorch_model.safetensors"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_checkpoint_is_refused(name: str, sound: Path, place: Path) -> None:
    """Nothing is written into the run folder nor into the checkpoint, before or after."""
    damage, message = BROKEN[name]
    damage(place / "model")
    before = content(place / "model") if "device" not in name else {}
    assert_one_line(run(sound, {}), message)
    assert not (place / "run").exists()
    assert "device" in name or content(place / "model") == before


ADAPTERS: dict[str, tuple[Break, str]] = {
    "cut": (cut(LORA), "was cut short"),
    "empty": (weights(LORA, lambda held: {}), "lora"),
    "a pickle within": (pickled(LORA), "no safetensors file"),
    "half": (weights(LORA, lambda held: dict(list(held.items())[:1])), "lacks one of its two matrices"),
    "another width": (weights(LORA, lambda held: {k: v.repeat(2, 2) for k, v in held.items()}), "another model"),
    "another layer": (weights(LORA, lambda held: {k.replace("attn1", "attn9"): v for k, v in held.items()}), "attn9"),
    "rank 0": (weights(LORA, lambda held: {k: torch.zeros(0, 32) for k in held}), "lora"),
    "numbers": (weights(LORA, lambda held: {k: torch.tensor(1.0) for k in held}), "LoRA"),
    "DoRA": (weights(LORA, lambda held: held | {f"{LAYER}.dora_scale": torch.ones(3)}), "DoRA"),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_broken_adapter_is_refused(name: str, sound: Path, place: Path) -> None:
    damage, message = ADAPTERS[name]
    damage(place / "model")
    before = content(place / "model")
    assert_one_line(run(sound, LORAS), message)
    assert not (place / "run").exists()
    assert content(place / "model") == before


def test_pickled_adapters_and_checkpoints_are_not_opened(sound: Path, place: Path) -> None:
    for name in ("adapter.bin", "whole.ckpt", "whole.pt"):
        pickled(name)(place)
    assert_one_line(run(sound, {"denoiser.model.loras": ["adapter.bin"]}), "pickled files are never opened")
    for name in ("whole.ckpt", "whole.pt"):
        assert_one_line(run(sound, {"denoiser.model.path": name}), "never opened")
    assert not (place / "run").exists()
    assert sorted(p.name for p in place.glob("*.*")) == ["adapter.bin", "config.yaml", "whole.ckpt", "whole.pt"]


NUMBERS: dict[str, tuple[Break, dict[str, Any]]] = {
    "unet": (weights(UNET, scaled(float("nan"), "conv_in")), {}),
    "text encoder": (weights(TEXT, scaled(float("inf"), "mlp")), {}),
    "adapter": (weights(LORA, scaled(float("nan"))), LORAS),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_weights_that_are_no_numbers_make_nothing(name: str, sound: Path, place: Path) -> None:
    damage, changes = NUMBERS[name]
    damage(place / "model")
    assert_one_line(run(sound, changes), "NaN or infini")
    assert not (place / "run/plan.parquet").exists()
    assert not (place / "run/denoiser").exists()


@pytest.mark.parametrize("keys", [{"attn_implementation": "a/kernel"}, {"_attn_implementation": "a/kernel"}])
def test_a_text_encoder_cannot_load_code(keys: dict[str, str], sound: Path, place: Path) -> None:
    """A config that names a kernel of a hub, or remote code, loads as without it: nothing is fetched."""
    from medlt.diffusion.stable.load import load_stable_diffusion

    remote = {"auto_map": {"AutoModel": "evil.Model"}, "trust_remote_code": True, "quantization_config": {"a": 1}}
    setting("text_encoder/config.json", **keys, **remote)(place / "model")
    changed, plain = load_stable_diffusion(place / "model"), load_stable_diffusion(sound / "model")
    ids = torch.tensor([[1, 2, 3]])
    states = [model.text_encoder(ids).last_hidden_state for model in (changed, plain)]
    assert torch.equal(states[0], states[1])


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no such model": ({"denoiser.model.path": "runwayml/stable-diffusion-v1-5"}, "does not exist"),
    "no such codec": ({"codec.path": "stabilityai/sd-vae-ft-mse"}, "does not exist"),
    "a table as model": ({"denoiser.model.path": "config.yaml"}, "is not a .safetensors file"),
    "config for a folder": ({"denoiser.model.config": "model"}, "`config` is for single files"),
    "another prediction": (
        {"denoiser.model.prediction": "v_prediction"},
        "but prediction is v_prediction",
    ),
    "a flow": (
        {"denoiser.model.prediction": "flow_prediction"},
        "model.prediction: 'flow_prediction' is not",
    ),
    "no model": ({"denoiser.model": {"kind": "folder"}}, "denoiser.model.path is missing"),
    "no such LoRA": ({"denoiser.model.loras": ["nowhere"]}, "does not exist"),
    "a checkpoint as LoRA": ({"denoiser.model.loras": ["model"]}, "holds no pytorch_lora_weights"),
    "steps 0": ({"denoiser.steps": 0}, "steps"),
    "rank 0": ({"denoiser.rank": 0}, "rank"),
    "batch 0": ({"denoiser.batch_size": 0}, "batch_size"),
    "a batch in parts": ({"denoiser.batch_size": 3, "denoiser.gradient_accumulation_steps": 2}, "does not divide"),
    "endless rate": ({"denoiser.learning_rate": float("inf")}, "learning_rate"),
    "endless guidance": ({"method.guidance_scale": float("inf")}, "guidance_scale"),
    "a negative guidance": ({"method.guidance_scale": -1}, "guidance_scale"),
    "fp16 on a CPU": ({"denoiser.precision": "fp16"}, "fp16 needs a GPU"),
    "SNR": ({"denoiser.snr_floor": 10.0, "denoiser.min_snr_gamma": 5.0}, "SNR"),
    "a scheduler": ({"method.scheduler": "os.system"}, "scheduler"),
    "sampling steps": ({"method.num_inference_steps": 2000}, "2000"),
    "a key of another method": ({"method.strength": 0.5}, "method.strength"),
    "strength": ({"method": {"kind": "fusion", "strength": 1.5}}, "method.strength"),
    "nothing to fill": ({"targets.count": 1}, "nothing to fill"),
    "field": ({"denoiser.prompts.template": "a {colour} {findings}"}, "has another field"),
    "attribute": ({"denoiser.prompts.template": "{findings.__class__}"}, "has another field"),
    "width": ({"denoiser.prompts.template": "{findings:>1000000000}"}, "has another field"),
    "end of text": ({"denoiser.prompts.template": "<|endoftext|> {findings}"}, "stray mark"),
    "empty template": ({"denoiser.prompts.template": ""}, "{findings}"),
    "a record number": ({"denoiser.prompts.words": {"Mass": "MRN 1234567"}}, "identifying"),
    "a strange finding": ({"denoiser.prompts.words": {"Tumour": "x"}}, "which is not a finding"),
    "soft above 1": ({"denoiser.prompts.soft_above": 2}, "soft_above"),
    "no tokenizer": ({"denoiser.model": {"kind": "untrained", "tokenizer": "nowhere"}}, "nowhere"),
    "a method in a list": ({"method": ["noise"]}, "method"),
    "a width of 9": ({"denoiser": {"kind": "unet", "width": 9}}, "multiple of 8"),
    "too many levels": ({"denoiser": {"kind": "unet", "width": 8, "levels": 9}}, "fewer denoiser.levels"),
    "version": ({"denoiser.model": {"kind": "untrained", "version": "3"}}, "version"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_config_leaves_nothing(name: str, sound: Path, place: Path) -> None:
    changes, message = WRONG[name]
    assert_one_line(run(sound, changes), message)
    assert not (place / "run").exists()
    assert content(place / "model") == content(sound / "model")


@pytest.mark.parametrize("widths", [[], [33]])
def test_an_untrained_model_of_other_widths(widths: list[int], sound: Path, place: Path) -> None:
    assert_one_line(run(sound, {"denoiser.model": {"kind": "untrained", "widths": widths}}), "widths")
    assert list(place.rglob("untrained")) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is such a device here")
def test_a_missing_device_leaves_nothing(sound: Path, place: Path) -> None:
    assert_one_line(run(sound, {"device": "cuda"}), "torch detects no GPU")
    assert not (place / "run").exists()


@pytest.mark.parametrize("channels", [3, 16])
def test_a_codec_of_other_channels(channels: int, sound: Path, place: Path) -> None:
    untrained(place / "other", widths=[32], layers=1, text_width=32, text_layers=1, vae=[8, 8], channels=channels)
    assert_one_line(run(sound, {"codec.path": "other"}), f"4 latent channels and the codec makes {channels}")
    assert not (place / "run").exists()


def test_a_single_file_of_parts_leaves_no_folder_beside_it(sound: Path, place: Path) -> None:
    """Three tensors under the right names: nothing is converted, nothing is written beside the file."""
    parts = {
        "model.diffusion_model.input_blocks.0.0.weight": torch.zeros(32, 4, 3, 3),
        "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": torch.zeros(700, 32),
        "first_stage_model.decoder.conv_in.weight": torch.zeros(8, 4, 3, 3),
    }
    write_tensors(place / "single/whole.safetensors", parts)
    chosen = {"kind": "folder", "path": "single/whole.safetensors"}
    assert_one_line(run(sound, {"denoiser.model": chosen}), "has no tokenizer")
    assert_one_line(run(sound, {"denoiser.model": {**chosen, "config": "model"}}), "whole.safetensors")
    assert [p.name for p in (place / "single").iterdir()] == ["whole.safetensors"]


def test_a_folder_of_the_users_own_is_left_alone(sound: Path, place: Path) -> None:
    """Neither a run folder that is none, nor one of another config, is written to."""
    (place / "run").mkdir()
    (place / "run/mine.txt").write_text("mine")
    assert_one_line(run(sound, {}), "is not empty and not a run folder")
    assert content(place / "run") == {"mine.txt": b"mine"}


def test_a_file_in_the_place_of_the_run_folder(sound: Path, place: Path) -> None:
    (place / "run").write_text("mine")
    assert_one_line(run(sound, {}), "run")
    assert (place / "run").read_text() == "mine"


@pytest.mark.parametrize("content_kind", ["another model", "a file", "files"])
def test_what_lies_where_the_model_goes_is_not_taken_for_it(content_kind: str, sound: Path, place: Path) -> None:
    """RUN/denoiser holds a whole model of another origin, or the user's files: not sampled, not changed."""
    full = {"denoiser.train": "full", "denoiser.steps": 1, "denoiser.batch_size": 2}
    assert run(sound, full, "train", "codec").exit_code == 0
    if content_kind == "another model":
        shutil.copytree(sound / "model", place / "run/denoiser")
    elif content_kind == "a file":
        (place / "run/denoiser").write_text("mine")
    else:
        (place / "run/denoiser").mkdir()
        (place / "run/denoiser/mine.txt").write_text("mine")
    before = content(place / "run/denoiser")
    assert_one_line(run(sound, full), "move it away")
    assert content(place / "run/denoiser") == before
    assert not (place / "run/plan.parquet").exists()


@pytest.mark.slow
def test_a_collection_without_validation_rows_trains(sound: Path, place: Path) -> None:
    rows = pd.read_csv(sound / "table.csv").assign(split="train")
    rows["path"] = [str(sound / path) for path in rows["path"]]
    rows.to_csv("table.csv", index=False)
    changes = {"data.table": "table.csv", "denoiser.train": "lora", "denoiser.steps": 1, "denoiser.batch_size": 2}
    assert run(sound, changes).exit_code in (0, 1)
    assert (place / "run/training.parquet").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("train", ["full", "lora"])
def test_a_training_that_diverges_writes_no_model(train: str, sound: Path, place: Path) -> None:
    wild = {"denoiser.train": train, "denoiser.steps": 6, "denoiser.batch_size": 2, "denoiser.warmup_steps": 0}
    assert_one_line(run(sound, {**wild, "denoiser.learning_rate": 1e30}), "lower the learning rate")
    assert not (place / "run/denoiser").exists()
    assert list((place / "run").rglob("*.tmp*")) == []
