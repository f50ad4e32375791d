"""Pieces of HTML and the one-file page around them.

Every function takes plain text and escapes it, except where an argument is called `html`.
"""

import json
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from typing import TypeAlias

from sphere_pl.report.drawing import Drawing
from sphere_pl.report.scripts import language
from sphere_pl.report.style import DARK

Html: TypeAlias = str

# The browser itself then refuses whatever would come from the network.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; form-action 'none'"
)


def tile(name: str, value: str, note: str = "", change: Html = "") -> Html:
    """A headline number; its change stands before the note."""
    return (
        f'<div class="tile"><div class="name">{escape(name)}</div><div class="value">{escape(value)}</div>'
        f'<div class="note">{f"{change}, " if change and note else change}{escape(note)}</div></div>'
    )


def mark(right: bool) -> Html:
    """A tick or a cross."""
    kind, sign, word = ("good", "✓", "yes") if right else ("bad", "✗", "no")
    return f'<span class="mark {kind}" role="img" aria-label="{word}">{sign}</span>'


def text(value: str) -> Html:
    """Text that somebody has written or a model has, in its own direction and with its script's letters."""
    spoken = language(value)
    return f'<bdi dir="auto"{f" lang={chr(34)}{spoken}{chr(34)}" if spoken else ""}>{escape(value)}</bdi>'


def section(title: str, caption: str, *html: Html) -> Html:
    """A card with a heading and one sentence on how to read it."""
    text = f'<p class="caption">{escape(caption)}</p>' if caption else ""
    return f"<section><h2>{escape(title)}</h2>{text}{''.join(html)}</section>"


def missing(words: str) -> Html:
    """What stands in the place of a figure that there is no data for."""
    return f'<p class="missing">{escape(words)}</p>'


def table(head: Sequence[str], rows: Iterable[Sequence[Html]], kind: str = "numbers") -> Html:
    """A table; the cells of its rows are HTML."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    # On a phone the rows of a table of texts are cards, and each cell needs its own heading.
    names = [f' data-label="{escape(cell)}"' if kind.startswith("text") and cell else "" for cell in head]
    body = "".join(
        "<tr>" + "".join(f"<td{name}>{cell}</td>" for name, cell in zip(names, row, strict=True)) + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table class="{kind}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def fold(title: str, html: Html) -> Html:
    """Something that opens on a click."""
    return f"<details><summary>{escape(title)}</summary>{html}</details>"


def figure(name: str, drawn: Drawing | None, absent: str) -> Html:
    """A figure's place and its data, or words if there is no figure."""
    if drawn is None:
        return missing(absent)
    # Inside <script> only "<" could end the element early.
    data = drawn.to_json().replace("<", "\\u003c")
    style = f"height:{drawn.height}px"
    return (
        f'<div class="figure" id="{name}" data-name="{name}" style="{style}"></div>'
        f'<script type="application/json" id="{name}-data">{data}</script>'
    )


def grid(cells: Iterable[tuple[str, Html]], wide: bool = False) -> Html:
    """Small figures with headings, as many beside each other as the screen has room for."""
    found = [(f"<h3>{escape(title)}</h3>" if title else "") + html for title, html in cells]
    return f'<div class="grid{" large" if wide else ""}">' + "".join(f"<div>{html}</div>" for html in found) + "</div>"


def page(title: str, html: Html, refresh: int | None = None) -> Html:
    """A whole page in one file: style, plotly.js and data inside, nothing from the network.

    Args:
        title: What the browser's tab says.
        html: The body.
        refresh: Seconds after which the page loads itself again while somebody looks at it; never if None.

    Returns:
        The text of the file.
    """
    from plotly.offline import get_plotlyjs

    assets = files("sphere_pl.report") / "assets"
    again = f' data-refresh="{refresh}"' if refresh else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{escape(title)}</title>
<style>{(assets / "page.css").read_text(encoding="utf-8")}</style>
</head>
<body{again}>
{html}
<script type="application/json" id="palette">{json.dumps(DARK)}</script>
<script>{get_plotlyjs()}</script>
<script>{(assets / "page.js").read_text(encoding="utf-8")}</script>
</body>
</html>
"""
