"""Checks what this installation can do, for a bug report or before a long run."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Group

from medlt.types import InputError
from medlt.versions import versions

MIN_FREE_GB = 5.0
"""Less free space than this is a problem: a small run with its artifacts needs about as much."""
EXTRAS = {
    "ray": (("ray",), ()),
    "s3": (("s3fs",), ()),
    "tracking": (("tensorboard",), ()),
    "bundle": (("fire",), ()),
    "ocr": (("pytesseract",), ("tesseract",)),
    "dicomweb": (("dicomweb_client",), ()),
    "xlsx": (("openpyxl",), ()),
    "sign": (("cryptography",), ()),
}
"""Optional dependency groups of pyproject.toml: modules, and programs that must be on the PATH."""
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_UNSET = re.compile(r"the variable (\w+) is not set")


@dataclass(frozen=True)
class Diagnostic:
    """One line of the report. A diagnostic that did not pass has a `hint`: what to do about it."""

    section: str
    name: str
    value: str | int | float
    passed: bool = True
    hint: str = ""

    def text(self) -> str:
        """Return the value with its hint."""
        return f"{self.value}; {self.hint}" if self.hint else str(self.value)


@dataclass(frozen=True)
class DoctorReport:
    """All diagnostics, in the order of their sections."""

    diagnostics: tuple[Diagnostic, ...]

    @property
    def problems(self) -> tuple[Diagnostic, ...]:
        """Return the diagnostics that did not pass."""
        return tuple(one for one in self.diagnostics if not one.passed)

    def summary(self) -> dict[str, Any]:
        """Return {section: {name: value}} and the problems, as values that JSON can hold."""
        sections: dict[str, Any] = {}
        for one in self.diagnostics:
            sections.setdefault(one.section, {})[one.name] = one.text() if isinstance(one.value, str) else one.value
        problems = [f"{one.section} {one.name}: {one.text()}" for one in self.problems]
        return {**sections, "passed": not problems, "problems": problems}

    def table(self) -> Group:
        """Return the report for a terminal, with the problems below."""
        from rich.console import Group
        from rich.table import Column, Table
        from rich.text import Text

        out = Table(Column("", no_wrap=True), Column("what", no_wrap=True), "state", title="medlt doctor")
        before = ""
        for one in self.diagnostics:
            if before and one.section != before:
                out.add_section()
            out.add_row("" if one.section == before else one.section, one.name, str(one.value))
            before = one.section
        lines = [Text(f"problem: {one.section} {one.name}: {one.text()}") for one in self.problems]
        hints = [Text(f"note: {one.name}: {one.text()}") for one in self.diagnostics if one.hint and one.passed]
        return Group(out, *(lines or [Text("no problem")]), *hints)


def examine() -> DoctorReport:
    """Check versions, device, free disk, extras, DICOM decoders, ready-made configs and offline settings."""
    package_versions = (Diagnostic("versions", name, version) for name, version in versions().items())
    return DoctorReport((*package_versions, *_device(), *_disk(), *_extras(), *_dicom(), *_configs(), *_offline()))


def _device() -> Iterator[Diagnostic]:
    import psutil
    import torch

    yield Diagnostic("device", "cpu_cores", os.cpu_count() or 1)
    yield Diagnostic("device", "torch_threads", torch.get_num_threads())
    yield Diagnostic("device", "memory_gb", round(psutil.virtual_memory().total / 2**30, 1))
    if not torch.cuda.is_available():
        yield _no_gpu(Path("/proc/driver/nvidia/version").exists(), torch.version.cuda)
        return
    for index in range(torch.cuda.device_count()):
        yield _gpu(index)


def _no_gpu(driver: bool, cuda: str | None) -> Diagnostic:
    """Return a problem if the machine has an NVIDIA driver that torch cannot use."""
    if not driver:
        return Diagnostic("device", "cuda", "none")
    hint = "install a CUDA build of torch" if cuda is None else f"update the NVIDIA driver: torch needs CUDA {cuda}"
    return Diagnostic("device", "cuda", "failed: torch cannot use the GPU", False, hint)


def _gpu(index: int) -> Diagnostic:
    """Multiply two small matrices on one GPU."""
    import torch

    name = f"cuda:{index}"
    try:
        product = torch.ones(8, 8, device=name) @ torch.ones(8, 8, device=name)
        if float(product[0, 0]) != 8.0:
            raise RuntimeError("a matrix product is wrong")
        memory = torch.cuda.get_device_properties(index).total_memory / 2**30
    except RuntimeError as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        return Diagnostic("device", name, f"failed: {reason}", False, "install a torch build for this GPU")
    return Diagnostic("device", name, f"{torch.cuda.get_device_name(index)}, {memory:.0f} GB")


def _disk() -> Iterator[Diagnostic]:
    """Check free space of the current folder, and of the folder for temporary files."""
    for name, folder in (("current_folder", Path.cwd()), ("temporary_folder", Path(tempfile.gettempdir()))):
        free = round(shutil.disk_usage(folder).free / 2**30, 1)
        hint = "" if free >= MIN_FREE_GB else f"free space in {folder}, or work in another folder"
        yield Diagnostic("disk", f"{name}_free_gb", free, not hint, hint)


def _extras() -> Iterator[Diagnostic]:
    """Check the optional packages; a missing one is no problem."""
    for extra, (modules, programs) in EXTRAS.items():
        lacking = [name for name in modules if find_spec(name) is None]
        absent = [name for name in programs if shutil.which(name) is None]
        if lacking:
            yield Diagnostic("extras", extra, "not installed", hint=f"optional: pip install 'medlt[{extra}]'")
        elif absent:
            yield Diagnostic("extras", extra, "incomplete", hint=f"optional: install the program {absent[0]}")
        else:
            yield Diagnostic("extras", extra, "ok")


def _dicom() -> Iterator[Diagnostic]:
    """Decode a small frame of every transfer syntax, as `medlt convert` does."""
    from medlt.data.dicom.selftest import check_codecs

    for codec in check_codecs():
        value = "ok" if codec.passed else f"failed: {codec.reason}"
        yield Diagnostic("dicom", codec.name, value, codec.passed, codec.hint)


def _configs() -> Iterator[Diagnostic]:
    """Validate the ready-made configs of each collection."""
    from medlt.config import catalogue

    collections: dict[str, list[str]] = {}
    for name in catalogue.names():
        collections.setdefault(name.partition("/")[0], []).append(name)
    if not collections:
        yield Diagnostic("configs", "all", "failed: no ready-made config", False, "reinstall medlt")
    for collection, names in collections.items():
        yield _collection(collection, names)


def _collection(collection: str, names: list[str]) -> Diagnostic:
    """Validate the configs `names` of one collection; an unset variable is a note, not a problem."""
    from medlt.config import catalogue, load_config, load_verdict

    unset: dict[str, list[str]] = {}
    for name in names:
        try:
            (load_verdict if catalogue.kind(name) == "experiment" else load_config)(catalogue.path(name))
        except InputError as error:
            if not (variable := _UNSET.search(str(error))):
                return Diagnostic("configs", collection, f"failed: {error}", False, "reinstall medlt")
            unset.setdefault(variable[1], []).append(name)
    count = f"{len(names)} config{'s' if len(names) > 1 else ''}"
    hint = "; ".join(
        f"before a run of {', '.join(some) if len(some) < len(names) else 'these'}: export {variable}=FOLDER"
        for variable, some in sorted(unset.items())
    )
    return Diagnostic("configs", collection, count, hint=hint)


def _offline() -> Iterator[Diagnostic]:
    """Report the variables that forbid downloads by the hub client of diffusers; medlt itself opens no connection."""
    for name in OFFLINE:
        yield Diagnostic("offline", name, os.environ.get(name, "not set"))
