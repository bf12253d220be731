"""What a user may write in a recipe's YAML."""

from medlt.config.base import Strict
from medlt.config.data import CsvData, Data, ManifestData, NihData, PhantomData
from medlt.config.learning import (
    ClassifierConfig,
    CodecConfig,
    CodecTuning,
    DenoiserConfig,
    FolderCodec,
    PromptConfig,
    SparseConfig,
    StableConfig,
    StableFolder,
    StableUntrained,
    TrainedCodec,
    Training,
    TransformerConfig,
    UNetConfig,
)
from medlt.config.read import dump, load, parse
from medlt.config.run import Checks, Evaluation, FromNoise, Fusion, Method, Need, RunConfig, Scheduler

__all__ = [
    "Checks",
    "ClassifierConfig",
    "CodecConfig",
    "CodecTuning",
    "CsvData",
    "Data",
    "DenoiserConfig",
    "Evaluation",
    "FolderCodec",
    "FromNoise",
    "Fusion",
    "ManifestData",
    "Method",
    "Need",
    "NihData",
    "PhantomData",
    "PromptConfig",
    "RunConfig",
    "Scheduler",
    "SparseConfig",
    "StableConfig",
    "StableFolder",
    "StableUntrained",
    "Strict",
    "TrainedCodec",
    "Training",
    "TransformerConfig",
    "UNetConfig",
    "dump",
    "load",
    "parse",
]
