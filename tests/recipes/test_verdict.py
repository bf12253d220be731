"""A whole experiment on a tiny run's images: what it leaves, what it refuses, what a second call costs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from medlt.cli import app
from medlt.config import EvaluateConfig, dump
from medlt.data.loaders import images
from medlt.data.manifest import Manifest
from medlt.recipes._cohort import open_cohort
from medlt.recipes._setup import opened
from medlt.recipes._sources import open_sources
from medlt.recipes.evaluate import main
from medlt.training.runtime import silent
from medlt.types import InputError

ARMS: dict[str, Any] = {
    "focal": {"loss": "focal"},
    "fusion": {"source": "fusion"},
    "fusion, half": {"source": "fusion", "synthetic_ratio": 0.5},
    "fusion first": {"source": "fusion", "training_strategy": "pretrain", "labels": "hard"},
}


def experiment(finished: Path, out: Path, **changes: Any) -> EvaluateConfig:
    told = json.loads((finished / "run.json").read_text())
    assert told["counts"]["kept"]
    return EvaluateConfig.model_validate(
        {
            "output_dir": str(out),
            "seed": 3,
            "data": {"kind": "manifest", "path": str(finished / "stages" / "data" / "manifest.parquet")},
            "targets": {"tail_below": 8, "head_above": 20},
            "classifier": {"size": 32, "steps": 4, "batch_size": 8, "evaluate_every": 2},
            "evaluation": {
                "seeds": 2,
                "n_bootstrap": 100,
                "steps": 4,
                "synthetic_fraction": 0.2,
                "synthetic_weight": 0.3,
            },
            "sources": {"fusion": {"run": str(finished)}},
            "arms": ARMS,
            **changes,
        }
    )


def once_more(done: Path, finished: Path, out: Path, **changes: Any) -> Path:
    """The experiment once more in a copy of its folder, with other sections."""
    shutil.copytree(done, out)
    (out / "config.yaml").write_text(dump(experiment(finished, out)))
    return main(experiment(finished, out, **changes))


@pytest.fixture(scope="module")
def done(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return main(experiment(finished, tmp_path_factory.mktemp("verdict") / "run"))


def test_the_page_shows_images_of_the_source_as_the_arms_see_them(done: Path, finished: Path) -> None:
    shown = pd.read_parquet(done / "source_images.parquet")
    whole = Manifest.read(finished / "manifest.parquet")
    made = whole.where(whole.rows["synthetic"])
    assert set(shown["uid"]) == set(made.rows.index)
    by_uid = dict(zip(made.rows.index, images(made, 32)[:, 0].numpy(), strict=True))
    for row in shown.itertuples():
        np.testing.assert_array_equal(np.asarray(Image.open(done / str(row.file))), by_uid[str(row.uid)])
    page = (done / "report.html").read_text()
    assert all(f'data-uid="{uid}"' in page for uid in shown["uid"])


def test_every_table_is_there_and_every_arm_has_its_control(done: Path) -> None:
    names = "arms scores comparisons reliability subgroups agreement confusion filter_effect rejections"
    names += " fingerprints learning_curves confounding retention"
    assert [name for name in names.split() if not (done / f"{name}.parquet").is_file()] == []
    arms = pd.read_parquet(done / "arms.parquet").set_index("arm")
    assert list(arms.index[:2]) == ["real", "focal"]
    synthetic = arms[arms["role"] == "synthetic"]
    assert list(synthetic.index) == ["fusion", "fusion, half", "fusion first"]
    for name, arm in synthetic.iterrows():
        control = arms.loc[arm["control"]]
        assert control["role"] == "control", name
        same = [
            "added",
            "wanted",
            "synthetic_weight",
            "synthetic_fraction",
            "training_strategy",
            "loss",
            "synthetic_ratio",
            "steps",
        ]
        assert control[same].astype(str).tolist() == arm[same].astype(str).tolist()
    assert arms.loc["fusion, half", "added"] < arms.loc["fusion", "added"]
    scores = pd.read_parquet(done / "scores.parquet")
    assert set(scores["arm"]) == set(arms.index)
    assert {"AP", "AUROC", "balanced accuracy", "F1", "ECE"} <= set(scores["metric"])
    assert (scores.groupby(["arm", "finding", "metric"]).size() == 2).all()


def test_retention_is_measured_where_masks_of_tail_images_are_known(finished: Path, done: Path) -> None:
    kept = Manifest.read(finished / "manifest.parquet").rows.query("synthetic == True")
    table = pd.read_parquet(done / "retention.parquet").set_index("finding")
    assert table["images"].to_dict().items() <= kept["finding"].value_counts().to_dict().items()
    assert table["kept"].notna().all()
    assert "Lesion retention" in (done / "report.html").read_text()


def test_the_verdict_is_on_the_arm_validation_likes_best(done: Path) -> None:
    verdict = json.loads((done / "verdict.json").read_text())
    arms = pd.read_parquet(done / "arms.parquet").set_index("arm")
    synthetic = arms[arms["role"] == "synthetic"]
    best = synthetic["val_tail_ap"].idxmax()
    assert verdict["comparison"]["arm"] == best
    assert arms.index[arms["primary"]].tolist() == [best]
    assert verdict["comparison"]["control"] == arms.loc[best, "control"]
    unaided = arms[arms["role"].isin(["real", "reweighted"])]["val_tail_ap"].idxmax()
    assert verdict["against_real"]["control"] == unaided
    assert {line["arm"] for line in verdict["arms"]} == set(arms.index) - {"real"}
    assert verdict["verdict"] in ("helps", "no evidence", "harms", "cannot see")
    assert (verdict["verdict"] == "cannot see") == bool(verdict["cannot_see"])
    length = verdict["training_length"]
    assert (length["steps"], length["limit"], length["chosen_by"]) == (4, 4, "config")
    curves = pd.read_parquet(done / "learning_curves.parquet")
    assert set(curves["arm"]) == set(arms.index)
    assert set(curves["step"]) == {2, 4}
    table = pd.read_parquet(done / "comparisons.parquet")
    row = table[(table["arm"] == best) & (table["control"] == arms.loc[best, "control"])]
    row = row.query("finding == 'tail' and metric == 'AP'")
    assert row["difference"].item() == verdict["comparison"]["difference"]


def test_share_and_weight_are_chosen_on_validation_for_the_control_too(finished: Path, tmp_path: Path) -> None:
    given = {
        "seeds": 2,
        "n_bootstrap": 100,
        "steps": 4,
        "synthetic_fraction": [0.2, 0.6],
        "synthetic_weight": [0.3, 1.0],
    }
    arms = {"fusion": {"source": "fusion"}, "fixed": {"source": "fusion", "synthetic_fraction": 0.5}}
    run = main(experiment(finished, tmp_path / "run", evaluation=given, arms=arms))
    verdict = json.loads((run / "verdict.json").read_text())
    chosen, table = verdict["chosen_on_validation"], pd.read_parquet(run / "arms.parquet").set_index("arm")
    assert set(chosen) == set(table.index) - {"real"}
    for name, one in chosen.items():
        assert len(one["tried"]) == (4 if "fusion" in name else 2)
        best = max(one["tried"], key=lambda row: row["val_tail_ap"])
        picked = (one["synthetic_fraction"], one["synthetic_weight"])
        assert picked == (best["synthetic_fraction"], best["synthetic_weight"])
        assert picked == tuple(table.loc[name, ["synthetic_fraction", "synthetic_weight"]])
        assert table.loc[name, "val_tail_ap"] == pytest.approx(best["val_tail_ap"])
    assert {row["synthetic_fraction"] for row in chosen["fixed"]["tried"]} == {0.5}


def test_real_images_through_the_codec_are_sources_of_their_own(finished: Path, tmp_path: Path) -> None:
    sources = {
        "fusion": {"run": str(finished)},
        "coded copies": {"codec_of": "fusion"},
        "coded negatives": {"codec_of": "fusion", "rows": "negatives"},
    }
    arms = {name: {"source": name} for name in sources}
    run = main(experiment(finished, tmp_path / "run", sources=sources, arms=arms))
    table = pd.read_parquet(run / "arms.parquet").set_index("arm")
    added = table["added"]
    assert added["coded copies"] == added["fusion"]
    assert added["coded negatives"] == 2 * added["fusion"]
    digests = table["digest"]
    assert digests["duplicated for coded copies"] != digests["coded copies"]
    assert digests["coded copies"] != digests["fusion"]
    marks = pd.read_parquet(run / "fingerprints.parquet")
    mean = marks[marks["finding"] == "tail"].set_index("arm")["auroc"]
    assert list(mean.index) == list(table.index)
    assert mean.between(0, 1).all()
    assert (marks["images"] > 0).all()
    verdict = json.loads((run / "verdict.json").read_text())
    assert verdict["fingerprints"]["fusion"]["auroc"] == mean["fusion"]
    config = experiment(finished, tmp_path / "run", sources=sources, arms=arms)
    with opened(config, silent) as opened_run:
        cohort = open_cohort(opened_run)
        made = open_sources(config, cohort, silent)
    copies, base = made["coded copies"], made["fusion"]
    parents = base.kept["tail_parent"].tolist()
    pd.testing.assert_frame_equal(
        copies.labels.reset_index(drop=True), cohort.train.rows.loc[parents, base.findings].reset_index(drop=True)
    )
    uids = list(copies.kept.index)[::-1]  # in another order
    assert base.through_codec is not None
    assert torch.equal(copies.images(32, uids), base.through_codec(32, parents[::-1]))
    negatives = made["coded negatives"].kept.iloc[len(parents) :]
    tail = cohort.train.rows.loc[negatives["tail_parent"], list(cohort.tail)]
    assert (tail == 0).all(axis=None)


def test_an_added_arm_trains_itself_alone(finished: Path, done: Path, tmp_path: Path) -> None:
    first = pd.read_parquet(done / "scores.parquet")
    run = once_more(done, finished, tmp_path / "run", arms={**ARMS, "plain": {"loss": "plain"}})
    work = json.loads((run / "run.json").read_text())["training_of_arms"]
    assert work["trained"] == 2  # two seeds
    again = pd.read_parquet(run / "scores.parquet")
    pd.testing.assert_frame_equal(again[again["arm"] != "plain"].reset_index(drop=True), first)
    assert json.loads((run / "verdict.json").read_text())["test_set_evaluations"] == 2
    assert len(list((run / "superseded").glob("verdict-*.json"))) == 1
    with pytest.raises(InputError, match="another config"):
        main(experiment(finished, run, seed=4))


@pytest.mark.slow
def test_workers_change_no_byte(finished: Path, done: Path, tmp_path: Path) -> None:
    run = main(
        experiment(
            finished,
            tmp_path / "run",
            evaluation={
                "seeds": 2,
                "n_bootstrap": 100,
                "steps": 4,
                "synthetic_fraction": 0.2,
                "synthetic_weight": 0.3,
                "workers": 2,
            },
        )
    )
    for name in ("scores", "comparisons", "arms"):
        assert (run / f"{name}.parquet").read_bytes() == (done / f"{name}.parquet").read_bytes()


def test_one_seed_gives_no_verdict(finished: Path, done: Path, tmp_path: Path) -> None:
    one = {
        "arms": {"fusion": {"source": "fusion"}},
        "evaluation": {"seeds": 1, "n_bootstrap": 100, "steps": 4, "synthetic_fraction": 0.2, "synthetic_weight": 0.3},
    }
    run = once_more(done, finished, tmp_path / "run", **one)
    assert json.loads((run / "run.json").read_text())["training_of_arms"]["trained"] == 0
    verdict = json.loads((run / "verdict.json").read_text())
    assert verdict["verdict"] == "no verdict"
    assert "one seed" in verdict["sentence"]


def test_without_synthetic_images_there_is_no_verdict_but_a_table(finished: Path, done: Path, tmp_path: Path) -> None:
    run = once_more(done, finished, tmp_path / "run", sources={}, arms={"focal": {"loss": "focal"}})
    assert json.loads((run / "verdict.json").read_text())["verdict"] == "no verdict"
    assert set(pd.read_parquet(run / "comparisons.parquet")["arm"]) == {"focal"}


def test_test_patients_in_train_are_refused_before_training(finished: Path, tmp_path: Path) -> None:
    held = Manifest.read(finished / "stages" / "data" / "manifest.parquet")
    rows = held.rows.copy()
    train = rows.index[rows["split"] == "train"]
    someone = rows.loc[train[rows.loc[train, "No_Finding"] == 1][0], "patient_id"]
    rows.loc[rows["patient_id"] == someone, "split"] = "test"
    Manifest(rows, held.findings, held.root).write(tmp_path / "leaky.parquet")
    config = experiment(finished, tmp_path / "run", data={"kind": "manifest", "path": str(tmp_path / "leaky.parquet")})
    with pytest.raises(InputError, match="source fusion"):
        main(config)
    assert not (tmp_path / "run" / "artifacts" / "classifier").exists()


def test_a_source_is_only_read_whatever_the_threads(finished: Path, tmp_path: Path) -> None:
    """Nothing of a finished run is trained again or written, with another number of threads either."""
    config = experiment(finished, tmp_path / "run")

    def written() -> dict[Path, int]:
        files = (file for file in finished.rglob("*") if file.is_file() and file.suffix != ".lock")
        files = (file for file in files if file.parent.name != "pixels")  # what names the bytes of unchanged files
        return {file: file.stat().st_mtime_ns for file in files}

    before, threads = written(), torch.get_num_threads()
    with opened(config, silent) as run:
        cohort = open_cohort(run)
        torch.set_num_threads(threads + 1)
        given = open_sources(config, cohort, silent)["fusion"]
    assert torch.get_num_threads() == threads
    assert written() == before
    uids = list(given.kept.index[::-1])
    made = Manifest.read(finished / "manifest.parquet")
    assert torch.equal(given.images(32, uids), images(made, 32, uids=uids))
    scores = given.predict(given.require_verifiers().cross_fit, 32, uids)
    own = [scores.at[uid, finding] for uid, finding in given.kept.loc[uids, "finding"].items()]
    np.testing.assert_allclose(own, given.kept.loc[uids, "verifier"], atol=1e-6)  # as the run's check has found them


def test_images_whose_judge_saw_a_parent_are_refused_before_training(
    finished: Path, tmp_path: Path, reseal: Callable[[Path], None]
) -> None:
    source = tmp_path / "source"
    shutil.copytree(finished, source)
    held = Manifest.read(source / "manifest.parquet")
    Manifest(held.rows.assign(fold=1 - held.rows["fold"]), held.findings, held.root).write(source / "manifest.parquet")
    reseal(source)
    with pytest.raises(InputError, match=r"was trained on .* a parent of image"):
        main(experiment(finished, tmp_path / "run", sources={"fusion": {"run": str(source)}}))
    assert not (tmp_path / "run" / "artifacts" / "classifier").exists()


def test_a_finding_without_test_positives_is_nan_with_its_reason(finished: Path, tmp_path: Path) -> None:
    held = Manifest.read(finished / "stages" / "data" / "manifest.parquet")
    rows = held.rows.copy()
    lost = held.findings[0]
    rows.loc[rows["split"] == "test", lost] = np.nan
    Manifest(rows, held.findings, held.root).write(tmp_path / "unknown.parquet")
    data = {"kind": "manifest", "path": str(tmp_path / "unknown.parquet")}
    run = main(experiment(finished, tmp_path / "run", data=data, arms={"fusion": {"source": "fusion"}}))
    lines = pd.read_parquet(run / "comparisons.parquet").query("finding == @lost")
    assert lines["difference"].isna().all()
    assert (lines["reason"] != "").all()


def test_the_command_says_what_came_out(finished: Path, done: Path, tmp_path: Path) -> None:
    file = tmp_path / "experiment.yaml"
    file.write_text(dump(experiment(finished, done)))
    said = CliRunner().invoke(app, ["evaluate", str(file), "--json"])
    assert said.exit_code == 0, said.output
    assert json.loads(said.stdout)["verdict"]["comparison"]["metric"] == "AP"
    assert (
        json.loads((done / "verdict.json").read_text())["test_set_evaluations"] == 1
    )  # the same question asked twice is one look
    wrong = CliRunner().invoke(app, ["run", str(file)])
    assert wrong.exit_code == 2
    assert "medlt evaluate" in wrong.stderr


def test_arms_may_change_where_the_rows_are_drawn_into_the_folder(tmp_path: Path) -> None:
    told = {
        "output_dir": str(tmp_path / "run"),
        "data": {"kind": "phantom", "patients": 40, "size": 64, "imbalance": 8},
        "targets": {"tail_below": 8, "head_above": 20},
        "classifier": {"size": 32, "steps": 1, "batch_size": 8},
        "evaluation": {"seeds": 1, "n_bootstrap": 100, "steps": 4, "synthetic_fraction": 0.2, "synthetic_weight": 0.3},
        "arms": {"focal": {"loss": "focal"}},
    }
    main(EvaluateConfig.model_validate(told))
    run = main(EvaluateConfig.model_validate({**told, "arms": {"plain": {"loss": "plain"}}}))
    assert set(pd.read_parquet(run / "arms.parquet")["arm"]) == {"real", "plain"}
