"""Figures and tables as plain text, the same everywhere."""

from __future__ import annotations

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns two spaces apart; a column of numbers is aligned at the right. A column that is empty throughout is left out."""
    kept = [i for i in range(len(header)) if any(row[i] for row in rows)]
    cells = [[line[i] for i in kept] for line in (header, *rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(kept))]
    numeric = [all(not line[i] or _is_number(line[i]) for line in cells[1:]) for i in range(len(kept))]
    aligned = (
        "  ".join(c.rjust(w) if right else c.ljust(w) for c, w, right in zip(line, widths, numeric, strict=True))
        for line in cells
    )
    return "\n".join(line.rstrip() for line in aligned)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same for Markdown."""
    kept = [i for i in range(len(header)) if any(row[i] for row in rows)]
    lines = [[line[i].replace("|", "\\|") for i in kept] for line in (header, *rows)]
    lines.insert(1, ["---"] * len(kept))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float) -> str:
    """With a comma every three digits; three significant digits below a hundred."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def ratio(value: float, reference: float | None) -> str:
    """value / reference, or nothing without a reference."""
    return "" if not reference else f"{value / reference:.2f}"


def percent(share: float | None) -> str:
    """A share from 0 to 1 in percent; nothing for None."""
    return "" if share is None else f"{100 * share:.1f} %"


def seconds(value: float) -> str:
    """A duration in seconds or milliseconds."""
    return f"{1e3 * value:.3g} ms" if value < 0.1 else f"{value:.3f} s" if value < 10 else f"{value:.1f} s"


def bounded(value: float, bound: int | None) -> str:
    """The largest value seen / what bounds it."""
    return f"{value:g} / {'unbounded' if bound is None else f'{bound:,}'}"


def _is_number(cell: str) -> bool:
    """Whether a cell begins like a number (what follows may be a unit, an error or a bound)."""
    return cell.lstrip("+-")[:1].isdigit()
