"""Reads published and own collections, tables and folders, into a Manifest."""

from collections.abc import Mapping
from pathlib import Path

from medlt.config import settings_model
from medlt.data.layouts.layout_result import LayoutResult
from medlt.data.layouts.options import Options, parse
from medlt.data.layouts.tables import NIH_FINDINGS, from_csv, from_nih
from medlt.names import did_you_mean
from medlt.plugins import LAYOUTS, PluginError
from medlt.remote import require_local
from medlt.types import InputError


def read_layout(layout: str, src: Path, given: Mapping[str, object] | None = None) -> LayoutResult:
    """Read `src` in the given layout with the options `given` (see `options`); None means the default.

    Raises InputError in one line on an unknown layout or option, on invalid tables and folders, and on a plug-in that
    does not work.
    """
    if layout not in LAYOUTS:
        close = did_you_mean(layout, LAYOUTS) or ";"
        raise InputError(f"unknown layout {layout!r}{close} use one of {', '.join(LAYOUTS)}")
    chosen = {name: value for name, value in (given or {}).items() if value is not None}
    if not Path(src).exists():
        require_local(src)
        raise InputError(f"{Path(src).absolute()}: no such file or folder; check SRC")
    model = settings_model(LAYOUTS, layout, Options)
    result = LAYOUTS.build(layout, Path(src), parse(model, layout, chosen))
    if not isinstance(result, LayoutResult):
        package = LAYOUTS.package(layout)
        raise PluginError(
            f"layout {layout} of package {package} returns no medlt.data.layouts.LayoutResult; correct it"
        )
    return result


__all__ = ["LAYOUTS", "NIH_FINDINGS", "LayoutResult", "Options", "from_csv", "from_nih", "read_layout"]
