"""Losses against closed forms; phases train what they say and nothing else."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from medlt.rng import torch_generator
from medlt.sparse.embedding import SimplicialCoder
from medlt.sparse.phases import (
    TrainingSetup,
    adapt,
    imitate,
    imitation_loss,
    interact,
    masked_bce,
    pos_weight,
    sample_tokens,
    straight_through_sample,
)
from medlt.training.runtime import Runtime

NAN, RUN = float("nan"), Runtime("cpu", "fp32", None, 0)


def test_the_learning_rate_rises_falls_and_never_leaves_the_interval() -> None:
    training = lesson().training(200)
    rates = [training.lr_factor(step) for step in range(200)]
    assert rates[0] < 0.1
    assert max(rates) == 1
    assert rates.index(max(rates)) in range(15, 25)
    assert all(a > b for a, b in itertools.pairwise(rates[25:]))
    assert 0 < rates[-1] < 0.001
    assert 0 < lesson().training(1).lr_factor(0) <= 1


def lesson(n: int = 24) -> TrainingSetup:
    z = torch.randn(n, 2, 4, 4, generator=torch_generator("z"))
    y = torch.randint(2, (n, 3), generator=torch_generator("y")).float()
    return TrainingSetup(z, y, 8, 2e-2, 1e-2, 1.0, RUN)


def coder(seed: int = 0, temperature: float = 0.5, width: int = 4) -> SimplicialCoder:
    return SimplicialCoder(2, 3, groups=2, vocabulary=4, temperature=temperature, width=width, seed=seed)


def test_pos_weight_by_hand() -> None:
    labels = torch.tensor([[1.0, 0.0, NAN], [0.0, 0.0, 1.0], [0.0, 0.0, NAN], [1.0, 0.0, 0.0]])
    assert pos_weight(labels).tolist() == pytest.approx([4 / (2 * 3), 4 / (1 * 3), 2 / (1 * 3)])


@settings(max_examples=25)
@given(st.lists(st.tuples(st.floats(-5, 5), st.sampled_from([0.0, 1.0, NAN])), min_size=1, max_size=8))
def test_masked_bce_equals_a_loop_over_known_labels(cells: list[tuple[float, float]]) -> None:
    logits, labels = (torch.tensor([column]) for column in zip(*cells, strict=True))
    weight = torch.linspace(0.5, 2.0, len(cells))
    losses = []
    for (x, y), w in zip(cells, weight.tolist(), strict=True):
        if not math.isnan(y):
            losses.append(w * math.log1p(math.exp(-x)) if y else math.log1p(math.exp(x)))
    expected = sum(losses) / len(losses) if losses else 0.0
    assert float(masked_bce(logits, labels, weight)) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_words_are_drawn_as_often_as_the_code_says() -> None:
    p = torch.tensor([0.5, 0.3, 0.2, 0.0])
    s = p[None, None, :, None, None].expand(40, 5, 4, 10, 10)
    share = torch.bincount(sample_tokens(s, torch_generator("words")).flatten(), minlength=4) / 20_000
    assert (share - p).abs().max() < 4 * 0.5 / 20_000**0.5
    assert share[3] == 0


def test_speaking_is_one_hot_and_passes_the_code_s_gradient() -> None:
    s = torch.randn(2, 3, 4, 2, 2, generator=torch_generator("speak")).softmax(2).requires_grad_()
    said, weight = (
        straight_through_sample(s, torch_generator("draw")),
        torch.randn(2, 3, 4, 2, 2, generator=torch_generator("weight")),
    )
    assert torch.equal(
        said.detach().round(), F.one_hot(sample_tokens(s, torch_generator("draw")), 4).movedim(-1, 2).float()
    )
    torch.testing.assert_close(said.detach(), said.detach().round())
    (gradient,) = torch.autograd.grad((said * weight).sum(), s)
    assert torch.equal(gradient, weight)


def test_imitation_loss_equals_a_loop() -> None:
    logits = torch.randn(2, 3, 4, 2, 2, generator=torch_generator("logits"))
    words = torch.randint(4, (2, 3, 2, 2), generator=torch_generator("words"))
    losses = [
        -math.log(math.exp(logits[b, g, words[b, g, y, x], y, x]) / logits[b, g, :, y, x].exp().sum().item())
        for b, g, y, x in np.ndindex(2, 3, 2, 2)
    ]
    assert float(imitation_loss(logits, words)) == pytest.approx(np.mean(losses), rel=1e-5)


def changed(before: dict[str, torch.Tensor], after: SimplicialCoder) -> set[str]:
    return {name.split(".")[0] for name, value in after.state_dict().items() if not torch.equal(value, before[name])}


def test_each_phase_trains_its_own_parts() -> None:
    student, teacher = coder(0), coder(1)
    start, taught = ({k: v.clone() for k, v in c.state_dict().items()} for c in (student, teacher))
    imitate(lesson(), student, teacher, 1, 1)
    assert changed(start, student) == {"encoder"}
    assert not changed(taught, teacher)
    start = {k: v.clone() for k, v in student.state_dict().items()}
    adapt(lesson(), student, 1, 1)
    assert changed(start, student) == {"decoder", "classifier"}
    start = {k: v.clone() for k, v in student.state_dict().items()}
    scores = iter([0.5])
    interact(lesson(), student, 1, 1, 1, lambda: next(scores))
    assert changed(start, student) == {"encoder", "decoder", "classifier"}


def test_interaction_stops_and_ends_with_the_best_epoch() -> None:
    scores, states = [0.2, 0.6, 0.5, 0.4, 0.9], []
    student = coder()

    def score() -> float:
        states.append({k: v.clone() for k, v in student.state_dict().items()})
        return scores[len(states) - 1]

    interact(lesson(), student, 5, 2, 0, score)
    assert len(states) == 4, "two epochs without a better score end it"
    assert all(torch.equal(value, states[1][name]) for name, value in student.state_dict().items())


def test_an_imitating_student_comes_to_agree() -> None:
    task, teacher = lesson(64), coder(1, 0.1, 8).train()
    teacher.code(task.latents)
    teacher.eval()
    agreed = []
    for epochs in (1, 30):
        student = coder(2, 0.1, 8)
        imitate(task, student, teacher, epochs, 1)
        equal = student.code(task.latents).argmax(2) == teacher.code(task.latents).argmax(2)
        agreed.append(float(equal.double().mean()))
    assert agreed[1] > agreed[0] + 0.1
    assert agreed[1] > 0.6, "chance gives four words 0.25"


def test_unknown_labels_do_not_move_the_coder() -> None:
    task = lesson()
    blank = TrainingSetup(task.latents, torch.full_like(task.labels, NAN), 8, 1e-2, 0.0, 1.0, RUN)
    student = coder()
    start = {k: v.clone() for k, v in student.state_dict().items()}
    adapt(blank, student, 1, 0)
    assert changed(start, student) == {"decoder", "classifier"}, "the classifier's running statistics"
    assert all(torch.equal(value, start[f"classifier.{name}"]) for name, value in student.classifier.named_parameters())
    assert all(v.isfinite().all() for v in student.state_dict().values())
    assert F.l1_loss(student.decode(student.code(task.latents)), task.latents).isfinite()
