"""What the pages share: one file of HTML that needs no other, in light and in dark."""

import base64
from collections.abc import Iterable
from html import escape

from segpipe.data.labels import IGNORE, Labels
from segpipe.data.planes import colour

STYLE = """
:root { color-scheme: light dark; }
body { font: 14px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; } th, td { padding: .3rem .8rem .3rem 0; text-align: left; vertical-align: top; }
th { font-weight: 600; } tr + tr > * { border-top: 1px solid #8884; }
td.n { text-align: right; font-variant-numeric: tabular-nums; }
img { display: block; max-width: 160px; } pre { white-space: pre-wrap; margin: .3rem 0; font-size: .85em; }
.swatch { display: inline-block; width: .7em; height: .7em; margin-right: .4em; border-radius: 2px; }
.problem { color: #d33; } .warning { color: #b07000; } .ok { color: #2a8a3a; } .quiet { opacity: .65; }
"""


def document(title: str, style: str, parts: Iterable[str]) -> str:
    """The whole page; the title is escaped here, the parts are HTML.

    style : what the page adds to the common one
    """
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}{style}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>\n' + "\n".join(parts) + "\n</body></html>\n"


def table(rows: Iterable[str]) -> str:
    """A table of rows, each the cells as HTML."""
    return "<table>\n" + "\n".join(f"<tr>{row}</tr>" for row in rows) + "\n</table>"


def pairs(rows: Iterable[tuple[str, str]]) -> str:
    """A table of names and values, which are escaped here."""
    return table(f"<th>{escape(name)}</th><td>{escape(value)}</td>" for name, value in rows)


def data_uri(picture: bytes) -> str:
    """A PNG as part of the page."""
    return f"data:image/png;base64,{base64.b64encode(picture).decode()}"


def class_name(name: str, labels: Labels) -> str:
    """A class with the colour of its outline: of a region, that of the value which it paints."""
    if name == IGNORE:
        return escape(name)
    painted = labels.regions_order[[*labels.foreground].index(name)] if labels.regions_order else labels.names[name][0]
    return f'<span class="swatch" style="background:{colour(painted)}"></span>{escape(name)}'
