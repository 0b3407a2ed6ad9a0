"""Tables of plain text."""

from __future__ import annotations

from collections.abc import Sequence


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a table with plain spaces; a header of empty cells is left out.

    >>> print(aligned(("name", "size"), [("a", "1")]))
    name  size
    a     1
    """
    lines = [header, *rows] if any(header) else [*rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    text = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)
    return "\n".join(text)
