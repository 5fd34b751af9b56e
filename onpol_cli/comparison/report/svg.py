"""matplotlib's SVG made fit for a page with a strict content policy and a dark mode.

The policy forbids style attributes and style elements, so styles become presentation attributes; black
becomes `currentColor`; only drawing elements survive. Owns this rewriting.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

_SVG = "http://www.w3.org/2000/svg"
_LINK = "{http://www.w3.org/1999/xlink}href"
_KEPT = frozenset({"svg", "g", "path", "use", "text", "tspan", "rect", "circle", "clipPath", "defs", "image", "line"})
_BLACK = frozenset({"#000000", "black", "#000"})
_FONT = re.compile(r"(?:(?P<weight>bold|\d{3})\s+)?(?P<size>[\d.]+)px")


def page_svg(data: bytes, name: str, caption: str) -> str:
    """The `<svg>` element as text, ids prefixed with `name`, titled with `caption` for screen readers."""
    root = ET.fromstring(data)
    _clean(root, name)
    # A little larger than on paper; the style sheet shrinks what is too wide.
    root.set("width", f"{float(root.attrib.pop('width').removesuffix('pt')) * 1.2:.0f}")
    root.attrib.pop("height", None)
    root.set("role", "img")
    root.set("stroke-linejoin", "round")
    root.set("stroke-linecap", "butt")
    title = ET.Element(f"{{{_SVG}}}title")
    title.text = caption
    root.insert(0, title)
    ET.register_namespace("", _SVG)
    return ET.tostring(root, encoding="unicode")


def _clean(element: ET.Element, name: str) -> None:
    for child in list(element):
        if not isinstance(child.tag, str) or child.tag.removeprefix(f"{{{_SVG}}}") not in _KEPT:
            element.remove(child)
        else:
            _clean(child, name)
    _styles_to_attributes(element)
    for key in [key for key in element.attrib if key.lower().startswith("on")]:
        del element.attrib[key]
    link = element.attrib.pop(_LINK, None) or element.attrib.pop("href", None)
    if link and (link.startswith(("#", "data:image/png"))):
        element.set("href", f"#{name}-{link[1:]}" if link.startswith("#") else link)
    if "id" in element.attrib:
        element.set("id", f"{name}-{element.attrib['id']}")
    clip = element.attrib.get("clip-path")
    if clip:
        element.set("clip-path", clip.replace("url(#", f"url(#{name}-"))
    for key in ("fill", "stroke"):
        if element.attrib.get(key) in _BLACK:
            element.set(key, "currentColor")
    if element.tag == f"{{{_SVG}}}text" and "fill" not in element.attrib:
        element.set("fill", "currentColor")


def _styles_to_attributes(element: ET.Element) -> None:
    for entry in element.attrib.pop("style", "").split(";"):
        key, _, value = (part.strip() for part in entry.partition(":"))
        if key == "font":
            found = _FONT.search(value)
            if found:
                element.set("font-size", found["size"])
                element.set("font-weight", found["weight"] or "normal")
        elif key and value:
            element.set(key, value)
