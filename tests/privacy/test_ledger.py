"""The ledger: what is written is read, what is changed is refused, and epsilon is what its mechanisms cost."""

import ast
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medlt.files import digest
from medlt.privacy.accounting import spent
from medlt.privacy.ledger import Mechanism, compose, format_epsilon, read_ledger, write_ledger
from medlt.types import InputError

ROOT = Path(__file__).parents[2]
ONE = Mechanism(
    stage="denoiser",
    privacy_unit="patient",
    units=800,
    sample_rate=0.04,
    noise_multiplier=2.0,
    max_grad_norm=1.0,
    steps=50,
    planned=50,
    max_images_per_patient=1,
    noise_multiplicity=4,
    grad_sample_mode="hooks",
    randomness="from the operating system",
    secure_mode=True,
    data="0123456789abcdef",
    weights="fedcba9876543210",
    changes=("BatchNorm became GroupNorm",),
    versions={"torch": "2.13"},
)
TWO = replace(ONE, stage="codec", sample_rate=0.02, steps=30, planned=40, changes=())


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_ledger(path := tmp_path / "ledger.json", [ONE, TWO], 1e-6, 8.0)
    found = read_ledger(path)
    assert found.mechanisms == (ONE, TWO)
    assert (found.delta, found.target_epsilon, found.privacy_unit, found.secure_mode, found.units) == (
        1e-6,
        8.0,
        "patient",
        True,
        800,
    )
    assert found.spent == spent([(2.0, 0.04, 50), (2.0, 0.02, 30)], 1e-6)
    assert found.of("codec") == (TWO,)
    assert set(found.versions) == {"opacus", "scipy", "numpy"}
    before = path.read_bytes()
    write_ledger(path, found.mechanisms, found.delta, found.target_epsilon)
    assert path.read_bytes() == before


def test_a_training_a_unit_can_be_in_several_times_counts_so_often() -> None:
    thrice = compose([replace(ONE, times=3)], 1e-6, 8.0).spent
    assert thrice == compose([ONE] * 3, 1e-6, 8.0).spent
    assert thrice.epsilon > compose([ONE], 1e-6, 8.0).spent.epsilon


def test_a_budget_without_end_is_told_as_it_is(tmp_path: Path) -> None:
    write_ledger(path := tmp_path / "ledger.json", [ONE], 1e-6, math.inf)
    assert read_ledger(path).target_epsilon == math.inf


def test_no_mechanism_costs_nothing(tmp_path: Path) -> None:
    write_ledger(path := tmp_path / "ledger.json", [], 1e-6, 8.0)
    assert read_ledger(path).spent.epsilon == 0


def test_a_mechanism_without_noise_is_told_as_it_is(tmp_path: Path) -> None:
    write_ledger(path := tmp_path / "ledger.json", [replace(ONE, noise_multiplier=0.0)], 1e-6, 8.0)
    assert json.loads(path.read_text())["epsilon"]["spent"] is None
    assert read_ledger(path).spent.epsilon == math.inf


def leaves(tree: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    if isinstance(tree, dict | list):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return [leaf for key, value in items for leaf in leaves(value, (*path, key))]
    return [path]


def changed(value: object) -> object:
    if isinstance(value, bool):
        return not value
    return value * 2 + 1 if isinstance(value, int | float) else f"{value}!"


def edited(path: Path, leaf: tuple[str | int, ...], again: bool) -> None:
    """One value of the file is another one; `again`: and the digest is made to fit."""
    tree = json.loads(path.read_text())
    place = tree
    for key in leaf[:-1]:
        place = place[key]
    place[leaf[-1]] = changed(place[leaf[-1]])
    if again:
        tree["digest"] = digest({key: value for key, value in tree.items() if key != "digest"})
    path.write_text(json.dumps(tree))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ledger") / "ledger.json"
    write_ledger(path, [ONE, TWO], 1e-6, 8.0)
    return path


@settings(max_examples=40)
@given(st.data())
def test_any_value_edited_by_hand_is_refused(written: Path, data: st.DataObject) -> None:
    path = written.with_name("edited.json")
    path.write_bytes(written.read_bytes())
    edited(path, data.draw(st.sampled_from(leaves(json.loads(written.read_text())))), again=False)
    with pytest.raises(InputError, match=r"edited by hand|damaged"):
        read_ledger(path)


@pytest.mark.parametrize(
    "leaf",
    [
        ("epsilon", "spent"),
        ("epsilon", "by_rdp"),
        ("delta",),
        ("privacy_unit",),
        ("secure_mode",),
        ("format",),
        ("mechanisms", 0, "noise_multiplier"),
        ("mechanisms", 0, "steps"),
        ("mechanisms", 1, "sample_rate"),
        ("mechanisms", 1, "times"),
        ("mechanisms", 1, "privacy_unit"),
        ("mechanisms", 1, "secure_mode"),
    ],
)
def test_a_digest_made_to_fit_does_not_help_against_the_sum(written: Path, leaf: tuple[str | int, ...]) -> None:
    path = written.with_name("fitted.json")
    path.write_bytes(written.read_bytes())
    edited(path, leaf, again=True)
    with pytest.raises(InputError) as caught:
        read_ledger(path)
    assert "edited by hand" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '{"digest": "0", "format": 3}'])
def test_a_damaged_ledger_is_refused(tmp_path: Path, text: str) -> None:
    (path := tmp_path / "ledger.json").write_text(text)
    with pytest.raises(InputError, match=r"damaged|edited"):
        read_ledger(path)


def test_a_missing_ledger_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no ledger"):
        read_ledger(tmp_path / "ledger.json")


def test_nothing_half_written(tmp_path: Path) -> None:
    write_ledger(path := tmp_path / "ledger.json", [ONE], 1e-6, 8.0)
    before = path.read_bytes()
    with pytest.raises(InputError):
        write_ledger(path, [replace(ONE, sample_rate=1.5)], 1e-6, 8.0)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["ledger.json"]


def test_of_mixed_units_the_weaker_is_told() -> None:
    mixed = compose([ONE, replace(TWO, privacy_unit="image")], 1e-6, 8.0)
    assert mixed.privacy_unit == "image"
    assert "a single image" in mixed.neighbours
    assert compose([ONE, replace(TWO, secure_mode=False)], 1e-6, 8.0).secure_mode is False


@pytest.mark.parametrize(
    "wrong",
    [{"privacy_unit": "hospital"}, {"units": 0}, {"max_grad_norm": 0.0}, {"max_grad_norm": math.nan}, {"times": 0}],
)
def test_a_mechanism_out_of_range_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match="denoiser"):
        replace(ONE, **wrong)


@given(st.floats(0, 1e6))
def test_epsilon_is_never_printed_smaller_than_it_is(epsilon: float) -> None:
    assert epsilon - 1e-6 <= float(format_epsilon(epsilon)) <= epsilon + 0.0101


def test_epsilon_in_words() -> None:
    assert [format_epsilon(value) for value in (8.0, 7.991, 0.0, math.inf)] == ["8.00", "8.00", "0.00", "infinite"]


OWN = {"medlt/privacy/ledger.py", "medlt/privacy/claims.py", "medlt/privacy/card.py"}


def prints_epsilon(source: str) -> list[str]:
    """Values formatted into text whose expression names epsilon, outside the messages of errors."""
    tree = ast.parse(source)
    errors = {id(inner) for node in ast.walk(tree) if isinstance(node, ast.Raise) for inner in ast.walk(node)}
    shows = [node.value for node in ast.walk(tree) if isinstance(node, ast.FormattedValue) and id(node) not in errors]
    values = [text.replace("format_epsilon(", "") for text in map(ast.unparse, shows)]  # the name of the formatter
    return [text for text in values if re.search(r"epsilon|\bspent\b", text)]


def test_nothing_else_prints_an_epsilon() -> None:
    """Only the ledger, the claim and the cards tell epsilon; a number told elsewhere would be told without its reasons.

    An error may repeat what the user asked for.
    """
    assert prints_epsilon('raise InputError(f"epsilon {epsilon} is below 0")') == []
    assert prints_epsilon('f"{privacy.epsilon:g} spent"') == ["privacy.epsilon"]
    assert prints_epsilon('f"{format_epsilon(epsilon)}"') == ["epsilon)"]
    files = [*(ROOT / "medlt").rglob("*.py"), *(ROOT / "pipelines").glob("*.py")]
    names = {file.relative_to(ROOT).as_posix(): file.read_text() for file in files}
    assert {name: found for name, text in names.items() if name not in OWN and (found := prints_epsilon(text))} == {}
    pages = [file for folder in ("medlt", "pipelines") for file in (ROOT / folder).rglob("*.j2")]
    assert [file.name for file in pages if re.search(r"\{\{[^}]*epsilon", file.read_text())] == []
