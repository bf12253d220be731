"""A fabricated run folder: small tables of known content, hostile names included."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from medlt.chance import generator, rng
from medlt.report.panels import STAGES, save

HOSTILE = "<script>alert('x')</script>"
FINDINGS = ("Effusion", "Cardiomegaly", "Nodule", "Pneumothorax", HOSTILE)
POSITIVES = (60, 31, 12, 5, 3)
SECRET = "PATIENT-4711-DOE"
ARMS = ("real", "duplicated", "fusion")


def manifest() -> pd.DataFrame:
    """120 train, 20 val and 60 test rows; 14 synthetic rows of the two rarest findings, one with a soft label."""
    rows = pd.DataFrame({"split": ["train"] * 120 + ["val"] * 20 + ["test"] * 60})
    rows["patient_id"] = [f"{SECRET}-{i // 2}" for i in range(len(rows))]
    rows["path"] = [f"/private/{patient}.dcm" for patient in rows["patient_id"]]
    rows.index = pd.Index([f"r{i:04d}" for i in rows.index], name="uid")
    for name, n in zip(FINDINGS, POSITIVES, strict=True):
        rows[name] = [1.0] * n + [0.0] * (120 - n) + [np.nan] * 20 + [1.0] * (n // 2) + [0.0] * (60 - n // 2)
    rows["synthetic"], rows["age"] = False, 40.0
    added = pd.DataFrame(0.0, columns=list(FINDINGS), index=pd.Index([f"s{i:04d}" for i in range(14)], name="uid"))
    added.loc[added.index[:8], "Pneumothorax"], added.loc[added.index[8:], HOSTILE] = 1.0, 1.0
    added.loc["s0000", "Effusion"], added.loc["s0001", "Effusion"], added.loc["s0002", "Effusion"] = 0.9, 0.1, np.nan
    added = added.assign(split="train", synthetic=True, weight=0.3, parents="r0000 r0001", method="fusion")
    return pd.concat([rows, added.assign(patient_id="none", path="images/x.png")])


def plan() -> pd.DataFrame:
    """20 planned rows: the 14 kept ones and six that were rejected."""
    uids = [f"s{i:04d}" for i in range(20)]
    finding = ["Pneumothorax"] * 8 + [HOSTILE] * 6 + ["Pneumothorax"] * 6
    rows = {"finding": finding, "parent_a": "r0000", "parent_b": "r0001", "q_a": 0.5, "q_b": 0.5, "p": 0.5, "seed": 1}
    return pd.DataFrame(rows, index=pd.Index(uids, name="uid"))


def checks() -> pd.DataFrame:
    """Two checks on 20 images: s0014..s0018 disagree with their label, s0019 copies its parent."""
    rows = []
    for i in range(20):
        p, copy = (0.25 if 14 <= i < 19 else 0.75), (0.999 if i == 19 else 0.5)
        uid = f"s{i:04d}"
        told = f"the judge gives Pneumothorax {p:.3f}, below 0.420"
        rows.append(("label consistency", uid, p, 0.42, p >= 0.42, "" if p >= 0.42 else told))
        rows.append(("duplicate", uid, copy, 0.995, copy < 0.995, "" if copy < 0.995 else "a copy of r0000"))
    return pd.DataFrame(rows, columns=["check", "uid", "value", "limit", "passed", "reason"])


def scores() -> pd.DataFrame:
    """Three arms, three seeds, all findings and two groups, two metrics; one finding without a value."""
    draw = rng("report", "scores")
    rows = [
        (arm, seed, name, metric, float(np.clip(base + draw.normal(0, 0.02), 0, 1)))
        for metric, base in (("AP", 0.35), ("AUROC", 0.75))
        for name in ("macro", "tail", *FINDINGS)
        for arm in ARMS
        for seed in range(3)
    ]
    table = pd.DataFrame(rows, columns=["arm", "seed", "finding", "metric", "value"])
    table.loc[(table["finding"] == "Nodule") & (table["metric"] == "AP"), "value"] = np.nan
    return table


def differences() -> pd.DataFrame:
    """Fusion against both controls; words follow from the intervals."""
    draw, rows = rng("report", "differences"), []
    for control in ("real", "duplicated"):
        for metric in ("AP", "AUROC"):
            for name in ("macro", "tail", *FINDINGS):
                middle, half = draw.normal(0.02, 0.03), abs(draw.normal(0.04, 0.01))
                low, high = middle - half, middle + half
                word = "helps" if low > 0 else "harms" if high < 0 else "no evidence"
                rows.append(("fusion", control, name, metric, middle, low, high, word, 10))
    columns = ["arm", "control", "finding", "metric", "difference", "low", "high", "word", "positives"]
    return pd.DataFrame(rows, columns=columns)


def health() -> pd.DataFrame:
    """Five generations; agreement is unknown in the first."""
    return pd.DataFrame(
        {
            "generation": range(5),
            "mean_max_probability": [0.52, 0.71, 0.83, 0.88, 0.91],
            "entropy": [1.3, 0.8, 0.5, 0.35, 0.28],
            "agreement": [np.nan, 0.41, 0.58, 0.66, 0.71],
            "reconstruction_l1": [0.21, 0.17, 0.16, 0.155, 0.154],
            "val_macro_ap": [0.22, 0.27, 0.29, 0.28, 0.31],
            "probe_ap": [0.2, 0.24, 0.26, 0.27, 0.27],
            "topographic_similarity": [0.11, 0.15, 0.19, 0.2, 0.22],
        }
    )


def stages(uid: str, size: int = 48) -> dict[str, torch.Tensor]:
    """Seven tiles of smooth noise; the mask is binary."""
    noise = torch.rand(len(STAGES), 1, 6, 6, generator=generator("strip", uid))
    images = torch.nn.functional.interpolate(noise, (size, size), mode="bilinear")
    images[STAGES.index("mask")] = (images[STAGES.index("mask")] > 0.5).float()
    return dict(zip(STAGES, images, strict=True))


@pytest.fixture
def known() -> SimpleNamespace:
    """What the fabricated folder holds."""
    return SimpleNamespace(findings=FINDINGS, hostile=HOSTILE, secret=SECRET, arms=ARMS, manifest=manifest)


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """The least a run folder holds."""
    (tmp_path / "config.yaml").write_text(
        "recipe: fusion\nseed: 7\ndata:\n  kind: phantom\nout: <b>out</b> & https://example.org\n"
    )
    return tmp_path


@pytest.fixture
def augmented(bare: Path) -> Path:
    """A run up to the images: no evaluation yet."""
    told = {
        "versions": {"python": "3.11", "torch": "2.13.0"},
        "device": "cpu",
        "seed": 7,
        "seconds": {"codec": 123.456},
        "peak_rss_mb": 1987.6,
        "counts": {"real": 200, "planned": 20, "kept": 14, "rejected": 6},
        "digests": {"codec": "0123456789abcdef"},
        "health": {"sparse": {"mean_max_probability": 0.91, "agreement": 0.71, "reconstruction_l1": 0.154}},
    }
    (bare / "run.json").write_text(json.dumps(told))
    manifest().to_parquet(bare / "manifest.parquet")
    plan().to_parquet(bare / "plan.parquet")
    checks().to_parquet(bare / "findings.parquet")
    health().to_parquet(bare / "health.parquet")
    uids = [f"s{i:04d}" for i in (0, 1, 2, 8, 9, 14)]
    panels = {"file": [save(bare, uid, stages(uid), side=48) for uid in uids], "kept": [True] * 5 + [False]}
    panels["finding"] = list(plan().loc[uids, "finding"])
    pd.DataFrame(panels, index=pd.Index(uids, name="uid")).to_parquet(bare / "panels.parquet")
    (bare / "failures.csv").write_text('uid,reason\nr9999,"not a DICOM file, and not a PNG"\n')
    return bare


@pytest.fixture
def evaluated(augmented: Path) -> Path:
    """A whole run with its evaluation."""
    scores().to_parquet(augmented / "scores.parquet")
    differences().to_parquet(augmented / "differences.parquet")
    verdict = {
        "verdict": "no evidence",
        "sentence": f"No evidence that fusion beats duplicates of {HOSTILE}.",
        "comparison": {"arm": "fusion", "control": "duplicated", "finding": "macro", "metric": "AP"},
    }
    (augmented / "verdict.json").write_text(json.dumps(verdict))
    return augmented
