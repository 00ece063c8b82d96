"""Pictures: text of any script that is never an empty box nor cut at the edge, and their files.

matplotlib's own font has Latin, Greek, Cyrillic, Arabic, Hebrew and many signs. For other
characters an installed font is looked for; without one a character is written as `U+4E2D`.
"""

import functools
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxformer.atomic import atomic_write
from jaxformer.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEFAULT_FONT = "DejaVu Sans"
"""The font that comes with matplotlib."""
UNFIT = re.compile(r"(?i)last ?resort|blank|color|emoji(?<!noto emoji)|^cm[a-z]+10$|^stix|math")
"""Fonts of boxes, of pictures in colour, and of mathematics with an order of its own."""
SOFTWARE = "jaxformer"
"""What the pictures' metadata name as their origin."""


def save_picture(figure: "Figure", path: Path) -> None:
    """Write a PNG.

    Raises:
        OSError: naming the file, when it cannot be written.
    """
    with atomic_write(path) as file:
        figure.savefig(file, format="png", metadata={"Software": SOFTWARE})


def check_output(flag: str, path: Path) -> None:
    """Refuse a file for a picture that cannot be one, or that is there and no picture of ours.

    Raises:
        UserError: naming the flag and the file.
    """
    if path.suffix.lower() != ".png":
        raise UserError(f"{flag} {path} is not a PNG: end the name in .png")
    if not path.parent.is_dir():
        raise UserError(f"{flag} {path}: {path.parent} is not a directory: create it first")
    if path.exists() and not path.is_file():
        raise UserError(f"{flag} {path} is there and is not a file: name another")
    if path.exists():
        with path.open("rb") as file:
            head = file.read(4096)
        if not head.startswith(b"\x89PNG") or b"Software\0" + SOFTWARE.encode() not in head:
            raise UserError(f"{flag} {path} is there and is no picture of jaxformer: name another")


def escape_missing_glyphs(text: str) -> str:
    """The text with `U+4E2D` for each character that no font has, and for control characters."""
    missing = {c for c in text if _is_control(c)} | _without_font(frozenset(text))
    if not missing:
        return text
    pieces = re.split(f"([{re.escape(''.join(missing))}])", text)
    pieces = [f"U+{ord(piece):04X}" if piece in missing else piece for piece in pieces if piece]
    return re.sub(r"(U\+[0-9A-F]{4,6})(?=U\+[0-9A-F]{4})", r"\1 ", "".join(pieces))


def fonts(texts: Sequence[str]) -> list[str]:
    """The families to draw the texts with, in matplotlib's order of trial."""
    return [DEFAULT_FONT, *_families(frozenset("".join(texts)))[0]]


def wrapped(figure: "Figure", text: str, size: float, inches: float) -> str:
    """The text, with missing glyphs escaped, in lines of this width; only long words are divided.

    Each line has a character at least.
    """
    lines: list[str] = []
    rest = text
    while rest:
        end = len(rest)
        if text_size(figure, rest, size)[0] > inches:
            low, high = 1, end  # rest[:low] fits or is one character, rest[:high] does not
            while high - low > 1:
                middle = (low + high) // 2
                fits = text_size(figure, rest[:middle], size)[0] <= inches
                low, high = (middle, high) if fits else (low, middle)
            end = rest.rfind(" ", 1, low + 1) if " " in rest[1 : low + 1] else low
        lines.append(rest[:end].rstrip(" "))
        rest = rest[end:].lstrip(" ")
    return "\n".join(lines)


def text_size(figure: "Figure", text: str, size: float) -> tuple[float, float]:
    """Width and height in inches of a text, missing glyphs escaped, in a font of `size` points."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = figure.canvas
    if not isinstance(canvas, FigureCanvasAgg):
        canvas = FigureCanvasAgg(figure)
    artist = figure.text(0, 0, text, fontsize=size, family=fonts([text]), parse_math=False)
    box = artist.get_window_extent(canvas.get_renderer())
    artist.remove()
    return box.width / figure.dpi, box.height / figure.dpi


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs")


def _without_font(characters: frozenset[str]) -> set[str]:
    return _families(characters)[1]


@functools.cache
def _families(characters: frozenset[str]) -> tuple[list[str], set[str]]:
    """Families besides the default that have some of the characters, and what none has."""
    missing = {c for c in characters if ord(c) not in _charmap(DEFAULT_FONT)}
    missing = {c for c in missing if not _is_control(c)}
    families = []
    for family in _installed() if missing else ():
        found = {c for c in missing if ord(c) in _charmap(family)}
        if found:
            families.append(family)
            missing -= found
        if not missing:
            break
    return families, missing


@functools.cache
def _installed() -> list[str]:
    """The fonts of text that are installed, those with most scripts first."""
    from matplotlib.font_manager import fontManager

    # Of another weight or width alone, matplotlib takes them with a warning.
    upright = [
        font
        for font in fontManager.ttflist
        if (font.style, font.stretch) == ("normal", "normal") and font.weight in (400, "normal")
    ]
    names = {font.name for font in upright} - {DEFAULT_FONT}
    return sorted((n for n in names if not UNFIT.search(n)), key=lambda n: ("Noto" not in n, n))


@functools.cache
def _charmap(family: str) -> frozenset[int]:
    """Code points that matplotlib can draw with a family."""
    from matplotlib.font_manager import FontProperties, fontManager
    from matplotlib.ft2font import FT2Font

    try:
        path = fontManager.findfont(FontProperties(family=[family]), fallback_to_default=False)
        font: Any = FT2Font(path)
        return frozenset(font.get_charmap()) if font.scalable else frozenset()
    except (ValueError, RuntimeError, OSError):  # a font that matplotlib lists and cannot read
        return frozenset()
