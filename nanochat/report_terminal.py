"""A page as a terminal shows it, or a pipe.

In: blocks (report_page.py). Out: lines; what is folded on a page is left out.
"""

from rich import box
from rich.table import Table
from rich.text import Text

from nanochat import report_page as page
from nanochat.score import score_console


def print_blocks(title: str, blocks: list) -> None:
    console = score_console()
    console.print(Text(title, style="bold"))
    for block in blocks:
        match block:
            case page.Heading(text, level):
                console.print(Text(f"\n{text}", style="bold" if level == 2 else ""))
            case page.Text(text):
                console.print(Text(text))
            case page.Table(header, rows, total):
                table, unlimited = _table(header, rows, total), console.options.update(width=1000)
                for blanks in (2, 1, 0):  # in front of the one that parts columns
                    table.padding = (0, blanks, 0, 0)
                    if console.measure(table, options=unlimited).maximum <= console.width:
                        break
                console.print(table)
            case page.Curves(panels):
                for heading, curves in panels:
                    console.print(Text(heading))
                    lines = [f"  {line}" for line in page.text_curves("", curves)]
                    console.print(Text("\n".join(lines)), no_wrap=True, crop=False)


def _table(header: list[str], rows: list[list[str]], total: bool) -> Table:
    """What is small print on a page stands behind, in brackets. Lists and small print are wrapped where the terminal is
    narrow, and headings that are longer than what is below; figures are not."""
    table = Table(box=box.SIMPLE, pad_edge=False)
    for i, name in enumerate(header):
        cells = [row[i] for row in rows]
        whole = not any(", " in cell or "\n" in cell for cell in cells)
        whole = whole and (i == 0 or max(map(len, cells)) >= len(name))
        table.add_column(Text(name), justify="right" if i else "left", no_wrap=whole, overflow="fold")
    for number, row in enumerate(rows, start=1):
        cells = [cell.partition("\n") for cell in row]
        lines = [Text.assemble(first, (f" ({small})" if small else "", "dim")) for first, _, small in cells]
        table.add_row(*lines, end_section=total and number == len(rows) - 1)
    return table
