"""Tables as rich, Markdown, LaTeX (booktabs), CSV (pandas) and JSON.

Owns formats and escaping; the content comes from `frames` and `tables`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from onpol_cli.comparison.frames import Frame

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

_VERDICT_STYLE = {"supported": "green", "contradicted": "red", "unresolved": "yellow", "premise not met": "cyan"}


def to_rich(frame: Frame, warnings: Sequence[str] = ()) -> Table:
    """A terminal table; warnings of --force stand in its caption."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    caption = "\n".join([*(f"[bold red]WARNING[/] {escape(w)}" for w in warnings), *map(escape, frame.notes)])
    table = Table(title=escape(frame.title), caption=caption or None, box=box.SIMPLE_HEAD, title_justify="left",
                  caption_justify="left")  # fmt: skip
    for number, name in enumerate(frame.columns):
        table.add_column(escape(name), overflow="fold", no_wrap=number == 0)
    for number, row in enumerate(frame.rows):
        cells = [f"[{_VERDICT_STYLE[cell]}]{cell}[/]" if cell in _VERDICT_STYLE else escape(cell) for cell in row]
        table.add_row(*cells, style="dim" if number in frame.minor else None)
    return table


def to_markdown(frame: Frame, warnings: Sequence[str] = ()) -> str:
    """A heading, a pipe table, its notes."""
    lines = [f"## {_md(frame.title)}", ""]
    lines += [f"> **WARNING** {_md(warning)}" for warning in warnings] + ([""] if warnings else [])
    lines += ["| " + " | ".join(map(_md, frame.columns)) + " |", "|" + "---|" * len(frame.columns)]
    lines += ["| " + " | ".join(_md(cell).replace("  seed", "&emsp;seed") for cell in row) + " |" for row in frame.rows]
    return "\n".join([*lines, *(f"\n{_md(note)}" for note in frame.notes)]) + "\n"


_MD = str.maketrans({"\\": "\\\\", "|": "\\|", "<": "&lt;", ">": "&gt;", "*": "\\*", "`": "\\`", "\n": " "})


def _md(text: str) -> str:
    """Text that Markdown shows as it is inside a table cell."""
    return text.translate(_MD)


_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$", "−": "$-$", "–": "--", "‖": r"$\|$",
    "\u00a0": "~",
}  # fmt: skip


def tex_escape(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return "".join(_TEX.get(char, char) for char in text).replace("  seed", r"\quad seed")


def to_latex(frame: Frame, warnings: Sequence[str] = ()) -> str:
    """A booktabs table environment (needs `\\usepackage{booktabs}`)."""
    head = " & ".join(map(tex_escape, frame.columns)) + r" \\"
    body = [" & ".join(map(tex_escape, row)) + r" \\" for row in frame.rows]
    notes = [rf"\\ \textbf{{WARNING}} {tex_escape(warning)}" for warning in warnings]
    notes += [rf"\\ {tex_escape(note)}" for note in frame.notes]
    return "\n".join(
        [r"\begin{table}[t]", r"\centering\small", rf"\caption{{{tex_escape(frame.title)}}}",
         rf"\label{{tab:{frame.name}}}", rf"\begin{{tabular}}{{{'l' * len(frame.columns)}}}", r"\toprule", head,
         r"\midrule", *body, r"\bottomrule", r"\end{tabular}", *notes, r"\end{table}", ""]
    )  # fmt: skip


def to_pandas(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Rows as a data frame; the mapping of single seeds becomes columns `seed_<number>`."""
    import pandas as pd

    flat = []
    for row in rows:
        plain = {key: value for key, value in row.items() if not isinstance(value, dict)}
        seeds = row.get("seeds")
        flat.append(plain | ({f"seed_{s}": v for s, v in seeds.items()} if isinstance(seeds, dict) else {}))
    return pd.DataFrame(flat)


def to_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Unrounded numbers (12 significant digits), a header, Unix line ends."""
    return str(to_pandas(rows).to_csv(index=False, float_format="%.12g", lineterminator="\n"))


def plain(value: Any) -> Any:
    """JSON-safe: string keys, no NaN or infinity (null instead), tuples as lists, numpy numbers as Python's."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
