"""What `edgeq embed` tells people: what became of the files, what it all weighs, and what to do next."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape

from edgeq.cli.render import result_console, result_table

if TYPE_CHECKING:
    from edgeq.embedding import Embedded

__all__ = ["show_embedded"]


def show_embedded(embedded: Embedded) -> None:
    """Counts of files, those that need a look by name, sizes, notes, the next steps."""
    console = result_console()
    console.print(
        f"[bold]{embedded.platform}[/] project: {len(embedded.written)} files written, "
        f"{len(embedded.unchanged)} unchanged, {len(embedded.removed)} removed"
    )
    for path in embedded.kept:
        newer = f"; the new version is {path}.new" if path in embedded.conflicts else ""
        console.print(f"[yellow]kept[/] {escape(path)}, which you edited{escape(newer)}")
    if embedded.sizes:
        table = result_table("adds to the app", "size", "")
        for row in embedded.sizes:
            table.add_row(escape(row.part), "n/a" if row.bytes is None else _megabytes(row.bytes), escape(row.note))
        console.print()
        console.print(table)
    for note in embedded.notes:
        console.print(f"note: {escape(note)}")
    console.print(f"\nproject: {escape(str(embedded.path))}")
    for step in embedded.next:
        console.print(f"next: {escape(step)}")


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if abs(count) >= 1e5 else f"{count / 1e3:.1f} kB"
