"""Every sentence of the cards is a field of the run: it changes with the field, and goes with it."""

import inspect
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from huggingface_hub import DatasetCardData, ModelCardData

from medlt.data.convert.encode import png
from medlt.data.manifest import Manifest
from medlt.files import REAL_ROWS, write_bytes, write_json, write_table, write_text
from medlt.privacy.card import LIMITS, NOT_FOR, USES, datasheet, model_card
from medlt.types import InputError

Change = Callable[[Path], object]
VERDICT = {"verdict": "helps", "sentence": "The arm gains 0.0421."}
RECOMPOSE = {"kind": "recompose", "image_size": 256}
STABLE = {"kind": "stable-diffusion", "model": {"kind": "folder", "path": "base"}, "train": "lora"}
AUDIT = {"results": [{"name": "membership", "sentence": "Caught 3 of 4.", "passed": False}], "conclusion": "Leaks."}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"method": "fusion", "privacy": None},
    "private": {},
    "phantom": {"method": "noise", "privacy": None, "data": {"kind": "phantom"}},
    "stable diffusion": {"privacy": None, "denoiser": STABLE},
    "recompose": {"method": RECOMPOSE, "privacy": None},
}


def record(**changed: Any) -> Change:
    """Set keys of run.json; None removes one."""

    def change(run: Path) -> None:
        tree = json.loads((run / "run.json").read_text()) | changed
        write_json(run / "run.json", {name: value for name, value in tree.items() if value is not None})

    return change


def settings(**changed: Any) -> Change:
    """Set keys of the run's config; a key may be nested with __."""

    def change(run: Path) -> None:
        tree = yaml.safe_load((run / "config.yaml").read_text())
        for name, value in changed.items():
            *parents, last = name.split("__")
            part = tree
            for parent in parents:
                part = part[parent]
            part[last] = value
        write_text(run / "config.yaml", yaml.safe_dump(tree))

    return change


def gone(*names: str) -> Change:
    return lambda run: [(run / name).unlink() for name in names]


def rows(edit: Callable[[pd.DataFrame], pd.DataFrame], name: str = "manifest.parquet") -> Change:
    return lambda run: edit(pd.read_parquet(run / name)).to_parquet(run / name)


def train_rows(run: Path) -> None:
    """Record two real rows instead of four."""
    whole = Manifest.read(run / REAL_ROWS)
    Manifest(whole.rows.iloc[:2], whole.findings, whole.root).write(run / REAL_ROWS)


ABSENT = "a sentence that no document has"
DIGESTS = {"codec": "1", "manifest": "5"}
BARE = png(np.zeros((4, 4), np.uint8), {})
CHANGES: dict[str, tuple[Change, str, str]] = {  # the change, a sentence with it, the sentence that it replaces
    "version": (record(versions={"medlt": "1.2.3"}), "Made by medlt 1.2.3,", "Made by medlt 9.8.7,"),
    "no version": (record(versions=None), "Made by medlt, version not recorded,", "Made by medlt 9.8.7,"),
    "id": (record(id="ff"), "Run: `ff`.", "Run: `0123456789abcdef`."),
    "no id": (record(id=None), "Run: not recorded.", "Run: `0123456789abcdef`."),
    "no digests": (record(digests=None), "Digests: not recorded.", "Digests: codec `1`"),
    "no denoiser": (record(digests=DIGESTS), "run.json records no denoiser", "20000 steps"),
    "no training": (record(digests=DIGESTS), "Not recorded: run.json holds no digest of a denoiser.", "steps of"),
    "train rows": (train_rows, "2 in the train split", "4 in the train split"),
    "no train rows": (lambda run: shutil.rmtree(run / "stages"), "Number not recorded", "4 in the train split"),
    "no data digest": (lambda run: shutil.rmtree(run / "stages"), "train rows: `not recorded`", ABSENT),
    "size": (settings(size=64), "64 x 64 pixels", "128 x 128 pixels"),
    "codec": (settings(codec={"kind": "train"}), "a codec trained on the same images", "a given codec"),
    "steps": (settings(denoiser__steps=77), "77 steps of", "20000 steps of"),
    "width": (settings(denoiser__width=48), "width 48", "width 64"),
    "attributes": (settings(denoiser__attributes=["sex"]), "with sex as far as known", "with view"),
    "labels": (settings(method__labels="union"), "if either parent has it", "expected to take"),
    "seed": (settings(seed=5), "with seed 5", "with seed 0"),
    "method": (settings(method={"kind": "noise"}), "method noise", "method fusion"),
    "dicom": (settings(format="dicom"), "(0008,001C)", "images/ as PNG, with"),
    "name": (settings(output_dir="elsewhere/other"), "Model card: other", "Model card: run"),
    "phantom": (settings(data={"kind": "phantom"}), "drawn by a program", "Radiographs of patients"),
    "verdict": (lambda run: write_json(run / "verdict.json", VERDICT), "gains 0.0421", "images help a classifier"),
    "audit": (lambda run: write_json(run / "audit.json", AUDIT), "Caught 3 of 4", "Not measured: `medlt audit"),
    "checks": (rows(lambda t: t.assign(passed=t["uid"] != "noise_1"), "checks.parquet"),
               "labels of 2 of 3 images", "label of each image"),
    "failed checks": (rows(lambda t: t.assign(passed=False), "checks.parquet"), "No verifier checked", "of each image"),
    "no checks": (gone("checks.parquet"), "Not recorded: whether a verifier", "A verifier checked"),
    "chunks": (lambda run: write_bytes(run / "images" / "x.png", BARE), "PNG file state: nothing", "(Synthetic: true)"),
    "no image file": (gone("images/x.png"), "Not recorded: what an image file", "(Synthetic: true)"),
    "columns": (lambda run: write_text(run / "images" / "metadata.csv", "file_name,uid\n"),
                "each image: file_name, uid.", "each image: file_name, uid, Mass"),
    "no metadata": (gone("images/metadata.csv"), "metadata.csv is not written", "lists for each image"),
    "findings": (rows(lambda t: t.replace({"finding": {"Hernia": "Mass"}})), "| Mass | 3 |", "| Hernia | 1 |"),
    "parents": (rows(lambda t: t.assign(tail_parent=t["finding"].map(lambda name: "real-1" if isinstance(name, str)
                                                                    else None))), "also holds uids", ABSENT),
    "no rows": (gone("manifest.parquet"), "0 synthetic images are published.", "3 synthetic images,"),
    "nothing to hand out": (gone("manifest.parquet"), "No image is published.", "images/ as PNG"),
    "no ledger": (gone("ledger.json"), "There is no ledger", ABSENT),
    "claim": (settings(privacy=None, method={"kind": "minority"}), "No privacy is claimed", ABSENT),
}  # fmt: skip
FIXED = {
    *(f"- {line}" for line in (*LIMITS, *USES, NOT_FOR)),
    "- How the images help with radiographs of another hospital.",
    "The images are made to add findings that are rare in a collection of radiographs.",
}
"""What holds for every run of medlt: what the images are for and not for, and what no run measures."""


def both(run: Path) -> str:
    return model_card(run) + datasheet(run)


def sentences(text: str) -> set[str]:
    """The lines of documents without headings, tables' rules and front matter."""
    parts = text.split("---\n")
    lines = [line for part in (parts[2], parts[4]) for line in part.splitlines()]
    return {line for line in lines if line and not line.startswith(("#", "| ---", "| target"))}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_or_missing_field_changes_its_sentence(cards: SimpleNamespace, tmp_path: Path, name: str) -> None:
    change, with_it, without = CHANGES[name]
    run = cards.finished(tmp_path / "run", **KINDS["plain"])
    before = both(run)
    change(run)
    after = both(run)
    assert with_it in after
    if name not in ("no ledger", "claim"):  # a plain run makes no claim, before and after
        assert with_it not in before
    assert without not in after


def test_a_sentence_that_survives_every_change_holds_for_every_run(cards: SimpleNamespace, tmp_path: Path) -> None:
    run = cards.finished(tmp_path / "run", **KINDS["plain"])
    left = sentences(both(run))
    for name, (change, *_) in CHANGES.items():
        own = Path(shutil.copytree(run, tmp_path / name))
        change(own)
        left &= sentences(both(own))
    assert left & sentences(both(cards.finished(tmp_path / "private"))) <= FIXED


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("published", [True, False])
def test_the_front_matter_is_that_of_hugging_face(
    cards: SimpleNamespace, tmp_path: Path, kind: str, published: bool
) -> None:
    run = cards.finished(tmp_path / "a: 'b' # c", **KINDS[kind])
    if not published:
        (run / "manifest.parquet").unlink()
    for text, known in ((model_card(run), ModelCardData), (datasheet(run), DatasetCardData)):
        _, header, body = text.split("---\n", 2)
        fields = yaml.safe_load(header)
        assert body.startswith("\n# ")
        assert set(fields) <= {*inspect.signature(known).parameters, "license_name", "tags"}
        assert known(**fields).to_dict() == fields
        assert (fields["license"], fields["license_name"]) == ("other", "not-yet-chosen")
        assert ("phantom" in fields["tags"]) == (kind == "phantom")
        assert ("differential-privacy" in fields["tags"]) == (kind == "private")
        assert ("diffusion" in fields["tags"]) == (kind != "recompose")
        if known is DatasetCardData:
            assert fields["pretty_name"] == "a: 'b' # c"
            assert fields.get("size_categories") == (["n<1K"] if published else None)
        else:
            assert (fields.get("pipeline_tag") == "text-to-image") == (kind == "stable diffusion")
            assert fields["library_name"] == ("diffusers" if kind == "stable diffusion" else "medlt")


def test_a_recomposition_without_a_denoiser_claims_none(cards: SimpleNamespace, tmp_path: Path) -> None:
    run = cards.finished(tmp_path / "run", **KINDS["recompose"])
    text = both(run)
    assert "No generative model" in text
    assert "None: the method uses no denoiser." in text
    assert "3 synthetic images, 256 x 256" in text
    for claim in ("diffusion", "sampled for", "steps of", "width"):
        assert claim not in text.lower().replace("no network samples", "")
    settings(method__strength=0.3)(run)
    assert "A latent diffusion model" in both(run)
    assert "steps of" in both(run)


def test_stable_diffusion_is_sampled_for_a_prompt(cards: SimpleNamespace, tmp_path: Path) -> None:
    card = model_card(cards.finished(tmp_path / "run", **KINDS["stable diffusion"]))
    assert "Stable Diffusion, LoRA of rank" in card
    assert "Each image is sampled for a prompt." in card
    assert "label vector of findings" not in card


def test_a_private_run_gives_no_number_of_checked_labels(cards: SimpleNamespace, tmp_path: Path) -> None:
    run = cards.finished(tmp_path / "run", method="fusion")
    write_table(
        run / "checks.parquet", pd.DataFrame({"check": "label_consistency", "uid": ["noise_1"], "passed": True})
    )
    assert "A verifier checked the labels of some images." in datasheet(run)


@pytest.mark.parametrize("write", [model_card, datasheet])
def test_a_folder_of_images_made_elsewhere_has_no_card(tmp_path: Path, write: Any) -> None:
    write_bytes(tmp_path / "images" / "x.png", BARE)
    with pytest.raises(InputError) as error:
        write(tmp_path)
    assert "config.yaml" in str(error.value)
    assert "\n" not in str(error.value)
