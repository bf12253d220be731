"""An autoencoder is fine-tuned on radiographs: better images, and with the encoder frozen the same latents."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medlt.diffusion.autoencoder import Reconstruction
from medlt.diffusion.codec import AutoencoderCodec, load_codec
from medlt.diffusion.emphasis import gradient_error
from medlt.diffusion.vae import ReconstructionLoss, finetune_codec, quality
from medlt.store import Store
from medlt.testing import Discs, tiny_autoencoder_kl, tiny_autoencoder_tiny
from medlt.training.runtime import Runtime
from medlt.training.settings import WHOLE, BatchPart, Training
from medlt.types import InputError

CPU = Runtime("cpu", "fp32", None, 0)
IMAGES, HELD = Discs(24, 16), Discs(4, 16, seed=9)
TRAINING = Training(steps=12, learning_rate=3e-3, batch_size=4, warmup_steps=2, ema_decay=0.5, checkpoint_every=5)


@pytest.fixture(params=[tiny_autoencoder_kl, tiny_autoencoder_tiny], ids=["kl", "tiny"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    request.param().save_pretrained(tmp_path / "source")
    return tmp_path / "source"


def tune(source: Path, folder: Path, training: Training = TRAINING, **more: Any) -> AutoencoderCodec:
    told: dict[str, Any] = {"contents": "discs", "validation": HELD, "runtime": CPU} | more
    return finetune_codec(source, IMAGES, store=Store(folder), training=training, **told)


def told(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("codec/*/training.json")
    return dict(json.loads(path.read_text()))


def test_the_decoder_learns_and_latents_stay_valid(source: Path, tmp_path: Path) -> None:
    before, after = load_codec(source, "cpu"), tune(source, tmp_path / "run", replace(TRAINING, steps=60))
    x = torch.stack([HELD[i]["image"] for i in range(4)])
    assert torch.equal(before.moments(x), after.moments(x))
    assert before.digest != after.digest
    about = told(tmp_path / "run")
    assert about["encoder"] == "unchanged"
    assert about["source"] == before.digest
    assert about["before"] == quality(before, HELD)
    assert about["after"] == pytest.approx(quality(after, HELD))
    assert about["after"]["psnr"] > about["before"]["psnr"] + 1
    assert about["after"]["l1"] < about["before"]["l1"]
    assert len(list((tmp_path / "run").glob("codec/*/samples/*.png"))) == 12


def test_the_whole_autoencoder_learns_when_asked(source: Path, tmp_path: Path) -> None:
    before, after = load_codec(source, "cpu"), tune(source, tmp_path / "run", decoder_only=False)
    x = torch.stack([HELD[i]["image"] for i in range(4)])
    assert not torch.equal(before.moments(x), after.moments(x))
    assert told(tmp_path / "run")["encoder"] == "trained"


def test_a_killed_tuning_goes_on_to_the_same_weights_and_a_finished_one_is_loaded(source: Path, tmp_path: Path) -> None:
    def cut(at: int) -> Runtime:
        def progress(stage: str, done: int, total: int) -> None:
            if done == at:
                raise KeyboardInterrupt

        return replace(CPU, progress=progress)

    whole = tune(source, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        tune(source, tmp_path / "killed", runtime=cut(8))
    seen: list[int] = []
    watched = replace(CPU, progress=lambda *told: seen.append(told[1]))
    assert tune(source, tmp_path / "killed", runtime=watched).digest == whole.digest
    assert seen == list(range(6, 13))
    assert tune(source, tmp_path / "killed", runtime=cut(1)).digest == whole.digest


def test_the_folder_names_no_place_of_this_machine(source: Path, tmp_path: Path) -> None:
    tune(source, tmp_path / "run")
    (config,) = (tmp_path / "run").glob("codec/*/config.json")
    assert str(tmp_path) not in config.read_text()
    assert load_codec(config.parent, "cpu").digest == tune(source, tmp_path / "run").digest


def test_bfloat16_trains_and_fp16_is_refused(source: Path, tmp_path: Path) -> None:
    tuned = tune(source, tmp_path / "run", runtime=CPU.at("bf16"))
    assert next(tuned.network.parameters()).dtype == torch.float32
    with pytest.raises(InputError, match="overflows in fp16 and gives black images; train it in bf16 or fp32"):
        tune(source, tmp_path / "half", runtime=CPU.at("fp16"))
    with pytest.raises(InputError, match="images of 15x15 px do not fit this codec"):
        finetune_codec(
            source, Discs(4, 15), contents="odd", store=Store(tmp_path / "odd"), training=TRAINING, runtime=CPU
        )


def test_a_training_that_diverges_is_told_and_leaves_no_codec(tmp_path: Path) -> None:
    tiny_autoencoder_kl().save_pretrained(tmp_path / "source")
    wild = replace(TRAINING, steps=1, learning_rate=1e30, warmup_steps=0, ema_decay=0.0)
    with pytest.raises(InputError, match=r"NaN or infinity; lower learning_rate"):
        tune(tmp_path / "source", tmp_path / "run", wild)
    assert not Store(tmp_path / "run").folders("codec")


def test_the_gradient_error_is_that_of_its_definition() -> None:
    """A ramp of slope s against a flat image: s at full size, 2 s and 4 s after one and two halvings."""
    ramp = 0.1 * torch.arange(16.0).expand(2, 1, 16, 16)
    expected = (0.1 + 0.2 + 0.4) / 6  # one of two directions, three sizes
    assert float(gradient_error(ramp, torch.zeros_like(ramp))) == pytest.approx(expected, rel=1e-5)
    assert float(gradient_error(ramp + 0.3, ramp)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("ssim", [0.0, 0.5])
def test_the_loss_is_that_of_its_parts_and_adds_up_over_them(ssim: float) -> None:
    network = Reconstruction(tiny_autoencoder_kl(), decoder_only=False)
    loss = ReconstructionLoss(IMAGES, batch_size=4, edge=1.0, ssim=ssim, kl_weight=0.1, seed=0)
    plain = replace(loss, edge=0.0, ssim=0.0, kl_weight=0.0)
    with torch.no_grad():
        whole = float(loss(network, loss.batch(3), 3, WHOLE))
        parts = [float(loss(network, loss.batch(3), 3, BatchPart(i, 4))) for i in range(4)]
        assert float(plain(network, plain.batch(3), 3, WHOLE)) < whole
    assert np.mean(parts) == pytest.approx(whole, rel=1e-4)


def test_a_frozen_encoder_has_no_gradients() -> None:
    network = Reconstruction(tiny_autoencoder_kl(), decoder_only=True)
    loss = ReconstructionLoss(IMAGES, batch_size=2, edge=1.0, ssim=0.0, kl_weight=1.0, seed=0)
    loss(network, loss.batch(0), 0, WHOLE).backward()
    for of in ("grad", "requires_grad"):
        trained = {name.split(".")[1] for name, weight in network.named_parameters() if getattr(weight, of) is not None
                   and getattr(weight, of) is not False}  # fmt: skip
        assert trained == {"decoder", "post_quant_conv"}


def test_what_decides_a_tuned_codec_names_it(source: Path, tmp_path: Path) -> None:
    """Among it the images by their contents, and those that its quality is told of."""
    few = replace(TRAINING, steps=1)
    others: list[dict[str, Any]] = [
        {}, {"contents": "other discs"}, {"validation": Discs(4, 16, seed=8)}, {"validation": None}, {"edge": 0.5},
        {"runtime": replace(CPU, seed=1)}, {"training": replace(few, batch_size=8)}, {"decoder_only": False},
    ]  # fmt: skip
    for other in others:
        tune(source, tmp_path / "run", **{"training": few} | other)
    assert len(Store(tmp_path / "run").folders("codec")) == len(others)
