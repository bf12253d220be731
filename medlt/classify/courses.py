"""Courses: a training as a short list of stages, whose steps sum to the same number for every arm.

| course | first stage | last stage | share of the last | source |
|---|---|---|---|---|
| one | - | real + added | 1 | |
| drw | real + added | the same, class weights by effective numbers | 0.2 | arXiv 1906.07413 |
| crt | real + added | head alone, drawn anew: real rows, class-balanced | 0.2 | arXiv 1910.09217 |
| head | real | head alone, drawn anew: real rows, class-balanced, + added | 0.2 | |
| pretrain | added | real | 0.5 | as RoentGen-v2 was used |
| second_stage | real | real + added | 0.2 | |

"real + added" gives each slot of a batch to an added row with probability `mix`; without added rows it is real.
cRT as published trains its head for 10 epochs after 90; of a few hundred steps a tenth is too little for a fresh head,
hence 0.2 and ten times the learning rate: AdamW moves no weight further than the rate in a step, and at the body's rate
the head would stay near its random draw.

Each stage has a warm-up, a cosine and an optimiser of its own over its own steps: one cosine over all would be near 0
when the last stage begins, and that stage would train nothing. For the same reason its moving average looks back over
the same share of its steps, not over the same number. A stage starts from the best weights of the one before
by validation macro AP; the best of the last stage are kept. Early stopping ends a stage and lengthens no other, so an
arm never makes more than `steps` gradient steps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from medlt.types import InputError

Rows = Literal["real", "mixed", "added"]


@dataclass(frozen=True)
class Stage:
    """What one stage sees and moves. `balanced`: real rows sampled by class; `head`: the body is fixed, the head new;
    `reweighted`: class weights by effective numbers multiply those of the loss; `start`: the steps planned before."""

    rows: Rows = "mixed"
    balanced: bool = False
    head: bool = False
    reweighted: bool = False
    steps: int = 0
    start: int = 0


COURSES: dict[str, tuple[tuple[Stage, ...], float]] = {
    "one": ((Stage(),), 1.0),
    "drw": ((Stage(), Stage(reweighted=True)), 0.2),
    "crt": ((Stage(), Stage("real", balanced=True, head=True)), 0.2),
    "head": ((Stage("real"), Stage(balanced=True, head=True)), 0.2),
    "pretrain": ((Stage("added"), Stage("real")), 0.5),
    "second_stage": ((Stage("real"), Stage()), 0.2),
}
"""Name -> its stages, and the share of the steps of the last one."""

SAMPLING = ("instance", "class_balanced")


def stages(course: str, steps: int, sampling: str = "instance", last_share: float | None = None) -> tuple[Stage, ...]:
    """The stages of a course; their steps, at least one each, sum to `steps`.

    sampling: of real rows in every stage; last_share: in (0,1), else the course's own. Raises InputError for unknown
    names, a share out of range, and too few steps.
    """
    if course not in COURSES:
        raise InputError(f"no course named {course!r}; choose one of {', '.join(COURSES)}")
    if sampling not in SAMPLING:
        raise InputError(f"no sampling named {sampling!r}; choose one of {', '.join(SAMPLING)}")
    kinds, share = COURSES[course]
    if last_share is not None and not 0 < last_share < 1:
        raise InputError(f"last_share is {last_share}; give a share of the steps between 0 and 1")
    if steps < len(kinds):
        raise InputError(f"{steps} steps are too few for the {len(kinds)} stages of course {course!r}; raise steps")
    kinds = tuple(replace(kind, balanced=kind.balanced or sampling == "class_balanced") for kind in kinds)
    if len(kinds) == 1:
        return (replace(kinds[0], steps=steps),)
    last = min(max(1, round((last_share or share) * steps)), steps - 1)
    return replace(kinds[0], steps=steps - last), replace(kinds[1], steps=last, start=steps - last)
