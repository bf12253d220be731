"""A config for a collection that medlt has not seen: chosen by looking and measuring, with the reasons as comments."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from medlt import config as configs
from medlt.api.collection import Collection, CollectionSummary
from medlt.api.defaults import defaults, is_quick, machine, quick_section
from medlt.data.regions import Regions
from medlt.files import atomic
from medlt.progress.lines import duration
from medlt.types import InputError

if TYPE_CHECKING:
    from medlt.recipes.estimate import Estimate

ENOUGH_REGIONS = 5
"""Train images with a mask or box that each tail finding needs, before lesions are cut out by them."""
WIDTH = 100
"""Most characters of a comment's line."""


@dataclass(frozen=True)
class FirstConfig:
    """A config with its text, what the collection holds, what the run would take, and remarks for the reader."""

    config: configs.RunConfig
    text: str
    summary: CollectionSummary
    estimate: Estimate
    planned: Mapping[str, int]
    notes: tuple[str, ...]


def draft(collection: Collection, table: Path, out: Path, source: str) -> FirstConfig:
    """Return a config for the collection whose manifest is `table`, to be written at `out`.

    source: what the collection was read from, for the first comment. Nothing is trained but a few steps of each part,
    to measure their time. Raises InputError for a collection without a finding to augment, and for one that no run can
    learn from.
    """
    from medlt.recipes import estimate

    collection.manifest.require_positives()
    tree, why, notes = _chosen(collection, table, out)
    parsed = configs.parse(_absolute(tree, out), str(out))
    _require_patients(collection, table, parsed.checks.folds)
    summary = collection.summary(parsed.targets.tail_below, parsed.targets.head_above)
    took = estimate.main(parsed, collection.manifest)
    planned = _planned(parsed, collection)
    text = "\n".join([*_head(source, summary, planned, took, out, notes), *_body(tree, why)]) + "\n"
    return FirstConfig(parsed, text, summary, took, planned, notes)


def _require_patients(collection: Collection, table: Path, folds: int) -> None:
    patients = collection.manifest.split("train").rows["patient_id"].nunique()
    if patients < folds:
        raise InputError(f"{table}: {patients} patient(s) in split train, and a run needs {folds}; add images")


def write_draft(made: FirstConfig, out: Path) -> None:
    """Write the config. Raises InputError, and writes nothing, if a file with other contents is there."""
    if out.exists():
        if out.read_text(encoding="utf-8") == made.text:
            return
        raise InputError(f"{out}: exists with other contents; choose another --out")
    with atomic(out) as temporary:
        temporary.write_text(made.text, encoding="utf-8")


def _chosen(collection: Collection, table: Path, out: Path) -> tuple[dict[str, Any], dict[str, str], tuple[str, ...]]:
    """Return the config's tree with relative paths, a comment for each section, and remarks."""
    here = machine({})
    usual = defaults(collection, {}, here)
    tail = collection.summary().tail
    if not tail:
        raise InputError(f"{table}: no finding of the collection is rare, so there is nothing to augment")
    method, reason = _method(collection, tail, is_quick(collection, here.device))
    evaluation, remark = _evaluation(collection, here.device)
    place = table.absolute()
    near = place.relative_to(out.absolute().parent) if place.is_relative_to(out.absolute().parent) else place
    own = {
        "data": {"kind": "manifest", "path": str(near)}, "method": method, "output_dir": f"runs/{out.stem}",
        "artifacts_dir": f"runs/{out.stem}_artifacts", "seed": 0,
    }  # fmt: skip
    tree = {**own, **{name: value for name, value in usual.items() if name not in own}, "evaluation": evaluation}
    why = {
        "method": reason,
        "output_dir": "the run folder: report.html, images/, manifest.parquet",
        "artifacts_dir": "trained parts, shared by runs on this collection",
        "size": f"side of the square images, px, for {_where(usual['device'])}",
        "data": "the manifest; `medlt validate` reads every file of it",
        "codec": "an autoencoder of this collection's own images; a folder of weights: {kind: folder, path: ...}",
        "denoiser": "fewer steps are faster and blurred, more are slower and may copy images",
        "targets": "positive train images wanted for each finding in the tail",
        "evaluation": remark,
    }
    return tree, why, tuple(_remarks(collection, tail, evaluation))


def _where(device: str) -> str:
    return "this GPU" if device.startswith("cuda") else "a CPU"


def _method(collection: Collection, tail: tuple[str, ...], quick: bool) -> tuple[dict[str, Any], str]:
    """Return the method's section and the reason: real lesions where their place is known, else latent fusion."""
    regions = Regions.of(collection.manifest.split("train"))
    known = {name: len(regions.known(name)) for name in regions.findings}
    if all(known.get(name, 0) >= ENOUGH_REGIONS for name in tail):
        return {"kind": "recompose"}, (
            "masks or boxes say where each rare finding is, so real lesions are pasted on other patients; "
            "others: fusion, edit, noise, diffult, minority, longtail"
        )
    sharp = {"image_size": quick_section("method")["image_size"]} if quick else {}
    return {"kind": "fusion", **sharp}, (
        "latent fusion needs no masks; with masks or boxes of the rare findings, recompose pastes real lesions; "
        "others: edit, noise, diffult, minority, longtail"
        + ("; image_size: the fused change is enlarged and added to real images of this side" if quick else "")
    )


def _evaluation(collection: Collection, device: str) -> tuple[dict[str, Any] | None, str]:
    """Return the section of the comparison and its comment."""
    splits = collection.manifest.rows["split"].value_counts()
    if missing := [name for name in ("val", "test") if not splits.get(name)]:
        return None, f"no comparison: no image has split {' or '.join(missing)}; `medlt manifest --resplit` makes them"
    if is_quick(collection, device):
        return (
            quick_section("evaluation"),
            "a brief comparison, enough to try; for a verdict leave only `seeds: 3`, which takes hours",
        )
    return {"seeds": 3}, "the comparison: does it help a classifier? null: make images without it"


def _remarks(collection: Collection, tail: tuple[str, ...], evaluation: Mapping[str, Any] | None) -> Iterator[str]:
    """Yield what a reader must know before the run: findings without test images, and what the split shows."""
    gains = collection.summary().findings["smallest_gain"]
    unseen = [name for name in tail if gains[name] != gains[name]]
    if evaluation is not None and unseen:
        yield f"too few test images have {', '.join(unseen)}: the comparison can show no gain there"
    yield from collection.notes


def _planned(config: configs.RunConfig, collection: Collection) -> dict[str, int]:
    """Return how many images each tail finding gets."""
    from medlt.recipes._cohort import RealRows

    return RealRows(collection.manifest, config.targets).shortfall()


def _absolute(tree: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Return the tree with paths that start at the config's folder."""
    home = out.absolute().parent
    data = {**tree["data"], "path": str(home / tree["data"]["path"])}
    places = {name: str(home / tree[name]) for name in ("output_dir", "artifacts_dir")}
    return {**tree, **places, "data": data}


def _head(
    source: str, summary: CollectionSummary, planned: Mapping[str, int], took: Estimate, out: Path,
    notes: tuple[str, ...],
) -> Iterator[str]:  # fmt: skip
    """Yield the comment at the top: what was seen, what the experiment could show, what it takes, what to type."""
    splits = ", ".join(f"{name} {count}" for name, count in summary.splits.items())
    yield from _comment(f"{source}: {summary.images} images of {summary.patients} patients ({splits}).")
    yield "#"
    yield from _comment(f"Rare findings: {summary.rule}.")
    for name in summary.tail:
        yield f"#   {name}: {_rare(summary.findings.loc[name], planned.get(name, 0))}"
    yield from _comment("The smallest gain is the rise in AUROC that the test images would show four times in five.")
    yield "#"
    stages = ", ".join(f"{stage} {duration(seconds)}" for stage, seconds in took.seconds.items())
    yield from _comment(
        f"Estimate for this machine: about {duration(sum(took.seconds.values()))} ({stages}), at least "
        f"{_space(took.memory_mb)} of memory, and {_space(took.disk_mb)} of disk for images and latents. "
        "Reading and training are measured by a few steps, making images is reckoned from them."
    )
    for note in notes:
        yield from _comment(f"Note: {note}.")
    yield "#"
    yield f"#   medlt run {out.name}"
    yield "#"
    yield from _comment(
        "Run it again to resume. `medlt augment` makes the images without the comparison. Every key: "
        "docs/reference/settings.md, or `medlt config schema`."
    )


def _rare(row: Mapping[str, Any], planned: int) -> str:
    """Return what is known of a rare finding: its positives, the images to make, and what the test images show."""
    gain = row["smallest_gain"]
    shown = "too few to show a gain" if gain != gain else f"smallest gain {gain:.2f}"
    return f"{row['train']} train positives, {planned} images to make; {row['test']} test positives, {shown}"


def _space(megabytes: float) -> str:
    return f"{math.ceil(megabytes)} MB" if megabytes < 1000 else f"{megabytes / 1024:.1f} GB"


def _body(tree: Mapping[str, Any], why: Mapping[str, str]) -> Iterator[str]:
    """Yield the sections, each below its comment."""
    for name, value in tree.items():
        if value == {}:
            continue
        if name in why:
            yield from _comment(why[name])
        yield yaml.safe_dump({name: value}, sort_keys=False, default_flow_style=False, allow_unicode=True).rstrip()


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="# ", subsequent_indent="# ", break_long_words=False)
