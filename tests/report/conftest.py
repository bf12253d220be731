"""A fabricated run folder: small tables of known content, hostile names included."""

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from medlt.report.html import write_report
from medlt.report.panels import STAGES, save_panel
from medlt.rng import numpy_generator, torch_generator

HOSTILE = "<script>alert('x')</script>"
FINDINGS = ("Effusion", "Cardiomegaly", "Nodule", "Pneumothorax", HOSTILE)
POSITIVES = (60, 31, 12, 5, 3)
SECRET = "PATIENT-4711-DOE"
ARMS = ("real", "duplicated", "fusion")


VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Checks nesting, keeps the elements (tag, attributes) and the text of each by its path of tags and ids."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.rows: dict[str, list[list[str]]] = {}
        self.section = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "section":
            self.section = str(dict(attrs)["id"])
        if tag == "tr":
            self.rows.setdefault(self.section, []).append([])
        if tag in ("td", "th"):
            self.rows[self.section][-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.setdefault(self.section, []).append(data)
        if "td" in self.open or "th" in self.open:
            self.rows[self.section][-1][-1] += data.replace("\N{NO-BREAK SPACE}", " ")

    def text(self, section: str) -> str:
        return " ".join("".join(self.texts[section]).split())


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
    added = added.assign(split="train", synthetic=True, weight=0.3, parents=[["r0000", "r0001"]] * 14, method="fusion")
    return pd.concat([rows, added.assign(patient_id="none", path="images/x.png")])


def plan() -> pd.DataFrame:
    """20 planned rows: the 14 kept ones and six that were rejected."""
    uids = [f"s{i:04d}" for i in range(20)]
    finding = ["Pneumothorax"] * 8 + [HOSTILE] * 6 + ["Pneumothorax"] * 6
    rows = {
        "finding": finding,
        "tail_parent": "r0000",
        "head_parent": "r0001",
        "tail_threshold": 0.5,
        "head_threshold": 0.5,
        "tail_probability": 0.5,
        "seed": 1,
    }
    return pd.DataFrame(rows, index=pd.Index(uids, name="uid"))


def checks() -> pd.DataFrame:
    """Two checks on 20 images: s0014..s0018 disagree with their label, s0019 copies its parent."""
    rows = []
    for i in range(20):
        p, copy = (0.25 if 14 <= i < 19 else 0.75), (0.999 if i == 19 else 0.5)
        uid = f"s{i:04d}"
        content = f"the verifier gives Pneumothorax {p:.3f}, below 0.420"
        rows.append(("label consistency", uid, p, 0.42, p >= 0.42, "" if p >= 0.42 else content))
        rows.append(("duplicate", uid, copy, 0.995, copy < 0.995, "" if copy < 0.995 else "a copy of r0000"))
    return pd.DataFrame(rows, columns=["check", "uid", "value", "limit", "passed", "reason"])


def scores() -> pd.DataFrame:
    """Three arms, three seeds, all findings and two groups, two metrics; one finding without a value."""
    draw = numpy_generator("report", "scores")
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


def comparisons() -> pd.DataFrame:
    """Fusion against both controls; verdicts follow from the intervals."""
    draw, rows = numpy_generator("report", "differences"), []
    for control in ("real", "duplicated"):
        for metric in ("AP", "AUROC"):
            for name in ("macro", "tail", *FINDINGS):
                middle, half = draw.normal(0.02, 0.03), abs(draw.normal(0.04, 0.01))
                low, high = middle - half, middle + half
                verdict = "helps" if low > 0 else "harms" if high < 0 else "no evidence"
                rows.append(("fusion", control, name, metric, middle, low, high, verdict, 10))
    columns = ["arm", "control", "finding", "metric", "difference", "low", "high", "verdict", "positives"]
    return pd.DataFrame(rows, columns=columns)


def code_metrics() -> pd.DataFrame:
    """Five generations; agreement is unknown in the first, the third is collapsed, the last is used."""
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
            "collapsed": [False, False, True, False, False],
            "chosen": [False, False, False, False, True],
        }
    )


def stages(uid: str, size: int = 48) -> dict[str, torch.Tensor]:
    """Seven tiles of smooth noise; the mask is binary."""
    noise = torch.rand(len(STAGES), 1, 6, 6, generator=torch_generator("strip", uid))
    images = torch.nn.functional.interpolate(noise, (size, size), mode="bilinear")
    images[STAGES.index("mask")] = (images[STAGES.index("mask")] > 0.5).float()
    return dict(zip(STAGES, images, strict=True))


@pytest.fixture
def known() -> SimpleNamespace:
    """What the fabricated folders hold."""
    tried = {"experiment": tuple(EXPERIMENT_ARMS), "sought": EXPERIMENT_FINDINGS}
    return SimpleNamespace(findings=FINDINGS, hostile=HOSTILE, secret=SECRET, arms=ARMS, manifest=manifest, **tried)


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """The least a run folder holds."""
    (tmp_path / "config.yaml").write_text(
        "method: {kind: fusion}\nseed: 7\ndata:\n  kind: phantom\noutput_dir: <b>out</b> & https://example.org\n"
    )
    return tmp_path


@pytest.fixture
def augmented(bare: Path) -> Path:
    """A run up to the images: no evaluation yet."""
    content = {
        "versions": {"python": "3.11", "torch": "2.13.0"},
        "device": "cpu",
        "seed": 7,
        "seconds": {"codec": 123.456},
        "peak_rss_mb": 1987.6,
        "counts": {"real": 200, "planned": 20, "kept": 14, "rejected": 6},
        "digests": {"codec": "0123456789abcdef"},
        "metrics": {"sparse": {"mean_max_probability": 0.91, "agreement": 0.71, "reconstruction_l1": 0.154}},
    }
    (bare / "run.json").write_text(json.dumps(content))
    manifest().to_parquet(bare / "manifest.parquet")
    plan().to_parquet(bare / "plan.parquet")
    checks().to_parquet(bare / "checks.parquet")
    code_metrics().to_parquet(bare / "sparse_code_metrics.parquet")
    uids = [f"s{i:04d}" for i in (0, 1, 2, 8, 9, 14)]
    panels = {"file": [save_panel(bare, uid, stages(uid), side=48) for uid in uids], "kept": [True] * 5 + [False]}
    panels["finding"] = list(plan().loc[uids, "finding"])
    pd.DataFrame(panels, index=pd.Index(uids, name="uid")).to_parquet(bare / "panels.parquet")
    (bare / "failures.csv").write_text('uid,reason\nr9999,"not a DICOM file, and not a PNG"\n')
    return bare


@pytest.fixture
def evaluated(augmented: Path) -> Path:
    """A whole run with its evaluation."""
    scores().to_parquet(augmented / "scores.parquet")
    comparisons().to_parquet(augmented / "comparisons.parquet")
    verdict = {
        "verdict": "no evidence",
        "sentence": f"No evidence that fusion beats duplicates of {HOSTILE}.",
        "comparison": {"arm": "fusion", "control": "duplicated", "finding": "macro", "metric": "AP"},
    }
    (augmented / "verdict.json").write_text(json.dumps(verdict))
    return augmented


METHODS = ("fusion", "edit", "noise", "minority", "longtail", "diffult", "a_new_one")


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    """A method's name, which is that of its arm."""
    return str(request.param)


@pytest.fixture
def compared(augmented: Path, method: str) -> Path:
    """A run of any method as the comparison leaves it: arms by role, all comparisons, subgroups and reliability."""
    content = {"real": ("", "real"), method: ("duplicated", "synthetic"), "duplicated": ("real", "control")}
    rows = pd.DataFrame.from_dict(content, orient="index", columns=["control", "role"]).rename_axis("arm").reset_index()
    rows = rows.assign(
        source=["", method, method], synthetic_ratio=np.nan, added=[0, 14, 14], wanted=[0, 14, 14], synthetic_weight=0.3
    )
    rows = rows.assign(val_tail_ap=0.2, val_tail_ap_sd=0.01, primary=rows["role"] == "synthetic")
    rows.to_parquet(augmented / "arms.parquet")
    scores().replace({"arm": {"fusion": method}}).to_parquet(augmented / "scores.parquet")
    table = pd.concat([comparisons(), comparisons().query("control == 'real'").assign(arm="duplicated")])
    table = table.replace({"arm": {"fusion": method}}).assign(p=0.5, p_holm=1.0, smallest=0.05, patients=10, reason="")
    table.assign(value=0.4, control_value=0.3).reset_index(drop=True).to_parquet(augmented / "comparisons.parquet")
    for name, more in (("subgroups", arm_subgroups()), ("reliability", arm_reliability())):
        named = {"fusion_one": method, "copies_one": "duplicated"}
        more[more["arm"].isin(["real", *named])].replace({"arm": named}).to_parquet(augmented / f"{name}.parquet")
    pair = {"arm": method, "control": "duplicated", "finding": "tail", "metric": "AP"}
    verdict = {"verdict": "no evidence", "sentence": "No evidence.", "comparison": pair, "test_set_evaluations": 1}
    (augmented / "verdict.json").write_text(json.dumps(verdict | {"chosen_by": "the only candidate"}))
    return augmented


EXPERIMENT_FINDINGS = ("Effusion", "Nodule", "Hernia")  # of Hernia there is no test positive
EXPERIMENT_METRICS = ("AP", "AUROC", "sensitivity", "balanced accuracy", "F1", "ECE")
EXPERIMENT_ARMS = {  # control, role, source, synthetic_ratio, added, wanted, validation tail AP
    "real": ("", "real", "", np.nan, 0, 0, 0.20),
    "crt": ("real", "reweighted", "", np.nan, 0, 0, 0.23),
    "copies_half": ("real", "control", "fusion", 0.5, 10, 10, 0.22),
    "copies_one": ("real", "control", "fusion", 1.0, 18, 20, 0.24),
    HOSTILE: ("copies_half", "synthetic", "fusion", 0.5, 10, 10, 0.21),
    "fusion_one": ("copies_one", "synthetic", "fusion", 1.0, 18, 20, 0.27),
}


def arms() -> pd.DataFrame:
    """Six arms; the last one is the primary one, chosen on validation."""
    columns = ["control", "role", "source", "synthetic_ratio", "added", "wanted", "val_tail_ap"]
    rows = pd.DataFrame.from_dict(EXPERIMENT_ARMS, orient="index", columns=columns).rename_axis("arm").reset_index()
    usual = {
        "keep_top": 1.0,
        "labels": "soft",
        "loss": "balanced",
        "training_strategy": "one",
        "mixup": "none",
        "augment": "light",
    }
    more = {
        "use": "mix",
        "tau_norm": False,
        "synthetic_fraction": 0.2,
        "synthetic_weight": 0.3,
        "steps": 40,
        "digest": "0123456789abcdef",
    }
    return rows.assign(**usual, **more, val_tail_ap_sd=0.011, primary=rows["arm"] == "fusion_one")


def arm_scores() -> pd.DataFrame:
    """Every arm, three seeds, three findings and their groups; without test positives there is no AP."""
    draw = numpy_generator("report", "experiment scores")
    names = ("macro", "head", "tail", *EXPERIMENT_FINDINGS)
    rows = [
        (arm, seed, name, metric, float(draw.uniform(0.1, 0.9)))
        for arm in EXPERIMENT_ARMS
        for seed in range(3)
        for name in names
        for metric in EXPERIMENT_METRICS
    ]
    table = pd.DataFrame(rows, columns=["arm", "seed", "finding", "metric", "value"])
    table.loc[(table["finding"] == "Hernia") & (table["metric"] == "AP"), "value"] = np.nan
    return table


def arm_differences() -> pd.DataFrame:
    """Every arm against its control and against the real one; verdicts follow from the intervals."""
    draw, rows = numpy_generator("report", "experiment differences"), []
    pairs = {(arm, content[0]) for arm, content in EXPERIMENT_ARMS.items() if content[0]}
    pairs |= {(arm, "real") for arm in EXPERIMENT_ARMS if arm != "real"}
    for arm, control in sorted(pairs):
        for metric in ("AP", "AUROC"):
            for name in ("macro", "head", "tail", *EXPERIMENT_FINDINGS):
                known = name != "Hernia"
                middle, half = draw.normal(0, 0.05), draw.uniform(0.01, 0.08)
                low, high = middle - half, middle + half
                verdict = "helps" if low > 0 else "harms" if high < 0 else "no evidence"
                numbers = (middle, low, high, half / 2, draw.uniform(0, 1), draw.uniform(0, 1), 1.4 * half)
                level = {"macro": "macro", "head": "group", "tail": "group"}.get(name, "finding")
                reason = "" if known else "no test patient has it"
                content = numbers if known else (np.nan,) * len(numbers)
                rows.append(
                    (arm, control, level, name, metric, *content, 21, verdict if known else "no evidence", reason)
                )
    names = "arm control level finding metric difference low high se p p_holm smallest patients verdict reason"
    return pd.DataFrame(rows, columns=names.split()).assign(value=0.4, control_value=0.3)


def arm_subgroups() -> pd.DataFrame:
    """Two views and two sexes of three arms; one part is too small for an interval."""
    draw = numpy_generator("report", "experiment subgroups")
    rows = [
        (
            arm,
            attribute,
            value,
            30 if value != "lateral" else 3,
            15,
            metric,
            *draw.uniform(0.2, 0.8, 3),
            *draw.normal(0, 0.1, 3),
        )
        for arm in ("real", "copies_one", "fusion_one")
        for attribute, value in (("view", "frontal"), ("view", "lateral"), ("sex", "F"), ("sex", "M"))
        for metric in ("AP", "AUROC")
    ]
    columns = "arm attribute value images patients metric score low high gap gap_low gap_high".split()
    table = pd.DataFrame(rows, columns=columns)
    small = table["value"] == "lateral"
    table.loc[small, ["low", "high", "gap", "gap_low", "gap_high"]] = np.nan
    return table.assign(reason=np.where(small, "fewer than 6 positive patients in it", ""))


def arm_reliability() -> pd.DataFrame:
    """Five bins an arm; the last is empty."""
    draw = numpy_generator("report", "experiment reliability")
    rows = []
    for arm in EXPERIMENT_ARMS:
        for b in range(5):
            score, rate = 0.1 * b + 0.05, float(draw.uniform(0.1, 0.4))
            content = (9, score, rate, rate - 0.05, rate + 0.05) if b < 4 else (0, *[np.nan] * 4)
            rows.append((arm, "all", b, b / 5, (b + 1) / 5, *content))
    columns = "arm finding bin low high images mean_score rate rate_low rate_high".split()
    return pd.DataFrame(rows, columns=columns)


def label_tables() -> dict[str, pd.DataFrame]:
    """Agreement, confusion, filter effect and rejections of one source."""
    quantiles = [0.0, 0.25, 0.5, 0.75]
    pooled = pd.DataFrame({"source": "fusion", "finding": "all", "quantile": quantiles, "images": 40})
    agreed = pooled.assign(limit=quantiles, real=[1, 0.75, 0.5, 0.25], synthetic=[0.9, 0.6, 0.4, 0.1])
    agreed = agreed.assign(
        low=agreed["synthetic"] - 0.08, high=agreed["synthetic"] + 0.08, accepted_images=[40, 30, 20, 4]
    )
    rows = [
        ("fusion", a, j, 0.61 if a == j else 0.11, 0.82 if a == j else 0.07, 20)
        for a in EXPERIMENT_FINDINGS
        for j in EXPERIMENT_FINDINGS
    ]
    effect = pooled.drop(columns="images").assign(kept=[40, 30, 20, 4], accepted_share=[0.31, 0.37, 0.43, np.nan])
    one = {"low": 0.21, "high": 0.47, "real_reference": 0.74}
    return {
        "agreement": agreed,
        "confusion": pd.DataFrame(rows, columns="source label predicted share real_share images".split()),
        "filter_effect": pd.concat([effect.assign(**one), effect.assign(**one, finding="Nodule")]),
        "rejections": pd.DataFrame(
            {"source": "fusion", "check": ["label", "duplicate"], "images": [7, 2], "planned": 51}
        ),
    }


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    """The folder of an evaluate run, every table of it."""
    data = f"data: {{kind: csv, table: /private/{SECRET}/list.csv}}"
    config = f"seed: 7\noutput_dir: /private/runs/x\n{data}\nnote: <b>bold</b>\n"
    (tmp_path / "config.yaml").write_text(config)
    tables = {"arms": arms(), "scores": arm_scores(), "comparisons": arm_differences()}
    tables |= {"subgroups": arm_subgroups(), "reliability": arm_reliability()} | label_tables()
    for name, table in tables.items():
        table.reset_index(drop=True).to_parquet(tmp_path / f"{name}.parquet")
    row = tables["comparisons"].query("arm == 'fusion_one' and control == 'copies_one' and metric == 'AP'")
    numbers = {k: float(row.set_index("finding")[k]["tail"]) for k in ("difference", "low", "high")}
    content = {
        "verdict": str(row.set_index("finding")["verdict"]["tail"]),
        "sentence": f"As the interval says, not as {HOSTILE} would.",
        "comparison": {"arm": "fusion_one", "control": "copies_one", "metric": "AP", "finding": "tail", **numbers},
        "against_real": {"control": "crt", "difference": 0.0123, "low": -0.0456, "high": 0.0702},
        "chosen_by": "validation tail macro AP",
        "smallest": 0.0432,
        "power_curve": [
            {"patients": 123, "seeds": 3, "smallest": 0.0432},
            {"patients": 1968, "seeds": 10, "smallest": None},
        ],
        "test_images": 345,
        "test_patients": 123,
        "seeds": 3,
    }
    (tmp_path / "verdict.json").write_text(json.dumps(content))
    counts = {"train": 500, "val": 80, "test": 345, "arms": 6}
    ran = {"versions": {"torch": "2.13.0"}, "device": "cpu", "seed": 7, "seconds": {"train": 123.456}}
    (tmp_path / "run.json").write_text(json.dumps(ran | {"counts": counts}))
    return tmp_path


@pytest.fixture
def page_of() -> Callable[..., Page]:
    """Writes the report of a run folder and reads it."""

    def read(run: Path, **options: bool) -> Page:
        return Page(write_report(run, **options).read_text())

    return read
