"""Methods, checks, codecs and layouts by name: those of medlt, and those that installed packages add.

A package adds one with an entry point in its pyproject.toml; the value is a plug-in object of this module:

    [project.entry-points."medlt.methods"]
    jitter = "my_package.jitter:PLUGIN"          # a MethodPlugin

    [project.entry-points."medlt.checks"]
    sharpness = "my_package.sharpness:PLUGIN"    # a CheckPlugin

The groups are medlt.methods, medlt.checks, medlt.codecs and medlt.layouts. An entry point is imported when its name is
used, not before. `settings` and `build` may be given as "module:name"; they are imported when they are needed, so that
a settings model can be read without the networks that it configures. CONTRIBUTING.md shows a package with one of each.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from medlt.names import did_you_mean
from medlt.types import InputError

if TYPE_CHECKING:
    from pydantic import BaseModel

log = logging.getLogger(__name__)


class PluginError(InputError):
    """A plug-in of an installed package cannot be used; the message names its entry point and package."""


def resolve(reference: Any) -> Any:
    """Return the object that "module:name" names, or `reference` itself where it is no text."""
    if not isinstance(reference, str):
        return reference
    module, _, name = reference.partition(":")
    return getattr(import_module(module), name)


@dataclass(frozen=True)
class Plugin:
    """Settings and how to build what they describe.

    settings: a pydantic model; medlt refuses unknown keys for it. build: called as its group says. Each is the object,
    or "module:name". private: whether it may be used in a run with differential
    privacy. Set it only if it reads nothing but what its parts hold in such a run.
    """

    settings: type[BaseModel] | str
    build: Callable[..., Any] | str
    private: bool = False


@dataclass(frozen=True)
class MethodPlugin(Plugin):
    """A way to make images: build(settings, parts) returns a `medlt.types.Synthesizer`.

    `parts` is a `medlt.synthesis.parts.MethodParts`: train rows, latents, denoiser, decoder, guidance. `checks`: the
    optional checks that are on by default; `from_noise`: whether the method reads no pixel of a real image;
    `keeps_pixels`: whether an image differs from a real one only where the finding is, so that a high correlation makes
    no copy of it (default of checks.max_correlation: `PASTED`). With `decoding: plain` no pixel is kept.
    """

    checks: tuple[str, ...] = ()
    from_noise: bool = False
    keeps_pixels: bool = False


@dataclass(frozen=True)
class CheckPlugin(Plugin):
    """A condition on images: build(settings, parts) returns a `medlt.types.Check`.

    `parts` is a `medlt.checks.parts.CheckParts`: train rows, labels, verifiers, and a reader of real images.
    `reads_real_images`: whether it compares with real images; it is then off by default in private runs.
    """

    reads_real_images: bool = False


@dataclass(frozen=True)
class CodecPlugin(Plugin):
    """Images to latents and back: build(settings, parts) returns a `medlt.types.Codec`.

    `parts` is a `medlt.diffusion.parts.CodecParts`: train and validation images, runtime and artifact store.
    """


@dataclass(frozen=True)
class LayoutPlugin(Plugin):
    """A way in which collections are kept: build(source, settings) returns a `medlt.data.layouts.LayoutResult`.

    The settings model is a subclass of `medlt.data.layouts.options.Options`.
    """


P = TypeVar("P", bound=Plugin)


@dataclass(frozen=True, eq=False)
class Registry(Mapping[str, P], Generic[P]):
    """Plug-ins of one group by name. Those of medlt come first; a package cannot take one of their names, nor a
    reserved one."""

    group: str
    kind: type[P]
    own: Mapping[str, P]
    reserved: frozenset[str] = frozenset()
    _loaded: dict[str, P] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def _added(self) -> dict[str, EntryPoint]:
        added: dict[str, EntryPoint] = {}
        for entry in sorted(entry_points(group=self.group), key=lambda one: (one.name, one.value)):
            if entry.name in self.own or entry.name in self.reserved or entry.name in added:
                package = entry.dist.name if entry.dist is not None else "unknown"
                taken = "medlt" if entry.name not in added else "another package"
                log.warning("%s: %s of package %s is not used: %s has that name; rename the entry point",
                            self.group, entry.name, package, taken)  # fmt: skip
            else:
                added[entry.name] = entry
        return added

    def __iter__(self) -> Iterator[str]:
        return iter((*self.own, *self._added))

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def __len__(self) -> int:
        return len(self.own) + len(self._added)

    def __contains__(self, name: object) -> bool:
        return name in self.own or name in self._added

    def __getitem__(self, name: str) -> P:
        """Return a plug-in. Raises PluginError if it cannot be imported, InputError for an unknown name."""
        if name in self.own:
            return self.own[name]
        if name not in self._added:
            raise InputError(self.unknown(name))
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def unknown(self, name: object) -> str:
        """Return the message for an unknown name, with the closest one."""
        what = self.group.rpartition(".")[2].removesuffix("s")
        return f"no {what} is named {name!r}{did_you_mean(str(name), self) or ';'} choose one of {', '.join(self)}"

    def package(self, name: str) -> str:
        """Return "PACKAGE VERSION" of an added plug-in, '' of one of medlt's own."""
        dist = self._added[name].dist if name in self._added else None
        return (
            f"{dist.name} {dist.version}" if dist is not None else "an unknown package" if name in self._added else ""
        )

    def settings(self, name: str) -> type[BaseModel]:
        """Return the settings model of a plug-in. Raises PluginError if it cannot be imported."""
        from pydantic import BaseModel

        with self.guarded(name, "has settings that cannot be imported"):
            model = resolve(self[name].settings)
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            raise PluginError(f"{self.where(name)} has settings that are no pydantic model; correct the package")
        return model

    def build(self, name: str, *given: Any) -> Any:
        """Return what a plug-in builds of its settings and parts. Raises PluginError for a failure of an added one."""
        with self.guarded(name, "failed"):
            return resolve(self[name].build)(*given)

    def _load(self, name: str) -> P:
        with self.guarded(name, "cannot be imported"):
            plugin = self._added[name].load()
        if not isinstance(plugin, self.kind):
            wanted, got = f"medlt.plugins.{self.kind.__name__}", type(plugin).__name__
            raise PluginError(f"{self.where(name)} is a {got}; its entry point must name a {wanted}")
        return plugin

    def where(self, name: str) -> str:
        """Return the entry point, group and package of an added plug-in, for messages."""
        entry = self._added[name]
        return f"plug-in {name} = {entry.value} ({self.group}, package {self.package(name)})"

    @contextmanager
    def guarded(self, name: str, failure: str) -> Iterator[None]:
        """Raise PluginError, in one line, for an error in the code of an added plug-in."""
        try:
            yield
        except Exception as error:
            if isinstance(error, InputError) or name not in self._added:
                raise
            log.debug("plug-in %s", name, exc_info=True)
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise PluginError(f"{self.where(name)} {failure}: {reason}; correct or uninstall the package") from error


NEAR_COPY = ("near_copy",)
PASTED = 0.99999
"""Correlation above which an image of a method that keeps pixels counts as unchanged."""
METHODS = Registry(
    "medlt.methods",
    MethodPlugin,
    {
        "fusion": MethodPlugin("medlt.config:Fusion", "medlt.recipes._methods:fusion_method", True, keeps_pixels=True),
        "recompose": MethodPlugin("medlt.config:Recompose", "medlt.recipes._methods:recompose_method", False,
                                  keeps_pixels=True),
        "noise": MethodPlugin("medlt.config:FromNoiseConfig", "medlt.recipes._methods:conditional_method", True,
                              NEAR_COPY, from_noise=True),
        "edit": MethodPlugin("medlt.config:Edit", "medlt.recipes._methods:conditional_method", private=True),
        "diffult": MethodPlugin("medlt.config:Diffult", "medlt.recipes._methods:conditional_method", False,
                                ("in_band", *NEAR_COPY), from_noise=True),
        "minority": MethodPlugin("medlt.config:Minority", "medlt.recipes._methods:conditional_method", True,
                                 NEAR_COPY, from_noise=True),
        "longtail": MethodPlugin("medlt.config:Longtail", "medlt.recipes._methods:conditional_method", True,
                                 NEAR_COPY, from_noise=True),
        "evolution": MethodPlugin("medlt.config:Evolution", "medlt.recipes._evolution:evolution_method", True,
                                  NEAR_COPY, from_noise=True),
    },
)  # fmt: skip
"""The methods: settings, builder, and what follows from the kind. Configs, recipes, help and schema read them here."""

CHECKS = Registry(
    "medlt.checks",
    CheckPlugin,
    {
        "in_band": CheckPlugin("medlt.config:InBandConfig", "medlt.recipes._quality:in_band_check", True, True),
        "near_copy": CheckPlugin("medlt.config:NearCopyConfig", "medlt.recipes._quality:near_copy_check", True, True),
    },
    # keys of the section `checks`, and names of the checks that are always on
    frozenset(
        "folds verifier_quantile min_std max_correlation finite flat saturated duplicate copy target_label "
        "label_consistency best_of".split()
    ),
)
"""The optional checks. Sanity and label checks are always on."""

CODECS = Registry(
    "medlt.codecs",
    CodecPlugin,
    {
        "folder": CodecPlugin("medlt.config:FolderCodec", "medlt.recipes._codec:folder_codec", private=True),
        "identity": CodecPlugin("medlt.config:PixelsConfig", "medlt.recipes._codec:pixel_codec", private=True),
        "train": CodecPlugin("medlt.config:TrainedCodec", "medlt.recipes._codec:trained_codec", private=True),
    },
)
"""The codecs by the `kind` of a config's section `codec`."""

_OPTIONS = "medlt.data.layouts.options"
_PUBLISHED = "medlt.data.layouts.options_published"
LAYOUTS = Registry(
    "medlt.layouts",
    LayoutPlugin,
    {
        "mimic-cxr-lt": LayoutPlugin(f"{_OPTIONS}:MimicOptions", "medlt.data.layouts.mimic_cxr_lt:mimic_cxr_lt"),
        "nih-cxr-lt": LayoutPlugin(f"{_OPTIONS}:NihOptions", "medlt.data.layouts.nih_cxr_lt:nih_cxr_lt"),
        "cxr-lt": LayoutPlugin(f"{_OPTIONS}:CxrLtOptions", "medlt.data.layouts.cxr_lt:cxr_lt"),
        "chexpert": LayoutPlugin(f"{_PUBLISHED}:ChexpertOptions", "medlt.data.layouts.chexpert:chexpert"),
        "padchest": LayoutPlugin(f"{_PUBLISHED}:PadChestOptions", "medlt.data.layouts.padchest:padchest"),
        "vindr": LayoutPlugin(f"{_PUBLISHED}:VindrOptions", "medlt.data.layouts.vindr:vindr"),
        "rsna": LayoutPlugin(f"{_PUBLISHED}:RsnaOptions", "medlt.data.layouts.rsna:rsna"),
        "siim": LayoutPlugin(f"{_PUBLISHED}:SiimOptions", "medlt.data.layouts.siim:siim"),
        "csv": LayoutPlugin(f"{_OPTIONS}:TableOptions", "medlt.data.layouts.csv_table:csv_table"),
        "folder": LayoutPlugin(f"{_OPTIONS}:FolderOptions", "medlt.data.layouts.folder:folder"),
    },
)
"""The layouts of `medlt manifest`."""
