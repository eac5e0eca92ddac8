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
            case page.Heading(text):
                console.print(Text(f"\n{text}", style="bold"))
            case page.Text(text):
                console.print(Text(text))
            case page.Table(header, rows, total):
                console.print(_table(header, rows, total))
            case page.Curves(panels):
                lines = [line for heading, curves in panels for line in page.text_curves(heading, curves)]
                console.print(Text("\n".join(lines)), no_wrap=True, crop=False)


def _table(header: list[str], rows: list[list[str]], total: bool) -> Table:
    """What is small print on a page stands behind, in brackets."""
    table = Table(box=box.SIMPLE, pad_edge=False)
    for i, name in enumerate(header):
        table.add_column(Text(name), justify="right" if i else "left")
    for number, row in enumerate(rows, start=1):
        cells = [cell.partition("\n") for cell in row]
        lines = [Text.assemble(first, (f" ({small})" if small else "", "dim")) for first, _, small in cells]
        table.add_row(*lines, end_section=total and number == len(rows) - 1)
    return table
