"""A release: everything that may leave and nothing else, whole, not overwritten, and verified to the last byte."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from medlt.cli import app
from medlt.data.manifest import Manifest
from medlt.export.release import build_release
from medlt.export.release_check import verify_release
from medlt.files import sha256, write_json, write_text
from medlt.privacy import claim
from medlt.types import InputError


@pytest.fixture(scope="module")
def made(private_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The release of the private run; tests change copies of it."""
    out = tmp_path_factory.mktemp("releases") / "out"
    build_release(private_run, out)
    return out


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "received"))


def test_it_holds_what_the_claim_covers_and_verifies_elsewhere(private_run: Path, out: Path) -> None:
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    images = {name for name in names if re.fullmatch(r"images/[^/]+\.png", name)}
    assert len(images) == 27
    assert names - images == {
        "images/metadata.csv", "denoiser/model.json", "denoiser/model.safetensors", "codec/config.json",
        "codec/diffusion_pytorch_model.safetensors", "MODEL_CARD.md", "DATASHEET.md", "provenance.json", "release.json",
    }  # fmt: skip
    for name in ("images/metadata.csv", "denoiser/model.safetensors", *images):
        assert (out / name).read_bytes() == (private_run / name).read_bytes()
    record, claimed = json.loads((out / "release.json").read_text()), claim(private_run)
    assert record["files"] == {name: sha256(out / name) for name in names - {"release.json"}}
    assert record["claim"]["sentence"] == claimed.sentence
    loss = record["deployment"]["privacy_loss"]
    assert loss["privacy_parameters"] == {"epsilon": claimed.epsilon, "delta": claimed.delta}
    assert (loss["privacy_unit"], loss["private_runs_added_up"]) == ("patient", 1)
    assert verify_release(out) == {
        "problems": [], "files": len(names) - 1, "sentence": claimed.sentence, "epsilon": claimed.epsilon,
        "signed": None, "signature": False,
    }  # fmt: skip


def test_no_patient_no_count_of_them_and_no_digest_of_rows_leaves(private_run: Path, out: Path) -> None:
    manifest = Manifest.read(private_run / "stages/data/manifest.parquet")
    rows, train = manifest.rows, manifest.split("train")
    book = json.loads((private_run / "medlt-budget-book.json").read_text())
    secret = {*rows.index, *rows["patient_id"], *rows["content"].dropna(), train.digest(), manifest.digest()}
    secret |= {book["key"], *(one for members in book["groups"].values() for one in members)}
    texts = [path.read_text(errors="replace") for path in out.rglob("*") if path.suffix != ".png" and path.is_file()]
    assert not [one for one in secret if any(str(one) in text for text in texts)]
    ledger = json.loads((out / "release.json").read_text())["ledger"]
    assert not [one for one in ledger["mechanisms"] if {"data", "grad_sample_mode"} & set(one)]


def test_nothing_is_overwritten_and_nothing_half_written(private_run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(InputError, match="exists already"):
        build_release(private_run, tmp_path / "out")
    run = Path(shutil.copytree(private_run, tmp_path / "run"))
    next((run / "images").glob("*.png")).write_bytes(b"a real radiograph")
    with pytest.raises(InputError, match="is not what this run made"):
        build_release(run, tmp_path / "other")
    write_text(run / "denoiser" / "model.json", "{}")
    with pytest.raises(InputError, match="is not what this run made"):
        build_release(run, tmp_path / "other")
    with pytest.raises(InputError, match="is not a finished run"):
        build_release(tmp_path / "nothing", tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]


def test_a_run_without_a_claim_is_released_and_says_so_first(finished: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["release", str(finished), str(tmp_path / "out")])
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith("No privacy is claimed for ")
    record = json.loads((tmp_path / "out" / "release.json").read_text())
    assert record["claim"]["epsilon"] is record["deployment"]["privacy_loss"] is record["ledger"] is None
    checked = CliRunner().invoke(app, ["release", "verify", str(tmp_path / "out")])
    assert checked.exit_code == 0, checked.stdout
    assert checked.stdout.startswith("No privacy is claimed for ")


def edited(out: Path, change: Callable[[dict[str, Any]], object], file: str = "release.json") -> None:
    """A record that was changed, with hashes that agree again."""
    tree = json.loads((out / file).read_text())
    change(tree)
    write_json(out / file, tree)
    record = json.loads((out / "release.json").read_text())
    record["files"] = {name: sha256(out / name) for name in record["files"]}
    write_json(out / "release.json", record)


def unlisted(out: Path) -> None:
    table = pd.read_csv(out / "images" / "metadata.csv", dtype=str)
    table.iloc[1:].to_csv(out / "images" / "metadata.csv", index=False)
    edited(out, lambda tree: None)


def lower(tree: dict[str, Any]) -> None:
    """Epsilon 1 everywhere that it is written as a number."""
    tree["claim"]["sentence"] = tree["claim"]["sentence"].replace("epsilon 8.00", "epsilon 1.00")
    tree["claim"]["epsilon"] = tree["deployment"]["privacy_loss"]["privacy_parameters"]["epsilon"] = 1.0


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a byte": (lambda out: write_text(out / "MODEL_CARD.md", "epsilon 0"), "MODEL_CARD.md: has other bytes"),
    "an image": (lambda out: next(out.glob("images/*.png")).write_bytes(b"x"), "has other bytes"),
    "missing": (lambda out: (out / "denoiser" / "model.json").unlink(), "denoiser/model.json: is missing"),
    "added": (lambda out: write_text(out / "images" / "one.png", "x"), "images/one.png: is not in release.json"),
    "hidden": (lambda out: write_text(out / ".notes", "x"), ".notes: is not in release.json"),
    "link": (lambda out: (out / "more").symlink_to("images"), "more: is a link"),
    "table": (unlisted, "lists other images"),
    "epsilon": (lambda out: edited(out, lambda tree: tree["claim"].update(epsilon=1.0)), "another epsilon"),
    "all epsilons": (lambda out: edited(out, lower), "its mechanisms cost epsilon 8.00, and the claim is 1.00"),
    "unit": (lambda out: edited(out, lambda tree: tree["claim"].update(privacy_unit="image")), "deployment record has"),
    "noise": (
        lambda out: edited(out, lambda tree: tree["ledger"]["mechanisms"][0].update(noise_multiplier=0.3)),
        "and the claim is 8.00",
    ),
    "seeded": (
        lambda out: edited(out, lambda tree: tree["ledger"]["mechanisms"][0].update(secure_mode=False)),
        "no secure randomness",
    ),
    "side channels": (
        lambda out: edited(out, lambda tree: tree["deployment"]["side_channels"].pop("timing")),
        "is not the one that this version",
    ),
    "no mechanisms": (lambda out: edited(out, lambda tree: tree["ledger"].pop("mechanisms")), "is damaged"),
    "provenance": (
        lambda out: edited(out, lambda tree: tree["privacy"].update(epsilon=1.0), "provenance.json"),
        "provenance.json: has another claim",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_a_release_is_named(out: Path, name: str) -> None:
    change, problem = CHANGES[name]
    change(out)
    done = CliRunner().invoke(app, ["release", "verify", str(out), "--json"])
    assert done.exit_code == 1
    problems = json.loads(done.stdout)["problems"]
    assert any(problem in one for one in problems), problems


def test_what_is_no_release_exits_with_2(out: Path, tmp_path: Path) -> None:
    for change in ("{", "{}", json.dumps({"format": "other", "claim": {"sentence": "", "epsilon": 1}, "files": {}})):
        (out / "release.json").write_text(change)
        assert CliRunner().invoke(app, ["release", "verify", str(out)]).exit_code == 2
    done = CliRunner().invoke(app, ["release", "verify", str(tmp_path / "gone")])
    assert (done.exit_code, done.stdout) == (2, "")
    assert "missing or damaged" in done.stderr


def test_a_signed_release_says_who_signed_it(private_run: Path, tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519

    encoding = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / "key").write_bytes(ed25519.Ed25519PrivateKey.generate().private_bytes(*encoding))
    command = ["release", str(private_run), str(tmp_path / "out"), "--sign", str(tmp_path / "key"), "--signer", "DPO"]
    done = CliRunner().invoke(app, [*command, "--json"])
    assert done.exit_code == 0, done.stderr
    key = json.loads(done.stdout)["key"]
    checked = CliRunner().invoke(app, ["release", "verify", str(tmp_path / "out"), "--key", key])
    assert (checked.exit_code, "signer:DPO" in checked.stdout) == (0, True)
    assert "was not checked" in CliRunner().invoke(app, ["release", "verify", str(tmp_path / "out")]).stdout
    edited(tmp_path / "out", lambda tree: tree.update(run="another"))
    assert CliRunner().invoke(app, ["release", "verify", str(tmp_path / "out"), "--key", key]).exit_code == 1
