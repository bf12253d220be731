"""Backing off: no row lost, none moved, the size remembered."""

import pytest
import torch
from torch import Tensor

from medlt.diffusion.memory import BackOff, out_of_memory
from medlt.types import InputError

ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
    MemoryError(),
]


def limited(limit: int, error: BaseException, sizes: list[int]) -> BackOff:
    """Twice its argument, for at most `limit` rows a call."""

    def fn(x: Tensor, y: Tensor) -> Tensor:
        if len(x) > limit:
            raise error
        sizes.append(len(x))
        return x * 2 + y

    return BackOff(fn, 16)


@pytest.mark.parametrize("error", ERRORS, ids=["cuda", "allocator", "windows", "python"])
@pytest.mark.parametrize("limit", [1, 3, 5, 16])
@pytest.mark.parametrize("n", [1, 7, 33])
def test_every_row_comes_back_once_in_its_place(error: BaseException, limit: int, n: int) -> None:
    sizes: list[int] = []
    x = torch.arange(n)
    run = limited(limit, error, sizes)
    assert torch.equal(run(x, x), 3 * x)
    assert sum(sizes) == n
    assert max(sizes) <= limit


def test_the_size_is_remembered() -> None:
    failures: list[int] = []

    def fn(x: Tensor) -> Tensor:
        if len(x) > 5:
            failures.append(len(x))
            raise torch.OutOfMemoryError("out of memory")
        return x

    run = BackOff(fn, 16)
    run(torch.arange(40))
    run(torch.arange(40))
    assert failures == [16, 8]
    assert run.rows == 4


def test_one_image_that_does_not_fit_is_one_clear_line() -> None:
    with pytest.raises(InputError, match="decoding: a single image does not fit into memory") as told:
        BackOff(lambda x: (_ for _ in ()).throw(MemoryError()), 8, "decoding")(torch.arange(3))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("error", [RuntimeError("shapes do not match"), ValueError("out of memory of what")])
def test_other_errors_pass(error: Exception) -> None:
    def fail(x: Tensor) -> Tensor:
        raise error

    assert not out_of_memory(error)
    with pytest.raises(type(error), match=str(error)):
        BackOff(fail, 8)(torch.arange(3))


@pytest.mark.gpu
def test_a_real_gpu_that_runs_out_goes_on() -> None:
    total = torch.cuda.get_device_properties(0).total_memory

    def fn(x: Tensor) -> Tensor:
        torch.empty(len(x), total // 3, dtype=torch.uint8, device="cuda")
        return x + 1

    assert torch.equal(BackOff(fn, 8)(torch.arange(9)), torch.arange(9) + 1)
