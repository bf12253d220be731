"""What a run gives to a codec, and the name of a plug-in's codec in the keys of artifacts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from medlt.diffusion.cache import Images
from medlt.diffusion.emphasis import Features
from medlt.files import digest
from medlt.plugins import CODECS, PluginError
from medlt.store import Store
from medlt.training.protocols import PrivateFit
from medlt.training.runtime import Runtime
from medlt.types import Codec, InputError


@dataclass(frozen=True, kw_only=True)
class CodecParts:
    """The parts of a codec: build(settings, parts) takes those that it needs.

    train, val: data sets of dicts with `uid` and `image` [1,size,size] in [0,1]; val is None where the split is empty.
    contents: digest of the train images, for the key of what is trained on them. store.make(kind, key, build) returns
    an artifact; it is built once. In a private run the data set of a plug-in raises InputError for every image.
    features, lesions: what `medlt.diffusion.emphasis.Emphasis` takes, if the settings have a weight for it.
    """

    train: Images
    val: Images | None
    contents: str
    size: int
    runtime: Runtime
    store: Store
    private: PrivateFit | None = None
    patients: Sequence[str] = ()
    features: Features | None = None
    lesions: Tensor | None = None


class WithheldImages:
    """A data set in place of one that may not be read: it raises InputError for every image."""

    uids: tuple[str, ...] = ()

    def __len__(self) -> int:
        return 0

    def __getitem__(self, index: int) -> dict[str, Any]:
        raise InputError("a private run gives a plug-in no real images; remove privacy, or use another plug-in")


class PluginCodec:
    """A plug-in's codec under a digest of medlt's: of the package, its version, the settings and the codec's own."""

    def __init__(self, codec: Codec, digest: str) -> None:
        self.codec, self.digest = codec, digest
        self.channels, self.factor = int(codec.channels), int(codec.factor)

    def moments(self, images: Tensor) -> Tensor:
        """Return mean and standard deviation, stacked, [B,2C,h,w]."""
        return self.codec.moments(images)

    def latents(self, moments: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return the latents of moments."""
        return self.codec.latents(moments, noise)

    def decode(self, latents: Tensor) -> Tensor:
        """Return images in [0,1]."""
        return self.codec.decode(latents)


def built_codec(name: str, settings: Any, parts: CodecParts) -> Codec:
    """Return the codec of a config's section. Raises PluginError for a plug-in that fails or returns no codec."""
    codec = CODECS.build(name, settings, parts)
    if not (package := CODECS.package(name)):
        return codec  # type: ignore[no-any-return]
    if not isinstance(codec, Codec):
        raise PluginError(
            f"{CODECS.where(name)} built a {type(codec).__name__}, no medlt.types.Codec; correct the package"
        )
    return PluginCodec(codec, digest("codec", name, package, settings.model_dump(mode="json"), codec.digest))
