"""The report as one HTML page: the verdict, the error along the depth, the tree and the faults.

The page needs no network and no scripts; the picture is SVG.
"""

import math
from collections.abc import Iterator, Sequence
from html import escape

from jaxformer.porting.findings import Layer, grouped
from jaxformer.porting.report import Report, fault_lines, headline, near, shown
from jaxformer.porting.tree import Node, tree

WIDTH, HEIGHT = 960, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 16, 34
"""Margins of the picture in pixels."""
LOWEST = 1e-17
"""The floor of the picture: what is equal to the last bit stands there."""

STYLE = """
:root { --ink: #1c2128; --dim: #6a737d; --line: #d8dee4; --paper: #fff; --panel: #f6f8fa;
  --good: #1a7f37; --bad: #cf222e; --run: #8250df; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --dim: #8b949e; --line: #30363d;
  --paper: #0d1117; --panel: #161b22; --good: #3fb950; --bad: #ff7b72; --run: #bc8cff; } }
body { color: var(--ink); background: var(--paper); font: 15px/1.5 system-ui, sans-serif;
  max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.25rem; border-left: .4rem solid var(--bad); padding-left: .8rem; }
h1.good { border-color: var(--good); }
h2 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
svg { width: 100%; height: auto; font: 11px system-ui, sans-serif; }
table { border-collapse: collapse; width: 100%; font: 13px/1.6 ui-monospace, monospace; }
th { text-align: left; color: var(--dim); font-weight: normal; }
td, th { padding: 0 .8rem 0 0; white-space: pre; }
td.number { text-align: right; width: 5rem; }
td.place { color: var(--dim); }
tr.fault td { color: var(--bad); font-weight: bold; }
tr.inherits td.number:first-child { color: var(--run); }
tr.missing td { color: var(--dim); }
pre { background: var(--panel); border-left: .25rem solid var(--bad); padding: .6rem .8rem;
  white-space: pre-wrap; font: 13px/1.5 ui-monospace, monospace; }
.dim { color: var(--dim); }
"""


def as_html(report: Report) -> str:
    """The whole page."""
    parts = [
        f'<h1 class="{"good" if report.ok else "bad"}">{escape(headline(report))}</h1>',
        *(f'<p class="dim">note: {escape(note)}</p>' for note in report.notes),
    ]
    if any(layer.found for layer in report.layers):
        parts += ["<h2>The error along the depth</h2>", picture(report)]
        parts += ["<h2>The modules in order of execution</h2>", table(report)]
    if report.faults:
        parts += ["<h2>Faults</h2>"]
        parts += [
            f"<pre>{escape(chr(10).join(fault_lines(group)))}</pre>"
            for group in grouped(report.faults)
        ]
    return (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{escape(headline(report).partition(';')[0])}</title>\n"
        f"<style>{STYLE}</style>\n" + "\n".join(parts) + "\n</html>\n"
    )


def table(report: Report) -> str:
    """The tree."""
    heads = ("as run", "by itself", "module", "in the port")
    rows = "".join(_rows(tree(report.layers, report.inherited)))
    return f"<table><tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr>{rows}</table>"


def _rows(nodes: Sequence[Node], depth: int = 0) -> Iterator[str]:
    for node in nodes:
        layer = node.layer
        cause = "" if layer.cause is None else f": {layer.cause or 'no known cause'}"
        name = escape(f"{'  ' * depth}{node.label}{cause}")
        place = near(layer.jax) if layer.found else "not found"
        yield (
            f'<tr class="{node.status}"><td class="number">{shown(layer.error)}</td>'
            f'<td class="number">{shown(layer.own)}</td>'
            f'<td title="{escape(layer.kind)}">{name}</td>'
            f'<td class="place">{escape(place)}</td></tr>\n'
        )
        yield from _rows(node.inside, depth + 1)


def picture(report: Report) -> str:
    """The error of each module's output, in the order in which they end, on a logarithmic axis."""
    layers = [x for x in _ending(tree(report.layers, report.inherited, whole=True)) if x.found]
    highest = max(1.0, *(x.error for x in layers if math.isfinite(x.error)))
    top, bottom = math.ceil(math.log10(highest)), round(math.log10(LOWEST))
    wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x(number: int) -> float:
        return round(LEFT + wide * (number + 0.5) / len(layers), 1)

    def y(error: float) -> float:
        level = math.log10(min(max(error, LOWEST), highest))
        return round(TOP + high * (top - level) / (top - bottom), 1)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="error along the depth">']
    for power in range(bottom + 1, top + 1, 4):
        height = y(10.0**power)
        parts.append(
            f'<path d="M{LEFT} {height}H{WIDTH - RIGHT}" stroke="var(--line)"/>'
            f'<text x="{LEFT - 8}" y="{height + 4}" text-anchor="end" fill="var(--dim)">'
            f"1e{power:+03d}</text>"
        )
    parts.append(
        f'<path d="M{LEFT} {y(report.bound)}H{WIDTH - RIGHT}" stroke="var(--good)" '
        f'stroke-dasharray="5 4"/><text x="{WIDTH - RIGHT}" y="{y(report.bound) - 5}" '
        'text-anchor="end" fill="var(--good)">bound</text>'
    )
    line = " ".join(f"{x(i)},{y(layer.error)}" for i, layer in enumerate(layers))
    parts.append(f'<polyline points="{line}" fill="none" stroke="var(--run)" stroke-width="1.5"/>')
    parts += [_dot(x(i), y(layer.own), layer) for i, layer in enumerate(layers)]
    named = {group[0].torch for group in grouped(report.faults)}
    parts += [_name(x(i), y(z.own), z) for i, z in enumerate(layers) if z.torch in named]
    parts.append(
        f'<text x="{LEFT}" y="{HEIGHT - 8}" fill="var(--dim)"><tspan fill="var(--run)">line'
        "</tspan>: as the port runs; dots: by itself, on PyTorch's values; "
        '<tspan fill="var(--bad)">red</tspan>: at fault. From the first module to the last.</text>'
    )
    return "\n".join([*parts, "</svg>"])


def _ending(nodes: Sequence[Node]) -> Iterator[Layer]:
    """The layers in the order in which they end."""
    for node in nodes:
        yield from _ending(node.inside)
        yield node.layer


def _dot(x: float, y: float, layer: Layer) -> str:
    fault = layer.cause is not None
    colour, radius = ("--bad", 5) if fault else ("--good", 2.5)
    words = f"{layer.torch or layer.kind}: as run {shown(layer.error)}, own {shown(layer.own)}"
    return (
        f'<circle cx="{x}" cy="{y}" r="{radius}" fill="var({colour})">'
        f"<title>{escape(words)}</title></circle>"
    )


def _name(x: float, y: float, layer: Layer) -> str:
    """The name of a layer at fault, below its dot and towards the middle."""
    anchor = "start" if x < WIDTH / 2 else "end"
    words = escape(f"{layer.torch or layer.kind}{f': {layer.cause}' if layer.cause else ''}")
    return f'<text x="{x}" y="{y + 18}" text-anchor="{anchor}" fill="var(--bad)">{words}</text>'
