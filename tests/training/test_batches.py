import threading
from collections import Counter

import pytest
import torch

from medlt.training.batches import StepBatches


def names() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


def test_each_step_gets_its_own_batch_in_any_order_of_steps() -> None:
    made: list[int] = []

    def make(step: int) -> list[int]:
        made.append(step)
        return [step, step * step]

    with StepBatches(make, 9) as batches:
        assert [batches(step) for step in (3, 4, 5, 1, 2, 3, 8)] == [
            [step, step * step] for step in (3, 4, 5, 1, 2, 3, 8)
        ]
    assert max(made) == 8  # nothing is made from the end on


def test_the_parts_of_a_step_share_its_batch() -> None:
    calls: Counter[int] = Counter()

    def make(step: int) -> list[int]:
        calls[step] += 1
        return [step]

    with StepBatches(make, 3) as batches:
        for step in range(3):
            assert batches(step) is batches(step)
    assert calls == {0: 1, 1: 1, 2: 1}


def test_the_next_batch_is_made_while_this_one_is_used() -> None:
    begun = threading.Event()

    def make(step: int) -> int:
        if step == 1:
            begun.set()
        return step

    with StepBatches(make, 5) as batches:
        assert batches(0) == 0
        assert begun.wait(10)


def test_an_error_arrives_at_its_step_and_no_thread_is_left() -> None:
    calls: Counter[int] = Counter()
    before = names()

    def broken(step: int) -> int:
        calls[step] += 1
        if step == 2:
            raise ValueError(f"step {step}")
        return step

    with StepBatches(broken, 3) as batches:
        assert batches(1) == 1
        for _ in range(2):
            with pytest.raises(ValueError, match="step 2"):
                batches(2)
    assert calls == {1: 1, 2: 2}
    assert names() == before


def test_the_loader_leaves_the_global_generator_of_torch_alone() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    with StepBatches(lambda step: torch.full((2,), float(step)), 4) as batches:
        assert batches(2).tolist() == [2.0, 2.0]
    assert torch.equal(torch.rand(3), wanted)
