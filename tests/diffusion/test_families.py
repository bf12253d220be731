"""What every family of networks must be to be a Backbone, and what loading one refuses."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medlt.diffusion.families import load_label_network
from medlt.diffusion.finetune import LabelledLatents
from medlt.diffusion.labels import LabelNetwork, LabelUNet, LabelVector, Unconditional
from medlt.diffusion.noise import NoiseSchedule, target_of
from medlt.diffusion.sampler import from_noise, sample
from medlt.diffusion.schedulers import scheduler
from medlt.diffusion.train import new_network
from medlt.diffusion.transformer import LabelTransformer
from medlt.rng import noise_like, torch_generator
from medlt.testing import label_backbone
from medlt.types import InputError

NAN = float("nan")
SMALL: dict[str, Any] = {"width": 32, "depth": 2, "heads": 2, "size": 8}
FAMILIES: dict[str, Callable[[], LabelNetwork]] = {
    "unet": lambda: LabelUNet(2, 2, width=8),
    "transformer": lambda: LabelTransformer(2, 2, **SMALL),
    "unet of everything": lambda: LabelUNet(
        2, 2, width=8, layers_per_block=2, attributes=("view", "sex", "age"), rescale_betas_zero_snr=True, shift=0.25
    ),
    "transformer of everything": lambda: LabelTransformer(
        2, 2, **SMALL, attributes=("sex", "age"), rescale_betas_zero_snr=True
    ),
    "unet told nothing": lambda: LabelUNet(2, 0, width=8, prediction="epsilon"),
    "transformer told nothing": lambda: LabelTransformer(2, 0, **SMALL, prediction="sample"),
}
family = pytest.mark.parametrize("family", FAMILIES)
told = pytest.mark.parametrize("family", ["unet", "transformer"])
LABELS = torch.tensor([[1.0, 0.0], [0.0, NAN], [NAN, NAN], [0.3, 1.0]])


def made(name: str, trained: bool = True) -> LabelNetwork:
    """A network of the family; `trained` as training leaves it, with no layer at zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = FAMILIES[name]().eval()
        for weight in net.parameters():
            if trained and not weight.any():
                nn.init.normal_(weight, std=0.1)
    return net


def inputs(rows: int = 4, size: tuple[int, int] = (8, 8)) -> tuple[Tensor, Tensor]:
    return noise_like(range(rows), (2, *size)), torch.tensor([3, 400, 400, 999])[:rows]


@family
@torch.no_grad()
def test_a_row_is_its_own_whatever_its_neighbours_and_latents_need_not_be_square(family: str) -> None:
    net = made(family)
    condition = net.backbone().condition(LABELS)
    for size in ((8, 8), (8, 12)):
        x_t, t = inputs(size=size)
        together = net(x_t, t, condition)
        assert together.shape == x_t.shape
        alone = torch.cat([net(x_t[i : i + 1], t[i : i + 1], condition[i : i + 1]) for i in range(4)])
        torch.testing.assert_close(together, alone, atol=2e-5, rtol=1e-4)


@family
def test_what_is_saved_is_loaded_and_names_its_weights(family: str, tmp_path: Path) -> None:
    net = made(family)
    net.save(tmp_path)
    again = load_label_network(tmp_path)
    backbone, (x_t, t) = net.backbone(), inputs()
    assert type(again) is type(net)
    assert again.backbone().digest == backbone.digest
    assert (backbone.prediction, backbone.channels) == (net.settings["prediction"], 2)
    condition = backbone.condition(LABELS)
    assert torch.equal(net(x_t, t, condition), again(x_t, t, condition))
    with torch.no_grad():
        next(net.parameters()).flatten()[0] += 1e-3
    assert net.backbone().digest != backbone.digest


@family
@torch.no_grad()
def test_guidance_is_the_combination_of_two_separate_forwards(family: str) -> None:
    backbone = made(family).backbone()
    x_t, condition = inputs()[0], backbone.condition(LABELS)
    null, said = backbone.denoiser()(x_t, 500), backbone.denoiser(condition)(x_t, 500)
    torch.testing.assert_close(
        backbone.guided(condition, 3.0)(x_t, 500), null + 3 * (said - null), atol=1e-4, rtol=1e-4
    )
    assert torch.equal(backbone.guided(condition, 0)(x_t, 500), null)
    assert torch.equal(backbone.guided(condition, 1)(x_t, 500), said)


@family
def test_every_weight_learns(family: str) -> None:
    net = made(family).train()
    condition = net.backbone().condition
    rows = torch.cat([condition(LABELS[:3]), condition.null[None]])
    net(*inputs(), rows).pow(2).sum().backward()
    assert [name for name, weight in net.named_parameters() if weight.grad is None or not weight.grad.any()] == []


@told
@torch.no_grad()
def test_positive_negative_soft_unknown_and_unsaid_differ(family: str) -> None:
    net = made(family)
    condition = net.backbone().condition
    labels = torch.tensor([[1.0, NAN], [0.0, NAN], [0.5, NAN], [NAN, NAN], [NAN, 1.0]])
    rows = torch.cat([condition(labels), condition.null[None]])
    x_t = inputs(1)[0].expand(6, -1, -1, -1)
    out = net(x_t, torch.full((6,), 500), rows).flatten(1)
    assert out.isfinite().all()
    assert (torch.cdist(out, out) + torch.eye(6)).min() > 1e-3


@pytest.mark.parametrize("family", ["unet told nothing", "transformer told nothing"])
@torch.no_grad()
def test_without_findings_nothing_said_changes_anything(family: str) -> None:
    net = made(family)
    condition, (x_t, t) = net.backbone().condition, inputs()
    assert isinstance(condition, Unconditional)
    assert torch.equal(condition(LABELS), condition.null.expand(4, -1))
    assert torch.equal(net(x_t, t, torch.zeros(4, 1)), net(x_t, t, torch.ones(4, 1)))


def fit(net: LabelNetwork, steps: int, rate: float) -> None:
    """Plain denoising training on bright latents where the first label is 1 and dark ones where it is 0."""
    backbone, draw = net.backbone(), torch_generator("toy")
    abar, optimizer = backbone.noise.abar(), torch.optim.Adam(net.parameters(), rate)
    for _ in range(steps):
        labels = torch.randint(0, 2, (16, 2), generator=draw).float()
        x0 = (2 * labels[:, :1, None, None] - 1) + 0.1 * torch.randn(16, 2, 8, 8, generator=draw)
        n, t = torch.randn(x0.shape, generator=draw), torch.randint(0, 1000, (16,), generator=draw)
        a = abar[t].reshape(-1, 1, 1, 1)
        out = net(a.sqrt() * x0 + (1 - a).sqrt() * n, t, backbone.condition(labels))
        loss = (out - target_of(x0, n, a, backbone.prediction)).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize(("family", "rate"), [("unet", 1e-2), ("transformer", 3e-3)])
def test_a_family_learns_what_the_label_says(family: str, rate: float) -> None:
    net = made(family, trained=False).train()
    fit(net, 100, rate)
    backbone, steps = net.eval().backbone(), scheduler("ddim", 8)
    denoiser = backbone.denoiser(backbone.condition(torch.tensor([[1.0, 1.0], [0.0, 1.0]])))
    z = sample(denoiser, from_noise(noise_like([1, 2], (2, 8, 8)), steps), steps)
    assert z[0].mean() > 0.5 > -0.5 > z[1].mean()


@pytest.mark.parametrize("family", [LabelUNet, LabelTransformer])
def test_dropout_acts_in_training_only(family: type[LabelNetwork]) -> None:
    own = {"width": 8} if family is LabelUNet else SMALL
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = family(channels=2, findings=2, dropout=0.5, **own)
        for weight in net.parameters():
            if not weight.any():
                nn.init.normal_(weight, std=0.1)
        (x_t, t), condition = inputs(), net.backbone().condition(LABELS)
        drawn = [net.train()(x_t, t, condition) for _ in range(2)]
        assert not torch.equal(*drawn)
        assert torch.equal(net.eval()(x_t, t, condition), net(x_t, t, condition))


def test_blocks_of_a_level_are_as_many_as_asked_for() -> None:
    counts = [
        [len(level.resnets) for level in LabelUNet(2, 2, width=8, layers_per_block=n).unet.down_blocks] for n in (1, 2)
    ]
    assert counts == [[1, 1], [2, 2]]


@pytest.mark.parametrize("family", [LabelUNet, LabelTransformer])
def test_a_network_keeps_the_noise_levels_it_was_trained_on(family: type[LabelNetwork], tmp_path: Path) -> None:
    own = {"width": 8} if family is LabelUNet else SMALL
    net = family(channels=2, findings=2, rescale_betas_zero_snr=True, shift=0.25, **own)
    net.save(tmp_path)
    noise = load_label_network(tmp_path).backbone().noise
    assert noise == net.backbone().noise == NoiseSchedule(zero_terminal=True, shift=0.25)
    assert float(noise.abar()[-1]) == 0
    plain = family(channels=2, findings=2, **own)
    plain.load_state_dict(net.state_dict())
    assert plain.backbone().digest != net.backbone().digest


def test_a_shift_of_none_is_that_of_the_latents_side() -> None:
    data = LabelledLatents(lambda uids: torch.zeros(len(uids), 2, 16, 16), ["a"], np.zeros((1, 2)), "zeros")
    net = new_network(LabelUNet, data, 0, {"width": 8, "shift": None})
    assert net.settings["shift"] == 0.25
    assert new_network(LabelUNet, data, 0, {"width": 8}).settings["shift"] == 1.0


@pytest.mark.parametrize("name", ["ddim", "dpm++", "euler", "unipc"])
def test_a_v_network_starts_from_pure_noise_and_finds_what_it_was_told(name: str) -> None:
    """At t = 999 the input is noise alone: x0 = -v, and the sampler's first step uses it as it is."""
    net = LabelUNet(2, 2, width=8, rescale_betas_zero_snr=True, shift=0.25).eval()
    backbone = net.backbone()
    noise, condition = noise_like([1], (2, 8, 8)), backbone.condition(LABELS[:1])
    with torch.no_grad():
        assert torch.equal(backbone.denoiser(condition)(noise, 999), -net(noise, torch.tensor([999]), condition))
    target = noise_like([5], (2, 8, 8))
    abar = backbone.noise.abar()

    def perfect(x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        a = abar[t[0]]
        return (x * a.sqrt() - target) / (1 - a).sqrt()

    exact = replace(label_backbone(perfect, 2, prediction="v_prediction"), noise=backbone.noise)
    steps = scheduler(name, 9, backbone.noise)
    z = sample(exact.denoiser(), from_noise(noise, steps), steps)
    torch.testing.assert_close(z, target, atol=2e-3, rtol=1e-3)


def test_a_folder_from_before_there_were_families_holds_a_unet(tmp_path: Path) -> None:
    net = made("unet")
    net.save(tmp_path)
    settings = json.loads((tmp_path / "model.json").read_text())
    assert settings.pop("family") == "unet"
    (tmp_path / "model.json").write_text(json.dumps(settings))
    assert load_label_network(tmp_path).backbone().digest == net.backbone().digest


def spoil(file: str, text: bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / file).write_bytes(text)

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / "model.json").unlink(), "model.json is missing"),
        (lambda folder: (folder / "model.safetensors").unlink(), "cannot be read"),
        (spoil("model.safetensors", b"cut"), "cannot be read"),
        (spoil("model.json", b"{"), "is not a JSON object"),
        (spoil("model.json", b'{"family": "mamba"}'), "unknown family 'mamba'"),
        (spoil("model.json", b'{"family": "unet", "channels": 2, "findings": 2}'), "cannot be read"),
        (spoil("model.json", b'{"family": "unet", "wings": 2}'), "cannot be read"),
    ],
)
def test_a_damaged_folder_is_one_clear_line(change: Callable[[Path], None], said: str, tmp_path: Path) -> None:
    made("unet").save(tmp_path)
    change(tmp_path)
    with pytest.raises(InputError, match=said) as error:
        load_label_network(tmp_path)
    assert "\n" not in str(error.value)


def test_one_family_does_not_load_another(tmp_path: Path) -> None:
    made("transformer").save(tmp_path)
    with pytest.raises(InputError, match="contains a transformer, not a unet"):
        LabelUNet.load(tmp_path)


def test_a_transformer_says_what_does_not_divide() -> None:
    with pytest.raises(InputError, match="heads that divide the width"):
        LabelTransformer(2, 2, width=32, heads=3)
    with pytest.raises(InputError, match="9x8 for patches of 2"):
        made("transformer")(torch.zeros(1, 2, 9, 8), torch.tensor([1]), LabelVector(2)(LABELS[:1]))
