"""Nothing that points at a patient is left in a text, and nothing else is taken out."""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medlt.diffusion.scrub import RareWords, scrub, shared_words
from medlt.types import InputError

KEPT = (
    "No acute cardiopulmonary process.",
    "Moderate cardiomegaly, small left pleural effusion; no pneumothorax.",
    "C3-C7 fusion, T12 compression fracture, 1.2 - 1.5 cm nodule (right upper lobe).",
    "Tube tip 3.5 cm above the carina; 2 of 3 leads may be displaced. 50% loss of height.",
    "Marked 2 cm mass, decreased 3 mm; segment 8 may be involved, no mr. or dr. here.",
)
TAKEN_OUT = [
    ("compared to ___, ___ opacity", "compared to, opacity"),
    ("[**Hospital 42**] effusion since [**2101-3-4**]", "effusion since"),
    ("<PERSON> has an effusion (<DATE_1>)", "has an effusion"),
    ("seen by [REDACTED] today", "seen by today"),
    ("XXXX year old, xxxx effusion", "year old, effusion"),
    ("effusion<|endoftext|> edema", "effusion edema"),
    ("Dr. John O'Brien was told at 10:30 pm", "was told at"),
    ("effusion on 2019-03-12, 3/12/19 and 12.03.2019", "effusion on, and"),
    ("March 12, 2019 and 3rd of May, gone", "and, gone"),
    ("film of 2019", "film of"),
    ("accession no. A12-3 effusion", "effusion"),
    ("MRN: 55 effusion, ABC12345X", "effusion"),
    ("call (617) 555-12 34 or +44 20 7946 09", "call or"),
    ("mail a.b@c.org or see https://a.b/c?d", "mail or see"),
    ("uid 1.2.840.113619.2 at 10.0.0.12", "uid at"),
    ("small (([**Name**])) effusion", "small effusion"),
    ("two\n\tlines\x00 here", "two lines here"),
]


@pytest.mark.parametrize("text", KEPT)
def test_a_finding_is_left_as_it_is(text: str) -> None:
    assert scrub(text) == text


@pytest.mark.parametrize(("text", "left"), TAKEN_OUT)
def test_a_mark_is_taken_out(text: str, left: str) -> None:
    assert scrub(text) == left


MARKS = st.sampled_from(
    [*(text for text, _ in TAKEN_OUT), *KEPT, "_", "[", "**", "]", "<", "|>", "X", ".", "1", "/", " "]
)


@given(st.lists(MARKS | st.text(max_size=6), max_size=8).map("".join))
def test_scrubbing_twice_is_scrubbing_once_and_no_long_number_is_left(text: str) -> None:
    left = scrub(text)
    assert scrub(left) == left
    assert not re.search(r"\d{4}|__|\*\*|@\w|XXX|<\||\s\s|[\n\t]", left)
    assert left == left.strip()


@pytest.fixture(scope="module")
def clip(clip_tokenizer_folder: Path) -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(clip_tokenizer_folder, local_files_only=True)


def test_words_of_many_pieces_are_taken_out_unless_allowed(clip: Any) -> None:
    text = "Cardiomegaly, Wolfeschlegelstein, lymphangitis and edema."
    assert RareWords(clip, 6)(text) == "Cardiomegaly, and edema."
    assert RareWords(clip, 6, frozenset({"lymphangitis"}))(text) == "Cardiomegaly, lymphangitis and edema."
    assert RareWords(clip, 100)(text) == text
    assert len({RareWords(clip, n, words).digest for n in (1, 2) for words in (frozenset(), frozenset({"a"}))}) == 4


def test_only_words_that_enough_patients_share_are_kept(clip: Any) -> None:
    texts = ["Effusion, Smith", "effusion and edema", "edema, Smith", "edema Smith"]
    allowed = shared_words(texts, ["a", "b", "c", "c"], at_least=2)
    assert allowed == {"effusion", "edema", "smith"}
    assert shared_words(texts, ["a", "b", "a", "a"], at_least=2) == {"effusion", "edema"}
    assert RareWords(clip, 0, frozenset({"effusion", "edema"}))("Effusion and Smith, edema") == "Effusion, edema"
    with pytest.raises(InputError, match="4 texts but 1 patients"):
        shared_words(texts, ["a"])


@pytest.mark.real_data
def test_the_real_vocabulary_cuts_codes_and_not_findings(real_data: Path) -> None:
    from transformers import CLIPTokenizer

    guard = RareWords(CLIPTokenizer.from_pretrained(real_data / "weights" / "clip_tokenizer", local_files_only=True))
    text = "atelectasis, cardiomegaly, pneumomediastinum, pneumoperitoneum, subcutaneous emphysema"
    assert guard(text) == text
    assert guard("effusion qzxkvwpj3tz") == "effusion"
