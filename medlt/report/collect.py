"""Reads a run folder into one frozen record. A missing file gives None."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medlt.csv_text import unescaped
from medlt.records import without_checksum
from medlt.types import InputError

if TYPE_CHECKING:
    import pandas as pd

NOT_FINDINGS = frozenset(
    "path patient_id split view sex age synthetic weight parents method study slot candidate seed fold finding "
    "head_finding tail_parent head_parent tail_threshold head_threshold tail_probability mask_share tail_mass content "
    "label_source models last_steps mixing_weight tail_area lesion_carried label_mass localised_by label_reason".split()
)
COLUMNS = {
    "manifest": ("split",),
    "plan": ("finding",),
    "checks": ("check", "uid", "value", "limit", "passed", "reason"),
    "sparse_code_metrics": ("generation",),
    "panels": ("finding", "file", "kept"),
    "rejected_images": ("finding", "file"),
    "source_images": ("source", "uid", "finding", "file", "real"),
    "training": ("loss", "validation"),
    "scores": ("arm", "seed", "finding", "metric", "value"),
    "comparisons": ("arm", "control", "finding", "metric", "difference", "low", "high", "verdict"),
    "failures": ("uid", "reason"),
    "calibration": tuple(
        "guide kind strength displacement knn outside verifier verifier_change verifier_se signal allowed "
        "chosen".split()
    ),
    "introspection": ("attribute", "value", "share_top", "share_rest", "log_odds", "z"),
    "localisation": tuple("finding stage rows metric value low high images patients reason".split()),
    "introspection_gallery": ("finding", "signal", "nearest", "file"),
    "arms": (
        "arm",
        "source",
        "control",
        "role",
        "synthetic_ratio",
        "added",
        "wanted",
        "val_tail_ap",
        "val_tail_ap_sd",
        "primary",
    ),
    "subgroups": tuple("arm attribute value images patients metric score low high gap gap_low gap_high reason".split()),
    "reliability": ("arm", "finding", "images", "mean_score", "rate", "rate_low", "rate_high"),
    "fingerprints": ("arm", "finding", "auroc", "low", "high", "images"),
    "learning_curves": ("arm", "seed", "step", "val_macro_ap"),
    "confounding": tuple(
        "finding column positives cramers_v top_value top_share top_share_negatives confounded arm auroc "
        "within_auroc".split()
    ),
    "benchmark": tuple("test_set images arm control metric group value low high patients".split()),
    "retention": ("source", "finding", "kept", "low", "high", "images", "patients"),
    "agreement": ("source", "finding", "quantile", "real", "synthetic", "low", "high", "images", "accepted_images"),
    "confusion": ("source", "label", "predicted", "share", "real_share", "images"),
    "filter_effect": tuple("source finding quantile kept accepted_share low high real_reference".split()),
    "rejections": ("source", "check", "images", "planned"),
}
COMPARED = ("value", "control_value", "p", "p_holm", "smallest", "patients", "reason")
"""Further columns of comparisons.parquet in a folder with arms.parquet."""

OTHERWISE = {"manifest", "failures", "introspection_gallery"}
"""Tables that are not read from NAME.parquet into a field of that name as they are."""

KEYED = frozenset({"manifest", "plan", "panels", "rejected_images", "introspection_gallery"})


@dataclass(frozen=True)
class Collected:
    """The files of a run folder, of `medlt run` or of `medlt evaluate`.

    Tables with one row per image have the index `uid`; the others have a plain index.
    """

    folder: Path
    config: str
    run: dict[str, Any]
    findings: tuple[str, ...]
    manifest: pd.DataFrame | None
    plan: pd.DataFrame | None
    checks: pd.DataFrame | None
    sparse_code_metrics: pd.DataFrame | None
    panels: pd.DataFrame | None
    rejected_images: pd.DataFrame | None
    source_images: pd.DataFrame | None
    training: pd.DataFrame | None
    scores: pd.DataFrame | None
    comparisons: pd.DataFrame | None
    failures: pd.DataFrame | None
    calibration: pd.DataFrame | None
    introspection: pd.DataFrame | None
    gallery: pd.DataFrame | None
    localisation: pd.DataFrame | None
    arms: pd.DataFrame | None
    subgroups: pd.DataFrame | None
    reliability: pd.DataFrame | None
    agreement: pd.DataFrame | None
    confusion: pd.DataFrame | None
    filter_effect: pd.DataFrame | None
    rejections: pd.DataFrame | None
    fingerprints: pd.DataFrame | None
    learning_curves: pd.DataFrame | None
    confounding: pd.DataFrame | None
    retention: pd.DataFrame | None
    benchmark: pd.DataFrame | None
    verdict: dict[str, Any] | None
    audit: dict[str, Any] | None

    @property
    def is_experiment(self) -> bool:
        """Whether this is a folder of `medlt evaluate`: it has arms and no plan of images."""
        return self.arms is not None and self.plan is None

    def file(self, name: str) -> Path | None:
        """Return a file inside the run folder, or None."""
        file = (self.folder / name).resolve()
        return file if file.is_relative_to(self.folder.resolve()) and file.is_file() else None

    @property
    def private(self) -> bool:
        """Whether the config has a section for differential privacy."""
        return bool(self.settings.get("privacy"))

    @property
    def settings(self) -> dict[str, Any]:
        """Return config.yaml parsed; {} if it holds no mapping. Raises InputError if it is no YAML."""
        from medlt.yaml_text import read_yaml

        try:
            tree = read_yaml(self.config)
        except InputError as error:
            where = self.folder / "config.yaml"
            raise InputError(f"{where}: {error}; restore it, or run in a new folder") from None
        return tree if isinstance(tree, dict) else {}


def _table(folder: Path, name: str, suffix: str = ".parquet") -> pd.DataFrame | None:
    """Return one table with its columns checked; None for a missing file and for an empty CSV file."""
    import pandas as pd

    file = folder / f"{name}{suffix}"
    if not file.is_file() or (suffix == ".csv" and not file.stat().st_size):
        return None
    try:
        table = (
            pd.read_parquet(file)
            if suffix == ".parquet"
            else unescaped(pd.read_csv(file, dtype=str, keep_default_na=False))
        )
    except Exception as error:  # pyarrow and pandas raise many kinds
        raise InputError(f"{file}: not readable as {suffix[1:]}: {_first_line(error)}; run the stage again") from None
    return _keyed(table, name, file)


def _keyed(table: pd.DataFrame, name: str, file: Path) -> pd.DataFrame:
    """Return `table` with the index of its kind. Raises InputError on a missing column."""
    if name in KEYED and table.index.name != "uid":
        table = table.set_index("uid") if "uid" in table else table.rename_axis("uid")
    elif name not in KEYED and table.index.name is not None:
        table = table.reset_index(drop=table.index.name in table)
    wanted = COLUMNS[name]
    if name == "comparisons" and (file.parent / "arms.parquet").is_file():
        wanted += COMPARED
    if missing := [column for column in wanted if column not in table]:
        raise InputError(f"{file}: has no column {missing[0]!r}; run the stage that writes it again")
    return table


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _text(file: Path) -> str:
    """Return the text of a file. Raises InputError if it is no text."""
    try:
        return file.read_text()
    except UnicodeDecodeError:
        raise InputError(f"{file}: not readable as text; run the stage again") from None


def _json(file: Path) -> dict[str, Any] | None:
    """Return a JSON object without its checksum; None for a missing file. Raises InputError for anything else."""
    if not file.is_file():
        return None
    try:
        return without_checksum(file.read_text())
    except ValueError as error:
        raise InputError(f"{file}: not readable as JSON: {_first_line(error)}; run the stage again") from None
    except TypeError:
        raise InputError(f"{file}: holds no JSON object; run the stage again") from None


def finding_columns(manifest: pd.DataFrame) -> tuple[str, ...]:
    """Return the label columns: those in the attribute `findings`, else every float column with values in [0,1]."""
    if named := manifest.attrs.get("findings"):
        return tuple(name for name in named if name in manifest)
    return tuple(str(name) for name in manifest if name not in NOT_FINDINGS and _is_label(manifest[name]))


def _is_label(column: pd.Series) -> bool:
    return column.dtype.kind == "f" and bool(column.dropna().between(0, 1).all())


def collect(folder: Path) -> Collected:
    """Return the record of a run folder. Raises InputError if it is none, or if a file in it cannot be read."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder.absolute()}: no such folder; give the folder of a run (its --out)")
    if not (folder / "config.yaml").is_file():
        raise InputError(
            f"{folder.absolute()}: is no run folder, config.yaml is missing; give the folder of a run (its --out)"
        )
    manifest = _table(folder, "manifest")
    return Collected(
        folder=folder,
        config=_text(folder / "config.yaml"),
        run=_json(folder / "run.json") or {},
        findings=() if manifest is None else finding_columns(manifest),
        manifest=manifest,
        failures=_table(folder, "failures", ".csv"),
        gallery=_table(folder, "introspection_gallery"),
        **{name: _table(folder, name) for name in COLUMNS.keys() - OTHERWISE},
        verdict=_json(folder / "verdict.json"),
        audit=_json(folder / "audit.json"),
    )
