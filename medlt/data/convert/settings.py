"""The settings of a conversion; frozen and picklable, so that every worker uses the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from medlt.data.convert.encode import SUFFIX
from medlt.data.convert.filters import Filter, parsed, require_keywords
from medlt.data.convert.presets import PRESETS
from medlt.data.convert.upright import UPRIGHT
from medlt.data.deidentify import Profile, read_key
from medlt.files import digest
from medlt.names import did_you_mean
from medlt.types import InputError

FRAMES = ("first", "all")
LEAST_MB = 1024
_OF_BYTES = (
    *("preset", "size", "format", "quality", "modalities", "body_parts", "include", "exclude", "tags", "frames"),
    "reduce",
)
_PACKAGES = ("medlt", "pydicom", "numpy", "opencv-python-headless", "imagecodecs", "pillow", "nibabel")


@dataclass(frozen=True)
class ConversionSettings:
    """Settings of a conversion. Raises InputError on values that do not fit together.

    `size` is the short side in pixels, None for the original size; `quality` is that of JPEG; `key` is the secret of
    de-identification. With
    `modalities` or `body_parts` (upper case), files with other tags are skipped; one without a body part is kept. A
    file is also skipped unless it matches every filter of `include`, and if it matches one of `exclude`. `tags` are
    DICOM keywords that become columns of the manifest. `timeout_s` is for one file; `memory_mb` limits a worker's
    address space, 0 is no limit. With `follow_links`, links in the source are followed, see `medlt.data.convert.scan`.
    `frames` is first or all: the first or every frame of a DICOM file becomes an image. `preview` adds preview.html.
    `reduce` 2 or 4 decodes JPEG 2000 at a half or a quarter of its resolution, where that is not below `size`.
    """

    preset: str = "viewer"
    size: int | None = None
    format: str = "png"
    quality: int = 95
    profile: Profile | None = None
    key: bytes = b""
    modalities: tuple[str, ...] = ()
    body_parts: tuple[str, ...] = ()
    include: tuple[Filter, ...] = ()
    exclude: tuple[Filter, ...] = ()
    tags: tuple[str, ...] = ()
    timeout_s: float = 60.0
    memory_mb: int = 4096
    dry_run: bool = False
    follow_links: bool = False
    frames: str = "first"
    reduce: int = 1
    preview: bool = False

    def __post_init__(self) -> None:
        for name, value, known in (
            ("preset", self.preset, PRESETS),
            ("format", self.format, SUFFIX),
            ("frames", self.frames, FRAMES),
        ):
            if value not in known:
                close = did_you_mean(value, known) or ";"
                raise InputError(f"--{name} {value}: unknown{close} use one of {', '.join(known)}")
        if self.size is not None and self.size < 1:
            raise InputError(f"--size {self.size}: the short side must be 1 pixel or more")
        if not 1 <= self.quality <= 100:
            raise InputError(f"--quality {self.quality}: JPEG quality must be between 1 and 100")
        if 0 < self.memory_mb < LEAST_MB:
            raise InputError(f"--memory {self.memory_mb}: a worker needs {LEAST_MB} MiB or more; 0 is no limit")
        if self.preset == "linear16" and self.format not in ("png16", "nifti"):
            raise InputError(f"--preset linear16 needs 16 bits, and {self.format} has 8; use --format png16 or nifti")
        if self.preset in ("mimic-cxr-jpg", "chexpert") and self.format == "png16":
            raise InputError(f"--preset {self.preset} makes 8 bits; use --format png, jpeg or nifti")
        if self.reduce not in (1, 2, 4):
            raise InputError(f"--reduce {self.reduce}: use 2 or 4; 1 decodes the whole resolution")
        if self.reduce > 1 and (self.size is None or self.preset not in UPRIGHT):
            raise InputError("--reduce changes pixels; it needs --size N, and --preset viewer or linear16")
        require_keywords("--tags", self.tags)
        require_keywords("--include", [keyword for keyword, _ in self.include])
        require_keywords("--exclude", [keyword for keyword, _ in self.exclude])
        if self.profile is not None and not self.key:
            raise InputError("--deidentify needs --key FILE, a secret that keeps pseudonyms consistent")

    def summary(self) -> dict[str, object]:
        """Return all settings that determine the bytes; the key only as a digest."""
        profile = None if self.profile is None else str(self.profile)
        key = digest(b"medlt convert", self.key) if self.key else None
        return {**{name: getattr(self, name) for name in _OF_BYTES}, "deidentify": profile, "key": key}


def settings_from_options(
    *,
    preset: str,
    kind: str | None,
    deidentify: str | None,
    key: Path | None,
    modality: str,
    body_part: str,
    include: Sequence[str] | None,
    exclude: Sequence[str] | None,
    tags: str,
    timeout: float,
    memory: int,
    **same: Any,
) -> ConversionSettings:
    """Return the settings for the options of the command line; `same` are those that need no translation.

    Lists are joined by commas, the profile is a name, the key a file; `kind` is the format, None the preset's default.
    """
    return ConversionSettings(
        preset=preset,
        format=kind or ("png16" if preset == "linear16" else "png"),
        profile=None if deidentify is None else Profile.parse(deidentify),
        key=b"" if key is None else read_key(key),
        modalities=_listed(modality.upper()),
        body_parts=_listed(body_part.upper()),
        include=parsed("--include", include or ()),
        exclude=parsed("--exclude", exclude or ()),
        tags=_listed(tags),
        timeout_s=timeout,
        memory_mb=memory,
        **same,
    )


def _listed(text: str) -> tuple[str, ...]:
    return tuple(sorted({part.strip() for part in text.split(",") if part.strip()}))


def versions() -> str:
    """Return the versions of the libraries that produce the pixels, as one line."""
    return ", ".join(f"{name} {metadata.version(name)}" for name in _PACKAGES)
