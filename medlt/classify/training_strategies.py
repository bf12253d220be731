"""Training strategies: a training as a short list of stages, whose steps have the same sum in every arm.

| training_strategy | first stage | last stage | share of the last | source |
|---|---|---|---|---|
| one | - | real + added | 1 | |
| drw | real + added | the same, class weights by effective numbers | 0.2 | arXiv 1906.07413 |
| crt | real + added | head alone, drawn anew: real rows, class-balanced | 0.2 | arXiv 1910.09217 |
| head | real | head alone, drawn anew: real rows, class-balanced, + added | 0.2 | |
| pretrain | added | real | 0.5 | as RoentGen-v2 was used |
| second_stage | real | real + added | 0.2 | |

"real + added" fills each slot of a batch with an added row with probability `mix`; without added rows it is real. cRT
as published trains its head for 10 epochs after 90. Of a few hundred steps a tenth is too little for a fresh head,
hence 0.2 and ten times the learning rate: AdamW moves no weight further than the rate in a step, and at the body's rate
the head would stay near its random draw.

Each stage has its own warm-up, cosine and optimiser over its own steps: one cosine over all would be near 0 when the
last stage starts, and that stage would not train. For the same reason the moving average covers the same share of the
stage's steps, not the same number. A stage starts from the best weights of the stage before it by validation macro AP;
the best weights of the last stage are kept. Early stopping ends a stage and lengthens no other, so an arm never makes
more than `steps` gradient steps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from medlt.types import InputError

Rows = Literal["real", "mixed", "added"]


@dataclass(frozen=True)
class Stage:
    """Data and weights of one stage.

    `balanced`: real rows are sampled by class; `head`: the body is fixed, the head is drawn anew; `reweighted`: class
    weights by effective numbers multiply those of the loss; `start`: the steps planned in earlier stages.
    """

    rows: Rows = "mixed"
    balanced: bool = False
    head: bool = False
    reweighted: bool = False
    steps: int = 0
    start: int = 0


TRAINING_STRATEGIES: dict[str, tuple[tuple[Stage, ...], float]] = {
    "one": ((Stage(),), 1.0),
    "drw": ((Stage(), Stage(reweighted=True)), 0.2),
    "crt": ((Stage(), Stage("real", balanced=True, head=True)), 0.2),
    "head": ((Stage("real"), Stage(balanced=True, head=True)), 0.2),
    "pretrain": ((Stage("added"), Stage("real")), 0.5),
    "second_stage": ((Stage("real"), Stage()), 0.2),
}
"""Name -> its stages, and the last stage's share of the steps."""

SAMPLING = ("instance", "class_balanced")


def stages(
    training_strategy: str, steps: int, sampling: str = "instance", last_share: float | None = None
) -> tuple[Stage, ...]:
    """Return the stages of a training strategy; their steps, at least one each, sum to `steps`.

    sampling: of real rows in every stage; last_share: in (0,1), None for the strategy's default. Raises InputError for
    unknown names, a share out of range, and too few steps.
    """
    if training_strategy not in TRAINING_STRATEGIES:
        raise InputError(
            f"no training_strategy is named {training_strategy!r}; choose one of {', '.join(TRAINING_STRATEGIES)}"
        )
    if sampling not in SAMPLING:
        raise InputError(f"no sampling is named {sampling!r}; choose one of {', '.join(SAMPLING)}")
    kinds, share = TRAINING_STRATEGIES[training_strategy]
    if last_share is not None and not 0 < last_share < 1:
        raise InputError(f"last_share is {last_share}; give a share of the steps between 0 and 1")
    if steps < len(kinds):
        raise InputError(f"{steps} steps are too few for the {len(kinds)} stages of {training_strategy!r}; raise steps")
    kinds = tuple(replace(kind, balanced=kind.balanced or sampling == "class_balanced") for kind in kinds)
    if len(kinds) == 1:
        return (replace(kinds[0], steps=steps),)
    last = min(max(1, round((last_share or share) * steps)), steps - 1)
    return replace(kinds[0], steps=steps - last), replace(kinds[1], steps=last, start=steps - last)
