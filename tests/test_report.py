"""Reports: one file that says exactly what the records say, asks no network for anything, and turns in a browser."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import contents, invoke, refused
from test_render import comparison, eigenpairs, epsilon_sharpness, history, line, plane
from test_store import EVERY, example

from sharpness import store
from sharpness.errors import SchemaError
from sharpness.interpolation import between
from sharpness.records import variables
from sharpness.render import comparison_table, draw_folder
from sharpness.render.cells import cell_text
from sharpness.report import write_report
from sharpness.report.numbers import MOST_ROWS, number_tables

VOID = {"meta", "input", "br", "link", "img", "hr"}
CONFIGURATION = {"recipe": "digits", "parameters": {"regimes": {"SB": {"epochs": 3}, "LB": {"epochs": 7}}, "seed": 0}}
HOSTILE = '"><script>hostile=1<!--'
MB = 1e6


def valley(left_out=False, **changes):
    """A plane whose axes differ in length and extent, over three decades; some points are missing."""
    alpha, beta = np.linspace(-1, 1, 9), np.linspace(-0.5, 1.5, 7)
    loss = 1e-3 + alpha[:, None] ** 2 + 0.3 * (beta - 0.2) ** 2
    status = np.ones(loss.shape, np.uint8)
    if left_out:
        status[1::2, 1:-1], status[:, 1:-1:2] = 3, 3
    else:
        status[2, 5], status[6, 1] = 0, 2
    loss = np.where(status == 1, np.stack([loss, 2 * loss]), np.nan)
    record = replace(
        plane(), alpha=alpha, beta=beta, loss=loss, accuracy=np.exp(-loss), status=status,
        mark=np.array(["SB", "LB"]), mark_place=np.array([[0.0, 0.2, 0.0], [0.5, 1.0, 0.7]]),
        epoch=np.array([0, 3, 9]), walk_place=np.array([[-0.9, 1.4, 0.5], [-0.5, 0.9, 0.2], [0.0, 0.2, 0.0]]),
    )  # fmt: skip
    return replace(record, **changes)


def write_run(folder: Path, regimes=("SB", "LB"), planes=True) -> dict[str, Any]:
    """Files as a recipe leaves them; the records by their place."""
    records = {"comparison.h5": replace(comparison(), regime=np.array(regimes)), "seed-0/line.h5": line()}
    for number, regime in enumerate(regimes):
        place = f"seed-0/{regime}"
        records[f"{place}/history.h5"] = history(5 + number)
        records[f"{place}/eigenpairs.h5"] = eigenpairs((9.0 + number, 4.0, 1.0))
        records[f"{place}/sharpness.h5"] = replace(epsilon_sharpness(), sharpness=12.5 + number)
        if planes:
            records[f"{place}/plane.h5"] = valley(left_out=number == 1, mark=np.array(["SB", regime]))
    for place, record in records.items():
        store.save({"batch-full": record} if "sharpness" in place else record, folder / place)
    (folder / "run.json").write_text(json.dumps({**CONFIGURATION, "name": regimes[0]}))
    return records


class Page(HTMLParser):
    """A page as a browser sees it: elements with attributes, tables by title, texts by element; all must close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.data: dict[str, list[str]] = {}
        self._open: list[str] = []
        self._nested: list[list[list[str]]] = []  # tables that are open
        self._title = ""
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
            self.data.setdefault(tag, []).append("")
        if tag == "table":
            self._nested.append(self.tables.setdefault(f"{len(self.tables)} {self._title}", []))
        if tag == "tr":
            self._nested[-1].append([])
        if tag in ("td", "th"):
            self._nested[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        if tag == "table":
            self._nested.pop()
        if tag == "figcaption":
            self._title = self.data[tag][-1]

    def handle_data(self, data: str) -> None:
        if self._open:
            self.data[self._open[-1]][-1] += data
            if self._nested and self._nested[-1] and self._nested[-1][-1]:
                self._nested[-1][-1][-1] += data.strip()

    def table(self, title: str) -> list[list[str]]:
        """The first table of a title, without what stands over groups of rows."""
        return next(rows for name, rows in self.tables.items() if title in name)

    def attributes(self, name: str) -> list[str]:
        return [attributes[name] or "" for _, attributes in self.elements if name in attributes]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs") / "small <run>"


@pytest.fixture(scope="module")
def records(folder) -> dict[str, Any]:
    return write_run(folder)


@pytest.fixture(scope="module")
def report(folder, records) -> Path:
    return write_report(folder)


@pytest.fixture(scope="module")
def page(report) -> Page:
    return Page(report.read_text())


# What stands in it


def test_it_lies_in_the_folder_or_where_it_is_told_to(tmp_path):
    store.save(line(), tmp_path / "line.h5")
    assert write_report(tmp_path) == tmp_path / "report.html"
    assert write_report(tmp_path, tmp_path / "other" / "a.html") == tmp_path / "other" / "a.html"
    assert write_report(tmp_path, tmp_path / "other") == tmp_path / "other" / "report.html"
    assert len(set(contents(tmp_path).values())) == 2  # the same bytes each time


def test_every_element_is_closed_and_every_identifier_and_link_is_good(page):
    identifiers = page.attributes("id")
    assert max(Counter(identifiers).values()) == 1
    targets = page.attributes("href") + [f"#{name}" for name in page.attributes("aria-labelledby")]
    assert {target[1:] for target in targets} <= set(identifiers)
    assert page.data["title"] == ["small <run> – sharpness"]
    assert page.data["h1"] == ["small <run>"]


def test_nothing_is_loaded_from_anywhere(page, report):
    for name in ("src", "srcset", "data", "action", "poster", "background", "xlink:href"):
        assert page.attributes(name) == []
    assert all(target.startswith("#") for target in page.attributes("href"))
    assert not {"link", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.elements}
    (css,) = page.data["style"]
    assert "url(" not in css
    assert "@import" not in css
    values = " ".join(value or "" for _, attributes in page.elements for value in attributes.values())
    assert set(re.findall(r"url\((.)", values)) == {"#"}
    (policy,) = [a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert 4.5 * MB < report.stat().st_size < 7 * MB  # of which plotly.js is nearly all


def test_without_planes_there_is_no_script_and_the_file_is_small(tmp_path):
    write_run(tmp_path, planes=False)
    report = write_report(tmp_path)
    assert "script" not in Page(report.read_text()).data
    assert report.stat().st_size < 1 * MB


def test_it_has_every_figure_of_draw_folder(folder, page):
    drawn = {path.stem for path in draw_folder(folder, ["svg"]) if path.suffix == ".svg"} - {"table"}
    shown = {attributes["aria-label"] for tag, attributes in page.elements if tag == "svg"}
    assert shown & drawn == {"comparison", "line", "seed-0-history", "seed-0-plane"}
    assert shown - drawn <= {"seed-0-plane, surfaces"}


def test_the_table_of_a_comparison_is_the_one_of_its_figures(page, records):
    table = comparison_table(records["comparison.h5"])
    head, *rows = page.table("mean ± sample standard deviation")
    assert head == list(table.head)
    numbers = [row[1:] for row in rows if len(row) > 1]
    assert numbers == [row[1:] for row in table.texts]
    assert [row[0] for row in rows if row[0] in {texts[0] for texts in table.texts}][:2] == [
        "train loss (nat)",
        "test loss (nat)",
    ]


def test_every_sharpness_and_every_eigenvalue_has_a_row(page):
    rows = page.table("every ε-sharpness")[1:]
    assert [row[0] for row in rows] == ["seed-0/LB", "seed-0/SB"]
    assert [row[4:8] for row in rows] == [["13.5", "15", "2", "2"], ["12.5", "15", "2", "2"]]
    rows = page.table("every eigenvalue")[1:]
    assert rows[0] == ["seed-0/LB", "1", "10", "1", "yes"]
    assert [row[4] for row in rows] == ["yes", "yes", "no"] * 2


def test_parameters_settings_conditions_and_provenance_are_there(page, folder):
    cells = [row for rows in page.tables.values() for row in rows]
    assert ["epochs", "3", "7"] in cells
    assert ["batch_size", "256", "examples in a mini-batch"] in cells
    assert any(row[:1] == ["batchnorm"] and "treatment of batch-norm statistics" in row for row in cells)
    origin = store.load_provenance(folder / "comparison.h5")
    for name in ("command", "machine", "git_commit", "python", "sharpness"):
        assert [name, origin[name]] in cells
    assert ["numpy", origin["libraries"]["numpy"]] in cells
    assert {str(path.relative_to(folder)) for path in folder.rglob("*.h5")} <= set(page.data["code"])


@pytest.mark.parametrize("kind", EVERY)
def test_every_number_of_every_record_is_told_or_lies_in_a_range(kind):
    record = example(kind)
    tables = number_tables(record)
    told = Counter(text for table in tables for row in table.texts for text in row)
    assert tables
    if kind == "comparison":
        assert told >= Counter(cell_text(float(value)) for value in record.gradient_norm.ravel())
        return
    ranges = {row[0]: row[2:] for table in tables if table.title == "ranges" for row in table.rows}
    for v in variables(record):
        wide = {name: cells for name, cells in ranges.items() if name.startswith(v.label)}
        if v.name == "status" or v.dims == (v.name,):
            continue
        if wide:
            finite = v.values[np.isfinite(v.values)]
            assert min(float(cells[0]) for cells in wide.values()) == finite.min()
            assert max(float(cells[1]) for cells in wide.values()) == finite.max()
            assert sum(int(cells[2]) for cells in wide.values()) == v.values.size - finite.size
        else:
            as_text = {True: "yes", False: "no"} if v.values.dtype == bool else {}
            values = (value.item() for value in np.asarray(v.values).ravel())
            assert told >= Counter(as_text.get(value) or cell_text(value) for value in values), v.name


def test_columns_are_named_by_what_they_hold():
    (table,) = number_tables(history(4))
    heads = "epoch", "loss (nat), train", "loss (nat), test", "accuracy, train", "accuracy, test", "learning rate"
    assert table.head == (*heads, "status")
    assert table.texts[1] == ["1", "4.642", "4.642", "0.3667", "0.33", "0.1", "done"]


def test_a_plane_is_told_by_its_ranges_and_its_missing_points():
    tables = {table.title: table for table in number_tables(valley())}
    told = {row[0]: row[1:] for row in tables["ranges"].texts}
    assert told["loss (nat), train"][0] == "9 × 7"
    assert told["loss (nat), train"][3] == "2"
    assert tables["ranges"].notes == ["63 points: 1 pending, 61 done, 1 not finite"]
    assert tables["by mark"].texts[1] == ["LB", "0.5", "1", "0.7"]
    assert tables["by mark"].head == ("point", "α", "β", "distance from the plane")


def test_of_many_rows_some_are_shown_and_it_says_so():
    (table,) = number_tables(history(3 * MOST_ROWS))
    assert len(table.rows) == MOST_ROWS
    assert f"{MOST_ROWS} of 1,500 rows" in table.title
    assert [table.texts[0][0], table.texts[-1][0]] == ["0", "1499"]


# Surfaces


def decoded(values: Any) -> np.ndarray:
    """An array as plotly writes it."""
    if not isinstance(values, dict):
        return np.array(values)
    found = np.frombuffer(base64.b64decode(values["bdata"]), values["dtype"])
    return found.reshape([int(size) for size in values["shape"].split(",")]) if "shape" in values else found


def traces(page: Page, panel: int) -> dict[tuple[str, str], dict[str, Any]]:
    """What one panel draws, by data set and what it is."""
    figures = [json.loads(text) for text in page.data["script"] if text.startswith("{")]
    return {(trace["meta"]["split"], trace["name"]): trace for trace in figures[panel]["data"]}


def test_surfaces_are_the_losses_with_holes_where_there_is_none(page, records):
    found = traces(page, 0)
    for row, split in enumerate(("train", "test")):
        surface = found[split, "surface"]
        np.testing.assert_array_equal(decoded(surface["x"]), records["seed-0/SB/plane.h5"].alpha)
        np.testing.assert_array_equal(decoded(surface["z"]), records["seed-0/SB/plane.h5"].loss[row].T)
        assert np.isnan(decoded(surface["z"])).sum() == 2


def test_points_left_out_are_interpolated_and_say_so(page, records):
    record, surface = records["seed-0/LB/plane.h5"], traces(page, 1)["train", "surface"]
    expected = between(record.alpha, record.beta, record.loss[0], record.status == 1)
    np.testing.assert_array_equal(decoded(surface["z"]), expected.T)
    said = np.array(surface["hovertext"]).T
    assert all(text.endswith("<br>interpolated, not evaluated") for text in said[record.status == 3])
    loss, accuracy = record.loss[0, 0, 2], record.accuracy[0, 0, 2]
    assert (
        said[0, 2] == f"α -1<br>β {record.beta[2]:.4g}<br>train loss {loss:.4g} nat<br>accuracy {100 * accuracy:.4g} %"
    )
    assert any("points evaluated, the others interpolated" in text for text in page.data["p"])


def test_marks_and_iterates_stand_on_the_surface(page, records):
    for panel, name in enumerate(("SB", "LB")):
        record, found = records[f"seed-0/{name}/plane.h5"], traces(page, panel)
        walk, marks = found["train", "iterates"], found["train", "marks"]
        np.testing.assert_array_equal(decoded(walk["x"]), record.walk_place[:, 0])
        assert [text.split("<br>")[0] for text in walk["hovertext"]] == ["epoch 0", "epoch 3", "epoch 9"]
        assert [text.split("<br>")[0] for text in marks["hovertext"]] == ["SB", name]
        assert marks["hovertext"][1].endswith("0.7 off the plane in θ")
        assert marks["marker"]["symbol"] == ["circle", "circle-open"]
        height = np.interp(0.2, record.beta, np.log10(decoded(found["train", "surface"]["z"])[:, 4]))
        over = np.log10(marks["meta"]["z"]["log"][0]) - height
        assert 0 < over < 0.1  # of three decades


# What does not fit


def test_what_cannot_be_drawn_says_why_and_tells_its_numbers(tmp_path):
    record = plane()
    store.save(
        replace(
            record, beta=record.beta[:1], loss=record.loss[..., :1], accuracy=record.loss[..., :1], status=np.ones(1)
        ),
        tmp_path / "plane.h5",
    )
    for number in range(25):
        store.save(history(2), tmp_path / "seed-0" / f"{number}" / "history.h5")
    page = Page(write_report(tmp_path).read_text())
    assert "svg" not in page.data
    assert any("Not drawn: expected a plane with two or more points" in text for text in page.data["p"])
    assert any("Too many for one figure" in text for text in page.data["p"])
    assert sum(rows[0][0] == "epoch" for rows in page.tables.values()) == 25


def test_of_few_regimes_with_many_quantities_the_table_stands_upright(tmp_path):
    record = replace(comparison(), regime=np.array(["16", "64"]))
    store.save(record, tmp_path / "comparison.h5")
    table = comparison_table(record)
    head, *rows = Page(write_report(tmp_path).read_text()).table("mean ± sample standard deviation")
    assert head == ["regime", "16", "64"]
    shown = [row[1:] for row in rows if len(row) > 1]
    assert shown == [list(column) for column in zip(*(row[1:] for row in table.texts), strict=True)]


# What it refuses


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(SchemaError, match=r"expected results .* there are none"):
        write_report(tmp_path)


@pytest.mark.parametrize("name", ["line.h5", "run.json"])
def test_a_damaged_file_is_named_and_nothing_is_written(tmp_path, name):
    store.save(line(), tmp_path / "line.h5")
    (tmp_path / name).write_bytes(b"{")
    with pytest.raises(SchemaError, match=re.escape(str(tmp_path / name))):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_the_command_says_where_and_how_large(tmp_path):
    store.save(line(), tmp_path / "line.h5")
    ended = invoke("report", tmp_path)
    size = (tmp_path / "report.html").stat().st_size
    assert ended.code == 0
    assert f"{tmp_path / 'report.html'}, {size / MB:.1f} MB" in ended.stdout
    told = json.loads(invoke("report", tmp_path, "--out", tmp_path / "a.html", "--json").stdout)
    assert told == {"out": str(tmp_path / "a.html"), "bytes": size}
    assert refused(invoke("report", tmp_path / "nowhere"), 2, str(tmp_path / "nowhere"))


def test_it_needs_no_torch(tmp_path):
    store.save(valley(), tmp_path / "plane.h5")
    code = "import sys; from pathlib import Path; from sharpness.report import write_report\n"
    code += "write_report(Path(sys.argv[1]), Path(sys.argv[2])); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code, tmp_path, tmp_path / "a.html"], check=True)


def test_hostile_names_stay_text(tmp_path):
    write_run(tmp_path, regimes=("SB", HOSTILE))
    page = Page(write_report(tmp_path).read_text())
    assert len(page.data["script"]) == 4  # two surfaces, plotly.js, and what joins them
    assert page.data["figcaption"].count(HOSTILE) == 1
    assert any(HOSTILE in row for rows in page.tables.values() for row in rows)
    said = traces(page, 1)["train", "marks"]["hovertext"][1].split("<br>")[0]
    assert "<" not in said
    assert unescape(said) == HOSTILE
