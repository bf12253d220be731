"""Label columns are found, and the decisions of the summary hold."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from medlt.report import summary
from medlt.report.collect import collect, finding_columns
from medlt.types import InputError


def test_label_columns_by_attribute_and_by_their_values(known: SimpleNamespace) -> None:
    rows = known.manifest().assign(depth=3.5, mask_share=0.5)
    assert finding_columns(rows) == known.findings
    rows.attrs["findings"] = ["Nodule", "Effusion"]
    assert finding_columns(rows) == ("Nodule", "Effusion")


def test_the_attribute_survives_the_file(bare: Path, known: SimpleNamespace) -> None:
    rows = known.manifest()
    rows.attrs["findings"] = ["Nodule", "Effusion"]
    rows.to_parquet(bare / "manifest.parquet")
    assert collect(bare).findings == ("Nodule", "Effusion")


def test_label_counts_by_a_slow_path(augmented: Path, known: SimpleNamespace) -> None:
    rows, table = known.manifest(), summary.counts(collect(augmented))
    for name in known.findings:
        told = {"real": 0, "added": 0, "test": 0}
        for _, row in rows.iterrows():
            if row[name] > 0.5 and row["split"] in ("train", "test"):
                kind = "added" if row["synthetic"] else "real" if row["split"] == "train" else "test"
                told[kind] += 1
        assert dict(table.loc[name]) == told


def test_sizes_leave_synthetic_rows_out(augmented: Path) -> None:
    told = summary.sizes(collect(augmented))
    assert told["train_images"] == 120
    assert told["test_patients"] == 30
    assert told["added_images"] == 14


def test_the_weakest_arm_gives_the_number_of_seeds(evaluated: Path) -> None:
    scores = pd.read_parquet(evaluated / "scores.parquet")
    scores[(scores["arm"] != "fusion") | (scores["seed"] < 2)].to_parquet(evaluated / "scores.parquet")
    run = collect(evaluated)
    assert summary.seeds(run) == 2
    assert summary.cautions(run)[0].startswith("Only 2 training seeds")


@pytest.mark.parametrize("indexed", [True, False])
def test_tables_may_keep_uid_as_column_or_index(augmented: Path, indexed: bool) -> None:
    plan = pd.read_parquet(augmented / "plan.parquet")
    (plan if indexed else plan.reset_index()).to_parquet(augmented / "plan.parquet")
    rejected = summary.rejected(collect(augmented))
    assert set(rejected["finding"]) == {"Pneumothorax"}
    assert list(rejected["uid"]) == ["s0019", "s0014", "s0015", "s0016", "s0017", "s0018"]


@pytest.mark.parametrize(
    ("reason", "kind"),
    [("p 0.21 below 0.4", "p … below …"), ("copy of s0012", "copy of …"), ("flat", "flat"), ("", "no reason given")],
)
def test_equal_reasons_are_counted_together(reason: str, kind: str) -> None:
    assert summary.kind_of(reason) == kind


def test_groups_come_first_then_findings_by_frequency(evaluated: Path, known: SimpleNamespace) -> None:
    run = collect(evaluated)
    table = summary.comparison(run, ("fusion", "real"), "AP")
    assert list(table.index) == ["macro", "tail", *known.findings]
    assert summary.pairs(run) == [("fusion", "duplicated"), ("fusion", "real")]
    assert np.isfinite(table["low"]).all()


def test_the_arm_minus_its_control_comes_first_for_every_method(compared: Path, method: str) -> None:
    """Of duplicated, fusion and real only fusion would be first by name; of the others duplicated would."""
    pairs = [(method, "duplicated"), (method, "real"), ("duplicated", "real")]
    assert summary.pairs(collect(compared)) == pairs
    deciding = summary.deciding(collect(compared))
    assert deciding is not None
    assert [deciding[k] for k in ("arm", "control", "finding", "metric")] == [method, "duplicated", "tail", "AP"]
    assert summary.in_order(collect(compared), [method, "duplicated", "real"]) == ["real", "duplicated", method]


@pytest.mark.parametrize("known_by", ["verdict.json", "arms.parquet"])
def test_either_file_tells_the_deciding_pair_whatever_the_order_of_rows(
    compared: Path, method: str, known_by: str
) -> None:
    other = {"verdict.json": "arms.parquet", "arms.parquet": "verdict.json"}[known_by]
    (compared / other).unlink()
    for name in {"arms.parquet", "comparisons.parquet"} - {other}:
        pd.read_parquet(compared / name).iloc[::-1].reset_index(drop=True).to_parquet(compared / name)
    run = collect(compared)
    assert summary.deciding_pair(run) == (method, "duplicated")
    assert summary.pairs(run)[0] == (method, "duplicated")
    assert summary.in_order(run, [method, "duplicated", "real"]) == ["real", "duplicated", method]


def test_names_do_not_decide(evaluated: Path) -> None:
    """Arms called fusion and duplicated whose roles no file tells."""
    (evaluated / "verdict.json").unlink()
    run = collect(evaluated)
    assert (summary.deciding_pair(run), summary.deciding(run)) == (None, None)


def test_a_verdict_without_a_comparison_decides_nothing(compared: Path) -> None:
    (compared / "verdict.json").write_text('{"verdict": "no evidence", "sentence": "-", "comparison": null}')
    assert summary.deciding(collect(compared)) is None


def test_a_run_with_arms_is_no_experiment(compared: Path) -> None:
    assert not collect(compared).is_experiment
    (compared / "plan.parquet").unlink()
    assert collect(compared).is_experiment


@pytest.mark.parametrize("name", ["arms", "subgroups", "plan", "sparse_code_metrics"])
@pytest.mark.parametrize("left", [b"", b"PAR1", b"{["])
def test_a_damaged_table_is_named_and_a_missing_one_is_none(compared: Path, name: str, left: bytes) -> None:
    (compared / f"{name}.parquet").write_bytes(left)
    with pytest.raises(InputError, match=rf"{name}\.parquet: not readable as parquet"):
        collect(compared)
    (compared / f"{name}.parquet").unlink()
    assert getattr(collect(compared), name) is None


@pytest.mark.parametrize("left", [b"a: [", b"\xff\xfe\x00"])
def test_a_damaged_config_is_named(compared: Path, left: bytes) -> None:
    (compared / "config.yaml").write_bytes(left)
    with pytest.raises(InputError, match=r"config\.yaml: not readable") as told:
        _ = collect(compared).settings
    assert "\n" not in str(told.value)
