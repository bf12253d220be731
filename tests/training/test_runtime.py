"""Tests of the runtime of trainings."""

from dataclasses import fields, replace

import pytest
import torch

from medlt.training import loop
from medlt.training.loop import fit
from medlt.training.runtime import Runtime
from medlt.training.settings import Training
from medlt.types import InputError

CPU = Runtime("cpu", "fp32", None, 0)


def test_nothing_but_progress_has_a_default() -> None:
    required = [field.name for field in fields(Runtime) if field.default is field.default_factory]
    assert required == ["device", "precision", "threads", "seed"]
    with pytest.raises(TypeError):
        fit(torch.nn.Linear(1, 1), None, Training(), folder=None, key="", name="")  # type: ignore[call-arg, arg-type]


def test_seeds_are_functions_of_seed_and_key() -> None:
    assert CPU.seeded("a", 1) == CPU.seeded("a", 1)
    others = {CPU.seeded(*key).seed for key in [("a", 1), ("a", 2), ("b", 1)]} | {
        replace(CPU, seed=1).seeded("a", 1).seed
    }
    assert len(others) == 4


def test_threads_are_limited_during_a_training_and_restored_afterwards() -> None:
    before, seen = torch.get_num_threads(), list[int]()
    with replace(CPU, threads=before + 1).limited():
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before

    def watch(net: torch.nn.Module, step: int, part: object) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        return net(torch.ones(1, 1)).sum()

    training = Training(steps=2, batch_size=1, checkpoint_every=None)
    fit(torch.nn.Linear(1, 1), watch, training, runtime=replace(CPU, threads=before + 1), folder=None, key="", name="t")
    assert seen == [before + 1] * 2
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_training_uses_the_configured_device(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate has no argument for which GPU: torch's current one is set first, and never for a CPU."""
    chosen: list[object] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: chosen.append(str(device)))

    class StopError(Exception):
        pass

    def accelerator(**options: object) -> None:
        chosen.append(options["cpu"])
        raise StopError

    monkeypatch.setattr("accelerate.Accelerator", accelerator)
    track = loop.Track(None, None, None, "t", None)
    with pytest.raises(StopError):
        loop.accelerated(Training(), Runtime(device, "fp32", None, 0), track)
    with pytest.raises(StopError):
        loop.accelerated(Training(), CPU, track)
    assert chosen == ([device] if ":" in device else []) + [False, True]


def test_unsupported_devices_and_precisions_raise() -> None:
    with pytest.raises(InputError, match="codec: precision fp16 needs a GPU; use bf16 or fp32 on a CPU"):
        CPU.at("fp16").torch_device("codec")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="device: cuda:3, but torch detects no GPU"):
            replace(CPU, device="cuda:3").torch_device("codec")
    assert CPU.at("bf16").dtype == torch.bfloat16
