"""Methods, checks, codecs and layouts by name: those of medlt, and those that installed packages add.

A package adds one with an entry point in its pyproject.toml; the value is a plug-in object of this module:

    [project.entry-points."medlt.methods"]
    mirror = "my_package.mirror:PLUGIN"          # a MethodPlugin

    [project.entry-points."medlt.checks"]
    sharpness = "my_package.sharpness:PLUGIN"    # a CheckPlugin

The groups are medlt.methods, medlt.checks, medlt.codecs and medlt.layouts. An entry point is imported when its name is
used, not before. `settings` and `build` may be given as "module:name"; they are imported when they are needed, so that
a settings model can be read without the networks that it configures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from medlt.types import InputError

if TYPE_CHECKING:
    from pydantic import BaseModel


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

    settings: a pydantic model, best a subclass of `medlt.config.Strict`; build: called with an instance of it first.
    Each is the object, or "module:name".
    """

    settings: type[BaseModel] | str
    build: Callable[..., Any] | str

    def model(self) -> type[BaseModel]:
        """Return the settings model."""
        model: type[BaseModel] = resolve(self.settings)
        return model

    def builder(self) -> Callable[..., Any]:
        """Return the callable that builds."""
        build: Callable[..., Any] = resolve(self.build)
        return build


@dataclass(frozen=True)
class MethodPlugin(Plugin):
    """A way to make images: build(settings, parts) returns a `medlt.types.Synthesizer`.

    `parts` is a `medlt.synthesis.parts.MethodParts`: train rows, latents, denoiser, decoder, guidance. `checks`: the
    optional checks that are on by default; `from_noise`: whether the method reads no pixel of a real image;
    `private`: whether it can make images in a run with differential privacy.
    """

    checks: tuple[str, ...] = ()
    from_noise: bool = False
    private: bool = True


@dataclass(frozen=True)
class CheckPlugin(Plugin):
    """A condition on images: build(settings, parts) returns a `medlt.types.Check`.

    `parts` is a `medlt.checks.parts.CheckParts`: train rows, labels, verifiers, and a reader of real images.
    """


@dataclass(frozen=True)
class CodecPlugin(Plugin):
    """Images to latents and back: build(settings, parts) returns a `medlt.types.Codec`.

    `parts` is a `medlt.diffusion.parts.CodecParts`: train and validation images, runtime and artifact store.
    """


@dataclass(frozen=True)
class LayoutPlugin(Plugin):
    """A way in which collections are kept: build(settings, source) returns a `medlt.data.layouts.LayoutResult`.

    The settings model is a subclass of `medlt.data.layouts.options.Options`.
    """


P = TypeVar("P", bound=Plugin)


@dataclass(frozen=True)
class Registry(Mapping[str, P], Generic[P]):
    """Plug-ins of one group by name. Those of medlt come first; a package cannot take one of their names."""

    group: str
    kind: type[P]
    own: Mapping[str, P]
    _loaded: dict[str, P] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def _added(self) -> dict[str, EntryPoint]:
        added: dict[str, EntryPoint] = {}
        for entry in sorted(entry_points(group=self.group), key=lambda one: (one.name, one.value)):
            added.setdefault(entry.name, entry)
        return {name: entry for name, entry in added.items() if name not in self.own}

    def __iter__(self) -> Iterator[str]:
        return iter((*self.own, *self._added))

    def __len__(self) -> int:
        return len(self.own) + len(self._added)

    def __contains__(self, name: object) -> bool:
        return name in self.own or name in self._added

    def __getitem__(self, name: str) -> P:
        """Return a plug-in. Raises PluginError if it cannot be imported, InputError if there is none of that name."""
        if name in self.own:
            return self.own[name]
        if name not in self._added:
            raise InputError(self.unknown(name))
        if name not in self._loaded:
            self._loaded[name] = self._load(self._added[name])
        return self._loaded[name]

    def unknown(self, name: str) -> str:
        """Return the message for a name that is none, with the nearest one."""
        near = get_close_matches(name, list(self), 1)
        meant = f"did you mean {near[0]}? " if near else ""
        return f"{self.group}: no {name!r}; {meant}There are {', '.join(self)}"

    def _load(self, entry: EntryPoint) -> P:
        where = f"plug-in {entry.name} = {entry.value} ({self.group}, package {_package(entry)})"
        try:
            plugin = entry.load()
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise PluginError(f"{where} cannot be imported: {reason}; mend or uninstall the package") from None
        if not isinstance(plugin, self.kind):
            wanted, got = f"medlt.plugins.{self.kind.__name__}", type(plugin).__name__
            raise PluginError(f"{where} is a {got}; its entry point must name a {wanted}")
        return plugin


def _package(entry: EntryPoint) -> str:
    return str(entry.dist.name) if entry.dist is not None else "unknown"


METHODS = Registry(
    "medlt.methods",
    MethodPlugin,
    {
        "fusion": MethodPlugin("medlt.config:Fusion", "medlt.recipes._methods:latent_fusion"),
        "noise": MethodPlugin("medlt.config:FromNoiseConfig", "medlt.recipes._methods:from_noise",
                              ("near_copy",), from_noise=True),
        "edit": MethodPlugin("medlt.config:Edit", "medlt.recipes._methods:image_edit"),
        "diffult": MethodPlugin("medlt.config:Diffult", "medlt.recipes._methods:from_noise",
                                ("in_band", "near_copy"), from_noise=True, private=False),
        "minority": MethodPlugin("medlt.config:Minority", "medlt.recipes._methods:from_noise",
                                 ("near_copy",), from_noise=True),
        "longtail": MethodPlugin("medlt.config:Longtail", "medlt.recipes._methods:from_noise",
                                 ("near_copy",), from_noise=True),
    },
)  # fmt: skip
"""The one place that names a method: its settings, its builder, and what follows from its kind."""
