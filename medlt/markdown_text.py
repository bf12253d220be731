"""Text of any origin in Markdown: names of findings, folders and arms, reasons and sentences stay text.

CommonMark 0.31 and GitHub's tables: a backslash escapes, `<` begins HTML, `](` a link, `]:` the target of one, and a
bar ends a cell. Blanks and line breaks become single blanks, so that a text begins no block and no front matter.
"""

from __future__ import annotations

MARKS = {"\\": "\\\\", "<": "&lt;", "](": "]\\(", "]:": "]\\:"}


def inline(text: object) -> str:
    """Return a text on one line without HTML and links; emphasis and `code` stay."""
    line = " ".join(str(text).split())
    for mark, plain in MARKS.items():
        line = line.replace(mark, plain)
    return line


def cell(text: object) -> str:
    """Return a text as `inline` does, for a cell of a table."""
    return inline(text).replace("|", "\\|")
