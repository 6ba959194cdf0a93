"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["markdown_table"]


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """One column a word of ``head``.

    Args:
        head: Titles of the columns.
        rows: Cells, as many as columns.

    Raises:
        ValueError: A row has more or fewer.

    Example:
        >>> print(markdown_table(["", "seconds"], [["Jacana", "4"]]))
        | | seconds |
        |---|---|
        | Jacana | 4 |
    """
    rows = [head, *rows]
    for cells in rows:
        if len(cells) != len(head):
            raise ValueError(f"rows: got {list(cells)}, expected {len(head)} cells; give each column one.")
    first, *others = ("|" + "".join(f" {cell} |" if cell else " |" for cell in cells) for cells in rows)
    return "\n".join([first, "|" + "---|" * len(head), *others])
