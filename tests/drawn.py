"""What is written in a picture: inside its edges, and each character a glyph."""

import warnings

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text


def written(figure: Figure) -> list[Text]:
    """Every text that is drawn; a character that no font of its text has is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FigureCanvasAgg(figure).draw()
    texts = figure.findobj(lambda artist: isinstance(artist, Text) and artist.get_visible())
    return [text for text in texts if text.get_text().strip() and _within_limits(text)]


def _within_limits(text: Text) -> bool:
    """Whether matplotlib draws it: the label of a tick outside its axis' limits is not."""
    for axes in text.figure.axes:
        for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            for tick in (*axis.majorTicks, *axis.minorTicks):
                if text in (tick.label1, tick.label2):
                    return min(limits) <= tick.get_loc() <= max(limits)
    return True


def assert_readable(figure: Figure) -> None:
    """No text is cut at the picture's edge, and a font has each character of it."""
    texts, edges = written(figure), figure.bbox
    assert texts
    for text in texts:
        box = text.get_window_extent()
        assert edges.x0 <= box.x0 < box.x1 <= edges.x1, text.get_text()
        assert edges.y0 <= box.y0 < box.y1 <= edges.y1, text.get_text()
