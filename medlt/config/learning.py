"""What is learnt: codec, sparse code, denoiser, classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, Tag

from medlt.config.base import Strict, by_kind


class CodecTuning(Strict):
    """Fine-tuning of an autoencoder on the train split."""

    decoder_only: bool = Field(True, description="leave the encoder, and with it every cached latent, as it is")
    edge: float = Field(1.0, ge=0, description="weight of the loss on image gradients")
    ssim: float = Field(0.0, ge=0, description="weight of 1 - SSIM")
    steps: int = Field(500, ge=1)
    batch_size: int = Field(8, ge=1)
    learning_rate: float = Field(1e-5, gt=0)


class FolderCodec(Strict):
    """A diffusers autoencoder folder (AutoencoderKL or AutoencoderTiny), as it is or tuned on the train split."""

    kind: Literal["folder"] = "folder"
    path: Path
    tune: CodecTuning | None = None


class TrainedCodec(Strict):
    """A small AutoencoderKL trained here on the train split."""

    kind: Literal["train"] = "train"
    channels: int = Field(4, ge=1)
    width: int = Field(32, ge=8)
    levels: int = Field(3, ge=2, description="the image shrinks by 2 ** (levels - 1)")
    steps: int = Field(600, ge=1)
    batch_size: int = Field(16, ge=1)
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
    batch_size: int = Field(16, ge=2)
    learning_rate: float = Field(5e-3, gt=0)
    weight_decay: float = Field(1e-2, ge=0)
    classification_weight: float = Field(1.0, ge=0, description="lambda of the classification loss")


class DenoiserTraining(Strict):
    """How a denoiser is trained, of whatever family; see docs/fine-tuning.md."""

    steps: int = Field(3000, ge=1)
    batch_size: int = Field(32, ge=1)
    gradient_accumulation_steps: int = Field(
        1, ge=1, description="pieces a batch is computed in; memory falls, the step is the same"
    )
    learning_rate: float = Field(3e-4, gt=0)
    lr_scheduler: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = Field(50, ge=0, description="over which the learning rate rises")
    ema_decay: float = Field(0.999, ge=0, lt=1)
    condition_dropout: float = Field(0.1, ge=0, le=1, description="share of samples trained without their label")
    min_snr_gamma: float = Field(5.0, gt=0, description="gamma: the SNR weight is never above it")
    snr_floor: float = Field(1.0, ge=0, description="nor below it")
    offset_noise: float = Field(0.0, ge=0)
    balance: Literal["inverse_sqrt", "effective_number"] | None = Field(
        None, description="draw rare findings more often"
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="of the network; its weights stay fp32")
    gradient_checkpointing: bool = Field(False, description="recompute activations: less memory, the same weights")
    checkpoint_every: int = Field(500, ge=1)
    tracker: Literal["tensorboard"] | None = Field(None, description="needs the extra `tracking`")


class UNetConfig(DenoiserTraining):
    """A small label-conditioned latent UNet, trained from nothing."""

    kind: Literal["unet"] = "unet"
    width: int = Field(64, ge=8, multiple_of=8)
    levels: int = Field(2, ge=1)
    prediction: Literal["epsilon", "v_prediction", "sample"] = "v_prediction"
    init_from: Path | None = Field(
        None, description="folder of a denoiser to begin with, such as one of synthetic data"
    )


class TransformerConfig(DenoiserTraining):
    """A small label-conditioned latent transformer, trained from nothing."""

    kind: Literal["transformer"] = "transformer"
    width: int = Field(192, ge=16)
    depth: int = Field(6, ge=1)
    heads: int = Field(6, ge=1)
    patch: int = Field(2, ge=1)
    prediction: Literal["epsilon", "v_prediction", "sample"] = "v_prediction"
    init_from: Path | None = Field(
        None, description="folder of a denoiser to begin with, such as one of synthetic data"
    )


class StableFolder(Strict):
    """A Stable Diffusion 1.x or 2.x checkpoint: a diffusers folder, or one safetensors file."""

    kind: Literal["folder"] = "folder"
    path: Path
    config: Path | None = Field(None, description="for a single file: a folder with the tokenizer and configs")
    prediction: Literal["epsilon", "v_prediction"] | None = Field(
        None, description="for a single file, which is silent"
    )
    loras: tuple[Path, ...] = ()


class StableUntrained(Strict):
    """An untrained model in exactly Stable Diffusion's format, for a start without weights."""

    kind: Literal["untrained"] = "untrained"
    version: Literal["1.5", "2.1"] = "1.5"
    prediction: Literal["epsilon", "v_prediction"] | None = Field(None, description="default: the version's own")
    widths: tuple[int, ...] = Field((64, 128, 256, 256), description="UNet channels a level, multiples of 32")
    layers: int = Field(1, ge=1)
    text_width: int = Field(128, ge=32)
    text_layers: int = Field(2, ge=1)
    tokenizer: Path | None = Field(None, description="a tokenizer folder to copy; default: a small one")


class PromptConfig(Strict):
    """How a label vector is said in words; see docs/prompts.md."""

    template: str | None = None
    words: dict[str, str] = Field({}, description="finding -> phrase; default: its name in lower case")
    soft_above: float = Field(0.5, gt=0, le=1, description="a soft label is said from here upward")
    most: int | None = Field(None, ge=1, description="name at most so many findings; tokenizers hold about 75 tokens")
    age: Literal["decades", "years"] = "decades"


class StableConfig(DenoiserTraining):
    """Stable Diffusion, as it is or fine-tuned."""

    kind: Literal["stable-diffusion"] = "stable-diffusion"
    model: Annotated[StableFolder | StableUntrained, Field(discriminator="kind")]
    prompts: PromptConfig = PromptConfig()
    train: Literal["none", "lora", "full"] = "lora"
    train_text: bool = Field(False, description="fine-tune the text encoder along with the UNet")
    rank: int = Field(16, ge=1, description="of LoRA")
    lora_conv: bool = Field(False, description="LoRA on convolutions too")
    learning_rate: float = Field(1e-4, gt=0)
    lr_scheduler: Literal["constant", "cosine"] = "cosine"
    snr_floor: float = Field(0.0, ge=0)


DenoiserConfig = Annotated[
    Annotated[UNetConfig, Tag("unet")]
    | Annotated[TransformerConfig, Tag("transformer")]
    | Annotated[StableConfig, Tag("stable-diffusion")],
    by_kind("unet"),
]


class ClassifierConfig(Strict):
    """The image classifier, used for the judges and for every arm alike."""

    network: Literal["small", "dense", "densenet121"] = "small"
    size: int = Field(128, ge=32)
    loss: Literal["balanced", "asymmetric"] = "balanced"
    steps: int = Field(500, ge=1)
    batch_size: int = Field(32, ge=2)
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-2, ge=0)
    evaluate_every: int = Field(50, ge=1)
    patience: int = Field(4, ge=1, description="evaluations without a better validation macro AP before the stop")
