"""The budget book: patients as keyed hashes, every training once, written by several at a time, refused if damaged."""

from pathlib import Path
from threading import Thread

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from medlt import config as configs
from medlt.files import write_tensors, write_text
from medlt.privacy.book import BookedTraining, BudgetBook, add_to_book, book_place, read_book, weight_digests
from medlt.store import Artifact, Store
from medlt.types import InputError


def made(place: Path, contents: str, kind: str = "codec") -> Artifact:
    return Store(place).make(kind, {"contents": contents}, lambda at: write_text(at / "weights.safetensors", contents))


def test_patients_are_in_it_as_hashes_of_its_own_key(tmp_path: Path) -> None:
    for name in "12":
        add_to_book(tmp_path / name, "run", ["Jane-Doe-7", "John-Roe-8"], [made(tmp_path, "x")], ())
    one, other = read_book(tmp_path / "1"), read_book(tmp_path / "2")
    assert one is not None
    assert other is not None
    text = (tmp_path / "1").read_text()
    assert "Jane" not in text
    assert "Roe" not in text
    assert not set(*one.groups.values()) & set(*other.groups.values())
    assert [training.kind for training in one.on(["Jane-Doe-7", "nobody"])] == ["codec"]
    assert one.on(["nobody"]) == []


patients = st.sets(st.sampled_from("abcdefgh"), min_size=1, max_size=4)


@given(st.lists(patients, max_size=6), patients)
def test_a_training_is_on_patients_if_they_share_one(groups: list[set[str]], own: set[str]) -> None:
    book = BudgetBook("00" * 32, {})
    for i, group in enumerate(groups):
        book = book.with_training("run", book.hashed(group), BookedTraining("codec", (), "", (str(i),)))
    assert {one.weights for one in book.on(own)} == {(str(i),) for i, group in enumerate(groups) if group & own}


def test_a_training_of_two_runs_is_one_and_names_both(tmp_path: Path) -> None:
    for run in ("one", "two", "one"):
        add_to_book(tmp_path / "book", run, "ab", [made(tmp_path, "x")], ())
    book = read_book(tmp_path / "book")
    assert book is not None
    (training,) = book.trainings
    assert training.runs == ("one", "two")
    before = (tmp_path / "book").stat().st_mtime_ns
    add_to_book(tmp_path / "book", "two", "ba", [made(tmp_path, "x")], ())
    assert (tmp_path / "book").stat().st_mtime_ns == before


def test_caches_are_no_models_and_weights_that_were_passed_on_are_not_trained(tmp_path: Path) -> None:
    write_text(tmp_path / "base" / "weights.safetensors", "public")
    one = made(tmp_path, "public", "denoiser")
    add_to_book(tmp_path / "book", "run", "ab", [one, made(tmp_path, "y", "latents")], [tmp_path / "base"])
    book = read_book(tmp_path / "book")
    assert book is not None
    assert [training.weights for training in book.trainings] == [()]
    add_to_book(tmp_path / "other", "run", "ab", [one], ())
    other = read_book(tmp_path / "other")
    assert other is not None
    assert [list(training.weights) for training in other.trainings] == [weight_digests(tmp_path / "base")]


def test_several_trainings_at_a_time_are_all_in_it(tmp_path: Path) -> None:
    models = [made(tmp_path, str(i)) for i in range(8)]
    threads = [
        Thread(target=add_to_book, args=(tmp_path / "book", f"run {i}", "ab", [models[i]], ())) for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    book = read_book(tmp_path / "book")
    assert book is not None
    assert len(book.trainings) == 8


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_byte_that_changed_is_noticed(tmp_path: Path, data: st.DataObject) -> None:
    place = tmp_path / "book"
    if not place.exists():
        add_to_book(place, "run", "ab", [made(tmp_path, "x")], ())
    whole = place.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    if chr(whole[at]).isalnum():
        (tmp_path / "changed").write_bytes(
            whole[:at] + (b"7" if whole[at : at + 1] != b"7" else b"8") + whole[at + 1 :]
        )
        with pytest.raises(InputError, match="damaged"):
            read_book(tmp_path / "changed")


def test_weights_that_were_saved_again_are_recognised_and_others_are_not(tmp_path: Path) -> None:
    weights = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(3)}
    one = Store(tmp_path).make("denoiser", {}, lambda at: write_tensors(at / "model.safetensors", weights))
    add_to_book(tmp_path / "book", "run", "ab", [one], ())
    book = read_book(tmp_path / "book")
    assert book is not None
    known = {digest for training in book.on("a") for digest in training.weights}
    others = {
        "renamed": ({"x.b": weights["b"], "x.a": weights["a"]}, True),
        "one number": ({"a": weights["a"], "b": torch.tensor([1.0, 1.0, 2.0])}, False),
        "shape": ({"a": weights["a"].view(3, 2), "b": weights["b"]}, False),
        "one more": ({**weights, "c": torch.zeros(1)}, False),
    }
    for name, (tensors, same) in others.items():
        save_file(tensors, tmp_path / name, metadata={"saved": "again"})
        assert bool(known & set(weight_digests(tmp_path / name))) == same, name


def test_its_place_is_beside_the_table_or_the_one_that_was_given(tmp_path: Path) -> None:
    base = {"method": "noise", "codec": {"kind": "identity"}, "output_dir": str(tmp_path / "run")}
    table = {"kind": "csv", "table": str(tmp_path / "labels.csv"), "findings": ["Mass"]}
    private = {"privacy": {"epsilon": 8, "delta": 1e-6, "patients": 4, "findings": ["Mass"]}}
    places = [
        ({"data": table}, tmp_path / "medlt-budget-book.json"),
        ({"data": {"kind": "phantom"}}, None),
        ({"data": {"kind": "phantom"}, **private}, tmp_path / "run" / "medlt-budget-book.json"),
        ({"data": {"kind": "phantom"}, "budget_book": str(tmp_path / "b")}, tmp_path / "b"),
    ]
    for given_, place in places:
        assert book_place(configs.parse({**base, **given_}), tmp_path / "run") == place
