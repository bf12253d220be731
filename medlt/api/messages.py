"""Messages of the command line in the words of a Python call."""

from __future__ import annotations

import re


def in_python(message: str) -> str:
    """Return a message with keyword arguments in place of command-line options."""
    message = re.sub(r"--column (\w+)=(\w+)", r"column={'\1': '\2'}", message)
    message = re.sub(r"--([a-z]+(?:-[a-z]+)*)(?: ('[^']*'|[A-Z][A-Za-z,.]*))?", _keyword, message)
    return message.replace("check SRC", "check the path")


def _keyword(option: re.Match[str]) -> str:
    return f"{option[1].replace('-', '_')}={option[2] or '...'}"
