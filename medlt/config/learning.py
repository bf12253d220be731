"""The trained parts of a run: codec, sparse code and denoiser."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, Tag, model_validator

from medlt.config.base import FilePath, Strict, by_kind

Precision = Literal["fp32", "bf16", "fp16"]
Prediction = Literal["epsilon", "v_prediction", "sample"]
INIT_FROM = "folder of a trained denoiser to start from, such as one of synthetic radiographs; null: untrained"
PREDICTION = "what the network predicts: the noise, the velocity, or the clean latent"


class CodecTuning(Strict):
    """Fine-tuning of an autoencoder on the train split."""

    decoder_only: bool = Field(True, description="train the decoder alone, so that cached latents stay valid")
    edge: float = Field(1.0, ge=0, description="weight of the loss on image gradients; 0 is off")
    ssim: float = Field(0.0, ge=0, description="weight of the loss 1 - SSIM; 0 is off")
    steps: int = Field(500, ge=1, description="training steps")
    batch_size: int = Field(8, ge=1, description="images per step")
    learning_rate: float = Field(1e-5, gt=0, description="learning rate of AdamW")


class CodecConfig(Strict):
    """The autoencoder between images and latents: of medlt, or of a plug-in. A plug-in's settings may be a subclass."""

    kind: str = Field("", description="name of the codec")


class FolderCodec(CodecConfig):
    """A diffusers autoencoder (AutoencoderKL or AutoencoderTiny), as it is or fine-tuned on the train split."""

    kind: Literal["folder"] = Field("folder", description="an autoencoder that exists")
    path: FilePath = Field(description="its diffusers folder, with config.json and weights")
    tune: CodecTuning | None = Field(None, description="how to fine-tune it; null: use it as it is")


class PixelsConfig(CodecConfig):
    """No autoencoder: the denoiser makes pixels. Nothing of a finding is lost, and each step takes longer."""

    kind: Literal["identity"] = Field("identity", description="pixels instead of latents")
    patch: int = Field(
        1, ge=1, description="side of the blocks of pixels that become channels, without a loss; 2: a quarter of the "
        "positions and 4 channels"
    )  # fmt: skip


class TrainedCodec(CodecConfig):
    """A small AutoencoderKL, trained from scratch on the train split; see docs/explanation/codecs.md."""

    kind: Literal["train"] = Field("train", description="an autoencoder trained here")
    channels: int = Field(4, ge=1, description="channels of a latent")
    width: int = Field(32, ge=8, description="channels of the first layer")
    levels: int = Field(3, ge=2, description="resolutions of the network; latents are 2 ** (levels - 1) times smaller")
    steps: int = Field(600, ge=1, description="training steps")
    batch_size: int = Field(16, ge=1, description="images per step")
    learning_rate: float = Field(1e-3, gt=0, description="learning rate of AdamW")
    edge: float = Field(0.0, ge=0, description="weight of the loss on image gradients; 0 is off")
    lesion_weight: float = Field(
        0.0, ge=0, description="additional weight of pixels where a finding is: by its mask or box where there is one, "
        "else by the activation map of a classifier that is trained for this; 0 is off"
    )  # fmt: skip
    perceptual_weight: float = Field(
        0.0, ge=0, description="weight of the loss on the feature maps of a classifier that is trained for this, not "
        "in a private run; 0 is off"
    )  # fmt: skip


class SparseConfig(Strict):
    """Iterated learning of the simplicial code, for method fusion (arXiv 2405.01705, section 3)."""

    groups: int = Field(16, ge=1, description="L of the paper: simplices per pixel")
    vocabulary: int = Field(16, ge=2, description="V of the paper: tokens per simplex")
    temperature: float = Field(0.05, gt=0, description="softmax temperature of the normalised logits; not published")
    generations: int = Field(1, ge=1, description="generations of teacher and student; 1: no teacher")
    imitation_epochs: int = Field(8, ge=1, description="epochs in which a student learns its teacher's code")
    adaptation_epochs: int = Field(1, ge=0, description="epochs in which decoder and classifier adapt to the student")
    interaction_epochs: int = Field(36, ge=1, description="epochs in which all three are trained together, at most")
    patience: int = Field(36, ge=1, description="epochs without a better validation macro AP before the training stops")
    width: int = Field(32, ge=8, description="channels of the first layer of the encoder")
    batch_size: int = Field(16, ge=2, description="images per step")
    learning_rate: float = Field(5e-3, gt=0, description="learning rate of AdamW")
    weight_decay: float = Field(1e-2, ge=0, description="weight decay of AdamW")
    classification_weight: float = Field(1.0, ge=0, description="lambda of the paper: weight of the classifier's loss")

    @property
    def epochs(self) -> int:
        """Epochs of all generations together, at most; the first generation has no teacher."""
        others = self.imitation_epochs + self.adaptation_epochs
        return self.generations * self.interaction_epochs + (self.generations - 1) * others

    def in_one_generation(self) -> SparseConfig:
        """Return the control of equal compute: one generation with the epochs of all, and no early stop."""
        return self.model_copy(update={"generations": 1, "interaction_epochs": self.epochs, "patience": self.epochs})


class DenoiserTraining(Strict):
    """How a denoiser of any kind is trained; see docs/how-to/fine-tune.md."""

    steps: int = Field(3000, ge=1, description="training steps")
    batch_size: int = Field(32, ge=1, description="images per step; in a private run their number varies around this")
    gradient_accumulation_steps: int = Field(
        1, ge=1, description="parts in which a batch is computed: more parts need less memory, the step is the same"
    )
    learning_rate: float = Field(3e-4, gt=0, description="learning rate of AdamW after the warm-up")
    lr_scheduler: Literal["constant", "cosine"] = Field("constant", description="learning rate after the warm-up")
    warmup_steps: int = Field(50, ge=0, description="steps over which the learning rate rises")
    ema_decay: float = Field(
        0.999, ge=0, lt=1, description="decay of the moving average of the weights, which is what samples"
    )
    ema_warmup: bool = Field(
        True, description="let that decay rise with the steps done, so that the first weights are soon forgotten"
    )
    condition_dropout: float = Field(
        0.1, ge=0, le=1, description="share of images trained without their label, for classifier-free guidance"
    )
    weighting_scheme: Literal["min_snr", "uniform", "edm"] = Field(
        "min_snr",
        description="weight of noise levels: the SNR within the two limits below; alike in terms of velocity; or that "
        "of EDM with its log-normal noise (arXiv 2206.00364)",
    )
    min_snr_gamma: float = Field(5.0, gt=0, description="upper limit of the SNR weight of the loss (min-SNR-gamma: 5)")
    snr_floor: float = Field(1.0, ge=0, description="lower limit of that weight; published: 0")
    offset_noise: float = Field(0.0, ge=0, description="deviation of the noise that shifts a whole image; 0 is off")
    balance: Literal["inverse_sqrt", "effective_number"] | None = Field(
        None, description="sample rare findings more often, by this function of their counts; null: all images alike"
    )
    precision: Precision = Field("fp32", description="precision of the forward pass; weights stay fp32")
    gradient_checkpointing: bool = Field(
        False, description="compute activations twice: less memory, more time, the same weights"
    )
    checkpoint_every: int = Field(500, ge=1, description="steps between checkpoints, from which a training resumes")
    tracker: Literal["tensorboard"] | None = Field(
        None, description="where losses are logged too; tensorboard needs `pip install 'medlt[tracking]'`"
    )


class SmallDenoiser(DenoiserTraining):
    """A small network of medlt, trained from scratch under label vectors; see docs/explanation/denoisers.md."""

    dropout: float = Field(0.0, ge=0, lt=1, description="dropout inside the blocks, in training")
    attributes: tuple[Literal["view", "sex", "age"], ...] = Field(
        ("view", "sex", "age"), description="attributes of an image that are conditions beside its labels"
    )
    attribute_dropout: float = Field(
        0.1, ge=0, le=1, description="share of images whose view is hidden in training; likewise sex, and age"
    )
    prediction: Prediction = Field("v_prediction", description=PREDICTION)
    rescale_betas_zero_snr: bool = Field(
        True, description="the noisiest level is pure noise, as at the start of sampling (arXiv 2305.08891)"
    )
    shift: float | None = Field(
        1.0,
        gt=0,
        description="factor of the noise, relative to the signal, at all levels; below 1 for small latents; null: side "
        "of a latent / 64 (arXiv 2301.11093)",
    )
    init_from: FilePath | None = Field(None, description=INIT_FROM)
    train: Literal["none", "full"] = Field(
        "full",
        description="what is trained: nothing, so that the network of init_from is used as it is, or all weights",
    )

    @model_validator(mode="after")
    def _starts_from_noise(self) -> Self:
        if self.train == "none" and self.init_from is None:
            raise ValueError("train none uses a given network as it is; write init_from: FOLDER, or train: full")
        if self.prediction == "epsilon" and self.rescale_betas_zero_snr:
            raise ValueError(
                "prediction epsilon cannot start from pure noise; write prediction: v_prediction, or "
                "rescale_betas_zero_snr: false"
            )
        if len(set(self.attributes)) < len(self.attributes):
            raise ValueError(f"attributes: {', '.join(self.attributes)} names one twice; name each once")
        return self


class UNetConfig(SmallDenoiser):
    """A small latent UNet that is conditioned on label vectors."""

    kind: Literal["unet"] = Field("unet", description="a small UNet, trained here")
    width: int = Field(64, ge=8, multiple_of=8, description="channels of the first level")
    levels: int = Field(2, ge=1, description="resolutions; the latent's sides must be multiples of 2 ** (levels - 1)")
    layers_per_block: int = Field(1, ge=1, description="residual blocks a level; published networks have 2 or more")


class TransformerConfig(SmallDenoiser):
    """A small latent transformer that is conditioned on label vectors."""

    kind: Literal["transformer"] = Field("transformer", description="a small transformer, trained here")
    width: int = Field(192, ge=16, description="length of a token's vector")
    depth: int = Field(6, ge=1, description="number of blocks")
    heads: int = Field(6, ge=1, description="attention heads; width must be a multiple of it")
    patch: int = Field(2, ge=1, description="side of a token's patch, latent pixels")


class StableFolder(Strict):
    """A Stable Diffusion 1.x or 2.x checkpoint."""

    kind: Literal["folder"] = Field("folder", description="a checkpoint that exists")
    path: FilePath = Field(description="a diffusers folder, or one safetensors file")
    config: FilePath | None = Field(
        None, description="for a single file: a diffusers folder with the tokenizer and the configs of its networks"
    )
    prediction: Literal["epsilon", "v_prediction"] | None = Field(
        None, description="what the network predicts; needed for a single file, which does not record it"
    )
    loras: tuple[FilePath, ...] = Field((), description="LoRA files or folders that are merged in this order")


class StableUntrained(Strict):
    """An untrained model in the format of Stable Diffusion, for tests and for training without published weights."""

    kind: Literal["untrained"] = Field("untrained", description="random weights")
    version: Literal["1.5", "2.1"] = Field("1.5", description="version whose format it has")
    prediction: Literal["epsilon", "v_prediction"] | None = Field(
        None, description="what the network predicts; null: as the version does"
    )
    widths: tuple[int, ...] = Field(
        (64, 128, 256, 256), description="channels of each UNet level, multiples of 32; published: 320, 640, 1280, 1280"
    )
    layers: int = Field(1, ge=1, description="blocks per UNet level; published: 2")
    text_width: int = Field(128, ge=32, description="length of a text token's vector; published: 768 or 1024")
    text_layers: int = Field(2, ge=1, description="layers of the text encoder; published: 12 or 23")
    tokenizer: FilePath | None = Field(None, description="tokenizer folder to copy; null: a small one is made")


class PromptConfig(Strict):
    """How a label vector becomes a prompt; see docs/explanation/prompts.md."""

    template: str | None = Field(
        None, description="clauses separated by commas, with {findings} and optionally {view}, {sex}, {age}, {absent}; "
        "null: the template of docs/explanation/prompts.md"
    )  # fmt: skip
    words: dict[str, str] = Field({}, description="finding -> phrase; others appear as their name in lower case")
    soft_above: float = Field(0.5, gt=0, le=1, description="a soft label of this value or more counts as present")
    most: int | None = Field(
        None, ge=1, description="findings a prompt names, at most; a tokenizer takes about 75 tokens; null: all"
    )
    age: Literal["decades", "years"] = Field("decades", description="form of {age}; decades identify fewer patients")


class StableConfig(DenoiserTraining):
    """Stable Diffusion, as it is or fine-tuned; see docs/how-to/stable-diffusion.md."""

    kind: Literal["stable-diffusion"] = Field("stable-diffusion", description="Stable Diffusion 1.x or 2.x")
    model: Annotated[StableFolder | StableUntrained, Field(discriminator="kind")] = Field(
        description="the checkpoint to start from"
    )
    prompts: PromptConfig = Field(PromptConfig(), description="how label vectors become prompts")
    train: Literal["none", "lora", "full"] = Field(
        "lora", description="what is trained: nothing, a LoRA adapter, or all weights of the UNet"
    )
    train_text: bool = Field(False, description="train the text encoder too")
    rank: int = Field(16, ge=1, description="rank of the LoRA adapter")
    lora_conv: bool = Field(False, description="give convolutions a LoRA adapter too, not only attention")
    learning_rate: float = Field(1e-4, gt=0, description="learning rate of AdamW after the warm-up")
    lr_scheduler: Literal["constant", "cosine"] = Field("cosine", description="learning rate after the warm-up")
    snr_floor: float = Field(0.0, ge=0, description="lower limit of the SNR weight of the loss; published: 0")


DenoiserConfig = Annotated[
    Annotated[UNetConfig, Tag("unet")]
    | Annotated[TransformerConfig, Tag("transformer")]
    | Annotated[StableConfig, Tag("stable-diffusion")],
    by_kind("unet"),
]
