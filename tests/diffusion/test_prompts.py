"""What is known is said, what is unknown is not, and equal rows say the same."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from medlt.diffusion.prompts import Prompts
from medlt.diffusion.scrub import RareWords, scrub
from medlt.types import InputError

NAN = float("nan")
FINDINGS = ("Cardiomegaly", "Pleural_Effusion", "Edema", "No_Finding")
DOCS = Path(__file__).parents[2] / "docs" / "explanation" / "prompts.md"


def say(labels: tuple[float, ...], about: dict[str, Any] | None = None, **settings: Any) -> str:
    (prompt,) = Prompts(FINDINGS, **settings)(torch.tensor([labels]), [about or {}])
    return prompt


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ((1, 1, 0, 0), "chest radiograph, with cardiomegaly and pleural effusion"),
        ((1, 1, 1, 0), "chest radiograph, with cardiomegaly, pleural effusion and edema"),
        ((NAN, NAN, 1, NAN), "chest radiograph, with edema"),
        ((0.5, 0.49, 0, NAN), "chest radiograph, with cardiomegaly"),
        ((0, 0, 0, 1), "chest radiograph, with no acute findings"),
        ((1, 0, 0, 1), "chest radiograph, with cardiomegaly"),
        ((0, 0, 0, 0), "chest radiograph"),
        ((NAN, NAN, NAN, NAN), "chest radiograph"),
    ],
)
def test_findings_are_said_as_labelled(labels: tuple[float, ...], expected: str) -> None:
    assert say(labels) == expected


@pytest.mark.parametrize(
    ("about", "expected"),
    [
        ({"view": "PA"}, ", PA view"),
        ({"view": "ll"}, ", lateral view"),
        ({"view": "SWIMMERS"}, ""),
        ({"view": None, "sex": NAN, "age": pd.NA}, ""),
        ({"sex": "M"}, ", male patient"),
        ({"sex": "Female", "age": 45}, ", female patient aged 40 to 49"),
        ({"sex": "O", "age": "045Y"}, ", patient aged 40 to 49"),
        ({"age": np.float64(7.9)}, ", patient aged 0 to 9"),
        ({"age": "018M"}, ", patient aged 0 to 9"),
        ({"age": 89.9}, ", patient aged 80 to 89"),
        ({"age": 90}, ", patient aged 90 or older"),
        ({"age": "101Y"}, ", patient aged 90 or older"),
        ({"age": 414}, ""),
        ({"age": -1}, ""),
        ({"age": "old"}, ""),
    ],
)
def test_circumstances_are_said_when_known(about: dict[str, Any], expected: str) -> None:
    assert say((NAN,) * 4, about) == f"chest radiograph{expected}"


@pytest.mark.parametrize(
    ("age", "expected"), [(45, "45"), ("045Y", "45"), ("006M", "under 1"), (1, "1"), (91, "90 or older")]
)
def test_age_in_years_hides_the_oldest_alike(age: Any, expected: str) -> None:
    assert say((NAN,) * 4, {"age": age}, age="years") == f"chest radiograph, patient aged {expected}"


def test_what_a_user_writes_is_used() -> None:
    words = {"Pleural_Effusion": "fluid in the pleural space", "No_Finding": "clear lungs", "Edema": ""}
    assert say((0, 1, 1, 0), words=words) == "chest radiograph, with fluid in the pleural space"
    assert say((0, 0, 0, 1), words=words) == "chest radiograph, with clear lungs"
    template = "x-ray of a {sex} chest, {findings}, without {absent}"
    assert say((1, 0, 0, 0), {"sex": "F"}, template=template) == (
        "x-ray of a female chest, cardiomegaly, without pleural effusion or edema"
    )
    assert say((1, NAN, 0.2, 1), template=template) == "cardiomegaly"
    assert say((1, 1, 1, 1), most=2) == "chest radiograph, with cardiomegaly and pleural effusion"
    assert say((0, 0, 0, 0), most=1, template="without {absent}") == "without cardiomegaly"
    assert say((0.6, 0.9, 0, 0), soft_above=0.8) == "chest radiograph, with pleural effusion"


def test_free_text_is_scrubbed_and_guarded(clip_tokenizer_folder: Path) -> None:
    from transformers import CLIPTokenizer

    about = {"text": "Dr. Smith saw ___ on 2019-03-12: cardiomegaly, Wolfeschlegelstein"}
    said = "saw on: cardiomegaly, Wolfeschlegelstein"
    assert say((NAN,) * 4, about, template="{view} view, {text}") == said
    guard = RareWords(CLIPTokenizer.from_pretrained(clip_tokenizer_folder, local_files_only=True))
    assert say((NAN,) * 4, about, template="{view} view, {text}", rare=guard) == "saw on: cardiomegaly"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"template": "{view} {colour}"}, r"another field than \{view\}"),
        ({"template": "{view!r}"}, "another field"),
        ({"template": "{view:>5}"}, "another field"),
        ({"template": "{view"}, "another field"),
        ({"template": "{}"}, "another field"),
        ({"template": "radiograph of ___"}, "stray mark"),
        ({"template": "radiograph of 2019-03-12, {view}"}, "stray mark"),
        ({"words": {"Edema": "edema MRN 12345"}}, "stray mark"),
        ({"words": {"Oedema": "edema"}}, "'Oedema', which is not a finding"),
        ({"soft_above": 0.0}, "soft_above is 0.0"),
        ({"most": 0}, "most is 0"),
    ],
)
def test_bad_settings_are_one_clear_line(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Prompts(FINDINGS, **settings)


def test_labels_and_circumstances_must_match() -> None:
    with pytest.raises(ValueError, match="for 4 findings"):
        Prompts(FINDINGS)(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="1 metadata for 2 rows"):
        Prompts(FINDINGS)(torch.zeros(2, 4), [{}])


def test_every_setting_is_in_the_digest() -> None:
    changes: list[dict[str, Any]] = [
        {}, {"template": "{findings}"}, {"words": {"Edema": "oedema"}}, {"soft_above": 0.7}, {"most": 2},
        {"age": "years"}, {"rare": RareWords(None)}, {"rare": RareWords(None, 5)},
    ]  # fmt: skip
    digests = {Prompts(FINDINGS, **change).digest for change in changes}
    assert len(digests | {Prompts(FINDINGS[:2]).digest}) == len(changes) + 1


LABEL = st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0, NAN])
ROW = st.tuples(*[LABEL] * 4)
KNOWN = st.fixed_dictionaries(
    {},
    optional={
        "view": st.sampled_from(["PA", "AP", "LL", "", "odd", None]),
        "sex": st.sampled_from(["M", "F", "O", None]),
        "age": st.integers(-5, 200) | st.floats() | st.sampled_from(["045Y", "", None]) | st.text(max_size=5),
    },
)


@given(st.lists(st.tuples(ROW, KNOWN), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_a_prompt_depends_on_its_row_and_says_only_what_is_known(rows: list[Any], random: Any) -> None:
    prompts = Prompts(FINDINGS, age="years")

    def told(rows: list[Any]) -> list[str]:
        return prompts(torch.tensor([labels for labels, _ in rows]), [about for _, about in rows])

    said = told(rows)
    order = random.sample(range(len(rows)), len(rows))
    assert told([rows[i] for i in order]) == [said[i] for i in order]
    for (labels, _), prompt in zip(rows, said, strict=True):
        named = [prompts.phrase(finding) in prompt for finding in FINDINGS[:3]]
        assert named == [label >= 0.5 for label in labels[:3]]
        assert ("no acute findings" in prompt) == (labels[3] >= 0.5 and not any(named))
        assert scrub(prompt) == prompt
        assert all(int(age) < 90 or age == "90" for age in re.findall(r"\d+", prompt))


def examples() -> list[tuple[dict[str, float], dict[str, str], str]]:
    """Rows of the table in docs/explanation/prompts.md: labels, circumstances, prompt."""
    rows = re.findall(r"^\| `(.*?)` \| (.*?) \| (.*?) \|$", DOCS.read_text(), re.MULTILINE)

    def pairs(text: str) -> dict[str, str]:
        return dict(re.findall(r"(\w+) ([^,`]+)", text))

    return [
        ({name: NAN if v == "?" else float(v) for name, v in pairs(labels).items()}, pairs(about), said.strip("`"))
        for labels, about, said in rows
    ]


def test_the_documented_examples_are_what_the_code_says() -> None:
    table = examples()
    assert len(table) >= 8
    for labels, about, expected in table:
        row: Tensor = torch.tensor([[labels.get(finding, NAN) for finding in FINDINGS]])
        assert set(labels) <= set(FINDINGS)
        assert Prompts(FINDINGS)(row, [about]) == [expected]
