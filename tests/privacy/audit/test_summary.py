"""One record of all parts, plain enough for JSON, and tables without patients."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from torch import Tensor

from medlt.files import write_json, write_table
from medlt.privacy.audit.canary import canary_test
from medlt.privacy.audit.copies import search_copies
from medlt.privacy.audit.membership import membership
from medlt.privacy.audit.plants import COMMON
from medlt.privacy.audit.rates import Share
from medlt.privacy.audit.reidentify import Verification, reidentify
from medlt.privacy.audit.search import low_pass, measures
from medlt.privacy.audit.summary import AuditPart, summary, tables
from medlt.types import InputError

NAMES = [f"patient-{i}" for i in range(60)]


@pytest.fixture(scope="module")
def parts(images: Callable[..., Tensor]) -> dict[str, AuditPart]:
    synthetic, train, held = images(20, 1), images(60, 2), images(60, 3)
    uids = [f"s{i}" for i in range(20)]
    known = Verification(Share(0.9, 0.8, np.nan), Share(0.1, 0.0, 0.2), 0.05, 10, 30)
    scores = np.random.default_rng(0).normal(size=120)
    names = NAMES + [f"other-{i}" for i in range(60)]
    return {
        "near_copies": search_copies(measures(low_pass), synthetic, train, held, COMMON, uids=uids,
                                     train_patients=uids * 3, held_out_patients=NAMES, seed=0, planted=20,
                                     required=["inverted", "halves of two"]),
        "membership": membership(scores, np.arange(120) < 60, names, seed=0),
        "reidentification": reidentify(low_pass, synthetic, train, held, known, uids=uids, train_patients=NAMES,
                                       held_out_patients=NAMES, seed=0),
        "canaries": canary_test(lambda inside: inside * 1.0, np.arange(100) % 2 == 0, delta=1e-5, ledger=1.0),
    }  # fmt: skip


def test_every_part_has_a_name_a_sentence_a_verdict_and_its_numbers(
    parts: dict[str, AuditPart], tmp_path: Path
) -> None:
    write_json(tmp_path / "audit.json", summary(parts))
    read = json.loads((tmp_path / "audit.json").read_text())
    assert [one["name"] for one in read["results"]] == list(parts)
    for one, part in zip(read["results"], parts.values(), strict=True):
        assert one["sentence"] == part.sentence
        assert one["passed"] is part.passed
        assert len(one) > 6
    copies, member, linked, canary = read["results"]
    assert {row["plant"] for row in copies["plants"]} == set(COMMON)
    assert {(row["unit"], row["fpr"]) for row in member["rates"]} >= {("patient", 0.001), ("image", 0.01)}
    assert linked["verification"]["auc"]["high"] is None
    assert canary["bound"] == pytest.approx(parts["canaries"].bound)  # type: ignore[union-attr]


def test_the_conclusion_names_what_failed_and_what_was_silent(parts: dict[str, AuditPart]) -> None:
    said = summary(parts)["conclusion"]
    assert "Leaks were detected (canaries)" in said
    assert "Nothing can be concluded from: reidentification" in said
    good = {"membership": parts["membership"]}
    assert parts["membership"].passed
    assert summary(good)["conclusion"].startswith("None of these attacks detected a leak")
    with pytest.raises(InputError, match="no part"):
        summary({})


def test_no_patient_is_named_anywhere(parts: dict[str, AuditPart], tmp_path: Path) -> None:
    written = tables(parts)
    assert set(written) == {"near_copies", "near_copies_plants", "membership", "membership_rates", "reidentification"}
    for name, table in written.items():
        write_table(tmp_path / f"{name}.parquet", table)
        again = pd.read_parquet(tmp_path / f"{name}.parquet")
        assert len(again) == len(table)
        assert "patient-" not in again.reset_index().to_csv()
    assert "patient-" not in json.dumps(summary(parts))
    assert "patient-" not in repr(parts)
