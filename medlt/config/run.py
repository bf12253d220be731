"""The config of `medlt run`, `augment` and `train`: targets, checks, and the whole."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, GetJsonSchemaHandler, ValidationInfo, model_validator
from pydantic_core import CoreSchema

from medlt.config.ablation import Ablation
from medlt.config.base import FilePath, Strict
from medlt.config.classifier import ClassifierConfig
from medlt.config.data import CsvData, Data, NihData
from medlt.config.evaluation import EvaluationConfig
from medlt.config.evolution import Evolution
from medlt.config.guides import Calibration
from medlt.config.learning import CodecConfig, DenoiserConfig, Precision, SparseConfig, UNetConfig
from medlt.config.methods import Fusion, MethodConfig
from medlt.config.plugged import MARK, Plugged, optional_sections
from medlt.config.privacy import Privacy
from medlt.config.working import Engine, EngineConfig
from medlt.names import did_you_mean
from medlt.plugins import CHECKS, CODECS, METHODS, PASTED, MethodPlugin, Plugin, Registry
from medlt.types import InputError


class Targets(Strict):
    """Which findings are rare, and how many images of each are made."""

    tail_below: int = Field(100, ge=1, description="a finding with fewer positive train images is in the tail")
    head_above: int = Field(
        1000, ge=1, description="a finding with more is in the head; if there is none, findings are cut into thirds"
    )
    count: int = Field(100, ge=1, description="positive train images wanted per tail finding, real and synthetic")
    multiplier: float | None = Field(
        None, gt=1, le=100, description="instead of count: this many times the real positives"
    )
    max_per_finding: int = Field(500, ge=1, description="synthetic images per finding, at most")
    num_candidates: int = Field(
        2, ge=1, description="candidates per wanted image, of which the verifier's best is kept"
    )
    max_retries: int = Field(
        0, ge=0, le=100, description="how often a wanted image is tried again when no candidate passes the checks"
    )


class InBandConfig(Strict):
    """Rejects images far from the real positives of their finding (the filter of DiffuLT, arXiv 2403.05170)."""

    form: Literal["neighbours", "centre"] = Field(
        "neighbours", description="distance to the nearest real positives, or to their centre as published"
    )
    k: int = Field(5, ge=1, description="number of nearest real positives, for form neighbours")
    quantile: float = Field(
        0.95, gt=0, le=1, description="width of a band: this quantile of the distances of held-out real positives"
    )
    limit: float = Field(2.0, gt=0, description="largest distance that is kept, in widths of the band; published: 2")


class NearCopyConfig(Strict):
    """Rejects images that are nearer to one real train image than validation images are."""

    fpr: float = Field(
        0.02, gt=0, lt=1, description="false-positive rate: share of unseen real images that it would reject"
    )
    steps: int = Field(250, ge=1, description="training steps of the embedding in which images are compared")


class Checks(Strict):
    """What an image must pass to be kept. A check of a plug-in is a further key, with its settings."""

    model_config = ConfigDict(extra="allow")

    folds: int = Field(
        3, ge=2, description="patient folds of the train split; each image is verified by a classifier that was "
        "trained without its parents' fold"
    )  # fmt: skip
    verifier_quantile: float = Field(
        0.5, gt=0, lt=1, description="threshold of the verifier: this quantile of its probabilities on held-out real "
        "positives; a higher one rejects more"
    )  # fmt: skip
    min_std: float = Field(
        0.02, ge=0, le=1, description="least standard deviation of the pixels, on a scale of 0 to 1; below it an image "
        "counts as flat"
    )  # fmt: skip
    max_correlation: float = Field(
        0.995, ge=0, le=1, description="largest correlation with a parent or another kept image; above it an image "
        "counts as a copy"
    )  # fmt: skip
    in_band: InBandConfig | None = Field(None, description="on by default for diffult; null: off")
    near_copy: NearCopyConfig | None = Field(
        None, description="on by default for methods that start from noise, unless the run is private; null: off"
    )

    @model_validator(mode="before")
    @classmethod
    def _of_plugins(cls, given: Any, info: ValidationInfo) -> Any:
        """Validate the sections of checks that plug-ins add; refuse other keys."""
        if not isinstance(given, dict):
            return given
        added = {name: value for name, value in given.items() if name not in cls.model_fields}
        sections = optional_sections(CHECKS, added).model_validate(added, context=info.context)
        own = {name: value for name, value in given.items() if name not in added}
        return own | {name: section for name, section in sections if section is not None}

    @property
    def optional(self) -> dict[str, Strict]:
        """The settings of the optional checks that are on, by name: in_band, near_copy, then those of plug-ins."""
        own = {"in_band": self.in_band, "near_copy": self.near_copy}
        return {name: one for name, one in own.items() if one is not None} | (self.model_extra or {})

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler.resolve_ref_schema(handler(schema)), "additionalProperties": False, MARK: CHECKS.group}


def complete(given: Any) -> Any:
    """Return a config's mapping with its method as a mapping, and with the checks that the method turns on."""
    if not isinstance(given, dict):
        return given
    method = given.get("method", "fusion")
    if isinstance(method, str):
        method = {"kind": method}
    section = method if isinstance(method, dict) else vars(method) if isinstance(method, Strict) else {}
    kind = section.get("kind", "fusion" if isinstance(method, dict) else None)
    private, checks = given.get("privacy") is not None, given.get("checks")
    plugin = _plugin_of(kind)
    usual: dict[str, Any] = {
        name: {} for name in (plugin.checks if plugin else ()) if not (private and CHECKS[name].reads_real_images)
    }
    real_pixels = plugin is not None and plugin.keeps_pixels and not private
    usual |= {"max_correlation": PASTED} if real_pixels and section.get("decoding") != "plain" else {}
    if usual and (checks is None or isinstance(checks, dict)):
        given = {**given, "checks": usual | (checks or {})}
    return {**given, "method": method}


def _plugin_of(kind: Any) -> MethodPlugin | None:
    """Return the method of a kind; None for one that the section `method` refuses."""
    try:
        return METHODS[kind] if isinstance(kind, str) else None
    except InputError:
        return None


class RunConfig(Strict):
    """The config of one run, from the data to the report."""

    method: Annotated[MethodConfig, Plugged(METHODS, "fusion")] = Field(
        Fusion(), description="how images are made: a name, or a section with its kind"
    )
    output_dir: FilePath = Field(description="run folder: it is made, or resumed")
    artifacts_dir: FilePath | None = Field(
        None, description="folder of trained parts, which runs on one collection may share; null: inside the run folder"
    )
    format: Literal["png", "dicom"] = Field("png", description="dicom: kept images are written as DICOM too, in dicom/")
    seed: int = Field(0, ge=0, description="seed of every random number of the run")
    size: int = Field(128, ge=32, description="side of the square images, pixels")
    threads: int | None = Field(
        None, ge=1, description="threads of torch; equal results need an equal number; null: all cores"
    )
    workers: int = Field(
        1, ge=1, le=1024, description="processes that make and check images at the same time, each with `threads`; "
        "they change no image; keep 1 in a private run"
    )  # fmt: skip
    engine: Engine = Field(EngineConfig(), description="where the workers are: local, ray, or a section")
    device: Literal["cpu", "cuda"] = Field("cpu", description="where networks run")
    precision: Precision = Field("fp32", description="precision of the denoiser and the codec when they sample")
    compile: bool | Literal["measure"] = Field(
        False, description="use torch.compile; measure: only if it is faster on this GPU"
    )
    cuda_graphs: bool = Field(False, description="replay the denoiser as CUDA graphs: faster for small batches")
    data: Data = Field(description="where images and labels come from")
    skip_unreadable: bool = Field(False, description="list unreadable images in failures.csv and go on without them")
    codec: Annotated[CodecConfig, Plugged(CODECS)] = Field(description="autoencoder between images and latents")
    latents: Literal["standardised", "as_coded"] = Field(
        "standardised", description="scale of latents: by the mean and deviation of the train split, or as the codec "
        "gives them, which private runs always use"
    )  # fmt: skip
    sparse: SparseConfig = Field(SparseConfig(), description="sparse code, for method fusion")
    denoiser: DenoiserConfig = Field(UNetConfig(), description="diffusion model")
    targets: Targets = Field(Targets(), description="which findings are rare, and how many images are made")
    checks: Checks = Field(Checks(), description="what an image must pass to be kept")
    classifier: ClassifierConfig = Field(
        ClassifierConfig(), description="the verifiers, and the classifiers of the comparison"
    )
    guidance_classifier: ClassifierConfig | None = Field(
        None, description="classifier of Longtail Guidance; null: as `classifier`, with another network and seed"
    )
    calibration: Calibration = Field(
        Calibration(), description="how `medlt calibrate` and a guide's weight: auto choose the strength of guidance"
    )
    evaluation: EvaluationConfig | None = Field(
        EvaluationConfig(), description="comparison of `medlt run`; null: make images without one"
    )
    ablation: Ablation | None = Field(
        None, description="settings that `medlt run` varies one by one, in place of a comparison"
    )
    privacy: Privacy | None = Field(None, description="differential privacy; null: none")
    budget_book: FilePath | None = Field(
        None, description="file that lists every model trained on these patients, and its privacy cost, for all runs "
        "together; null: medlt-budget-book.json beside the table of the data"
    )  # fmt: skip

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, given: Any) -> Any:
        return complete(given)

    @model_validator(mode="after")
    def _method_fits(self) -> Self:
        if self.ablation is not None and self.method.kind != "fusion":
            raise ValueError(f"ablation varies method fusion, not {self.method.kind}; remove one of them")
        if self.ablation is not None and self.ablation.downstream and self.evaluation is None:
            raise ValueError("ablation.downstream compares arms; give evaluation, or remove downstream")
        if self.ablation is not None and self.evaluation is not None and self.evaluation.metric != "AP":
            raise ValueError("ablation compares tail AP; remove evaluation.metric")
        if self.evaluation is not None and self.evaluation.primary_arm is not None:
            raise ValueError("evaluation.primary_arm is for `medlt evaluate`, which has several arms; remove it")
        return self

    @model_validator(mode="after")
    def _workers_fit(self) -> Self:
        used = "workers" if self.workers > 1 else "engine" if self.engine != EngineConfig() else ""
        if used and self.privacy is not None:
            raise ValueError(f"{used}: a private run makes its images in one process; remove {used}")
        if self.engine.gpus and self.device != "cuda":
            raise ValueError("engine.gpus needs `device: cuda`; set it, or remove engine.gpus")
        return self

    @model_validator(mode="after")
    def _image_size_fits(self) -> Self:
        wanted = getattr(self.method, "image_size", None)
        if wanted is None:
            return self
        if self.privacy is not None or getattr(self.method, "decoding", "difference") == "plain":
            raise ValueError("method.image_size needs real pixels; remove it, or `decoding: plain`, or privacy")
        if wanted < self.size:
            raise ValueError(f"method.image_size {wanted} is below size {self.size}; raise it, or remove it")
        return self

    @model_validator(mode="after")
    def _private_can_be(self) -> Self:
        if self.privacy is None:
            if isinstance(self.method, Evolution):
                raise ValueError("method evolution is for private runs; add a section privacy, or use method: noise")
            return self
        if isinstance(self.method, Evolution) and self.denoiser.train != "none":
            raise ValueError("method evolution trains nothing; write denoiser.train: none with a public denoiser")
        if self.ablation is not None:
            raise ValueError("privacy: an ablation cannot be private; remove one of them")
        for what, name, plugin in self.chosen_plugins:
            if not plugin.private:
                other = "; use method: noise" if what == "method" else "; remove it, or remove privacy"
                raise ValueError(f"privacy: {what} {name} does not declare that private runs may use it{other}")
        if isinstance(self.data, NihData):
            raise ValueError(
                "privacy: data.kind nih splits patients by the findings of all, so one patient moves others; write "
                "their splits with `medlt manifest`, and use data.kind: manifest"
            )
        known = self.data.findings if isinstance(self.data, CsvData) else self.privacy.findings
        if strange := [name for name in self.privacy.findings if name not in known]:
            close = did_you_mean(strange[0], known) or ";"
            raise ValueError(f"privacy.findings: {strange[0]!r} is not in data.findings{close} use {', '.join(known)}")
        if any(one.weight == "auto" for one in getattr(self.method, "guidance", ())):
            raise ValueError("privacy: weight auto is chosen by comparison with real images; give a number")
        if self.denoiser.balance is not None:
            raise ValueError("privacy: denoiser.balance samples patients by their findings; remove it")
        return self

    @property
    def image_size(self) -> int:
        """Side of the images that are made, pixels."""
        return getattr(self.method, "image_size", None) or self.size

    @property
    def data_independent(self) -> bool:
        """Whether images are made without reading any real row: neither its label vector nor its number."""
        return self.privacy is not None and METHODS[self.method.kind].from_noise

    @property
    def chosen_plugins(self) -> tuple[tuple[str, str, Plugin], ...]:
        """(group, name, plug-in) of the method, the codec and the optional checks, those of medlt included."""
        checks = [("check", name, CHECKS[name]) for name in self.checks.optional]
        method, codec = self.method.kind, self.codec.kind
        return ("method", method, METHODS[method]), ("codec", codec, CODECS[codec]), *checks

    @property
    def plugin_versions(self) -> dict[str, str]:
        """`GROUP.NAME` of the plug-ins that installed packages add, with "PACKAGE VERSION"."""
        registries: dict[str, Registry[Any]] = {"method": METHODS, "codec": CODECS, "check": CHECKS}
        versions = {f"{group}.{name}": registries[group].package(name) for group, name, _ in self.chosen_plugins}
        return {name: version for name, version in versions.items() if version}
