"""What a user may write in a recipe's YAML: closed, frozen models that stop a misspelt key at the door.

Defaults are the published ones (arXiv 2405.01705 for fusion) unless the field says otherwise.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from medlt.types import InputError


class Strict(BaseModel):
    """Closed and frozen: an unknown key is an error, a built config does not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class CsvData(Strict):
    """A table with one row an image and one 0/1/blank column a finding."""

    kind: Literal["csv"] = "csv"
    table: Path
    root: Path | None = Field(None, description="folder the paths are relative to; default: the table's folder")
    findings: tuple[str, ...]
    path: str = "path"
    uid: str = "uid"
    patient_id: str = "patient_id"
    split: str = "split"
    view: str | None = "view"
    keep: tuple[str, ...] = Field(("sex", "age"), description="further columns to carry along when present")
    train_flag: str | None = Field(None, description="train rows are kept only where this column is 1")
    uncertain: Literal["unknown", "positive", "negative"] = Field("unknown", description="what a label of -1 becomes")


class NihData(Strict):
    """The NIH ChestX-ray14 table (Data_Entry_2017*.csv) and its image folder(s)."""

    kind: Literal["nih"] = "nih"
    table: Path
    images: Path
    test_list: Path | None = Field(None, description="the official test_list.txt; else patients are split by the seed")


class ManifestData(Strict):
    """A manifest.parquet written earlier."""

    kind: Literal["manifest"] = "manifest"
    path: Path


class PhantomData(Strict):
    """Synthetic radiographs, written as DICOM into the run folder and read back from there."""

    kind: Literal["phantom"] = "phantom"
    patients: int = Field(600, ge=20)
    size: int = Field(256, ge=64, description="rows and columns of the DICOM images")
    imbalance: float = Field(50.0, ge=1, description="prevalence of the most frequent finding over the rarest")


Data = Annotated[CsvData | NihData | ManifestData | PhantomData, Field(discriminator="kind")]


class FolderCodec(Strict):
    """A diffusers autoencoder folder (AutoencoderKL or AutoencoderTiny)."""

    kind: Literal["folder"] = "folder"
    path: Path


class TrainedCodec(Strict):
    """A small AutoencoderKL trained here on the train split."""

    kind: Literal["train"] = "train"
    channels: int = Field(4, ge=1)
    width: int = Field(32, ge=8)
    levels: int = Field(3, ge=2, description="the image shrinks by 2 ** (levels - 1)")
    steps: int = Field(600, ge=1)
    batch: int = Field(16, ge=1)
    learning_rate: float = Field(1e-3, gt=0)


CodecConfig = Annotated[FolderCodec | TrainedCodec, Field(discriminator="kind")]


class SparseConfig(Strict):
    """Iterated learning of the simplicial code."""

    groups: int = Field(16, ge=1, description="L, simplices a pixel")
    vocabulary: int = Field(16, ge=2, description="V, words a simplex")
    temperature: float = Field(0.05, gt=0, description="not published; logits are normalised, see sparse.embedding")
    generations: int = Field(5, ge=1)
    imitation_epochs: int = Field(8, ge=1)
    adaptation_epochs: int = Field(1, ge=0)
    interaction_epochs: int = Field(6, ge=1)
    patience: int = Field(3, ge=1)
    width: int = Field(32, ge=8)
    batch: int = Field(16, ge=2)
    learning_rate: float = Field(5e-3, gt=0)
    weight_decay: float = Field(1e-2, ge=0)
    classification_weight: float = Field(1.0, ge=0, description="lambda of the classification loss")


class DenoiserConfig(Strict):
    """A small label-conditioned latent UNet."""

    width: int = Field(64, ge=8)
    steps: int = Field(3000, ge=1)
    batch: int = Field(32, ge=1)
    learning_rate: float = Field(3e-4, gt=0)
    ema: float = Field(0.999, ge=0, lt=1)
    prediction: Literal["epsilon", "v_prediction", "sample"] = "v_prediction"
    drop_condition: float = Field(0.1, ge=0, le=1, description="share of samples trained without their label")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="of the network in training; weights stay fp32")
    checkpoint_every: int = Field(500, ge=1)


class Fusion(Strict):
    """Latent fusion (arXiv 2405.01705)."""

    kind: Literal["fusion"] = "fusion"
    pairing: Literal["saliency", "confusing"] = "saliency"
    neighbours: int = Field(3, ge=1)
    cam: Literal["gradcam", "hirescam", "layercam"] = "gradcam"
    rule: Literal["tail_first", "published"] = Field("tail_first", description="see synthesis.fuse")
    threshold_mean: float = Field(0.2, ge=0, le=1, description="published: 0.5")
    threshold_sd: float = Field(0.05, ge=0, description="published: 0.1")
    scheduler: Literal["ddim", "ddpm", "dpm++", "dpm++sde", "lcm", "tcd", "unipc"] = "ddim"
    steps: int = Field(75, ge=1, description="N, the length of the full schedule")
    keep: int = Field(5, ge=1, description="k, how many of its last steps are run")
    renoise: bool = Field(True, description="add the noise step N-k expects (SDEdit); False is the published code")
    guidance: float = Field(3.5, ge=0)
    labels: Literal["cam_mass", "tail", "union"] = "cam_mass"

    @model_validator(mode="after")
    def _keep_fits(self) -> Self:
        if self.keep > self.steps:
            raise ValueError(f"keep {self.keep} is more than the {self.steps} steps there are; lower keep")
        return self


Method = Fusion


class Need(Strict):
    """How much of the tail to fill."""

    tail_below: int = Field(100, ge=1, description="a finding with fewer train positives is tail")
    head_above: int = Field(1000, ge=1, description="a finding with more is head; if none has, thirds are taken")
    target: int = Field(100, ge=1, description="train positives wanted for each tail finding")
    most: int = Field(500, ge=1, description="never more than this many images a finding")
    candidates: int = Field(2, ge=1, description="candidates made for each wanted image; the judge keeps the best")


class Checks(Strict):
    """What an image must pass before it is kept."""

    folds: int = Field(3, ge=2, description="patient folds of the train split; a judge never saw its parents' fold")
    quantile: float = Field(0.5, gt=0, lt=1, description="threshold: this quantile of the judge on held-out positives")
    black_below: float = Field(0.02, ge=0, le=1, description="an image of lower standard deviation is called flat")
    duplicate_above: float = Field(0.995, ge=0, le=1, description="correlation with another image that makes a copy")


class ClassifierConfig(Strict):
    """The image classifier, used for the judges and for every arm alike."""

    network: Literal["small", "densenet121"] = "small"
    size: int = Field(128, ge=32)
    loss: Literal["balanced", "asymmetric"] = "balanced"
    steps: int = Field(500, ge=1)
    batch: int = Field(32, ge=2)
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-2, ge=0)
    evaluate_every: int = Field(50, ge=1)
    patience: int = Field(4, ge=1, description="evaluations without a better validation macro AP before the stop")


class Evaluation(Strict):
    """The controlled comparison: real, duplicated, synthetic."""

    seeds: int = Field(3, ge=1)
    mix: float = Field(0.2, gt=0, lt=1, description="share of each batch drawn from the added rows")
    weight: float = Field(0.3, gt=0, le=1, description="loss weight of an added row")
    draws: int = Field(2000, ge=100, description="patient bootstrap draws")


class RunConfig(Strict):
    """One recipe, end to end."""

    recipe: Literal["fusion"] = "fusion"
    out: Path
    format: Literal["png", "dicom"] = Field("png", description="of kept images; dicom: in dicom/, beside the PNG")
    seed: int = Field(0, ge=0)
    size: int = Field(128, ge=32, description="side of the square images, px")
    threads: int | None = Field(None, ge=1, description="torch threads; equal bytes need an equal number")
    device: Literal["cpu"] = "cpu"
    data: Data
    skip_unreadable: bool = Field(False, description="go on without images that cannot be read, and list them")
    codec: CodecConfig
    sparse: SparseConfig = SparseConfig()
    denoiser: DenoiserConfig = DenoiserConfig()
    method: Method = Fusion()
    need: Need = Need()
    checks: Checks = Checks()
    classifier: ClassifierConfig = ClassifierConfig()
    evaluation: Evaluation = Evaluation()


def _expand(text: str, where: Path) -> str:
    """Replace ${NAME} and ${NAME:-default} by the environment, as a shell does."""

    def value(match: re.Match[str]) -> str:
        name, default = match["name"], match["default"]
        if (found := os.environ.get(name) or default) is None:
            raise InputError(f"{where}: the variable {name} is not set; export {name}=... first")
        return found

    return re.sub(r"\$\{(?P<name>\w+)(?::-(?P<default>[^}]*))?\}", value, text)


def _override(tree: dict[str, Any], assignment: str) -> None:
    """Apply one `a.b=value` in place; the value is read as YAML."""
    key, equals, value = assignment.partition("=")
    if not equals:
        raise InputError(f"override {assignment!r} has no '='; write it as section.key=value")
    *parents, last = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise InputError(f"override {assignment!r}: {parent} is not a section")
    tree[last] = yaml.safe_load(value)


def _told(error: ValidationError, where: str) -> str:
    """The first problem of a pydantic error as one line: what, where, how to mend."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        return f"{where}: {key} is not a known key; check its spelling and its section{more}"
    return f"{where}: {key}: {first['msg']}, got {first['input']!r}{more}"


def parse(tree: dict[str, Any], where: str = "config") -> RunConfig:
    """Validate a mapping. Raises InputError with one clear line."""
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise InputError(_told(error, where)) from None


def load(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a recipe's YAML, apply `section.key=value` overrides, validate. Raises InputError with one clear line."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such config file; the ones that ship with medlt are in pipelines/")
    try:
        tree = yaml.safe_load(_expand(path.read_text(), path))
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not readable as YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(tree, dict):
        raise InputError(f"{path}: holds no settings; begin with 'recipe: fusion'")
    for assignment in overrides:
        _override(tree, assignment)
    return parse(tree, str(path))


def dump(config: RunConfig) -> str:
    """The resolved config as YAML that `load` reads back to an equal config."""
    return str(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
