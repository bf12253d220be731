"""What goes with a model: everything a reader needs, and nothing of a patient."""

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import yaml

from medlt.files import write_json
from medlt.privacy import claim
from medlt.privacy.card import datasheet, model_card
from medlt.types import InputError


def test_the_card_has_the_header_the_claim_and_the_ledger(cards: SimpleNamespace, tmp_path: Path) -> None:
    run = cards.finished(tmp_path / "run")
    card = model_card(run)
    _, header, body = card.split("---\n", 2)
    assert yaml.safe_load(header)["library_name"] == "medlt"
    assert "differential-privacy" in yaml.safe_load(header)["tags"]
    assert claim(run).sentence in body
    assert "| denoiser | patient | 2 | 1 | 1 | 0.01 | 20 | 1 | 1 | 7 | yes |" in body
    names = "Model details,Intended use,Training data,Evaluation,Privacy,Audit,Not shown here,Caveats".split(",")
    assert all(f"## {name}\n" in body for name in names)
    assert "medlt audit" in body


def test_the_datasheet_counts_synthetic_rows_alone(cards: SimpleNamespace, tmp_path: Path) -> None:
    sheet = datasheet(run := cards.finished(tmp_path / "run"))
    assert claim(run).sentence in sheet
    assert "3 synthetic images" in sheet
    assert "| Hernia | 1 |\n| Mass | 2 |" in sheet


@pytest.mark.parametrize("write", [model_card, datasheet])
@pytest.mark.parametrize("changed", [{}, {"method": "fusion"}, {"method": "noise", "checks": {"near_copy": {}}}])
def test_a_private_run_reveals_nothing_of_its_patients(
    cards: SimpleNamespace, tmp_path: Path, write: Any, changed: dict[str, Any]
) -> None:
    """Whether or not it carries a claim: no digest, count, name or place."""
    text = write(cards.finished(tmp_path / "run", **changed))
    real = cards.manifest()
    for hidden in (
        real.digest(),
        real.split("train").digest(),
        "real-",
        "4 in the train split",
        str(tmp_path),
        "codec`",
    ):
        assert hidden not in text
    assert "| 4 |" not in text


@pytest.mark.parametrize("write", [model_card, datasheet])
def test_a_run_that_promises_nothing_says_so_and_may_count(cards: SimpleNamespace, tmp_path: Path, write: Any) -> None:
    text = write(cards.finished(tmp_path / "run", privacy=None))
    assert "No privacy is claimed" in text
    assert "4 in the train split" in text
    assert cards.manifest().split("train").digest() in text
    assert "real-" not in text
    assert str(tmp_path) not in text


@pytest.mark.parametrize("write", [model_card, datasheet])
def test_each_attack_of_the_audit_has_a_line(cards: SimpleNamespace, tmp_path: Path, write: Any) -> None:
    write_json(cards.finished(tmp_path / "run", privacy=None) / "audit.json", cards.audit)
    text = write(tmp_path / "run")
    assert "**near_copies** (passed): No copy was found, recall 0.9." in text
    assert "**membership** (FAILED): Caught 3 of 4, see [path]" in text
    assert "**identity** (cannot conclude)" in text
    assert "Leaks were found" in text


@pytest.mark.parametrize("write", [model_card, datasheet])
def test_no_number_of_the_audit_of_a_private_run_leaves(cards: SimpleNamespace, tmp_path: Path, write: Any) -> None:
    before = write(cards.finished(tmp_path / "run"))
    write_json(tmp_path / "run" / "audit.json", cards.audit)
    assert write(tmp_path / "run") == before


@pytest.mark.parametrize("damaged", ["{", "[]", "{}", '{"results": [{"name": "near_copies"}]}'])
def test_a_damaged_audit_is_named(cards: SimpleNamespace, tmp_path: Path, damaged: str) -> None:
    (cards.finished(tmp_path / "run", privacy=None) / "audit.json").write_text(damaged)
    with pytest.raises(InputError, match="damaged"):
        model_card(tmp_path / "run")


def test_a_run_that_is_not_finished_has_a_card(cards: SimpleNamespace, tmp_path: Path) -> None:
    run = cards.folder(tmp_path / "run")
    (run / "ledger.json").unlink()
    assert "no ledger" in model_card(run)
    assert "0 synthetic images" in datasheet(run)


def test_stable_diffusion_with_the_given_weights(cards: SimpleNamespace, tmp_path: Path) -> None:
    run = cards.folder(tmp_path / "run", denoiser=cards.untrained)
    (run / "ledger.json").unlink()
    card = model_card(run)
    assert yaml.safe_load(card.split("---\n")[1])["pipeline_tag"] == "text-to-image"
    assert "with the given weights" in card
    assert "epsilon 0" in card


METHODS: dict[str, dict[str, Any]] = {
    "fusion, soft": {"kind": "fusion", "labels": "cam_mass"},
    "fusion, measured": {"kind": "fusion", "labels": "measured"},
    "fusion, carried": {"kind": "fusion", "labels": "lesion_carried"},
    "fusion, tail": {"kind": "fusion", "labels": "tail"},
    "fusion, union": {"kind": "fusion", "labels": "union"},
    "edit": {"kind": "edit"},
    "edit, mixed": {"kind": "edit", "mixed": 0.4},
    **{name: {"kind": name} for name in ("noise", "minority", "longtail", "diffult")},
}
EXPECTED = (
    "Labels are soft: the label of a finding is the share of it that the image is expected to take from the parent "
    "with the finding, by "
)
LABELS = {
    "fusion, soft": EXPECTED + "a map",
    "fusion, measured": EXPECTED + "its mask",
    "fusion, carried": "Labels are soft: the label of a finding is the share of its mask or box",
    "fusion, tail": "A finding is present if the tail parent has it",
    "fusion, union": "A finding is present if either parent has it",
    "edit": "An image has the label vector of its tail parent",
    "edit, mixed": "Labels are soft where a second image is mixed in",
    **dict.fromkeys(("noise", "minority", "longtail", "diffult"), "An image has the label vector of a train image"),
}
ONE_FINDING = "An image has its target finding and no other one."
TABLE = [
    (method, private, phantom, verdict)
    for method in METHODS
    for private in (False, True)
    for phantom in (False, True)
    for verdict in (False, True)
    if not (private and method == "diffult")  # which no config allows
]


def without(text: str, *sections: str) -> str:
    """Markdown without some sections."""
    parts = re.split(r"(?m)^(?=## )", text)
    return "".join(part for part in parts if part.removeprefix("## ").split("\n")[0] not in sections)


@pytest.fixture(scope="module")
def documents(cards: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[str, str]]:
    """Model card and datasheet of a fabricated run."""

    def made(method: str, private: bool, phantom: bool, verdict: bool) -> tuple[str, str]:
        changed: dict[str, Any] = {"method": METHODS[method]}
        if not private:
            changed["privacy"] = None
        if phantom:
            changed["data"] = {"kind": "phantom"}
        run = cards.finished(tmp_path_factory.mktemp("card") / "run", **changed)
        rows = pd.read_parquet(run / "manifest.parquet")
        own = {"tail_parent": "real-1", "head_parent": "real-2"} if method[:4] in ("fusi", "edit") else {}
        own = own or {"label_source": "real-1"}
        rows.assign(**{name: rows["synthetic"].map({True: uid}) for name, uid in own.items()}).to_parquet(
            run / "manifest.parquet"
        )
        if verdict:
            write_json(run / "verdict.json", {"verdict": "helps", "sentence": "fusion gains 0.0421 over duplicates."})
        return model_card(run), datasheet(run)

    return made


@pytest.mark.parametrize(("method", "private", "phantom", "verdict"), TABLE)
def test_what_the_documents_state_and_do_not_state(
    documents: Any, method: str, private: bool, phantom: bool, verdict: bool
) -> None:
    card, sheet = documents(method, private, phantom, verdict)
    independent = private and method.split(",")[0] not in ("fusion", "edit")
    for text in (card, sheet):
        assert ("radiographs of patients" in text.lower()) == (not phantom)
        assert ("phantom images, drawn by a program" in text.lower()) == phantom
        drawn = "The data of this run is drawn by a program: its patients are simulated."
        assert (drawn in text) == (phantom and "patient" in text.replace(drawn, ""))
        if phantom:
            assert not re.search(r"(?i)\bpatients?\b", without(text, "Privacy", "Audit"))
        assert ("Not measured: whether the images help" in text) == (not verdict)
        assert ("Verdict: **helps**. fusion gains 0.0421 over duplicates." in text) == (verdict and not private)
        assert ("verdict.json stays in the run folder" in text) == (verdict and private)
        assert ("does not apply to real radiographs" in text) == (verdict and phantom and not private)
        assert "0.0421" not in text or not private
        assert not (verdict and re.search("(?i)whether the images help a", text))
    wanted = ONE_FINDING if independent else LABELS[method]
    assert wanted in sheet
    assert not [one for one in {ONE_FINDING, *LABELS.values()} - {wanted} if one in sheet]
    assert ("A verifier checked the label of each image." in sheet) == (not independent)
    assert ("soft" in sheet) == (not independent and "soft" in LABELS[method])
    assert ("holds no uid of a train image" in sheet) == private
    assert ("also holds uids of real images of the collection" in sheet) == (not private and not phantom)
    assert ("also holds uids of phantom images" in sheet) == (not private and phantom)
    source = {"fusion": "tail_parent", "edit": "tail_parent"}.get(method.split(",")[0], "label_source")
    for column in ("tail_parent (", "head_parent (", "label_source ("):
        own = column.startswith("label") == (source == "label_source")
        assert (column in sheet) == (own and not private)


@pytest.mark.parametrize("write", [model_card, datasheet])
def test_a_damaged_verdict_is_named(cards: SimpleNamespace, tmp_path: Path, write: Any) -> None:
    (cards.finished(tmp_path / "run", privacy=None) / "verdict.json").write_text('{"verdict": "helps"}')
    with pytest.raises(InputError, match=r"verdict\.json: damaged; run `medlt evaluate` again"):
        write(tmp_path / "run")


def test_the_documents_name_the_run_and_how_an_image_does(cards: SimpleNamespace, tmp_path: Path) -> None:
    run = cards.finished(tmp_path / "run", format="dicom")
    assert "- Run: `0123456789abcdef`." in model_card(run)
    assert "(Synthetic: true)" in datasheet(run)
    assert "(0008,001C)" in datasheet(run)
    assert "lists for each image: file_name, uid, Mass, seed." in datasheet(run)
