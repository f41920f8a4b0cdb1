"""Data files of the Visualization Toolkit, which ParaView opens: XML with arrays in base64, in which NaN is a number.

A writer of our own: the packages that write such files know no text, or no polygons, or are VTK itself (140 MB).
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np

Arrays = Mapping[str, Any]
"""By name: numbers of shape (points,) or (points, components), or as many texts."""
CELLS = ("Verts", "Lines", "Strips", "Polys")


def image(
    shape: tuple[int, int], origin: tuple[float, float], spacing: tuple[float, float], points: Arrays, notes: Arrays
) -> bytes:
    """A ``.vti`` file: a flat grid of ``shape`` points; the first coordinate varies fastest in every array."""
    extent = f"0 {shape[0] - 1} 0 {shape[1] - 1} 0 0"
    place = {"Origin": _numbers((*origin, 0.0)), "Spacing": _numbers((*spacing, 1.0))}
    root, data = _root("ImageData", WholeExtent=extent, **place)
    _add(data, "FieldData", notes)
    piece = ET.SubElement(data, "Piece", Extent=extent)
    _add(piece, "PointData", points)
    _add(piece, "CellData", {})
    return _bytes(root)


def polygons(
    places: np.ndarray, cells: Mapping[str, Sequence[Sequence[int]]], *, points: Arrays, notes: Arrays
) -> bytes:
    """A ``.vtp`` file: points in space, of shape (points, 3), and the cells that they make.

    Args:
        cells: ``"Verts"``, ``"Lines"``, ``"Strips"`` and ``"Polys"``, each a list of cells as numbers of points.
    """
    root, data = _root("PolyData")
    _add(data, "FieldData", notes)
    counts: Any = {f"NumberOf{kind}": str(len(cells.get(kind, ()))) for kind in CELLS}
    piece = ET.SubElement(data, "Piece", NumberOfPoints=str(len(places)), **counts)
    _add(piece, "PointData", points)
    _add(piece, "CellData", {})
    _add(piece, "Points", {"Points": places})
    for kind in CELLS:
        members = cells.get(kind, ())
        ends = np.cumsum([len(cell) for cell in members], dtype=np.int64)
        _add(piece, kind, {"connectivity": _joined(members), "offsets": ends})
    return _bytes(root)


def _root(kind: str, **attributes: str) -> tuple[ET.Element, ET.Element]:
    root = ET.Element("VTKFile", type=kind, version="1.0", byte_order="LittleEndian", header_type="UInt64")
    return root, ET.SubElement(root, kind, attributes)


def _add(parent: ET.Element, section: str, arrays: Arrays) -> None:
    element = ET.SubElement(parent, section)
    if section == "PointData":
        element.set("Scalars", next(iter(arrays)))  # by which ParaView colours at first
    for name, given in arrays.items():
        values = np.asarray(given)
        if values.dtype.kind == "U":
            made = ET.SubElement(element, "Array", type="String", Name=name)
            content = b"".join(text.encode() + b"\0" for text in values.ravel())
        else:
            made = ET.SubElement(element, "DataArray", type=_type(values.dtype), Name=name)
            made.set("NumberOfComponents", str(values.shape[1] if values.ndim > 1 else 1))
            content = values.astype(values.dtype.newbyteorder("<")).tobytes()
        if section == "FieldData":
            made.set("NumberOfTuples", str(len(values)))
        made.set("format", "binary")
        made.text = base64.b64encode(np.array([len(content)], "<u8").tobytes() + content).decode()


def _type(dtype: np.dtype) -> str:
    kind = {"f": "Float", "i": "Int", "u": "UInt"}[dtype.kind]
    return f"{kind}{8 * dtype.itemsize}"


def _joined(cells: Iterable[Sequence[int]]) -> np.ndarray:
    return np.array([number for cell in cells for number in cell], np.int64)


def _numbers(values: Iterable[float]) -> str:
    return " ".join(repr(float(value)) for value in values)


def _bytes(root: ET.Element) -> bytes:
    ET.indent(root)
    return bytes(ET.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"
