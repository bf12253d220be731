"""A claim speaks for the bytes that leave: each change of a finished private run takes it away, with one reason."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medlt.config import RunConfig, load_config, parse
from medlt.data.manifest import Manifest
from medlt.files import digest, write_json, write_table, write_text
from medlt.privacy import claim, ledger
from medlt.types import InputError

Config = Callable[..., RunConfig]


@pytest.fixture
def run(private_run: Path, tmp_path: Path) -> Path:
    """A copy of the run, in another place."""
    return Path(shutil.copytree(private_run, tmp_path / "moved"))


def images(run: Path) -> list[Path]:
    return sorted((run / "images").glob("*.png"))


def real_radiograph(run: Path) -> np.ndarray:
    """A drawn radiograph, as the run read it."""
    return np.load(next(run.glob("artifacts/images-*/*/*/images.npy")), allow_pickle=False)[0].squeeze()


def test_an_untouched_run_keeps_its_claim_wherever_it_lies(private_run: Path, run: Path, tmp_path: Path) -> None:
    before = claim(private_run)
    assert before.reasons == ()
    assert claim(run).epsilon == before.epsilon
    shutil.move(run / "artifacts", tmp_path / "shared")
    text = (run / "config.yaml").read_text()
    write_text(run / "config.yaml", text.replace("artifacts_dir: null", f"artifacts_dir: {tmp_path / 'shared'}"))
    assert claim(run).epsilon == before.epsilon


def overwrite(run: Path) -> None:
    for file in images(run):
        Image.fromarray(real_radiograph(run)).save(file)


def add(run: Path) -> None:
    Image.fromarray(real_radiograph(run)).save(run / "images" / "PHANTOM-00001.png")


def add_with_a_row(run: Path) -> None:
    """A real image under the name of a planned one that was not kept, with rows in both tables."""
    rows = pd.read_parquet(run / "manifest.parquet")
    uid = next(u for u in pd.read_parquet(run / "plan.parquet").index if u not in rows.index)
    Image.fromarray(real_radiograph(run)).save(run / "images" / f"{uid}.png")
    row = rows[rows["synthetic"].fillna(False).astype(bool)].iloc[[0]].rename(index=lambda _: uid)
    write_table(run / "manifest.parquet", pd.concat([rows, row.assign(path=f"images/{uid}.png")]))


def other_labels(run: Path) -> None:
    rows = pd.read_parquet(run / "manifest.parquet")
    rows.loc[rows["synthetic"].fillna(False).astype(bool), "Effusion"] = 0.5
    write_table(run / "manifest.parquet", rows)


def other_table(run: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    table = pd.read_csv(run / "images" / "metadata.csv", dtype=str)
    change(table).to_csv(run / "images" / "metadata.csv", index=False)


def network(run: Path) -> Path:
    (place,) = run.glob("artifacts/denoiser/*/artifact.json")
    return place.parent


def edit_config(run: Path, before: str, after: str) -> None:
    text = (run / "config.yaml").read_text()
    assert before in text
    write_text(run / "config.yaml", text.replace(before, after))


def edit_ledger(run: Path) -> None:
    """Half the steps of the denoiser, written as medlt writes a ledger."""
    read = ledger.read_ledger(run / "ledger.json")
    text = (run / "ledger.json").read_text().replace('"steps": 6', '"steps": 3')
    changed = [ledger.mechanism_of(one) for one in json.loads(text)["mechanisms"]]
    ledger.write_ledger(run / "ledger.json", changed, read.delta, read.target_epsilon)
    assert ledger.read_ledger(run / "ledger.json").spent.epsilon < read.spent.epsilon


def edit_ledger_and_mechanism(run: Path) -> None:
    edit_ledger(run)
    tree = json.loads((network(run) / "mechanism.json").read_text()) | {"steps": 3}
    del tree["digest"]
    write_json(network(run) / "mechanism.json", {**tree, "digest": digest(tree)})


TRIES: dict[str, tuple[Callable[[Path], object], str]] = {
    "images overwritten": (overwrite, "27 images are not those"),
    "a real image added": (add, "1 files that this run did not make"),
    "a real image added, with a row": (add_with_a_row, "1 files that this run did not make"),
    "an image deleted": (lambda run: images(run)[0].unlink(), "name different images"),
    "all images deleted": (lambda run: shutil.rmtree(run / "images"), "name different images"),
    "other labels": (other_labels, "labels in manifest.parquet"),
    "other labels in the table": (
        lambda run: other_table(run, lambda table: table.assign(Mass=table["Effusion"].to_numpy()[::-1])),
        "metadata.csv is not the table",
    ),
    "one more column": (
        lambda run: other_table(run, lambda table: table.assign(note="PHANTOM-00001")),
        "metadata.csv is not the table",
    ),
    "a shard damaged": (
        lambda run: write_text(next(run.glob("stages/shards/*/*/kept.parquet")), "x"),
        "27 files that this run did not make",
    ),
    "weights deleted": (lambda run: shutil.rmtree(run / "denoiser"), "denoiser/model.json is missing"),
    "weights deleted in the store": (lambda run: shutil.rmtree(network(run)), "denoiser in the folder of artifacts is"),
    "model.json renamed": (
        lambda run: (network(run) / "model.json").rename(network(run) / "m.json"),
        "damaged or was replaced (model.json)",
    ),
    "codec deleted": (lambda run: shutil.rmtree(run / "artifacts" / "codec"), "codec are missing"),
    "clip": (lambda run: edit_config(run, "max_grad_norm: 1.0", "max_grad_norm: 0.5"), "privacy.max_grad_norm"),
    "steps": (lambda run: edit_config(run, "steps: 6", "steps: 5"), "another denoiser.steps"),
    "ledger": (edit_ledger, "steps 3, not 6"),
    "ledger and mechanism": (edit_ledger_and_mechanism, "damaged or was replaced (mechanism.json)"),
}


@pytest.mark.parametrize("name", TRIES)
def test_a_change_of_what_leaves_takes_the_claim_away(run: Path, name: str) -> None:
    change, reason = TRIES[name]
    change(run)
    made = claim(run)
    assert made.epsilon is None
    (one,) = made.reasons
    assert reason in one
    names = {*Manifest.read(run / "stages/data/manifest.parquet").rows["patient_id"], str(run)}
    assert not [name for name in names if str(name) in made.sentence]


def test_a_link_to_weights_of_the_same_patients_is_followed(run: Path, private: Config, tmp_path: Path) -> None:
    from medlt.recipes.train import main

    (tmp_path / "start").symlink_to(network(run))
    data = {"kind": "manifest", "path": str(run / "stages" / "data" / "manifest.parquet")}
    denoiser = {"width": 8, "steps": 3, "batch_size": 8, "init_from": str(tmp_path / "start")}
    made = main(private(tmp_path / "run", data=data, denoiser=denoiser), "denoiser")
    assert load_config(made / "config.yaml").denoiser.init_from == tmp_path / "start"
    assert "denoiser.init_from was trained in a run on some of the same patients" in claim(made).sentence


def test_all_runs_on_a_collection_are_in_its_book(run: Path, private: Config, tiny: Config, tmp_path: Path) -> None:
    """Two private runs add up, and an ordinary one is known by its weights, wherever they were copied."""
    from medlt.privacy.book import read_book
    from medlt.recipes.train import main

    (collection := tmp_path / "collection").mkdir()
    Manifest.read(run / "stages/data/manifest.parquet").write(collection / "manifest.parquet")
    data = {"kind": "manifest", "path": str(collection / "manifest.parquet")}
    small = {"denoiser": {"width": 8, "steps": 3, "batch_size": 8}, "data": data}
    one = main(private(tmp_path / "one", **small), "denoiser")
    alone = claim(one)
    assert alone.reasons == ()
    assert "added up: 1" in alone.sentence
    two = main(private(tmp_path / "two", **small, seed=4), "denoiser")
    both = claim(two)
    assert both.reasons == ()
    assert "added up: 2" in both.sentence
    assert "more than the 8.00 in the config" in both.sentence
    assert claim(one).epsilon == both.epsilon
    assert (both.epsilon or 0) > (alone.epsilon or 0)
    given = tiny(tmp_path / "open").model_dump(mode="json", exclude={"data", "denoiser", "method", "checks"})
    ordinary = main(parse({**given, **small, "method": "noise", "checks": {"near_copy": None}}), "codec")
    weights = next(ordinary.glob("artifacts/codec/*/diffusion_pytorch_model.safetensors"))
    shutil.copytree(weights.parent, tmp_path / "given")
    codec = {"kind": "folder", "path": str(tmp_path / "given")}
    three = main(private(tmp_path / "three", **small, codec=codec), "denoiser")
    (reason,) = claim(three).reasons
    assert reason.startswith("codec.path was trained in a run on some of the same patients")
    book = read_book(collection / "medlt-budget-book.json")
    assert book is not None
    text = (collection / "medlt-budget-book.json").read_text()
    assert not [name for name in Manifest.read(collection / "manifest.parquet").rows["patient_id"] if name in text]


def test_a_book_that_cannot_be_used_stops_a_private_run_before_any_training(private: Config, tmp_path: Path) -> None:
    from medlt.recipes.augment import main

    write_text(tmp_path / "book", "{}")
    with pytest.raises(InputError, match="the budget book is damaged"):
        main(private(tmp_path / "run", budget_book=str(tmp_path / "book")))
    assert not (tmp_path / "run").exists()
