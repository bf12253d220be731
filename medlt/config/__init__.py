"""The settings of runs and experiments, as users write them in YAML."""

from medlt.config.ablation import Ablation
from medlt.config.base import FilePath, Strict
from medlt.config.data import CsvData, Data, ManifestData, NihData, PhantomData
from medlt.config.evaluation import EvaluationConfig
from medlt.config.guides import GuideConfig, JepaGuideConfig, LongtailGuideConfig, MinorityGuideConfig
from medlt.config.learning import (
    ClassifierConfig,
    CodecConfig,
    CodecTuning,
    DenoiserConfig,
    DenoiserTraining,
    FolderCodec,
    PixelsConfig,
    PromptConfig,
    SparseConfig,
    StableConfig,
    StableFolder,
    StableUntrained,
    TrainedCodec,
    TransformerConfig,
    UNetConfig,
)
from medlt.config.messages import expected, explain
from medlt.config.methods import (
    ClassBalancingConfig,
    Diffult,
    Edit,
    FromNoiseConfig,
    Fusion,
    InBandLoss,
    Longtail,
    MethodConfig,
    Minority,
    Sampling,
    Scheduler,
)
from medlt.config.plugged import settings_model
from medlt.config.privacy import Privacy
from medlt.config.read import dump, find, folder_of, load_config, load_verdict, parse, parse_verdict
from medlt.config.run import Checks, InBandConfig, NearCopyConfig, RunConfig, Targets
from medlt.config.schema import schema
from medlt.config.verdict import CONTROL_OF, ArmClassifierConfig, ArmConfig, EvaluateConfig, SourceConfig

__all__ = [
    "CONTROL_OF",
    "Ablation",
    "ArmClassifierConfig",
    "ArmConfig",
    "Checks",
    "ClassBalancingConfig",
    "ClassifierConfig",
    "CodecConfig",
    "CodecTuning",
    "CsvData",
    "Data",
    "DenoiserConfig",
    "DenoiserTraining",
    "Diffult",
    "Edit",
    "EvaluateConfig",
    "EvaluationConfig",
    "FilePath",
    "FolderCodec",
    "FromNoiseConfig",
    "Fusion",
    "GuideConfig",
    "InBandConfig",
    "InBandLoss",
    "JepaGuideConfig",
    "Longtail",
    "LongtailGuideConfig",
    "ManifestData",
    "MethodConfig",
    "Minority",
    "MinorityGuideConfig",
    "NearCopyConfig",
    "NihData",
    "PhantomData",
    "Privacy",
    "PromptConfig",
    "RunConfig",
    "PixelsConfig",
    "Sampling",
    "Scheduler",
    "SourceConfig",
    "SparseConfig",
    "StableConfig",
    "StableFolder",
    "StableUntrained",
    "Strict",
    "Targets",
    "TrainedCodec",
    "TransformerConfig",
    "UNetConfig",
    "dump",
    "expected",
    "explain",
    "find",
    "folder_of",
    "load_config",
    "load_verdict",
    "parse",
    "parse_verdict",
    "schema",
    "settings_model",
]
