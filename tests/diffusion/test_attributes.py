"""View, sex and age as conditions: each unknown is a value of its own, and nothing is read that is not asked for."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from medlt.diffusion.attributes import ATTRIBUTES, WIDTHS, encode, forget, width, years
from medlt.diffusion.finetune import LabelledLatents, Objective, row_loss
from medlt.diffusion.labels import LabelNetwork, LabelUNet, LabelVector
from medlt.diffusion.losses import Rows
from medlt.diffusion.transformer import LabelTransformer
from medlt.rng import noise_like, torch_generator
from medlt.training.settings import BatchPart
from medlt.types import InputError

NAN = float("nan")
UNKNOWN: list[Any] = [None, NAN, "", "  ", "NaN", "None", pd.NA, pd.NaT, np.nan]
NOTHING = [1.0, 0, 0, 0, 0, 1.0, 0, 0, 1.0, 0]


@pytest.mark.parametrize("value", UNKNOWN, ids=repr)
def test_every_way_to_know_nothing_is_the_same(value: Any) -> None:
    about = [{"view": value, "sex": value, "age": value}, {}]
    assert encode(ATTRIBUTES, about, 2).tolist() == [NOTHING, NOTHING]
    assert encode(ATTRIBUTES, (), 1).tolist() == [NOTHING]


@pytest.mark.parametrize(
    ("name", "value", "column"),
    [("view", "PA", 1), ("view", "ap", 2), ("view", "Frontal", 3), ("view", "LL", 4), ("view", "lateral", 4),
     ("view", "LPO", 0), ("view", 7, 0), ("sex", "F", 1), ("sex", "female", 1), ("sex", "M", 2), ("sex", "O", 0)],
)  # fmt: skip
def test_a_word_is_one_column(name: str, value: object, column: int) -> None:
    row = encode((name,), [{name: value}], 1)[0]
    assert row.tolist() == [float(i == column) for i in range(WIDTHS[name])]


@given(st.floats(0, 120))
def test_an_age_is_told_in_units_of_25_years_from_50(age: float) -> None:
    unknown, value = encode(("age",), [{"age": repr(age) if age >= 1e-3 else 0.0}], 1)[0].tolist()
    assert unknown == 0
    assert value == pytest.approx((age - 50) / 25, abs=1e-3)


@pytest.mark.parametrize("age", [-1, 121, 412, "-5", "old", "045X", math.inf, 1e9])
def test_an_age_that_cannot_be_is_unknown(age: Any) -> None:
    assert encode(("age",), [{"age": age}], 1).tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize(
    ("text", "expected"), [("045Y", 45.0), ("006M", 0.5), ("45.5", 45.5), ("0", 0.0), ("120", 120)]
)
def test_an_age_of_dicom_is_read(text: str, expected: float) -> None:
    assert years(text) == pytest.approx(expected)


def test_only_attributes_that_are_asked_for_are_encoded() -> None:
    about = [{"view": "PA", "sex": "F", "age": 30, "text": "ignored"}]
    labels = torch.tensor([[1.0, NAN]])
    whole, none = LabelVector(2, ATTRIBUTES), LabelVector(2)
    assert whole(labels, about).tolist()[0][:4] == none(labels, about).tolist()[0][:4] == [1.0, 0.0, 1.0, 0.0]
    assert whole(labels, about).shape[1:] == whole.null.shape == (4 + width(ATTRIBUTES) + 1,)
    assert torch.equal(none(labels, about), none(labels))
    assert torch.equal(LabelVector(2, ("sex",))(labels, about), LabelVector(2, ("sex",))(labels, [{"sex": "F"}]))
    assert not whole.null.any()
    assert len({LabelVector(2, names).digest for names in ((), ("sex",), ("view",), ATTRIBUTES)}) == 4
    with pytest.raises(ValueError, match="1 attributes for 2 rows"):
        whole(labels.expand(2, -1), about)


def networks() -> list[LabelNetwork]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made: list[LabelNetwork] = [
            LabelUNet(2, 1, width=8, attributes=ATTRIBUTES),
            LabelTransformer(2, 1, width=32, depth=1, heads=2, size=8, attributes=ATTRIBUTES),
        ]
        for net in made:
            for weight in net.parameters():
                if not weight.any():
                    torch.nn.init.normal_(weight, std=0.1)
    return [net.eval() for net in made]


@pytest.mark.parametrize("net", networks(), ids=lambda net: net.family)
@torch.no_grad()
def test_every_attribute_and_its_absence_changes_the_answer(net: LabelNetwork) -> None:
    condition = net.backbone().condition
    full = {"view": "PA", "sex": "F", "age": 30.0}
    known = [full, full | {"view": "AP"}, full | {"sex": "M"}, full | {"age": 60.0}, full | {"view": ""},
             full | {"sex": None}, full | {"age": NAN}, {}]  # fmt: skip
    rows = torch.cat([condition(torch.ones(len(known), 1), known), condition.null[None]])
    x = noise_like([1], (2, 8, 8)).expand(len(rows), -1, -1, -1)
    out = net(x, torch.full((len(rows),), 500), rows).flatten(1)
    assert (torch.cdist(out, out) + torch.eye(len(rows))).min() > 1e-4


@pytest.mark.parametrize("net", networks(), ids=lambda net: net.family)
def test_attributes_are_part_of_the_files_and_of_the_name(net: LabelNetwork, tmp_path: Any) -> None:
    net.save(tmp_path)
    again = type(net).load(tmp_path)
    assert again.backbone().digest == net.backbone().digest
    assert again.backbone().condition == net.backbone().condition == LabelVector(1, ATTRIBUTES)


ABOUT = [{"view": "PA", "sex": "F", "age": 30, "text": "kept"}] * 4000


def test_each_attribute_is_forgotten_by_itself_in_its_share_of_rows() -> None:
    rows = forget(Rows(about=ABOUT), LabelVector(1, ATTRIBUTES), 0.2, torch_generator("forget"))
    gone = np.array([[name not in row for name in ATTRIBUTES] for row in rows.about])
    assert gone.mean(0) == pytest.approx([0.2] * 3, abs=0.03)
    assert gone.all(1).mean() == pytest.approx(0.2**3, abs=0.006)  # independently
    assert all("text" in row for row in rows.about)
    assert all(len(row) == 4 for row in ABOUT)


def test_what_is_forgotten_does_not_depend_on_how_a_batch_is_cut() -> None:
    vector = LabelVector(1, ATTRIBUTES)
    whole = forget(Rows(about=ABOUT[:8]), vector, 0.5, torch_generator("forget")).about
    halves = [
        forget(Rows(about=ABOUT[:4]), vector, 0.5, torch_generator("forget"), BatchPart(i, 2)).about for i in (0, 1)
    ]
    assert whole == [*halves[0], *halves[1]]


def test_without_attributes_nothing_is_drawn() -> None:
    before, after = torch_generator("forget"), torch_generator("forget")
    rows = Rows(about=ABOUT[:4])
    assert forget(rows, LabelVector(1), 0.5, after) is rows
    assert forget(Rows(), LabelVector(1, ATTRIBUTES), 0.5, after).about == ()
    assert torch.equal(before.get_state(), after.get_state())


def test_dropping_the_condition_drops_the_attributes_too() -> None:
    """A network whose loss reveals the condition it gets: with dropout 1 rows that differ in all look alike."""
    seen: list[Tensor] = []

    class Listening(LabelUNet):
        def forward(self, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
            seen.append(condition)
            return super().forward(x_t, t, condition)

    about = [{"view": "PA", "sex": "F", "age": 20}, {"view": "AP", "sex": "M", "age": 80}]
    data = LabelledLatents(lambda uids: torch.zeros(len(uids), 2, 8, 8), ["a", "b"], np.eye(2), "zeros", about)
    backbone = Listening(2, 2, width=8, attributes=ATTRIBUTES).backbone()
    for dropout, forgotten in ((1.0, 0.0), (0.0, 0.0), (0.0, 1.0)):
        objective = Objective(condition_dropout=dropout, attribute_dropout=forgotten)
        row_loss(backbone, data, objective)(backbone.network, np.arange(2), torch_generator("rows"))
    labels = torch.eye(2)
    assert torch.equal(seen[0], backbone.condition.null.expand(2, -1))
    assert torch.equal(seen[1], backbone.condition(labels, about))
    assert torch.equal(seen[2], backbone.condition(labels))


def test_a_share_out_of_range_is_refused() -> None:
    with pytest.raises(InputError, match="attribute_dropout is 2; give a share from 0 to 1"):
        Objective(attribute_dropout=2)
