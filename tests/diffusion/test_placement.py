"""A placed network says the same in its own precision, and a row's bytes stay its own."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from medlt.diffusion import schedulers
from medlt.diffusion.backbone import Backbone
from medlt.diffusion.batching import fixed_batches
from medlt.diffusion.labels import LabelUNet
from medlt.diffusion.placement import Faster, best_dtype, place
from medlt.diffusion.sampler import from_noise, sample
from medlt.rng import noise_like
from medlt.types import InputError


@pytest.fixture
def backbone() -> Backbone:
    torch.manual_seed(0)
    net = LabelUNet(4, 3, width=16).eval().requires_grad_(False)
    nn.init.normal_(net.unet.conv_out.weight, std=0.1)
    return net.backbone()


def rows(n: int) -> tuple[Tensor, Tensor]:
    return noise_like(range(n), (4, 8, 8)), noise_like(range(50, 50 + n), (3,))


def run(backbone: Backbone) -> Callable[[Tensor, Tensor], Tensor]:
    def sampled(noise: Tensor, labels: Tensor) -> Tensor:
        scheduler = schedulers.scheduler("ddim", 3)
        return sample(backbone.guided(backbone.condition(labels), 3.5), from_noise(noise, scheduler), scheduler)

    return sampled


def test_float32_as_it_was_changes_nothing(backbone: Backbone) -> None:
    placed = place(copy.deepcopy(backbone), device="cpu", dtype=torch.float32, channels_last=False)
    z, labels = rows(4)
    assert torch.equal(run(placed)(z, labels), run(backbone)(z, labels))
    assert placed.digest == backbone.digest


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_another_precision_says_nearly_the_same_in_float32(
    backbone: Backbone, dtype: torch.dtype, error: float
) -> None:
    z, labels = rows(4)
    told, at = backbone.condition(labels), torch.full((4,), 300)
    truth = backbone.network(z, at, told)
    placed = place(backbone, device="cpu", dtype=dtype)
    assert next(placed.network.parameters()).dtype == dtype
    said = placed.network(z, at, told)
    assert said.dtype == torch.float32
    assert said.is_contiguous()
    assert (said - truth).norm() / truth.norm() < error


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_of_a_row_are_its_own_in_fixed_batches(backbone: Backbone, dtype: torch.dtype) -> None:
    fn = fixed_batches(run(place(backbone, device="cpu", dtype=dtype)), 4)
    z, labels = rows(7)
    whole, order = fn(z, labels), torch.tensor([6, 2, 5, 0, 3])
    assert torch.equal(fn(z[order], labels[order]), whole[order])
    assert torch.equal(fn(z[5:6], labels[5:6]), whole[5:6])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 4])
def test_bytes_of_a_row_are_its_own_with_rows_cut_in_the_network(
    backbone: Backbone, dtype: torch.dtype, count: int
) -> None:
    """Cut at every network call, no other care is needed: any batch, any number of threads."""
    fn, before = run(place(backbone, device="cpu", dtype=dtype, rows=count)), torch.get_num_threads()
    z, labels = rows(5)
    try:
        torch.set_num_threads(1)
        whole = fn(z, labels)
        torch.set_num_threads(2)
        assert torch.equal(fn(z, labels), whole)
        assert torch.equal(fn(z[3:4], labels[3:4]), whole[3:4])
        assert torch.equal(fn(z[[4, 1]], labels[[4, 1]]), whole[[4, 1]])
    finally:
        torch.set_num_threads(before)


def test_digests_tell_ways_of_running_apart(backbone: Backbone) -> None:
    ways = [
        {"dtype": torch.float32, "channels_last": False},
        {"dtype": torch.float32},
        {"dtype": torch.bfloat16},
        {"dtype": torch.bfloat16, "rows": 1},
    ]
    digests = [place(copy.deepcopy(backbone), device="cpu", **way).digest for way in ways]  # type: ignore[arg-type]
    assert len(set(digests)) == len(ways)
    assert place(copy.deepcopy(backbone), device="cpu", dtype=torch.bfloat16).digest == digests[2]


def test_guidance_by_gradients_reaches_through_a_placed_network(backbone: Backbone) -> None:
    placed = place(backbone, device="cpu", dtype=torch.float32, rows=1)
    z, labels = rows(2)
    z.requires_grad_()
    (slope,) = torch.autograd.grad(placed.denoiser(placed.condition(labels))(z, 300).sum(), z)
    assert slope.abs().sum(dim=(1, 2, 3)).min() > 0


def test_token_ids_stay_whole_numbers() -> None:
    seen: list[torch.dtype] = []

    class Ids(nn.Module):
        def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
            seen.append(condition.dtype)
            return x

    from medlt.diffusion.labels import LabelVector

    placed = place(Backbone(Ids(), LabelVector(1), "sample", 4, "ids"), device="cpu", dtype=torch.bfloat16)
    placed.network(rows(1)[0], torch.zeros(1).long(), torch.ones(1, 77).long())
    assert seen == [torch.int64]


def test_the_faster_way_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that only the slow way moves."""
    from medlt.diffusion import placement

    calls: list[str] = []
    monkeypatch.setattr(placement.time, "perf_counter", lambda: float(calls.count("slow")))

    def slow(x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        calls.append("slow")
        return x

    def fast(x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        calls.append("fast")
        return x

    way, x = Faster(slow, fast), torch.zeros(1)
    way(x, x, x)
    calls.clear()
    way(x, x, x)
    assert calls == ["fast"]


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        ({"device": "cuda"}, "device cuda: this machine has no CUDA device"),
        ({"cuda_graphs": True}, "cuda_graphs needs an accelerator"),
        ({"compile": "measure"}, "compile: measure needs an accelerator"),
    ],
)
def test_what_a_cpu_cannot_do_is_refused_in_one_line(backbone: Backbone, bad: dict[str, object], match: str) -> None:
    if bad.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(InputError, match=match):
        place(backbone, **{"device": "cpu"} | bad)  # type: ignore[arg-type]


def test_the_precision_of_a_device_is_a_fact_not_a_measurement() -> None:
    assert best_dtype("cpu") == best_dtype("cpu")
    assert best_dtype("cpu") in (torch.float32, torch.bfloat16)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_compiled_network_says_the_same(backbone: Backbone) -> None:
    z, labels = rows(4)
    truth = run(backbone)(z, labels)
    placed = place(backbone, device="cpu", dtype=torch.float32, compile=True)
    torch.testing.assert_close(run(placed)(z, labels), truth, atol=1e-4, rtol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"cuda_graphs": True}, {"compile": "measure"}])
def test_a_gpu_says_nearly_the_same(backbone: Backbone, options: dict[str, object]) -> None:
    z, labels = rows(4)
    truth = run(backbone)(z, labels)
    placed = place(backbone, device="cuda", dtype=torch.float32, **options)  # type: ignore[arg-type]
    for _ in range(2):
        torch.testing.assert_close(run(placed)(z.cuda(), labels.cuda()).cpu(), truth, atol=2e-2, rtol=2e-2)
