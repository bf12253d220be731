"""The image classifiers of a run."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from medlt.config.base import FilePath, Strict


class ClassifierConfig(Strict):
    """An image classifier: the verifiers, and the classifiers that the comparison trains."""

    network: Literal["small", "dense", "densenet121", "resnet50", "folder"] = Field(
        "small",
        description="a small residual network, a small DenseNet, DenseNet-121, ResNet-50, or a vision model of Hugging "
        "Face whose folder `weights` names",
    )
    weights: FilePath | None = Field(
        None,
        description="pretrained weights: a safetensors file for densenet121 and resnet50, a folder for network folder; "
        "null: random; see docs/how-to/pretrained.md",
    )
    frozen: bool = Field(
        False, description="train the last layer alone, on features that are computed once, without augmentation"
    )
    precision: Literal["bf16", "fp32"] = Field(
        "bf16", description="precision of the forward pass; weights, logits and loss stay fp32"
    )
    size: int = Field(128, ge=32, description="side of the square images it reads, pixels")
    loss: Literal["balanced", "asymmetric"] = Field(
        "balanced",
        description="cross-entropy with positives weighted by rarity, or asymmetric (arXiv 2009.14119)",
    )
    steps: int = Field(500, ge=1, description="training steps, at most")
    batch_size: int = Field(32, ge=2, description="images per step")
    learning_rate: float = Field(1e-3, gt=0, description="learning rate of AdamW")
    weight_decay: float = Field(1e-2, ge=0, description="weight decay of AdamW")
    evaluate_every: int = Field(50, ge=1, description="steps between evaluations on the validation split")
    patience: int = Field(
        4, ge=1, description="evaluations without a better validation macro AP before the training stops"
    )

    @model_validator(mode="after")
    def _weights_fit(self) -> Self:
        if self.weights is None and (self.frozen or self.network == "folder"):
            why = "frozen: true" if self.frozen else "network: folder"
            raise ValueError(f"{why} needs pretrained weights; give their path in weights")
        if self.weights is not None and self.network in ("small", "dense"):
            raise ValueError(
                f"no weights are published for network {self.network}; choose densenet121, resnet50 or folder, or "
                "remove weights"
            )
        return self

    def another(self) -> ClassifierConfig:
        """Return these settings with another network, from random weights: for a role that must be independent."""
        other = "dense" if self.network == "small" else "small"
        return self.model_copy(update={"network": other, "weights": None, "frozen": False})
