"""Figures as SVG that stands within a page beside others."""

from __future__ import annotations

import re
from hashlib import sha256
from xml.etree import ElementTree

from markupsafe import Markup
from matplotlib.figure import Figure

from sharpness.render.files import figure_bytes

SVG = "{http://www.w3.org/2000/svg}"
POINT = 4 / 3  # pixels
ENLARGED, LEAST = 1.35, 0.85  # so that 7 points are read with ease; on a narrow screen the page scrolls the figure


def inline_svg(figure: Figure, name: str) -> Markup:
    """A figure as an ``svg`` element for HTML.

    Args:
        figure: what to show.
        name: read aloud in its place; identifiers, of which figures have many in common, begin with a hash of it.
    """
    prefix = f"figure-{sha256(name.encode()).hexdigest()[:8]}"
    root = ElementTree.fromstring(figure_bytes(figure, ["svg"])["svg"])
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{SVG}metadata", f"{SVG}style"):  # the page has the one rule that stands there
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        attributes = {key.rpartition("}")[2]: _renamed(key, value, prefix) for key, value in element.items()}
        element.attrib.clear()
        element.attrib.update(attributes)
    width = POINT * float(root.attrib.pop("width").removesuffix("pt"))
    del root.attrib["height"]
    sizes = f"width: {ENLARGED * width:.0f}px; min-width: {LEAST * width:.0f}px"
    root.attrib.update({"role": "img", "aria-label": name, "style": sizes})
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _renamed(key: str, value: str, prefix: str) -> str:
    if key == "id":
        return f"{prefix}-{value}"
    if key.endswith("}href"):
        return value.replace("#", f"#{prefix}-", 1)
    return re.sub(r"url\(#", f"url(#{prefix}-", value)
