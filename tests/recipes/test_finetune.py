"""The fine-tuning recipe end to end on every family: what it leaves, what a user can take away, resume."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from medlt.config import RunConfig, parse
from medlt.data.manifest import Manifest
from medlt.diffusion.stable.untrained import untrained
from medlt.files import read_tensors, write_tensors
from medlt.recipes.run import main
from medlt.types import InputError, Synthesizer
from medlt.writer import to_uint8

MODEL = {"kind": "untrained", "widths": [32, 32], "text_width": 32, "text_layers": 1}
BRIEF: dict[str, Any] = {"steps": 4, "batch_size": 8, "checkpoint_every": 2, "warmup_steps": 0, "learning_rate": 1e-3}
STABLE: dict[str, Any] = {"kind": "stable-diffusion", "model": MODEL, **BRIEF}
FAMILIES: dict[str, dict[str, Any]] = {
    "unet": {"width": 8, **BRIEF},
    "transformer": {"kind": "transformer", "width": 32, "depth": 1, "heads": 2, **BRIEF},
    "full": {**STABLE, "train": "full"},
    "lora": {**STABLE, "model": {**MODEL, "version": "2.1"}, "train": "lora", "rank": 2, "train_text": True},
}
Make = Callable[..., RunConfig]
Method = Callable[[RunConfig], Synthesizer]


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture(scope="session")
def make(tiny: Callable[[Path], RunConfig]) -> Make:
    """The tiny config as a fine-tuning of one family."""

    def build(out: Path, family: str, **changes: Any) -> RunConfig:
        told = tiny(out).model_dump(mode="json", exclude={"method", "denoiser", "evaluation"})
        own = {
            "method": {"kind": "noise", "num_inference_steps": 3},
            "evaluation": None,
            "denoiser": {**FAMILIES[family], **changes},
        }
        return parse({**told, **own})

    return build


@pytest.fixture(scope="session")
def full(tmp_path_factory: pytest.TempPathFactory, make: Make) -> Path:
    """A finished run that trained a Stable Diffusion model in full, made once."""
    place = tmp_path_factory.mktemp("full")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        main(make(Path("run"), "full"))
    return place / "run"


def test_a_run_leaves_what_the_contract_says(full: Path) -> None:
    names = (
        "config.yaml run.json manifest.parquet plan.parquet checks.parquet failures.csv training.parquet report.html"
    )
    assert [name for name in names.split() if not (full / name).is_file()] == []
    told, plan = json.loads((full / "run.json").read_text()), pd.read_parquet(full / "plan.parquet")
    made = Manifest.read(full / "manifest.parquet").rows
    made = made[made["synthetic"]]
    assert told["counts"]["kept"] == len(made) > 0
    assert told["counts"]["planned"] == len(plan) == told["counts"]["kept"] + told["counts"]["rejected"]
    assert set(told["digests"]) == {"manifest", "codec", "denoiser"}
    assert (made["split"] == "train").all()
    history = pd.read_parquet(full / "training.parquet")
    assert len(history) == 4
    assert history["loss"].notna().all()
    assert list(history.index[history["validation"].notna()]) == [2, 4]
    assert next(full.glob("artifacts/denoiser/*/samples/step_000004.png")).is_file()
    page = (full / "report.html").read_text()
    assert 'id="training"' in page
    assert {uid for uid in made.index if f'data-uid="{uid}"' in page} == set(made.index)
    assert not (full / "verdict.json").exists()


def test_labels_and_views_are_those_of_the_row_that_lent_them(full: Path) -> None:
    manifest = Manifest.read(full / "manifest.parquet")
    made = manifest.rows[manifest.rows["synthetic"]]
    like = manifest.rows.loc[made["label_source"]]
    findings = list(manifest.findings)
    assert (like[findings].to_numpy(float) == made[findings].to_numpy(float)).all()
    assert list(like["view"]) == list(made["view"])
    assert (like["split"] == "train").all()


def test_diffusers_opens_what_was_trained(full: Path) -> None:
    """The written folder is a StableDiffusionPipeline; its UNet is the EMA of the checkpoint, and was moved."""
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(full / "denoiser", local_files_only=True, safety_checker=None)
    start = next(full.glob("artifacts/untrained/*/model"))
    started = read_tensors(start / "unet/diffusion_pytorch_model.safetensors")
    held = pipe.unet.state_dict()
    assert held.keys() == started.keys()
    assert not all(torch.equal(held[name], started[name]) for name in held)
    text = read_tensors(start / "text_encoder/model.safetensors")
    kept = read_tensors(full / "denoiser/text_encoder/model.safetensors")
    assert all(torch.equal(text[name], kept[name]) for name in text)


def test_one_row_alone_gives_its_file_again(
    full: Path, make: Make, method_of: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np
    from PIL import Image

    monkeypatch.chdir(full.parent)
    made = pd.read_parquet(full / "manifest.parquet").query("synthetic == True")
    method = method_of(make(Path("run"), "full"))
    row = pd.read_parquet(full / "plan.parquet").loc[[made.index[0]]]
    image = to_uint8(next(iter(method.run(row))).images)[0]
    np.testing.assert_array_equal(image, np.asarray(Image.open(full / made["path"].iloc[0])))


def test_a_run_stopped_in_training_ends_as_one_that_was_not(full: Path, make: Make, tmp_path: Path) -> None:
    def power_cut(stage: str, done: int, total: int) -> None:
        if stage == "denoiser" and done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        main(make(tmp_path / "run", "full"), power_cut)
    assert not (tmp_path / "run/denoiser").exists()
    main(make(tmp_path / "run", "full"))
    for part in ("unet/diffusion_pytorch_model.safetensors", "model_index.json"):
        assert (tmp_path / "run/denoiser" / part).read_bytes() == (full / "denoiser" / part).read_bytes()
    images = sorted(path.name for path in (full / "images").glob("*.png"))
    assert images == sorted(path.name for path in (tmp_path / "run/images").glob("*.png")) != []
    assert all((tmp_path / "run/images" / n).read_bytes() == (full / "images" / n).read_bytes() for n in images)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["unet", "transformer", "lora"])
def test_every_family_runs_end_to_end_and_is_found_done(family: str, make: Make, tmp_path: Path) -> None:
    config = make(tmp_path / "run", family)
    main(config)
    first = {p.name: p.read_bytes() for p in (tmp_path / "run/images").glob("*.png")}
    steps: list[str] = []
    main(config, lambda stage, done, total: steps.append(stage))
    assert "denoiser" not in steps
    assert {p.name: p.read_bytes() for p in (tmp_path / "run/images").glob("*.png")} == first != {}
    assert (tmp_path / "run/denoiser/pytorch_lora_weights.safetensors").is_file() == (family == "lora")


@pytest.mark.slow
def test_fusion_runs_on_stable_diffusion(tiny: Callable[[Path], RunConfig], tmp_path: Path) -> None:
    from medlt.recipes.run import main as fuse

    told = tiny(tmp_path / "run").model_dump(mode="json", exclude={"denoiser"})
    fuse(
        parse(
            {
                **told,
                "denoiser": FAMILIES["full"],
                "evaluation": {
                    "seeds": 1,
                    "n_bootstrap": 100,
                    "steps": 6,
                    "synthetic_fraction": 0.2,
                    "synthetic_weight": 0.3,
                },
            }
        )
    )
    told = json.loads((tmp_path / "run/run.json").read_text())
    assert told["counts"]["kept"] > 0
    assert (tmp_path / "run/verdict.json").is_file()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": {"kind": "folder", "path": "nowhere"}}, "nowhere does not exist"),
        ({"prompts": {"words": {"No such finding": "x"}}}, "is not a finding"),
        ({"prompts": {"template": "a {colour} radiograph"}}, "colour"),
        ({"batch_size": 7, "gradient_accumulation_steps": 2}, "does not divide"),
        ({"model": {**MODEL, "widths": [33]}}, "multiples of 32"),
        ({"model": {**MODEL, "tokenizer": "nowhere"}}, "nowhere holds no tokenizer"),
        ({"prompts": {"template": "chest radiograph, {view} view"}}, "has no {findings}"),
        ({"precision": "fp16"}, "fp16 needs a GPU"),
        ({"snr_floor": 9}, "clamped to 9.0..5.0"),
    ],
)
def test_a_mistake_stops_at_the_door(changes: dict[str, Any], said: str, make: Make, tmp_path: Path) -> None:
    """One line, before anything is learnt: no codec, no latents, no denoiser."""
    with pytest.raises(InputError, match=said) as told:
        main(make(tmp_path / "run", "full", **changes))
    assert "\n" not in str(told.value)
    assert not (tmp_path / "run/artifacts/codec").exists()


def wider_unet(folder: Path) -> dict[str, Any]:
    edit(folder / "unet" / "config.json", block_out_channels=[64, 64])
    return {}


def other_prediction(folder: Path) -> dict[str, Any]:
    return {"prediction": "v_prediction"}


def no_padding(folder: Path) -> dict[str, Any]:
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        edit(folder / "tokenizer" / name, pad_token=None)
    return {}


def other_lora(folder: Path) -> dict[str, Any]:
    write_tensors(folder / "x.safetensors", {"unet.none.lora_A.weight": torch.zeros(1, 1)})
    return {"loras": [str(folder / "x.safetensors")]}


def no_stable_file(folder: Path) -> dict[str, Any]:
    write_tensors(folder / "x.safetensors", {"a": torch.zeros(1)})
    return {"path": str(folder / "x.safetensors")}


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (wider_unet, "config and weights belong to different networks"),
        (other_prediction, "has prediction_type epsilon, but prediction is v_prediction"),
        (no_padding, "names no pad_token"),
        (other_lora, "is for another model"),
        (no_stable_file, "has no unet"),
    ],
)
def test_a_wrong_checkpoint_stops_at_the_door(
    spoil: Callable[[Path], dict[str, Any]], said: str, make: Make, tmp_path: Path
) -> None:
    folder = untrained(tmp_path / "model", widths=(32, 32), layers=1, text_width=32, text_layers=1)
    model = {"kind": "folder", "path": str(folder), **spoil(folder)}
    with pytest.raises(InputError, match=said) as told:
        main(make(tmp_path / "run", "full", model=model))
    assert "\n" not in str(told.value)
    assert not (tmp_path / "run/artifacts/codec").exists()


def test_latents_that_the_network_cannot_halve_stop_at_the_door(make: Make, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="by 4 and the denoiser by 256; give a multiple of 1024, or fewer"):
        main(make(tmp_path / "run", "unet", levels=9))
    assert not (tmp_path / "run/artifacts/codec").exists()


@pytest.mark.parametrize("foreign", ["another model", "another file"])
def test_a_denoiser_that_this_run_did_not_train_is_not_taken(
    full: Path, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, foreign: str
) -> None:
    shutil.copytree(full, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    if foreign == "another model":
        edit(tmp_path / "run/denoiser/unet/config.json", sample_size=7)
    else:
        (tmp_path / "run/denoiser/model_index.json").unlink()
    with pytest.raises(InputError, match=r"move .* away and run again"):
        main(make(Path("run"), "full"))


def test_a_model_that_was_moved_away_is_written_again(
    full: Path, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(full, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(tmp_path / "run/denoiser")
    steps: list[str] = []
    main(make(Path("run"), "full"), lambda stage, done, total: steps.append(stage))
    assert "denoiser" not in steps
    for part in ("unet/diffusion_pytorch_model.safetensors", "tokenizer/vocab.json", "model_index.json"):
        assert (tmp_path / "run/denoiser" / part).read_bytes() == (full / "denoiser" / part).read_bytes()
    main(make(Path("run"), "full"))


def test_a_codec_of_other_channels_stops_at_the_door(make: Make, tmp_path: Path) -> None:
    folder = untrained(tmp_path / "model", widths=(32, 32), layers=1, text_width=32, text_layers=1, channels=8)
    with pytest.raises(InputError, match="8 latent channels and the codec makes 4"):
        main(make(tmp_path / "run", "full", model={"kind": "folder", "path": str(folder)}))
    assert not (tmp_path / "run/artifacts/codec").exists()


def test_training_one_part_is_found_by_the_whole(full: Path, make: Make, tmp_path: Path) -> None:
    from medlt.recipes.train import main as train

    config = make(tmp_path / "run", "unet")
    made = train(config, "denoiser")
    assert len(list(made.glob("artifacts/denoiser/*/artifact.json"))) == 1
    assert (made / "denoiser/model.safetensors").is_file()
    assert not (tmp_path / "run/plan.parquet").exists()
    steps: list[str] = []
    train(config, "denoiser", lambda stage, done, total: steps.append(stage))
    assert "denoiser" not in steps
    with pytest.raises(InputError, match="is not a part of a run"):
        train(config, "everything")


def test_prompts_too_long_and_folds_too_many_stop_at_the_door(make: Make, tmp_path: Path) -> None:
    """With a real tokenizer folder the prompts of all train rows are tried before the codec is trained."""
    from medlt.diffusion.stable.untrained import small_tokenizer

    small_tokenizer(tmp_path / "tokenizer")
    words = {"prompts": {"words": {"Effusion": "a very long phrase " * 10}}}
    model = {**MODEL, "tokenizer": str(tmp_path / "tokenizer")}
    with pytest.raises(InputError, match="tokens"):
        main(make(tmp_path / "run", "full", model=model, **words))
    assert not (tmp_path / "run/artifacts/codec").exists()
    config = make(tmp_path / "other", "unet")
    many = config.model_copy(update={"checks": config.checks.model_copy(update={"folds": 1000})})
    with pytest.raises(InputError, match="too few for 1000 folds"):
        main(many)
    assert not (tmp_path / "other/artifacts/codec").exists()
