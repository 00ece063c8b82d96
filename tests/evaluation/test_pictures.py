"""Text of pictures: a font that has it or an escape, and lines that fit."""

import pytest
from matplotlib.figure import Figure

from jaxformer.errors import UserError
from jaxformer.evaluation import pictures
from jaxformer.evaluation.pictures import (
    DEFAULT_FONT,
    check_output,
    escape_missing_glyphs,
    fonts,
    save_picture,
    text_size,
    wrapped,
)


@pytest.fixture
def installed(monkeypatch):
    """Lets these families and no others be installed, each with these characters."""

    def install(**families):
        known = {name.replace("_", " "): frozenset(map(ord, has)) for name, has in families.items()}
        monkeypatch.setattr(pictures, "_installed", lambda: list(known))
        monkeypatch.setattr(
            pictures, "_charmap", lambda name: known.get(name, frozenset(range(32, 127)))
        )
        pictures._families.cache_clear()

    yield install
    pictures._families.cache_clear()


def test_without_a_font_a_character_is_its_code_point(installed):
    installed()
    assert escape_missing_glyphs("a中b") == "aU+4E2Db"
    assert escape_missing_glyphs("中文") == "U+4E2D U+6587"
    assert escape_missing_glyphs("👍中!") == "U+1F44D U+4E2D!"
    assert escape_missing_glyphs("plain [text] ^-]\\") == "plain [text] ^-]\\"
    assert fonts(["中"]) == [DEFAULT_FONT]


def test_an_installed_font_that_has_it_is_used(installed):
    installed(Serif="é", Noto_Sans_CJK_SC="中文é", Korean="한", Unused="xyz")
    assert escape_missing_glyphs("中文é한👍") == "中文é한U+1F44D"
    assert fonts(["中"]) == [DEFAULT_FONT, "Noto Sans CJK SC"]
    assert fonts(["plain", "é", "한"]) == [DEFAULT_FONT, "Serif", "Korean"]
    assert fonts(["plain"]) == [DEFAULT_FONT]


def test_control_characters_are_never_drawn():
    assert escape_missing_glyphs("a\nb\x1b\udcff") == "aU+000AbU+001B U+DCFF"


def test_fonts_of_boxes_and_of_mathematics_are_no_fonts_of_text():
    found = pictures._installed()
    assert not {"Last Resort High-Efficiency", "cmr10", "STIXSizeOneSym"} & {*found}
    for name in ("Noto Color Emoji", "Apple Color Emoji", "Adobe Blank"):
        assert pictures.UNFIT.search(name)
    assert not pictures.UNFIT.search("Noto Emoji")


@pytest.mark.parametrize("text", ["a word or two of text that is wrapped", "word" * 30, "a", ""])
@pytest.mark.parametrize("inches", [0.01, 0.5, 1.3])
def test_wrapped_text_fits_and_keeps_its_words(text, inches):
    figure = Figure()
    lines = wrapped(figure, text, 9, inches).split("\n")
    for line in lines:
        assert text_size(figure, line, 9)[0] <= inches or len(line) == 1
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    if inches > 1:
        assert " ".join(lines) == text or " " not in text


def test_a_picture_of_ours_may_be_drawn_again_and_no_other_file(tmp_path):
    path = tmp_path / "a.png"
    check_output("--output", path)
    save_picture(Figure(figsize=(1, 1)), path)
    check_output("--output", path)
    Figure(figsize=(1, 1)).savefig(path)
    with pytest.raises(UserError, match=f"--output {path}"):
        check_output("--output", path)
