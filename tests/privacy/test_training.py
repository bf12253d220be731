"""The private loop: what a step is, what is spent, and that it can be killed."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from medlt.files import digest_tensors
from medlt.privacy.accounting import spent
from medlt.privacy.dpsgd.preflight import PROBED, assert_rows_independent
from medlt.privacy.dpsgd.step import PrivateStep
from medlt.privacy.dpsgd.training import PrivacySettings, budget, fit_private
from medlt.privacy.ledger import Mechanism, read_mechanism
from medlt.training.checkpoint import FILE
from medlt.training.runtime import Runtime
from medlt.training.settings import Training
from medlt.types import GradSampleMode, InputError

ROWS = 40
X, Y = torch.randn(ROWS, 3, generator=torch.Generator().manual_seed(1)), torch.linspace(-1, 1, ROWS)[:, None]
UNITS = [f"p{i % 16}" for i in range(ROWS)]
TRAINING: dict[str, Any] = {
    "steps": 8,
    "batch_size": 4,
    "learning_rate": 0.05,
    "warmup_steps": 0,
    "checkpoint_every": 3,
    "ema_decay": 0.9,
}
CPU = Runtime("cpu", "fp32", None, 0)
OPEN = PrivacySettings(
    noise_multiplier=1.0,
    epsilon=math.inf,
    delta=1e-3,
    units=16,
    grad_sample_mode=GradSampleMode.BOOKKEEPING,
    secure_mode=False,
    max_images_per_patient=2,
)


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))


def loss(network: nn.Module, rows: np.ndarray, draw: torch.Generator) -> Tensor:
    return (network(X[rows]) - Y[rows]).pow(2).flatten(1).mean(1)


def train(
    folder: Path, private: PrivacySettings = OPEN, network: nn.Module | None = None, **other: Any
) -> tuple[Any, Mechanism]:
    network = net() if network is None else network
    training = Training(**TRAINING | other.pop("training", {}))
    told = {"loss": loss, "units": UNITS, "key": "k", "name": "probe", "data": "d", "runtime": CPU} | other
    mechanism = fit_private(network, training=training, private=private, folder=folder, **told)
    assert read_mechanism(folder / "mechanism.json") == mechanism
    return network, mechanism


def changed(private: PrivacySettings, **other: Any) -> PrivacySettings:
    return replace(private, **other)


def weights(network: nn.Module) -> Tensor:
    return torch.cat([weight.detach().flatten() for weight in network.parameters()])


def test_without_noise_and_clip_at_rate_one_it_is_an_ordinary_full_batch_step(tmp_path: Path) -> None:
    private = changed(
        OPEN, noise_multiplier=0.0, max_grad_norm=math.inf, max_images_per_patient=3, noise_multiplicity=2
    )
    plain = net()
    trained, told = train(tmp_path, private, training={"batch_size": 16, "steps": 3, "ema_decay": 0.0})
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.05, weight_decay=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        each = loss(plain, np.arange(ROWS), torch.Generator())
        torch.stack([each[[u == name for u in UNITS]].mean() for name in set(UNITS)]).mean().backward()
        optimizer.step()
    torch.testing.assert_close(weights(trained), weights(plain), rtol=1e-5, atol=1e-6)
    assert (told.sample_rate, told.units, told.steps, told.grad_sample_mode) == (1.0, 16, 3, "bookkeeping")


class Still(nn.Module):
    """Its loss is 0 with a gradient that the clip makes as good as nothing: what moves is the noise."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.layer = nn.Linear(count, 1, bias=False)


def test_noise_has_the_deviation_that_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    noised = PrivateStep._noised

    def watched(step: PrivateStep, weight: Any, drawn: Any, batch: int) -> Tensor:
        seen.append(noised(step, weight, drawn, batch))
        return seen[-1]

    monkeypatch.setattr(PrivateStep, "_noised", watched)
    private = changed(OPEN, noise_multiplier=1.5, max_grad_norm=0.2, secure_mode=True)
    count = 20_000
    train(
        tmp_path, private, Still(count), training={"steps": 4},
        loss=lambda network, rows, draw: network.layer(torch.full((len(rows), count), 1e-9)).flatten(),
    )  # fmt: skip
    drawn = torch.stack(seen).flatten(1)
    deviation, wanted = float(drawn.std()), 1.5 * 0.2 / 4
    assert deviation == pytest.approx(wanted, rel=6 / math.sqrt(2 * drawn.numel()))
    assert abs(float(drawn.mean())) < 6 * wanted / math.sqrt(drawn.numel())
    assert abs(float(torch.corrcoef(drawn)[0, 1])) < 6 / math.sqrt(count)


@pytest.mark.parametrize("clip", [0.3, 1.0, 3.0])
def test_multiplicity_is_a_mean_within_the_unit_and_no_more_weight(tmp_path: Path, clip: float) -> None:
    private = changed(OPEN, noise_multiplier=0.0, max_grad_norm=clip, max_images_per_patient=9, noise_multiplicity=1)
    told = {"training": {"batch_size": 16, "steps": 2}}
    once, _ = train(tmp_path / "a", private, **told)
    thrice, _ = train(tmp_path / "b", changed(private, noise_multiplicity=3), **told)
    torch.testing.assert_close(weights(once), weights(thrice), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("physical", [1, 5, 128])
def test_rows_at_once_do_not_change_the_result(tmp_path: Path, physical: int) -> None:
    one, _ = train(tmp_path / "a", changed(OPEN, max_physical_batch_size=16))
    other, _ = train(tmp_path / "b", changed(OPEN, max_physical_batch_size=physical))
    torch.testing.assert_close(weights(one), weights(other), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("way", [GradSampleMode.HOOKS, GradSampleMode.GHOST, GradSampleMode.FUNCTORCH])
def test_the_way_does_not_change_the_result(tmp_path: Path, way: GradSampleMode) -> None:
    one, _ = train(tmp_path / "a")
    other, told = train(tmp_path / "b", changed(OPEN, grad_sample_mode=way))
    assert told.grad_sample_mode == way
    torch.testing.assert_close(weights(one), weights(other), rtol=1e-3, atol=1e-4)


def test_killed_and_resumed_is_the_same_to_the_byte(tmp_path: Path) -> None:
    whole, told = train(tmp_path / "whole")
    for stop in (2, 5):
        train(tmp_path / "parts", training={"stop_at": stop})

    def killed(name: str, step: int, steps: int) -> None:
        if step == 7:  # after the checkpoint of step 6
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts", runtime=replace(CPU, progress=killed))
    parts, again = train(tmp_path / "parts")
    assert torch.equal(weights(whole), weights(parts))
    assert again == told
    assert (tmp_path / "whole" / FILE).read_bytes() == (tmp_path / "parts" / FILE).read_bytes()
    assert spent([again.cost], 1e-3) == spent([told.cost], 1e-3)
    loaded, same = train(tmp_path / "whole", network=net(5))
    assert same == told
    assert torch.equal(weights(loaded), weights(whole))
    assert told.weights == digest_tensors({str(i): weight for i, weight in enumerate(whole.parameters())})


def test_secure_noise_never_comes_again(tmp_path: Path) -> None:
    one, told = train(tmp_path / "a", changed(OPEN, secure_mode=True))
    other, _ = train(tmp_path / "b", changed(OPEN, secure_mode=True))
    assert told.secure_mode
    assert not torch.equal(weights(one), weights(other))
    stored = (tmp_path / "a" / FILE).read_bytes()
    assert b"seed" not in stored


@pytest.mark.parametrize(
    ("other", "name"),
    [
        ({"noise_multiplier": 1.1}, "noise_multiplier 1.0, now 1.1"), ({"max_grad_norm": 2.0}, "max_grad_norm"),
        ({"privacy_unit": "image"}, "privacy_unit"),
        ({"max_images_per_patient": 1}, "max_images_per_patient"), ({"noise_multiplicity": 2}, "noise_multiplicity"),
        ({"secure_mode": True}, "secure_mode"),
    ],
)  # fmt: skip
def test_it_does_not_go_on_as_another_mechanism(tmp_path: Path, other: dict[str, Any], name: str) -> None:
    train(tmp_path, training={"stop_at": 2})
    with pytest.raises(InputError, match=name):
        train(tmp_path, changed(OPEN, **other))


def test_other_data_or_settings_are_another_training(tmp_path: Path) -> None:
    train(tmp_path, training={"stop_at": 2})
    for other in ({"data": "e"}, {"key": "l"}, {"training": {"learning_rate": 0.1}}):
        with pytest.raises(InputError, match="other settings or data"):
            train(tmp_path, **other)  # type: ignore[arg-type]


FULL = changed(OPEN, noise_multiplier=4.0, epsilon=3.0)
"""At rate 1, where the accountant has a closed form."""


def test_it_stops_at_the_budget_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pays = budget(FULL, 1.0, 80)
    assert spent([(4.0, 1.0, pays)], 1e-3).epsilon <= 3.0 < spent([(4.0, 1.0, pays + 1)], 1e-3).epsilon
    assert 3 < pays < 60
    asked = {"training": {"steps": 80, "batch_size": 16}}
    with caplog.at_level(logging.WARNING):
        _, told = train(tmp_path, FULL, **asked)
    assert f"after {pays} of 80" in caplog.text
    assert (told.steps, told.planned) == (pays, 80)
    assert spent([told.cost], 1e-3).epsilon <= 3.0
    _, again = train(tmp_path, FULL, **asked)  # asked the same again: it is finished
    assert again == told
    with pytest.raises(InputError, match=f"budget spent: epsilon 3 pays for {pays} steps of probe, {pays} were taken"):
        train(tmp_path, FULL, training={"steps": 90, "batch_size": 16})
    before = changed(FULL, before=((4.0, 1.0, pays),))
    with pytest.raises(InputError, match="pays for 0 steps"):
        train(tmp_path / "next", before, training={"steps": 1, "batch_size": 16})


def test_a_finished_training_goes_on_as_far_as_the_budget_pays(tmp_path: Path) -> None:
    pays = budget(FULL, 1.0, 80)
    train(tmp_path / "parts", FULL, training={"steps": 3, "batch_size": 16})
    parts, told = train(tmp_path / "parts", FULL, training={"steps": 80, "batch_size": 16})
    whole, _ = train(tmp_path / "whole", FULL, training={"steps": 80, "batch_size": 16})
    assert told.steps == pays
    assert torch.equal(weights(parts), weights(whole))


def test_several_like_trainings_of_a_unit_share_the_budget() -> None:
    assert budget(changed(FULL, times=3), 1.0, 80) == budget(FULL, 1.0, 80) // 3
    assert budget(OPEN, 0.25, 80) == 80
    assert budget(FULL, 1.0, 2) == 2


def test_the_checkpoint_holds_the_mechanism_so_far(tmp_path: Path) -> None:
    train(tmp_path, training={"stop_at": 5})
    with safe_open(tmp_path / FILE, "pt") as stored:
        about = json.loads(stored.metadata()["training"])
    assert about["step"] == 5
    assert about["metadata"]["grad_sample_mode"] == "bookkeeping"
    assert about["metadata"]["mechanism"]["noise_multiplier"] == 1.0
    assert about["metadata"]["mechanism"]["rate"] == 0.25


def test_empty_steps_are_steps(tmp_path: Path) -> None:
    """Noise moves the weights, the loss on record is NaN, and the step counts."""
    _, told = train(tmp_path, units=[str(i) for i in range(ROWS)], training={"batch_size": 1, "steps": 12},
                    private=changed(OPEN, units=ROWS))  # fmt: skip
    history = pd.read_parquet(tmp_path / "history.parquet")
    assert told.steps == len(history) == 12
    assert 0 < history["loss"].isna().sum() < 12


def test_the_way_is_measured_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from medlt.privacy.dpsgd import training

    asked: list[int] = []

    def chosen(network: nn.Module, losses: Any, groups: Any) -> GradSampleMode:
        assert len(losses()) == len(groups) == 6
        asked.append(1)
        return GradSampleMode.HOOKS

    monkeypatch.setattr(training, "fastest_mode", chosen)
    private = changed(
        OPEN,
        grad_sample_mode=GradSampleMode.AUTO,
        max_physical_batch_size=6,
        noise_multiplicity=3,
        max_images_per_patient=1,
    )
    _, told = train(tmp_path, private, training={"stop_at": 2})
    _, again = train(tmp_path, private)
    assert told.grad_sample_mode == again.grad_sample_mode == "hooks"
    assert len(asked) == 1


def test_measuring_really_runs(tmp_path: Path) -> None:
    _, told = train(tmp_path, changed(OPEN, grad_sample_mode=GradSampleMode.AUTO), training={"steps": 2})
    assert told.grad_sample_mode in set(GradSampleMode) - {GradSampleMode.AUTO}


def test_a_loss_that_does_not_reach_the_weights_is_refused(tmp_path: Path) -> None:
    """Noise alone would move them."""

    def blind(network: nn.Module, rows: np.ndarray, draw: torch.Generator) -> Tensor:
        return network(X[rows]).flatten() * 0

    with pytest.raises(InputError, match="no trainable weight has a gradient"):
        train(tmp_path, loss=blind, training={"batch_size": 16})


class Mixing(nn.Module):
    """Each row is compared with its batch, in one of the ways that no layer of torch shows."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.first, self.last = kind, nn.Linear(3, 5), nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).tanh()
        if self.kind == "mean":
            h = h - h.mean(0)
        elif self.kind == "detached mean":
            h = h - h.mean(0).detach()
        elif self.kind == "deviation":
            h = torch.cat([h[:, :4], h.std(dim=0, unbiased=False).mean().expand(len(h), 1)], 1)
        elif self.kind == "largest":
            h = h / h.abs().max()
        out: Tensor = self.last(h)
        return out


@pytest.mark.parametrize("kind", ["mean", "detached mean", "deviation", "largest"])
@pytest.mark.parametrize("zero", [False, True])
def test_a_network_whose_rows_influence_one_another_is_refused(tmp_path: Path, kind: str, zero: bool) -> None:
    """Also one whose output is 0 at first, as that of LoRA and of many denoisers is: its gradient shows it."""
    network = Mixing(kind)
    if zero:
        nn.init.zeros_(network.last.weight)
    with pytest.raises(InputError, match="rows of a batch influence one another"):
        train(tmp_path, network=network)
    assert not any(tmp_path.iterdir())


def test_a_loss_that_joins_rows_is_refused(tmp_path: Path) -> None:
    def joined(network: nn.Module, rows: np.ndarray, draw: torch.Generator) -> Tensor:
        losses = loss(network, rows, draw)
        return losses + losses.mean()

    with pytest.raises(InputError, match="rows of a batch influence one another"):
        train(tmp_path, loss=joined)


def test_the_probe_leaves_no_gradient_and_changes_no_weight(tmp_path: Path) -> None:
    network = net()
    before = weights(network).clone()
    seen: list[int] = []

    def counted(of: nn.Module, rows: np.ndarray, draw: torch.Generator) -> Tensor:
        seen.append(len(rows))
        assert all(weight.grad is None for weight in of.parameters())
        return loss(of, rows, draw)

    assert_rows_independent(network, lambda rows: counted(network, rows, torch.Generator()), ROWS)
    assert seen == [3] * 5
    assert torch.equal(weights(network), before)
    assert all(weight.grad is None for weight in network.parameters())


def test_bf16_costs_the_margin_and_fp32_none(tmp_path: Path) -> None:
    """The noise that hides a change of 1.02 times the clipping norm: sigma / 1.02."""
    _, full = train(tmp_path / "a")
    _, half = train(tmp_path / "b", runtime=CPU.at("bf16"))
    assert (full.clip_margin, full.cost) == (1.0, (1.0, 0.25, 8))
    assert (half.clip_margin, half.cost) == (1.02, (1.0 / 1.02, 0.25, 8))
    assert spent([half.cost], 1e-3).epsilon > spent([full.cost], 1e-3).epsilon


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_rate_is_that_of_the_public_number_whatever_the_true_one(tmp_path: Path, precision: Any) -> None:
    told = [train(tmp_path / str(n), changed(OPEN, units=20), units=[f"p{i % n}" for i in range(ROWS)],
                  training={"steps": 1}, runtime=CPU.at(precision))[1] for n in (2, 16, ROWS)]  # fmt: skip
    assert {(one.units, one.sample_rate) for one in told} == {(20, 0.2)}


def test_losses_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    def bad(network: nn.Module, rows: np.ndarray, draw: torch.Generator) -> Tensor:
        return loss(network, rows, draw) / torch.as_tensor(rows != 7)

    with pytest.raises(InputError, match="1 of 40 losses are not finite at step 1"):
        train(tmp_path, changed(OPEN, max_images_per_patient=9), loss=bad, training={"batch_size": 16})


def test_bad_settings(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at most the public number of units"):
        train(tmp_path, training={"batch_size": 17})
    with pytest.raises(InputError, match="max_grad_norm is infinite"):
        changed(OPEN, max_grad_norm=math.inf)
    with pytest.raises(InputError, match="cannot meet epsilon"):
        changed(OPEN, noise_multiplier=0.0, epsilon=1.0)
    with pytest.raises(InputError, match="fp16"):
        train(tmp_path, runtime=CPU.at("fp16"))
    with pytest.raises(InputError, match="patience selects weights with images of patients"):
        train(tmp_path, training={"patience": 2})
    assert not any(tmp_path.iterdir())


def test_bf16_channels_last_evaluation_and_recomputing(tmp_path: Path) -> None:
    from medlt.diffusion.labels import LabelUNet

    torch.manual_seed(0)
    network = LabelUNet(channels=4, findings=2, width=16, levels=2)
    x = torch.randn(12, 4, 8, 8)

    def denoise(of: Any, rows: np.ndarray, draw: torch.Generator) -> Tensor:
        t = torch.randint(0, 1000, (len(rows),), generator=draw)
        return (of(x[rows], t, torch.ones(len(rows), 5)).float() - x[rows]).pow(2).flatten(1).mean(1)

    how = {"channels_last": True, "gradient_checkpointing": True, "steps": 2, "batch_size": 3}
    _, told = train(
        tmp_path,
        changed(OPEN, noise_multiplicity=2),
        network,
        loss=denoise,
        units=[str(i) for i in range(12)],
        training=how,
        evaluate=lambda of: float(of.training),
        picture=lambda of: torch.rand(2, 1, 8, 8),
        runtime=CPU.at("bf16"),
    )
    history = pd.read_parquet(tmp_path / "history.parquet")
    assert history["validation"].tolist()[-1] == 0.0
    assert (tmp_path / "samples" / "step_000002.png").is_file()
    assert not network.training
    assert all(not weight.requires_grad and weight.is_contiguous() for weight in network.parameters())
    assert told.steps == 2


def test_what_losses_draw_is_as_secret_as_the_noise(tmp_path: Path) -> None:
    """Else a row's draws, which follow those of the rows before it, would show one unit in the gradients of others."""

    def heard(folder: str, private: PrivacySettings) -> list[float]:
        seen: list[float] = []

        def listening(network: nn.Module, rows: np.ndarray, draw: torch.Generator) -> Tensor:
            seen.extend([float(torch.rand((), generator=draw)), float(torch.rand(()))])  # dropout reads the latter
            return loss(network, rows, draw)

        train(tmp_path / folder, private, training={"steps": 2, "batch_size": 16}, loss=listening)
        return seen[2 * PROBED :]  # the probe draws known numbers, and nothing is learnt from it

    secret = changed(OPEN, secure_mode=True)
    assert set(heard("a", secret)).isdisjoint(heard("b", secret))
    assert heard("c", OPEN) == heard("d", OPEN)


def test_a_damaged_checkpoint_is_not_begun_anew_in_silence(tmp_path: Path) -> None:
    train(tmp_path, training={"stop_at": 2})
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:-9])
    with pytest.raises(InputError, match="is damaged"):
        train(tmp_path)


def test_a_training_of_more_steps_is_not_begun_anew_for_fewer(tmp_path: Path) -> None:
    train(tmp_path)
    with pytest.raises(InputError, match="already trained for 8 steps, more than 4"):
        train(tmp_path, training={"steps": 4})


def test_where_images_are_the_unit_each_row_is_one(tmp_path: Path) -> None:
    """Whoever they are of: that a patient has several is nothing the mechanism knows then."""
    _, told = train(tmp_path, changed(OPEN, privacy_unit="image", units=ROWS))
    assert (told.privacy_unit, told.units, told.sample_rate) == ("image", ROWS, 4 / ROWS)


def test_what_names_a_mechanism_is_not_how_it_is_computed() -> None:
    same = changed(OPEN, grad_sample_mode=GradSampleMode.GHOST, max_physical_batch_size=3)
    assert same.digest == OPEN.digest
    others: list[dict[str, Any]] = [
        {"noise_multiplier": 2.0},
        {"max_grad_norm": 2.0},
        {"privacy_unit": "image"},
        {"max_images_per_patient": 1},
        {"noise_multiplicity": 3},
        {"secure_mode": True},
        {"epsilon": 5.0},
        {"delta": 1e-4},
        {"before": ((1.0, 0.5, 3),)},
        {"times": 2},
    ]
    assert len({OPEN.digest} | {changed(OPEN, **other).digest for other in others}) == 1 + len(others)


def test_the_mechanisms_names_are_one_enum() -> None:
    """What the config may say, what is tried in turn and what a mechanism holds."""
    from medlt.config import Privacy
    from medlt.privacy.dpsgd.gradients import GRAD_SAMPLE_MODES, PerUnit

    assert set(GRAD_SAMPLE_MODES) | {GradSampleMode.AUTO} == set(GradSampleMode)
    own = {"epsilon": 1, "delta": 1e-5, "patients": 9, "findings": ["Mass"], "grad_sample_mode": "ghost"}
    assert Privacy.model_fields["grad_sample_mode"].annotation is GradSampleMode
    assert Privacy.model_validate(own).grad_sample_mode is GradSampleMode.GHOST
    assert (
        PrivacySettings(1.0, math.inf, 1e-3, 16).grad_sample_mode
        is Privacy.model_validate({**own, "grad_sample_mode": "auto"}).grad_sample_mode
        is GradSampleMode.AUTO
    )
    with pytest.raises(ValueError, match="auto computes no gradients"):
        PerUnit(net(), 1.0, GradSampleMode.AUTO)


def test_a_mechanism_that_was_changed_is_refused(tmp_path: Path) -> None:
    train(tmp_path)
    file = tmp_path / "mechanism.json"
    file.write_text(file.read_text().replace('"noise_multiplier": 1.0', '"noise_multiplier": 9.0'))
    for _ in range(2):
        with pytest.raises(InputError, match=r"mechanism\.json: missing or damaged"):
            read_mechanism(file)
        file.unlink(missing_ok=True)
