"""A page of HTML in one file: text, tables and pictures, without scripts, and without anything from elsewhere.

Every function takes plain text and escapes it; what they return is markup, which only they put together.
"""

import base64
import html
from collections.abc import Iterable, Sequence
from typing import NewType

from metarl import safety

Markup = NewType("Markup", str)
"""Text that is HTML already. Nothing else may stand in a page."""

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""What a browser may do with the page, should anything have got into it: show pictures that the page holds."""
STYLE = """
:root { color-scheme: light dark; --line: #d0d0d0; --faint: #666; }
@media (prefers-color-scheme: dark) { :root { --line: #444; --faint: #aaa; } img { background: white; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.2rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin-bottom: 0.3rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 0.6rem 0; }
th, td { text-align: left; vertical-align: top; padding: 0.2rem 0.9rem 0.2rem 0; border-bottom: 1px solid var(--line); }
th { font-weight: 600; } td { overflow-wrap: anywhere; min-width: 4rem; }
img { max-width: 100%; height: auto; margin: 0.6rem 0; }
p.note { color: var(--faint); } summary { cursor: pointer; }
"""


def text(value: object) -> Markup:
    """Return text as markup: no character of it is read as HTML or moves what stands beside it."""
    return Markup(html.escape(safety.harmless(str(value)), quote=True))


def heading(level: int, value: object) -> Markup:
    """Return a heading, of level 1 to 3."""
    return Markup(f"<h{level}>{text(value)}</h{level}>")


def paragraph(value: object, note: bool = False) -> Markup:
    """Return a paragraph; a note is fainter."""
    kind = ' class="note"' if note else ""
    return Markup(f"<p{kind}>{text(value)}</p>")


def table(headings: Sequence[object], rows: Iterable[Sequence[object]]) -> Markup:
    """Return a table. Without headings, the first cell of each row is its heading."""
    top = "".join(f'<th scope="col">{text(cell)}</th>' for cell in headings)
    body = "".join(f"<tr>{_cells(row, not headings)}</tr>\n" for row in rows)
    head = f"<thead><tr>{top}</tr></thead>" if headings else ""
    return Markup(f'<div class="wide"><table>{head}<tbody>\n{body}</tbody></table></div>')


def _cells(row: Sequence[object], headed: bool) -> str:
    first, *others = row
    begun = f'<th scope="row">{text(first)}</th>' if headed else f"<td>{text(first)}</td>"
    return begun + "".join(f"<td>{text(cell)}</td>" for cell in others)


def picture(contents: bytes, kind: str, told: object) -> Markup:
    """Return a picture that the page holds itself; ``kind`` is png, gif or svg+xml, ``told`` what it shows."""
    encoded = base64.b64encode(contents).decode("ascii")
    return Markup(f'<img src="data:image/{text(kind)};base64,{encoded}" alt="{text(told)}">')


def folded(title: object, *parts: Markup) -> Markup:
    """Return parts that are shown when the reader opens them."""
    return Markup(f"<details><summary>{text(title)}</summary>\n{joined(parts)}\n</details>")


def joined(parts: Iterable[Markup]) -> Markup:
    """Return parts one after another."""
    return Markup("\n".join(parts))


def document(title: object, parts: Iterable[Markup]) -> str:
    """Return the whole page."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{text(POLICY)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{text(title)}</title>
<style>{STYLE}</style>
</head>
<body>
{joined(parts)}
</body>
</html>
"""
