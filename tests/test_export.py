"""Exports: every number of a record is in its tables, and planes are where ParaView will look for them.

VTK's XML is decoded here by its specification (https://docs.vtk.org/en/latest/vtk_file_formats/vtkxml_file_format.html);
where the ``vtk`` package is installed, its own readers must agree.
"""

from __future__ import annotations

import base64
import io
import json
from xml.etree import ElementTree as ET

import numpy as np
import pandas
import pytest
from command_line import invoke, refused
from test_store import EVERY, example

from sharpness import store
from sharpness.errors import SchemaError, ShapeError
from sharpness.export import export_file, image_data, surface, tables
from sharpness.records import ConvexityMap, LineLosses, PlaneLosses, settings, variables

pytest_plugins = "command_line"
A, B = np.linspace(-1, 1, 5), np.linspace(0, 1.5, 4)
TYPES = {"Float64": "<f8", "Float32": "<f4", "Int64": "<i8", "UInt8": "u1"}


def plane(alpha=A, beta=B, height=lambda a, b: 1 + a**2 + 0.5 * b, **replaced):
    """Test loss 1 above the train loss, accuracy a fraction that names its place."""
    loss = height(alpha[:, None], beta[None, :]) * np.ones((len(alpha), len(beta)))
    place = np.arange(loss.size).reshape(loss.shape) / 100
    given = {
        "split": np.array(["test", "train"]),
        "alpha": alpha,
        "beta": beta,
        "loss": np.array([loss + 1, loss]),
        "accuracy": np.array([place, place + 0.5]),
        "status": np.ones(loss.shape, np.uint8),
        "batchnorm": "eval",
        **dict.fromkeys(("origin", "first", "second"), "ab"),
    }
    return PlaneLosses(**{**given, **replaced})


def with_holes():
    """A diverged point, a pending one with what a kill left of it, and one whose test loss alone is not finite."""
    record = plane()
    record.status[[1, 3, 4], [1, 2, 0]] = 2, 0, 2
    record.loss[:, 1, 1] = np.inf
    record.loss[0, 4, 0] = np.nan
    return record


# Tables


def read(text):
    """Every cell as the text it is: what a reader takes for missing is up to its version."""
    return pandas.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)


def numbers(column):
    return np.array([float(text or "nan") for text in column])


@pytest.mark.parametrize("kind", EVERY)
def test_every_number_of_every_record_is_in_its_tables(kind):
    record = example(kind)
    found = tables(record)
    coordinates = {v.name: v.values for v in variables(record) if v.dims == (v.name,)}
    held = {part: read(rows.csv) for part, rows in found.items()}
    for variable in variables(record):
        if not variable.dims:
            assert numbers(held["choices"][variable.name])[0] == pytest.approx(
                float(variable.values), nan_ok=True, rel=0
            )
            continue
        homes = [t for t in held.values() if variable.name in t and set(variable.dims) <= set(t.columns)]
        assert homes, variable.name
        for home in homes:
            keys = [home[dim] for dim in variable.dims]
            labels = [np.array(sorted(set(key), key=list(key).index)) for key in keys]
            for dim, label in zip(variable.dims, labels, strict=True):
                if dim in coordinates:
                    assert label.tolist() == [str(value) for value in coordinates[dim]]
            place = tuple(np.array([list(n).index(k) for k in key]) for key, n in zip(keys, labels, strict=True))
            expected = variable.values[place]
            if expected.dtype.kind == "f":
                np.testing.assert_array_equal(numbers(home[variable.name]), expected)
            else:
                assert home[variable.name].tolist() == expected.astype(str).tolist()
    for name, value in settings(record).items():
        assert str(held["choices"][name][0]) == str(value)


def test_a_plane_is_one_row_per_point_and_data_set():
    record = with_holes()
    table = pandas.read_csv(io.StringIO(tables(record)[""].csv))
    assert list(table.columns) == ["split", "alpha", "beta", "loss", "accuracy", "status"]
    assert len(table) == 2 * 5 * 4
    (row,) = table[(table.split == "train") & (table.alpha == 0.5) & (table.beta == 1.0)].to_dict("records")
    assert row["loss"] == record.loss[1, 3, 2]
    assert row["accuracy"] == record.accuracy[1, 3, 2]
    assert row["status"] == 0
    assert (np.isinf(table.loss).sum(), np.isnan(table.loss).sum()) == (2, 1)
    surface_again = table[table.split == "train"].pivot(index="alpha", columns="beta", values="loss")
    np.testing.assert_array_equal(surface_again.to_numpy(), record.loss[1])


def test_places_without_coordinates_have_names():
    record = plane(
        mark=np.array(["SB", "LB"]), mark_place=np.array([[0, 0, 0], [1, 0.5, 2]]), length=np.array([3.0, 4])
    )
    found = tables(record)
    assert list(found) == ["", "mark-place", "axis", "choices"]
    assert found["mark-place"].csv.splitlines()[4:] == ["LB,alpha,1.0", "LB,beta,0.5", "LB,distance,2.0"]
    assert found["axis"].csv == "axis,length\nalpha,3.0\nbeta,4.0\n"


def test_status_stands_beside_everything_it_speaks_of():
    found = tables(example("trajectory"))
    assert {part: "status" in rows.columns for part, rows in found.items()} == {
        "": True,
        "pair-epoch": True,
        "epoch": True,
        "choices": False,
    }


# Grids


class Decoded:
    """A VTK XML file: its element, and its arrays by section and name."""

    def __init__(self, content):
        root = ET.fromstring(content)
        assert (root.get("byte_order"), root.get("header_type")) == ("LittleEndian", "UInt64")
        (self.data,) = root
        assert self.data.tag == root.get("type")
        self.piece = self.data.find("Piece")
        self.notes = self._section(self.data.find("FieldData"))
        self.sections = {section.tag: self._section(section) for section in self.piece}

    def _section(self, section):
        return {array.get("Name"): self._values(array) for array in section}

    def _values(self, array):
        content = base64.b64decode(array.text)
        (length,) = np.frombuffer(content[:8], "<u8")
        assert length == len(content) - 8
        if array.get("type") == "String":
            return content[8:].decode().split("\0")[:-1]
        values = np.frombuffer(content[8:], TYPES[array.get("type")])
        components = int(array.get("NumberOfComponents"))
        return values if components == 1 else values.reshape(-1, components)


def test_the_grid_of_an_image_lies_where_the_plane_does():
    record = with_holes()
    image = Decoded(image_data(record))
    assert image.data.get("WholeExtent") == image.piece.get("Extent") == "0 4 0 3 0 0"
    np.testing.assert_allclose([float(x) for x in image.data.get("Origin").split()], [-1, 0, 0])
    np.testing.assert_allclose([float(x) for x in image.data.get("Spacing").split()], [0.5, 0.5, 1])
    points = image.sections["PointData"]
    assert list(points) == ["test_loss", "train_loss", "test_accuracy", "train_accuracy", "status"]
    for j in range(4):
        for i in range(5):
            for number, split in enumerate(record.split):
                expected = record.loss[number, i, j]
                found = points[f"{split}_loss"][i + 5 * j]
                assert found == expected if np.isfinite(expected) else np.isnan(found)
                assert points[f"{split}_accuracy"][i + 5 * j] == record.accuracy[number, i, j]
            assert points["status"][i + 5 * j] == record.status[i, j]
    assert image.notes["loss"] == ["loss (nat)"]
    assert image.notes["batchnorm"] == ["eval"]


def test_a_map_of_convexity_is_a_grid_too():
    record = example("convexity")
    points = Decoded(image_data(record)).sections["PointData"]
    assert {"smallest", "largest", "residual", "converged", "status"} == set(points)
    np.testing.assert_array_equal(points["largest"], record.largest.ravel(order="F"))
    np.testing.assert_array_equal(points["converged"], record.converged.ravel(order="F"))


def test_coordinates_in_any_order_give_the_same_grid():
    straight, turned = plane(), plane(alpha=A[::-1], beta=B[[2, 0, 3, 1]])
    ours, theirs = (Decoded(image_data(record)) for record in (straight, turned))
    np.testing.assert_array_equal(ours.sections["PointData"]["train_loss"], theirs.sections["PointData"]["train_loss"])
    assert ours.data.attrib == theirs.data.attrib


def test_single_precision_coordinates_are_even():
    assert image_data(plane(alpha=np.linspace(-1, 1, 51).astype(np.float32)))


def test_uneven_grids_are_refused_with_the_way_out():
    record = plane(beta=np.array([0.0, 0.1, 1.0]))
    with pytest.raises(ShapeError, match=r"the steps of beta go from 0\.1 to 0\.9. Choose vtp"):
        image_data(record)
    assert surface(record)


# Surfaces


def cells(decoded, kind):
    section = decoded.sections[kind]
    found = np.split(section["connectivity"], section["offsets"][:-1])
    return [cell.tolist() for cell in found] if len(section["offsets"]) else []


def test_a_surface_stands_over_the_plane_at_the_height_of_the_train_loss():
    record = plane()
    found = Decoded(surface(record))
    places = found.sections["Points"]["Points"]
    np.testing.assert_array_equal(places[:, 2], 1 + places[:, 0] ** 2 + 0.5 * places[:, 1])
    assert {tuple(p) for p in places[:, :2]} == {(a, b) for a in A for b in B}
    assert found.notes["height"] == ["train loss (nat)"]
    quads = cells(found, "Polys")
    assert len(quads) == int(found.piece.get("NumberOfPolys")) == 4 * 3
    assert {kind: found.piece.get(f"NumberOf{kind}") for kind in ("Verts", "Lines", "Strips")} == {
        "Verts": "0",
        "Lines": "0",
        "Strips": "0",
    }
    for quad in quads:  # a rectangle of one step each way, counter-clockwise
        x, y = places[quad, :2].T
        area = 0.5 * np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))
        assert area == pytest.approx(0.5 * 0.5)
        assert (np.ptp(x), np.ptp(y)) == (0.5, 0.5)
    centres = {tuple(places[quad, :2].mean(0)) for quad in quads}
    assert len(centres) == len(quads)


def test_holes_are_holes():
    found = Decoded(surface(with_holes()))
    places = found.sections["Points"]["Points"]
    assert np.isfinite(places).all()
    assert len(places) == 20 - 2  # without the diverged and the pending point
    assert not {(A[1], B[1]), (A[3], B[2])} & {tuple(place) for place in places[:, :2]}
    assert (A[4], B[0]) in {tuple(place) for place in places[:, :2]}  # its train loss is known
    assert np.isnan(found.sections["PointData"]["test_loss"]).sum() == 1
    around_hole = [{(i, j) for i in (m, m + 1) for j in (n, n + 1)} for m in range(4) for n in range(3)]
    whole = [cell for cell in around_hole if not cell & {(1, 1), (3, 2)}]
    drawn = [{(list(A).index(x), list(B).index(y)) for x, y in places[quad, :2]} for quad in cells(found, "Polys")]
    assert sorted(map(sorted, drawn)) == sorted(map(sorted, whole))


def test_many_decades_are_shown_as_a_logarithm_that_says_so():
    found = Decoded(surface(plane(height=lambda a, b: 10 ** (2 * a + 0 * b))))
    places = found.sections["Points"]["Points"]
    np.testing.assert_allclose(places[:, 2], 2 * places[:, 0], atol=1e-12)
    assert found.notes["height"] == ["log10 of the train loss (nat)"]
    np.testing.assert_allclose(found.sections["PointData"]["train_loss"], 10 ** places[:, 2])


def test_a_loss_that_reaches_zero_has_no_logarithm():
    found = Decoded(surface(plane(height=lambda a, b: 1000 * (a + 1) + 0 * b)))
    assert found.notes["height"] == ["train loss (nat)"]


def test_points_left_out_by_refinement_are_bridged_and_diverged_ones_are_not():
    record = plane(alpha=np.arange(9.0), beta=np.arange(9.0))
    measured = np.zeros((9, 9), bool)
    measured[::2, ::2] = True
    record.status[~measured] = 3
    record.loss[:, ~measured] = np.nan
    found = Decoded(surface(record))
    places = found.sections["Points"]["Points"]
    assert len(places) == 25

    def area(decoded):
        x, y = decoded.sections["Points"]["Points"][np.array(cells(decoded, "Polys")), :2].transpose(2, 0, 1)
        signed = 0.5 * np.sum(x * np.roll(y, -1, 1) - y * np.roll(x, -1, 1), axis=1)
        assert (signed > 0).all()
        return signed.sum()

    assert area(found) == pytest.approx(64)
    record.status[4, 4], record.loss[:, 4, 4] = 2, np.nan
    assert 64 - 16 <= area(Decoded(surface(record))) <= 64 - 4  # the triangles around it, and no others


def test_a_training_run_is_a_line_and_marks_are_points_on_the_surface():
    record = plane(
        height=lambda a, b: 2 + a + b,
        mark=np.array(["SB", "λ far away"]),
        mark_place=np.array([[0.25, 0.25, 0], [5, 0, 1]]),
        epoch=np.array([0.0, 5, 10]),
        walk_place=np.array([[-0.6, 1.2, 3], [-0.1, 0.3, np.nan], [0, 0, 0]]),
    )
    found = Decoded(surface(record))
    places, points = found.sections["Points"]["Points"], found.sections["PointData"]
    assert cells(found, "Lines") == [[20, 21, 22]]
    assert cells(found, "Verts") == [[23], [24]]
    np.testing.assert_allclose(places[20:24, :2], [[-0.6, 1.2], [-0.1, 0.3], [0, 0], [0.25, 0.25]])
    np.testing.assert_allclose(places[20:24, 2], 2 + places[20:24, 0] + places[20:24, 1])
    assert places[24].tolist() == [5, 0, 3]  # as at (1, 0), the nearest point
    assert points["part"].tolist() == [0] * 20 + [1] * 3 + [2] * 2
    assert points["name"] == [""] * 23 + ["SB", "λ far away"]
    np.testing.assert_array_equal(points["epoch"][20:], [0, 5, 10, np.nan, np.nan])
    np.testing.assert_array_equal(points["distance"], [0] * 20 + [3, np.nan, 0, 0, 1])
    assert np.isnan(points["train_loss"][20:]).all()
    assert np.isfinite(points["train_loss"][:20]).all()


@pytest.mark.parametrize("record", [plane(beta=B[:1]), plane(status=np.zeros((5, 4), np.uint8))], ids=["thin", "empty"])
def test_a_plane_without_a_measured_cell_is_no_surface(record):
    with pytest.raises(ShapeError, match="no cell has all of its corners"):
        surface(record)


def test_the_readers_of_vtk_agree(tmp_path):
    vtk = pytest.importorskip("vtk", reason="VTK is 140 MB; the decoder above stands in for it")
    from vtk.util.numpy_support import vtk_to_numpy

    def opened(reader, content):
        (tmp_path / "file").write_bytes(content)
        reader.SetFileName(str(tmp_path / "file"))
        reader.Update()
        return reader.GetOutput()

    record = plane(mark=np.array(["SB λ"]), mark_place=np.zeros((1, 3)), epoch=np.arange(2), walk_place=np.eye(2, 3))
    record.loss[:, 1, 1] = np.nan
    image = opened(vtk.vtkXMLImageDataReader(), image_data(record))
    assert image.GetDimensions() == (5, 4, 1)
    loss = vtk_to_numpy(image.GetPointData().GetArray("train_loss"))
    for number in range(20):
        a, b, _ = image.GetPoint(number)
        np.testing.assert_array_equal(loss[number], record.loss[1, np.isclose(A, a), np.isclose(B, b)][0])
    made = surface(record)
    poly, ours = opened(vtk.vtkXMLPolyDataReader(), made), Decoded(made)
    np.testing.assert_array_equal(vtk_to_numpy(poly.GetPoints().GetData()), ours.sections["Points"]["Points"])
    assert (poly.GetNumberOfVerts(), poly.GetNumberOfLines(), poly.GetNumberOfPolys()) == (1, 1, 12 - 4)
    assert poly.GetFieldData().GetAbstractArray("height").GetValue(0) == "train loss (nat)"
    names = poly.GetPointData().GetAbstractArray("name")
    assert names.GetValue(poly.GetNumberOfPoints() - 1) == "SB λ"
    assert poly.GetPointData().GetScalars().GetName() == "test_loss"


# Files


def line():
    loss = np.array([[0.5, 0.25]])
    choices = {"batchnorm": "none", "start": "", "end": ""}
    return LineLosses(
        split=np.array(["train"]),
        alpha=np.array([0.0, 1]),
        loss=loss,
        accuracy=loss,
        status=np.ones(2, np.uint8),
        **choices,
    )


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_files_are_named_after_file_record_and_dimensions(tmp_path):
    store.save({"plane": plane(length=np.ones(2)), "ours": line()}, tmp_path / "both.h5")
    written = export_file(tmp_path / "both.h5", ["csv", "vti", "vtp", "csv"], tmp_path / "made" / "here")
    assert [path.parent for path in written] == [tmp_path / "made" / "here"] * 7
    expected = ["both-axis.csv", "both-choices.csv", "both-ours-choices.csv", "both-ours.csv", "both.csv"]
    assert names(tmp_path / "made" / "here") == [*expected, "both.vti", "both.vtp"]
    assert (tmp_path / "made" / "here" / "both.vti").read_bytes() == image_data(plane(length=np.ones(2)))


def test_by_default_a_table_beside_the_file(tmp_path):
    store.save(line(), tmp_path / "line.h5")
    assert export_file(tmp_path / "line.h5") == [tmp_path / "line.csv", tmp_path / "line-choices.csv"]
    assert pandas.read_csv(tmp_path / "line.csv").loss.tolist() == [0.5, 0.25]


def test_what_is_refused_writes_nothing(tmp_path):
    store.save(line(), tmp_path / "line.h5")
    store.save({"plane": plane(beta=np.array([0, 0.1, 1])), "line": line()}, tmp_path / "plane.h5")
    with pytest.raises(ShapeError, match=r"expected a plane or convexity in .*line.h5 for vti; it holds line"):
        export_file(tmp_path / "line.h5", ["csv", "vti"])
    with pytest.raises(ShapeError, match="Choose vtp"):
        export_file(tmp_path / "plane.h5", ["csv", "vti"])
    with pytest.raises(ShapeError, match="expected formats among csv, vti, vtp; got xlsx"):
        export_file(tmp_path / "line.h5", ["xlsx"])
    with pytest.raises(SchemaError, match="there is none"):
        export_file(tmp_path / "no.h5")
    assert names(tmp_path) == ["line.h5", "plane.h5"]


def test_the_command_writes_and_lists(tmp_path):
    store.save(plane(), tmp_path / "plane.h5")
    ended = invoke(
        "export", tmp_path / "plane.h5", "--format", "vtp", "--format", "csv", "--out", tmp_path / "o", "--json"
    )
    assert ended.code == 0, ended
    assert sorted(json.loads(ended.stdout)) == [str(tmp_path / "o" / name) for name in names(tmp_path / "o")]
    assert names(tmp_path / "o") == ["plane-choices.csv", "plane.csv", "plane.vtp"]


def test_netcdf_needs_no_export(tmp_path):
    xarray = pytest.importorskip("xarray")
    store.save(plane(), tmp_path / "plane.h5")
    ended = invoke("export", tmp_path / "plane.h5", "--format", "netcdf")
    assert refused(ended, 2, "got netcdf", "plane.h5 is netCDF-4 already: xarray.open_dataset")
    with xarray.open_dataset(tmp_path / "plane.h5", group="plane", engine="h5netcdf") as opened:
        assert float(opened.loss.sel(split="train", alpha=0.5, beta=1.0)) == plane().loss[1, 3, 2]


def test_a_map_of_convexity_has_no_surface(tmp_path):
    record = example("convexity")
    assert isinstance(record, ConvexityMap)
    store.save(record, tmp_path / "c.h5")
    assert [path.suffix for path in export_file(tmp_path / "c.h5", ["vti"])] == [".vti"]
    with pytest.raises(ShapeError, match=r"expected a plane in .* for vtp; it holds convexity"):
        export_file(tmp_path / "c.h5", ["vtp"])
