"""Tests of the training loop: learning rates, micro-batches, resumed trainings, and checkpoints."""

import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from medlt.files import read_tensors
from medlt.rng import batch_indices, noise_like
from medlt.training import checkpoint
from medlt.training.loop import fit
from medlt.training.runtime import Runtime
from medlt.training.settings import WHOLE, BatchPart, Training
from medlt.training.tracking import grid
from medlt.types import InputError

CPU = Runtime("cpu", "fp32", None, 0)
INPUTS = noise_like(range(32), (4,))
TRAINING = Training(steps=8, learning_rate=1e-2, batch_size=8, warmup_steps=2, ema_decay=0.9, checkpoint_every=3)


def network(dropout: float = 0.0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 1))


def loss_of(net: nn.Module, step: int, part: BatchPart) -> Tensor:
    """Regression on rows of the step; part by part."""
    x = part.take(INPUTS[batch_indices(len(INPUTS), 8, step, "loop test")])
    return (net(x) - x.sum(1, keepdim=True)).pow(2).mean()


def run(net: nn.Module, loss: Any, training: Training, folder: Path | None, **more: Any) -> nn.Module:
    options: dict[str, Any] = {"runtime": CPU, "key": "k", "name": "test"} | more
    fit(net, loss, training, folder=folder, **options)
    return net


def train(folder: Path | None, training: Training = TRAINING, net: nn.Module | None = None, **more: Any) -> nn.Module:
    return run(network() if net is None else net, loss_of, training, folder, **more)


def same_files(a: Path, b: Path) -> bool:
    one, two = (read_tensors(folder / checkpoint.FILE) for folder in (a, b))
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def _key(folder: Path) -> str:
    from safetensors import safe_open

    with safe_open(folder / checkpoint.FILE, "pt") as stored:
        return str(json.loads(stored.metadata()["training"])["key"])


def losses(folder: Path) -> np.ndarray:
    return pd.read_parquet(folder / "history.parquet")["loss"].to_numpy()


def test_the_learning_rate_warms_up_and_stays_or_falls_by_half_a_cosine() -> None:
    constant = Training(steps=100, warmup_steps=4)
    assert [constant.lr_factor(i) for i in (0, 1, 3, 4, 99)] == [0.25, 0.5, 1.0, 1.0, 1.0]
    cosine = replace(constant, lr_scheduler="cosine")
    assert [cosine.lr_factor(i) for i in (0, 3, 4)] == [0.25, 1.0, 1.0]
    assert cosine.lr_factor(52) == pytest.approx(0.5)
    assert cosine.lr_factor(99) == pytest.approx((1 + math.cos(math.pi * 95 / 96)) / 2)
    assert replace(constant, warmup_steps=0).lr_factor(0) == 1.0


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("stops", [(8,), (1, 2, 5, 8)])
def test_steps_are_made_at_the_rates_of_the_closed_form(tmp_path: Path, schedule: Any, stops: tuple[int, ...]) -> None:
    """Also after a resume. The weight decay of AdamW shows its learning rate.

    With no gradient but a decay of 1, step s multiplies a weight by 1 - rate(s).
    """
    training = replace(TRAINING, lr_scheduler=schedule, learning_rate=0.1, weight_decay=1.0, checkpoint_every=1)
    seen: list[float] = []

    def still(net: nn.Module, step: int, part: BatchPart) -> Tensor:
        seen.append(float(net.weight.detach()))  # type: ignore[arg-type]
        return net(torch.zeros(1, 1)).sum()  # its bias alone has a gradient

    for stop in stops:
        net = nn.Linear(1, 1)
        nn.init.ones_(net.weight)
        run(net, still, replace(training, stop_at=stop), tmp_path)
    rates = [1 - b / a for a, b in itertools.pairwise(seen)]
    wanted = [0.05, 0.1, *[0.1 * (1 + math.cos(math.pi * i / 6)) / 2 for i in range(5)]]
    assert rates == pytest.approx(wanted if schedule == "cosine" else [0.05, *[0.1] * 6], rel=1e-4)


@pytest.mark.parametrize(
    "changes",
    [{}, {"lr_scheduler": "cosine"}, {"gradient_accumulation_steps": 4}, {"precision": "bf16"},
     {"ema_decay": 0.0}, {"max_grad_norm": 0.1}, {"ema_warmup": False}, {"betas": (0.5, 0.9)}],
    ids=lambda changes: ",".join(map(str, changes)) or "plain",
)  # fmt: skip
def test_a_resumed_training_gives_the_same_bytes(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Weights, optimizer, moving average, losses; with dropout, whose draws come from the step too."""
    training = replace(TRAINING, **{name: value for name, value in changes.items() if name != "precision"})
    more = {"runtime": CPU.at(changes.get("precision", "fp32"))}
    train(tmp_path / "whole", training, network(0.5), **more)
    train(tmp_path / "cut", replace(training, stop_at=3), network(0.5), **more)
    torch.rand(7)  # whatever the process drew in between
    train(tmp_path / "cut", replace(training, stop_at=4), network(0.5), **more)
    train(tmp_path / "cut", training, network(0.5), **more)
    assert same_files(tmp_path / "whole", tmp_path / "cut")
    assert len(losses(tmp_path / "cut")) == 8


def test_dropout_is_drawn_anew_each_step_and_by_the_key(tmp_path: Path) -> None:
    seen: list[Tensor] = []

    def look(net: nn.Module, step: int, part: BatchPart) -> Tensor:
        seen.append(net[2](torch.ones(64)))  # type: ignore[index]
        return loss_of(net, step, part)

    for key in ("a", "b"):
        run(network(0.5), look, replace(TRAINING, steps=2), tmp_path / key, key=key)
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(seen))


def test_channels_last_weights_go_on_to_the_same_bits(tmp_path: Path) -> None:
    """Moments come back in their weight's memory format."""

    def conv_loss(net: nn.Module, step: int, part: BatchPart) -> Tensor:
        assert net[0].weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[index]
        return net(noise_like([step], (3, 8, 8))).pow(2).mean()

    def conv() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3))

    for name, stops in {"whole": (6,), "cut": (2, 6)}.items():
        for stop in stops:
            training = replace(TRAINING, steps=stop, channels_last=True)
            net = run(conv(), conv_loss, training, tmp_path / name)
            assert net[0].weight.is_contiguous()  # type: ignore[index]
    assert same_files(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("pieces", [2, 8])
def test_micro_batches_are_one_big_batch(tmp_path: Path, pieces: int) -> None:
    whole = train(tmp_path / "whole")
    cut = train(tmp_path / "cut", replace(TRAINING, gradient_accumulation_steps=pieces))
    np.testing.assert_allclose(losses(tmp_path / "cut"), losses(tmp_path / "whole"), atol=1e-6)
    for a, b in zip(whole.parameters(), cut.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_a_resumed_training_may_use_other_micro_batches_and_intervals(tmp_path: Path) -> None:
    """Micro-batches, checkpoint interval and, at a constant rate, the number of steps do not change the weights."""
    train(tmp_path, replace(TRAINING, stop_at=4))
    train(tmp_path, replace(TRAINING, steps=12, gradient_accumulation_steps=2, checkpoint_every=5))
    assert len(losses(tmp_path)) == 12
    others: list[dict[str, Any]] = [
        {"batch_size": 16},
        {"lr_scheduler": "cosine"},
        {"weight_decay": 0.0},
        {"ema_warmup": False},
    ]
    for other in others:
        with pytest.raises(InputError, match="other settings or data"):
            train(tmp_path, replace(TRAINING, steps=12, **other))
    with pytest.raises(InputError, match="other settings or data"):
        train(tmp_path, replace(TRAINING, steps=12), runtime=CPU.at("bf16"))


def test_a_cosine_of_another_length_is_another_training(tmp_path: Path) -> None:
    cosine = replace(TRAINING, lr_scheduler="cosine", stop_at=4)
    train(tmp_path, cosine)
    with pytest.raises(InputError, match="other settings or data"):
        train(tmp_path, replace(cosine, steps=12))


def test_a_checkpoint_has_trained_weights_only(tmp_path: Path) -> None:
    net = network()
    net[0].requires_grad_(False)  # type: ignore[index]
    before = net[0].weight.clone()  # type: ignore[index]
    after = train(tmp_path, net=net)
    assert torch.equal(after[0].weight, before)  # type: ignore[index]
    named = read_tensors(tmp_path / checkpoint.FILE)
    assert {name for name in named if name.startswith("network.")} == {"network.3.weight", "network.3.bias"}
    assert {name.split(".")[1] for name in named if name.startswith(("average.", "optimizer."))} == {"0", "1"}


def test_a_checkpoint_that_differs_after_writing_raises_and_the_previous_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path, replace(TRAINING, steps=3))
    good, save = (tmp_path / checkpoint.FILE).read_bytes(), checkpoint.write_tensors

    def flip_a_bit(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        other = tensors["average.1"].clone()
        other.view(torch.uint8)[2] ^= 1
        save(path, tensors | {"average.1": other}, metadata)

    monkeypatch.setattr(checkpoint, "write_tensors", flip_a_bit)
    with pytest.raises(InputError, match=r"average\.1 of step 6 differs after it was written"):
        train(tmp_path)
    assert (tmp_path / checkpoint.FILE).read_bytes() == good
    assert not list(tmp_path.glob(".*tmp*"))
    monkeypatch.undo()
    train(tmp_path)
    assert len(losses(tmp_path)) == 8


def test_a_nan_in_a_checkpoint_equals_itself(tmp_path: Path) -> None:
    """The comparison is by bytes: NaN (in the validation losses) equals NaN, and -0 differs from 0."""
    from safetensors.torch import save_file

    kept = {"a": torch.tensor([math.nan, 0.0])}
    save_file(kept, tmp_path / "x")
    assert checkpoint.first_difference(tmp_path / "x", kept) is None
    assert checkpoint.first_difference(tmp_path / "x", {"a": torch.tensor([math.nan, -0.0])}) == "a"
    assert checkpoint.first_difference(tmp_path / "x", {"a": kept["a"].double()}) == "a"
    assert checkpoint.first_difference(tmp_path / "x", kept | {"b": kept["a"]}) == "b"


def flipped(data: bytes, at: int) -> bytes:
    """The same bytes but for one bit."""
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "the end is missing": lambda data: data[:-40],
    "a bit of the last value": lambda data: flipped(data, len(data) - 1),
    "a bit in the middle": lambda data: flipped(data, len(data) // 2),
    "another step": lambda data: data.replace(b'step\\": 3', b'step\\": 2'),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_renamed_and_the_training_starts_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[bytes], bytes]
) -> None:
    train(tmp_path / "whole")
    train(tmp_path / "cut", replace(TRAINING, steps=3))
    path = tmp_path / "cut" / checkpoint.FILE
    path.write_bytes(damage(path.read_bytes()))
    train(tmp_path / "cut")
    assert same_files(tmp_path / "whole", tmp_path / "cut")
    assert "state.safetensors is damaged; it was renamed to state.damaged" in caplog.text
    assert path.with_suffix(".damaged").is_file()


def test_a_damaged_history_of_a_finished_training_is_written_again(tmp_path: Path) -> None:
    train(tmp_path)
    path = tmp_path / "history.parquet"
    whole = path.read_bytes()
    path.write_bytes(flipped(whole, len(whole) // 2))
    train(tmp_path)
    assert path.read_bytes() == whole


def test_a_damaged_checkpoint_raises_without_restart(tmp_path: Path) -> None:
    train(tmp_path, replace(TRAINING, steps=3))
    path = tmp_path / checkpoint.FILE
    path.write_bytes(path.read_bytes()[:-40])
    state = checkpoint.State.new("k", network(), TRAINING)
    with pytest.raises(InputError, match=r"state\.safetensors is damaged .*; move it away to start again") as error:
        checkpoint.resume(state, tmp_path)
    assert "\n" not in str(error.value)


def test_fewer_steps_than_the_checkpoint_has_start_again(tmp_path: Path) -> None:
    train(tmp_path / "few", replace(TRAINING, steps=4))
    train(tmp_path / "many")
    train(tmp_path / "many", replace(TRAINING, steps=4))
    assert same_files(tmp_path / "few", tmp_path / "many")
    with pytest.raises(InputError, match="was already trained for 4 steps, more than 2"):
        checkpoint.resume(
            checkpoint.State.new(_key(tmp_path / "few"), network(), replace(TRAINING, steps=2)), tmp_path / "few"
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps is 0; give at least 1"),
        ({"batch_size": 0}, "batch_size is 0; give at least 1"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps is 0; give at least 1"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; give more than 0"),
        ({"learning_rate": math.nan}, "learning_rate is nan; give more than 0"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0; give a decay from 0"),
        ({"stop_at": 9}, "stop_at is 9; give 1 to 8"),
        ({"checkpoint_every": 0}, "checkpoint_every is 0; give at least 1"),
        ({"checkpoint_every": None, "patience": 2}, "patience counts measurements; give evaluate_every"),
    ],
)
def test_invalid_settings_raise(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(TRAINING, **changes)


def test_trainings_that_cannot_run_raise(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a batch of 8 does not divide into 1 processes x 3 micro-batches"):
        train(tmp_path, replace(TRAINING, gradient_accumulation_steps=3))
    with pytest.raises(InputError, match="test: precision fp16 needs a GPU; use bf16 or fp32"):
        train(tmp_path, runtime=CPU.at("fp16"))
    if not torch.cuda.is_available():
        for device in ("cuda", "cuda:1"):
            with pytest.raises(InputError, match=f"device: {device}, but torch detects no GPU; write device: cpu"):
                train(tmp_path, runtime=replace(CPU, device=device))
    with pytest.raises(InputError, match="the network has no trainable weight"):
        train(tmp_path, net=network().requires_grad_(False))
    assert not list(tmp_path.iterdir())


def test_weights_that_do_not_change_raise(tmp_path: Path) -> None:
    """For example if adapters are attached after the optimizer is made, or if the loss has no graph."""
    net = network()
    with pytest.raises(InputError, match="the first step changed no weight"):
        run(
            net, lambda model, step, part: loss_of(model, step, part) * 0, replace(TRAINING, weight_decay=0.0), tmp_path
        )
    assert not list(tmp_path.iterdir())


def test_bfloat16_runs_the_forward_and_leaves_no_trace(tmp_path: Path) -> None:
    seen: list[torch.dtype] = []
    net = network()
    net[0].register_forward_hook(lambda module, given, out: seen.append(out.dtype))  # type: ignore[index]
    train(tmp_path / "half", replace(TRAINING, steps=1), net, runtime=CPU.at("bf16"))
    train(tmp_path / "whole", replace(TRAINING, steps=1), network())
    assert seen == [torch.bfloat16]
    assert net(INPUTS).dtype == torch.float32
    assert seen[1] == torch.float32
    assert losses(tmp_path / "half") != losses(tmp_path / "whole")
    assert all(value.dtype == torch.float32 for name, value in read_tensors(tmp_path / "half" / checkpoint.FILE).items()
               if name.startswith(("network.", "average.", "optimizer.")))  # fmt: skip


def test_a_grid_puts_images_side_by_side() -> None:
    images = torch.arange(5.0).reshape(5, 1, 1, 1).expand(5, 1, 2, 3) / 4
    sheet = grid(images, columns=3)
    assert sheet.shape == (4, 9)
    assert sheet.dtype == np.uint8
    assert sheet[::2, ::3].tolist() == [[0, 64, 128], [191, 255, 0]]
    assert sheet[0, :3].tolist() == [0, 0, 0]
    assert grid(torch.full((1, 1, 2, 2), math.nan)).tolist() == [[0, 0], [0, 0]]


def picture(net: nn.Module) -> Tensor:
    return net(INPUTS[:2]).sigmoid().reshape(2, 1, 1, 1).expand(2, 1, 4, 4)


def test_pictures_are_of_the_moving_average_and_the_same_again(tmp_path: Path) -> None:
    from PIL import Image

    net = train(tmp_path / "a", picture=picture)
    train(tmp_path / "b", replace(TRAINING, stop_at=4), picture=picture)
    train(tmp_path / "b", picture=picture)
    names = ["step_000003.png", "step_000006.png", "step_000008.png"]
    assert sorted(path.name for path in (tmp_path / "a" / "samples").iterdir()) == names
    assert all((tmp_path / "a" / "samples" / name).read_bytes() == (tmp_path / "b" / "samples" / name).read_bytes()
               for name in names)  # fmt: skip
    with Image.open(tmp_path / "a" / "samples" / names[-1]) as last:
        assert last.info["Synthetic"] == "true"
        np.testing.assert_array_equal(np.asarray(last), grid(picture(net)))


def test_curves_go_to_tensorboard_and_a_kill_leaves_no_step_twice(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def power_cut(stage: str, done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    def held(net: nn.Module) -> float:
        return float(net(INPUTS).mean())

    options: dict[str, Any] = {"tracker": "tensorboard", "picture": picture, "evaluate": held, "name": "run"}
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, runtime=replace(CPU, progress=power_cut), **options)
    train(tmp_path, **options)
    events = EventAccumulator(str(tmp_path / "tracking" / "run")).Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 9))
    np.testing.assert_allclose([event.value for event in events.Scalars("loss")], losses(tmp_path), rtol=1e-6)
    assert [event.value for event in events.Scalars("learning rate")][:3] == pytest.approx([5e-3, 1e-2, 1e-2])
    assert [event.step for event in events.Scalars("validation")] == [3, 6, 8]
    assert [event.step for event in events.Images("samples")] == [3, 6, 8]


def test_a_whole_batch_is_the_one_part_of_itself() -> None:
    assert WHOLE.take([1, 2, 3]) == [1, 2, 3]
    parts = Training(batch_size=12, gradient_accumulation_steps=3).parts(1, 2)
    assert [part.take(list(range(12))) for part in parts] == [[6, 7], [8, 9], [10, 11]]


SCRIPT = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[2])
from test_loop import TRAINING, picture, replace, train
where = Path(sys.argv[1])
train(where, replace(TRAINING, stop_at=4, gradient_accumulation_steps=2), picture=picture, evaluate=lambda net: 1.0)
train(where, picture=picture, evaluate=lambda net: 1.0)
assert torch.distributed.get_world_size() == 2
torch.distributed.destroy_process_group()
"""


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_on_a_gpu_a_cut_training_keeps_its_loss_scale_and_goes_on(tmp_path: Path, precision: Any) -> None:
    """Close, not equal: a GPU adds in any order. The scaler of fp16 grows after 2,000 steps; here it is only kept."""
    gpu = {"runtime": Runtime("cuda", precision, None, 0)}
    whole = train(tmp_path / "whole", TRAINING, network(0.5), **gpu)
    train(tmp_path / "cut", replace(TRAINING, stop_at=4), network(0.5), **gpu)
    cut = train(tmp_path / "cut", TRAINING, network(0.5), **gpu)
    for a, b in zip(whole.parameters(), cut.parameters(), strict=True):
        assert a.device.type == "cpu"
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    named = read_tensors(tmp_path / "cut" / checkpoint.FILE)
    assert ("scaler.scale" in named) == (precision == "fp16")


class HalfScaler:
    """The state_dict interface of a GradScaler."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 0}

    def state_dict(self) -> dict[str, Any]:
        return dict(self.state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state


def test_a_loss_scale_is_part_of_the_state() -> None:
    states = [checkpoint.State.new("k", network(), TRAINING, HalfScaler()) for _ in range(2)]
    states[0].scaler.state |= {"scale": 512.0, "_growth_tracker": 37}
    states[1].restore(states[0].tensors(), 5)
    assert states[1].scaler.state == {"scale": 512.0, "growth_factor": 2.0, "_growth_tracker": 37}


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(tmp_path: Path) -> None:
    """Each takes half of every batch; gradients are averaged; the first process evaluates and writes."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    here = str(Path(__file__).parent)
    subprocess.run([*run, str(script), str(tmp_path / "two"), here], check=True, env=environment, timeout=240)
    train(tmp_path / "one", picture=picture, evaluate=lambda net: 1.0)
    assert len(losses(tmp_path / "two")) == 8
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), atol=1e-5)
    one, two = (read_tensors(tmp_path / name / checkpoint.FILE) for name in ("one", "two"))
    for name in set(one) - {"validation"}:  # measured at step 4 too by the one that stopped there
        torch.testing.assert_close(one[name], two[name], atol=1e-5, rtol=1e-4)


def test_nan_weights_after_the_last_step_are_not_saved(tmp_path: Path) -> None:
    """The loss of the last step comes from the weights before it, so `write` checks the weights themselves."""
    train(tmp_path / "cut", replace(TRAINING, lr_scheduler="cosine", stop_at=3))
    kept = (tmp_path / "cut" / checkpoint.FILE).read_bytes()

    def explode(net: nn.Module, step: int, part: BatchPart) -> Tensor:
        if step == 7:
            net[0].weight.data.fill_(math.inf)
        return sum(weight.nan_to_num(0, 0, 0).sum() for weight in net.parameters())

    with pytest.raises(InputError, match="a weight is NaN or infinite at step 8; lower learning_rate"):
        run(network(), explode, replace(TRAINING, lr_scheduler="cosine", checkpoint_every=8), tmp_path / "cut")
    assert (tmp_path / "cut" / checkpoint.FILE).read_bytes() == kept


def test_a_step_that_the_loss_scaler_skips_counts_for_the_schedule() -> None:
    """torch warns where the optimizer did not step, and where its step is no longer the one that torch wrapped."""
    state = checkpoint.State.new("k", network(), TRAINING)
    state.begin_schedule()
    del state.optimizer.step  # as accelerate puts its own in place of it
    assert state.rate == 0.005
    state.advance(1.0)
    assert (state.rate, state.step) == (0.01, 1)
