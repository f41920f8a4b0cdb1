"""Templates of the page, and how values stand in them as text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs, get_plotlyjs_version

from sharpness.provenance import package_version
from sharpness.render.tables import Table, alignment

GROUPED = "ε-sharpness (%), "


def filled(template: str, **values: Any) -> str:
    """A template of this package with values, which are escaped."""
    environment = Environment(
        loader=PackageLoader("sharpness.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        said=said, parallel=parallel, side_by_side=side_by_side, grouped=grouped, alignment=alignment
    )
    environment.globals.update(
        plotly=lambda: Markup(get_plotlyjs()),
        plotly_version=get_plotlyjs_version(),
        version=package_version("sharpness"),
    )
    return environment.get_template(template).render(values)


def said(value: Any) -> str:
    """A setting as people read it.

    >>> said(True), said([1, 2.5]), said([]), said(""), said([["SB", "LB"]])
    ('yes', '1, 2.5', 'none', '–', '["SB", "LB"]')
    """
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, (list, tuple)):
        simple = (said(v) if isinstance(v, (str, int, float)) else json.dumps(v, ensure_ascii=False) for v in value)
        return ", ".join(simple) or "none"
    return str(value) or "–"


def parallel(value: Any) -> bool:
    """Whether a mapping holds two or more mappings of the same names, which can stand side by side.

    >>> parallel({"SB": {"batch_size": 16}, "LB": {"batch_size": 0.1}}), parallel({"SB": {"batch_size": 16}, "seed": 0})
    (True, False)
    """
    entries = list(value.values()) if isinstance(value, Mapping) else []
    return len(entries) > 1 and all(
        isinstance(entry, Mapping) and entry and list(entry) == list(entries[0]) for entry in entries
    )


def side_by_side(values: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, list[Any]]]:
    """Mappings of the same names as rows: each name with the value of every mapping.

    >>> side_by_side({"SB": {"batch_size": 16}, "LB": {"batch_size": 0.1}})
    [('batch_size', [16, 0.1])]
    """
    entries = list(values.values())
    return [(name, [entry[name] for entry in entries]) for name in entries[0]]


def grouped(table: Table) -> list[tuple[str, list[list[str]]]]:
    """The rows of a table under headings: what an ε-sharpness shares with its neighbours stands over them.

    >>> rows = [("λmax", 2.0), ("ε-sharpness (%), batch norm: eval, full, ε = 0.001, L-BFGS-B", 1.5)]
    >>> grouped(Table("", ("quantity", "SB"), rows))
    [('', [['λmax', '2']]), ('ε-sharpness (%), batch norm: eval, full', [['ε = 0.001, L-BFGS-B', '1.5']])]
    """
    groups: list[tuple[str, list[list[str]]]] = []
    for quantity, *values in table.texts:
        heading, label = "", quantity
        if quantity.startswith(GROUPED):
            heading, epsilon, maximiser = quantity.rsplit(", ", 2)
            label = f"{epsilon}, {maximiser}"
        if not groups or groups[-1][0] != heading:
            groups.append((heading, []))
        groups[-1][1].append([label, *values])
    return groups
