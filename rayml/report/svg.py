"""Matplotlib's SVG made fit for an HTML page: the page's fonts and colours, names for screen readers, unique ids."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# A plot is drawn in these colours, which nothing else uses, and each becomes a variable of the page's style sheet:
# one drawing serves light, dark and paper.
INK, MUTED, GRID, PAPER, WRONG = "#010101", "#010102", "#010103", "#010104", "#010105"
SERIES = tuple(f"#0102{i:02d}" for i in range(1, 8))
_VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    GRID: "rule",
    PAPER: "paper",
    WRONG: "wrong",
    **{colour: f"series-{i}" for i, colour in enumerate(SERIES, 1)},
}
_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_COLOUR = re.compile(r"#01(?:01|02)0[1-7]")
_FONT = re.compile(r"font: ([\d.]+px)[^;]*")
_REFERENCE = re.compile(r"#([\w-]+)")


def to_svg(figure: Figure, name: str, description: str, titles: Mapping[str, str] | None = None) -> str:
    """A figure as an `<svg>` element.

    Arguments:
        figure: drawn in the colours above.
        name: unique in the page; goes before every id.
        description: what a screen reader says in the picture's place.
        titles: gid of a drawn thing -> the words shown where the pointer rests on it.
    """
    import matplotlib as mpl

    file = io.StringIO()
    # Text stays text, that is read, searched and scaled; the salt makes the same plot the same bytes.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    root = ElementTree.fromstring(file.getvalue())
    for child in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(child)
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    root.attrib |= {"role": "img", "aria-label": description, "class": "plot"}
    elements = list(root.iter())
    used = {word for element in elements for value in element.attrib.values() for word in _REFERENCE.findall(value)}
    for element in elements:
        if title := (titles or {}).get(element.get("id", "")):
            label = ElementTree.Element(f"{{{_SVG}}}title")
            label.text = title
            element.insert(0, label)
        if (own := element.attrib.pop("id", None)) in used:
            element.set("id", f"{name}-{own}")
        if target := element.attrib.pop(f"{{{_XLINK}}}href", None):
            element.set("href", f"#{name}-{target[1:]}")
        for attribute, value in element.attrib.items():
            if attribute in ("style", "fill", "stroke"):
                value = _FONT.sub(r"font-size: \1", value)
                value = _COLOUR.sub(lambda found: f"var(--{_VARIABLES[found[0]]})", value)
            element.set(attribute, value.replace("url(#", f"url(#{name}-"))
    ElementTree.register_namespace("", _SVG)
    return ElementTree.tostring(root, encoding="unicode")
