"""The training loop: rates, cut batches, cut trainings, what a checkpoint holds, and what it refuses."""

import itertools
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from medlt import chance
from medlt.files import read_tensors
from medlt.training import checkpoint
from medlt.training.loop import fit
from medlt.training.runtime import Runtime
from medlt.training.settings import WHOLE, Part, Training
from medlt.training.tracking import grid
from medlt.types import InputError

CPU = Runtime("cpu", "fp32", None, 0)
INPUTS = chance.noise_like(range(32), (4,))
TRAINING = Training(steps=8, learning_rate=1e-2, batch=8, warmup_steps=2, ema=0.9, checkpoint_every=3)


def network(dropout: float = 0.0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 1))


def loss_of(net: nn.Module, step: int, part: Part) -> Tensor:
    """Regression on rows of the step; part by part."""
    x = part.take(INPUTS[chance.batch_indices(len(INPUTS), 8, step, "loop test")])
    return (net(x) - x.sum(1, keepdim=True)).pow(2).mean()


def run(net: nn.Module, loss: Any, training: Training, folder: Path | None, **more: Any) -> nn.Module:
    told: dict[str, Any] = {"runtime": CPU, "key": "k", "name": "test"} | more
    fit(net, loss, training, folder=folder, **told)
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


def test_the_share_of_the_rate_warms_up_and_stays_or_falls_by_half_a_cosine() -> None:
    constant = Training(steps=100, warmup_steps=4)
    assert [constant.share(i) for i in (0, 1, 3, 4, 99)] == [0.25, 0.5, 1.0, 1.0, 1.0]
    cosine = replace(constant, schedule="cosine")
    assert [cosine.share(i) for i in (0, 3, 4)] == [0.25, 1.0, 1.0]
    assert cosine.share(52) == pytest.approx(0.5)
    assert cosine.share(99) == pytest.approx((1 + math.cos(math.pi * 95 / 96)) / 2)
    assert replace(constant, warmup_steps=0).share(0) == 1.0


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("stops", [(8,), (1, 2, 5, 8)])
def test_steps_are_made_at_the_rates_of_the_closed_form(tmp_path: Path, schedule: Any, stops: tuple[int, ...]) -> None:
    """Also when the training was cut: plain SGD would move by rate times gradient, AdamW's decay tells its rate.

    With no gradient but a decay of 1, step s multiplies a weight by 1 - rate(s).
    """
    training = replace(TRAINING, schedule=schedule, learning_rate=0.1, weight_decay=1.0, checkpoint_every=1)
    seen: list[float] = []

    def still(net: nn.Module, step: int, part: Part) -> Tensor:
        seen.append(float(net.weight.detach()))  # type: ignore[arg-type]
        return net(torch.zeros(1, 1)).sum()  # its bias alone has a gradient

    for stop in stops:
        net = nn.Linear(1, 1)
        nn.init.ones_(net.weight)
        run(net, still, replace(training, stop_at=stop), tmp_path)
    found = [1 - b / a for a, b in itertools.pairwise(seen)]
    wanted = [0.05, 0.1, *[0.1 * (1 + math.cos(math.pi * i / 6)) / 2 for i in range(5)]]
    assert found == pytest.approx(wanted if schedule == "cosine" else [0.05, *[0.1] * 6], rel=1e-4)


@pytest.mark.parametrize(
    "changes",
    [{}, {"schedule": "cosine"}, {"accumulate": 4}, {"precision": "bf16"}, {"ema": 0.0}, {"clip": 0.1},
     {"ema_warmup": False}, {"betas": (0.5, 0.9)}],
    ids=lambda changes: ",".join(map(str, changes)) or "plain",
)  # fmt: skip
def test_cut_and_continued_is_the_whole_to_the_bit(tmp_path: Path, changes: dict[str, Any]) -> None:
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

    def look(net: nn.Module, step: int, part: Part) -> Tensor:
        seen.append(net[2](torch.ones(64)))  # type: ignore[index]
        return loss_of(net, step, part)

    for key in ("a", "b"):
        run(network(0.5), look, replace(TRAINING, steps=2), tmp_path / key, key=key)
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(seen))


def test_channels_last_weights_go_on_to_the_same_bits(tmp_path: Path) -> None:
    """Moments come back in their weight's memory format."""

    def conv_loss(net: nn.Module, step: int, part: Part) -> Tensor:
        assert net[0].weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[index]
        return net(chance.noise_like([step], (3, 8, 8))).pow(2).mean()

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
    cut = train(tmp_path / "cut", replace(TRAINING, accumulate=pieces))
    np.testing.assert_allclose(losses(tmp_path / "cut"), losses(tmp_path / "whole"), atol=1e-6)
    for a, b in zip(whole.parameters(), cut.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_a_training_may_be_cut_otherwise_when_gone_on_with(tmp_path: Path) -> None:
    """Micro-batches, checkpoint distance and, at a constant rate, the number of steps are not what a training is."""
    train(tmp_path, replace(TRAINING, stop_at=4))
    train(tmp_path, replace(TRAINING, steps=12, accumulate=2, checkpoint_every=5))
    assert len(losses(tmp_path)) == 12
    others: list[dict[str, Any]] = [{"batch": 16}, {"schedule": "cosine"}, {"weight_decay": 0.0}, {"ema_warmup": False}]
    for other in others:
        with pytest.raises(InputError, match="other settings or data"):
            train(tmp_path, replace(TRAINING, steps=12, **other))
    with pytest.raises(InputError, match="other settings or data"):
        train(tmp_path, replace(TRAINING, steps=12), runtime=CPU.at("bf16"))


def test_a_cosine_of_another_length_is_another_training(tmp_path: Path) -> None:
    cosine = replace(TRAINING, schedule="cosine", stop_at=4)
    train(tmp_path, cosine)
    with pytest.raises(InputError, match="other settings or data"):
        train(tmp_path, replace(cosine, steps=12))


def test_only_what_is_trained_is_kept(tmp_path: Path) -> None:
    net = network()
    net[0].requires_grad_(False)  # type: ignore[index]
    before = net[0].weight.clone()  # type: ignore[index]
    after = train(tmp_path, net=net)
    assert torch.equal(after[0].weight, before)  # type: ignore[index]
    named = read_tensors(tmp_path / checkpoint.FILE)
    assert {name for name in named if name.startswith("network.")} == {"network.3.weight", "network.3.bias"}
    assert {name.split(".")[1] for name in named if name.startswith(("average.", "optimizer."))} == {"0", "1"}


def test_a_checkpoint_that_reads_back_otherwise_is_told_and_the_old_one_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path, replace(TRAINING, steps=3))
    good, save = (tmp_path / checkpoint.FILE).read_bytes(), checkpoint.write_tensors

    def flip_a_bit(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        other = tensors["average.1"].clone()
        other.view(torch.uint8)[2] ^= 1
        save(path, tensors | {"average.1": other}, metadata)

    monkeypatch.setattr(checkpoint, "write_tensors", flip_a_bit)
    with pytest.raises(InputError, match=r"average\.1 reads back otherwise than it was written at step 6"):
        train(tmp_path)
    assert (tmp_path / checkpoint.FILE).read_bytes() == good
    assert not list(tmp_path.glob(".*tmp*"))
    monkeypatch.undo()
    train(tmp_path)
    assert len(losses(tmp_path)) == 8


def test_a_nan_in_a_checkpoint_equals_itself(tmp_path: Path) -> None:
    """The comparison is of bits: what is no number (a validation loss) is no difference, and -0 is not 0."""
    from safetensors.torch import save_file

    kept = {"a": torch.tensor([math.nan, 0.0])}
    save_file(kept, tmp_path / "x")
    assert checkpoint.differing(tmp_path / "x", kept) is None
    assert checkpoint.differing(tmp_path / "x", {"a": torch.tensor([math.nan, -0.0])}) == "a"
    assert checkpoint.differing(tmp_path / "x", {"a": kept["a"].double()}) == "a"
    assert checkpoint.differing(tmp_path / "x", kept | {"b": kept["a"]}) == "b"


def test_a_damaged_checkpoint_is_set_aside_and_the_training_begins_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(tmp_path / "whole")
    train(tmp_path / "cut", replace(TRAINING, steps=3))
    path = tmp_path / "cut" / checkpoint.FILE
    path.write_bytes(path.read_bytes()[:-40])
    train(tmp_path / "cut")
    assert same_files(tmp_path / "whole", tmp_path / "cut")
    assert "state.safetensors is damaged; it was moved to state.damaged" in caplog.text
    assert path.with_suffix(".damaged").is_file()


def test_a_damaged_checkpoint_is_one_line_where_it_may_not_begin_anew(tmp_path: Path) -> None:
    train(tmp_path, replace(TRAINING, steps=3))
    path = tmp_path / checkpoint.FILE
    path.write_bytes(path.read_bytes()[:-40])
    state = checkpoint.State.new("k", network(), TRAINING)
    with pytest.raises(InputError, match=r"state\.safetensors is damaged .*; move it away to begin anew") as told:
        checkpoint.resume(state, tmp_path)
    assert "\n" not in str(told.value)


def test_fewer_steps_than_were_made_begin_anew(tmp_path: Path) -> None:
    train(tmp_path / "few", replace(TRAINING, steps=4))
    train(tmp_path / "many")
    train(tmp_path / "many", replace(TRAINING, steps=4))
    assert same_files(tmp_path / "few", tmp_path / "many")
    with pytest.raises(InputError, match="was already trained for 4 steps, more than 2"):
        checkpoint.resume(
            checkpoint.State.new(_key(tmp_path / "few"), network(), replace(TRAINING, steps=2)), tmp_path / "few"
        )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": 0}, "steps is 0; give at least 1"),
        ({"batch": 0}, "batch is 0; give at least 1"),
        ({"accumulate": 0}, "accumulate is 0; give at least 1"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; give more than 0"),
        ({"learning_rate": math.nan}, "learning_rate is nan; give more than 0"),
        ({"ema": 1.0}, "ema is 1.0; give a decay from 0"),
        ({"stop_at": 9}, "stop_at is 9; give 1 to 8"),
        ({"checkpoint_every": 0}, "checkpoint_every is 0; give at least 1"),
        ({"checkpoint_every": None, "patience": 2}, "patience counts measurements; give evaluate_every"),
    ],
)
def test_settings_that_cannot_work_are_one_line(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        replace(TRAINING, **changes)


def test_what_cannot_be_trained_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a batch of 8 does not divide into 1 processes x 3 micro-batches"):
        train(tmp_path, replace(TRAINING, accumulate=3))
    with pytest.raises(InputError, match="test: precision fp16 needs a GPU; use bf16 or fp32"):
        train(tmp_path, runtime=CPU.at("fp16"))
    if not torch.cuda.is_available():
        for device in ("cuda", "cuda:1"):
            with pytest.raises(InputError, match=f"device: {device}, but torch finds no GPU; write device: cpu"):
                train(tmp_path, runtime=replace(CPU, device=device))
    with pytest.raises(InputError, match="no weight of the network is trainable"):
        train(tmp_path, net=network().requires_grad_(False))
    assert not list(tmp_path.iterdir())


def test_a_network_whose_weights_do_not_move_is_told(tmp_path: Path) -> None:
    """As when adapters were put in after the optimizer was made, or the loss has lost its graph."""
    net = network()
    with pytest.raises(InputError, match="no weight moved in the first step"):
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
    told = EventAccumulator(str(tmp_path / "tracking" / "run")).Reload()
    assert [event.step for event in told.Scalars("loss")] == list(range(1, 9))
    np.testing.assert_allclose([event.value for event in told.Scalars("loss")], losses(tmp_path), rtol=1e-6)
    assert [event.value for event in told.Scalars("learning rate")][:3] == pytest.approx([5e-3, 1e-2, 1e-2])
    assert [event.step for event in told.Scalars("validation")] == [3, 6, 8]
    assert [event.step for event in told.Images("samples")] == [3, 6, 8]


def test_a_whole_batch_is_the_one_part_of_itself() -> None:
    assert WHOLE.take([1, 2, 3]) == [1, 2, 3]
    parts = Training(batch=12, accumulate=3).parts(1, 2)
    assert [part.take(list(range(12))) for part in parts] == [[6, 7], [8, 9], [10, 11]]


SCRIPT = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[2])
from test_loop import TRAINING, picture, replace, train
where = Path(sys.argv[1])
train(where, replace(TRAINING, stop_at=4, accumulate=2), picture=picture, evaluate=lambda net: 1.0)
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
    """What a GradScaler tells and takes."""

    def __init__(self) -> None:
        self.told: dict[str, Any] = {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 0}

    def state_dict(self) -> dict[str, Any]:
        return dict(self.told)

    def load_state_dict(self, told: dict[str, Any]) -> None:
        self.told = told


def test_a_loss_scale_is_part_of_the_state() -> None:
    states = [checkpoint.State.new("k", network(), TRAINING, HalfScaler()) for _ in range(2)]
    states[0].scaler.told |= {"scale": 512.0, "_growth_tracker": 37}
    states[1].restore(states[0].tensors(), 5)
    assert states[1].scaler.told == {"scale": 512.0, "growth_factor": 2.0, "_growth_tracker": 37}


@pytest.mark.slow
def test_two_processes_walk_the_curve_of_one(tmp_path: Path) -> None:
    """Each takes half of every batch; gradients are averaged; the first one measures, draws and writes."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    told = {**os.environ, "OMP_NUM_THREADS": "1"}
    here = str(Path(__file__).parent)
    subprocess.run([*run, str(script), str(tmp_path / "two"), here], check=True, env=told, timeout=240)
    train(tmp_path / "one", picture=picture, evaluate=lambda net: 1.0)
    assert len(losses(tmp_path / "two")) == 8
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), atol=1e-5)
    one, two = (read_tensors(tmp_path / name / checkpoint.FILE) for name in ("one", "two"))
    for name in set(one) - {"validation"}:  # measured at step 4 too by the one that stopped there
        torch.testing.assert_close(one[name], two[name], atol=1e-5, rtol=1e-4)


def test_weights_that_are_no_numbers_after_the_last_step_are_no_checkpoint(tmp_path: Path) -> None:
    """The last step's loss is of the weights before it, so it cannot tell; the checkpoint looks at the weights."""
    train(tmp_path / "cut", replace(TRAINING, schedule="cosine", stop_at=3))
    kept = (tmp_path / "cut" / checkpoint.FILE).read_bytes()

    def explode(net: nn.Module, step: int, part: Part) -> Tensor:
        if step == 7:
            net[0].weight.data.fill_(math.inf)
        return sum(weight.nan_to_num(0, 0, 0).sum() for weight in net.parameters())

    with pytest.raises(InputError, match="weights are no numbers at step 8; lower the learning rate"):
        run(network(), explode, replace(TRAINING, schedule="cosine", checkpoint_every=8), tmp_path / "cut")
    assert (tmp_path / "cut" / checkpoint.FILE).read_bytes() == kept


def test_a_step_that_the_loss_scale_skipped_is_a_step_of_the_schedule() -> None:
    """torch warns where the optimizer did not step, and where its step is no longer the one that torch wrapped."""
    state = checkpoint.State.new("k", network(), TRAINING)
    state.begin_schedule()
    del state.optimizer.step  # as accelerate puts its own in place of it
    assert state.rate == 0.005
    state.advance(1.0)
    assert (state.rate, state.step) == (0.01, 1)
