"""Record files: what goes in comes out to the bit, any netCDF-4 reader understands it, damage is called damage."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import subprocess
import sys
from importlib.metadata import version

import h5py
import numpy as np
import pytest
import xarray
from hypothesis import given, settings
from hypothesis import strategies as st

from sharpness import store
from sharpness.errors import SchemaError
from sharpness.files import write_atomically
from sharpness.records import RECORDS, EigenPairs, History, LineLosses, PlaneLosses, axis_label, variables
from sharpness.records import settings as choices_of

FEW = settings(max_examples=25, deadline=None, derandomize=True, database=None)
NAMES = {
    "split": ["train", "tést"],
    "regime": ["SB", "LB"],
    "batchnorm": ["eval", "batch"],
    "space": ["full", "ε, p = 100"],
    "maximiser": ["L-BFGS-B", "sign ascent", ""],
}
CHOICES = {"int": -7, "float": 0.1, "str": "λ ‖Hv − λv‖ \N{SNOWMAN}", "bool": True}
CONDITIONS = {"train": {"chunk": [1, 2.5, None, True], "ε": "x"}, "l2": 1e-300, "empty": {}}
EVERY = sorted(RECORDS)


def example(kind, seed=0, **replaced):
    """A record with every field filled, dimensions of different sizes among them, and awkward numbers."""
    draw, sizes, values = np.random.default_rng(seed), {}, {}
    for item in dataclasses.fields(RECORDS[kind]):
        if "dims" in item.metadata:
            dims = item.metadata["dims"]
            for dim in dims:
                sizes.setdefault(dim, len(NAMES.get(dim, ())) or 2 + len(sizes))
            shape = tuple(sizes[dim] for dim in dims)
            if dims == (item.name,) and item.name in NAMES:
                value = np.array(NAMES[item.name])
            elif item.name == "status":
                value = (np.arange(np.prod(shape)) % 3).astype(np.uint8).reshape(shape)
            elif item.name == "converged":
                value = draw.random(shape) < 0.5
            elif dims == (item.name,):
                value = np.arange(*shape)
            else:
                value = draw.normal(size=shape)
                if shape:
                    value.flat[:2] = np.nan, -0.0
            values[item.name] = value if shape else float(value)
        elif "label" in item.metadata:
            values[item.name] = CHOICES[str(item.type)]
    return RECORDS[kind](**{**values, "conditions": CONDITIONS, **replaced})


def assert_same(found, expected):
    """Equal to the bit, in dtype, in type."""
    assert type(found) is type(expected)
    for ours, theirs in zip(variables(found), variables(expected), strict=True):
        assert ours.values.shape == theirs.values.shape, ours.name
        if ours.values.dtype.kind == theirs.values.dtype.kind == "U":  # whose width is no part of the text
            assert ours.values.tolist() == theirs.values.tolist(), ours.name
            continue
        assert ours.values.dtype == theirs.values.dtype, ours.name
        assert ours.values.tobytes() == theirs.values.tobytes(), ours.name
    assert choices_of(found) == choices_of(expected)
    assert {k: type(v) for k, v in choices_of(found).items()} == {k: type(v) for k, v in choices_of(expected).items()}
    assert found.conditions == expected.conditions


# Round trips


@pytest.mark.parametrize("kind", EVERY)
def test_every_record_comes_back_to_the_bit(tmp_path, kind):
    record = example(kind)
    assert store.save(record, tmp_path / "made" / "on" / "demand.h5") == tmp_path / "made" / "on" / "demand.h5"
    assert_same(store.load(tmp_path / "made" / "on" / "demand.h5"), record)


def test_several_records_come_back_by_name(tmp_path):
    records = {kind: example(kind) for kind in EVERY} | {"second line": example("line", seed=1)}
    store.save(records, tmp_path / "all.h5")
    found = store.load(tmp_path / "all.h5")
    assert found.keys() == records.keys()
    for name, record in records.items():
        assert_same(found[name], record)


def test_one_record_under_another_name_comes_back_by_that_name(tmp_path):
    store.save({"ours": example("line")}, tmp_path / "named.h5")
    assert_same(store.load(tmp_path / "named.h5")["ours"], example("line"))


@FEW
@given(
    values=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=8),
    text=st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), max_size=20),
    names=st.lists(
        st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), max_size=8),
        min_size=1,
        max_size=4,
    ),
)
def test_any_bits_and_any_text_come_back(tmp_path_factory, values, text, names):
    path = tmp_path_factory.mktemp("any") / "line.h5"
    bits = np.array(values, np.uint64).view(np.float64)  # NaNs with payloads, subnormals, infinities
    wide = np.tile(bits, (len(names), 1))
    line = LineLosses(
        split=np.array(names), alpha=bits, loss=wide, accuracy=wide, status=np.ones(len(bits), np.uint8),
        batchnorm=text, start=text, end="", conditions={text: text, "bits": values},
    )  # fmt: skip
    store.save(line, path)
    assert_same(store.load(path), line)


@pytest.mark.parametrize("text", ["[1, 2]", '{"a": 1}', "[not json", "{"])
def test_a_choice_that_looks_like_json_stays_the_text_it_is(tmp_path, text):
    store.save(example("comparison", recipe=text), tmp_path / "c.h5")
    assert store.load(tmp_path / "c.h5").recipe == text


def test_choices_given_as_numpy_numbers_come_back_as_the_same_numbers(tmp_path):
    record = example(
        "eigenpairs", seed=0, tolerance=np.float64(0.1), products=np.int64(12), probe_passed=np.bool_(False)
    )
    record = dataclasses.replace(record, conditions={"n": np.int64(3), "x": np.float32(0.5)})
    store.save(record, tmp_path / "e.h5")
    found = store.load(tmp_path / "e.h5")
    assert (found.tolerance, found.products, found.conditions) == (0.1, 12, {"n": 3, "x": 0.5})
    assert found.probe_passed is False


def test_vectors_are_not_stored(tmp_path):
    store.save(example("eigenpairs", vectors=object()), tmp_path / "e.h5")
    assert store.load(tmp_path / "e.h5").vectors is None


def test_conditions_larger_than_an_hdf5_attribute_once_could_be_come_back(tmp_path):
    conditions = {"partition": list(range(30_000))}  # 64 KiB was the limit
    store.save(example("line", conditions=conditions), tmp_path / "l.h5")
    assert store.load(tmp_path / "l.h5").conditions == conditions


# Other readers


@pytest.mark.parametrize("engine", ["h5netcdf", "netcdf4"])
@pytest.mark.parametrize("kind", EVERY)
def test_xarray_opens_every_record_with_dimensions_units_and_labels(tmp_path, kind, engine):
    if engine == "netcdf4":
        pytest.importorskip("netCDF4")
    record = example(kind)
    store.save(record, tmp_path / "r.h5")
    with xarray.open_dataset(tmp_path / "r.h5", group=kind, engine=engine) as found:
        expected = list(variables(record))
        assert set(found.variables) == {v.name for v in expected}
        for ours in expected:
            theirs = found[ours.name]
            assert theirs.dims == ours.dims
            assert np.array_equal(theirs.values, ours.values, equal_nan=ours.values.dtype.kind == "f")
            assert theirs.dtype.kind in {ours.values.dtype.kind, "O" if ours.values.dtype.kind == "U" else ""}
            assert theirs.attrs["units"] == ours.unit
            assert theirs.attrs["long_name"] == ours.label
        assert set(found.coords) == {v.name for v in expected if v.dims == (v.name,)}
        assert found.attrs.keys() == {"kind", "conditions", *choices_of(record)}
        for name, value in choices_of(record).items():
            assert found.attrs[name] == value
        assert json.loads(found.attrs["conditions"]) == CONDITIONS


@pytest.mark.parametrize("engine", ["h5netcdf", "netcdf4"])
def test_xarray_selects_by_label(tmp_path, engine):
    if engine == "netcdf4":
        pytest.importorskip("netCDF4")
    record = example("plane")
    store.save({"ours": record}, tmp_path / "r.h5")
    with xarray.open_dataset(tmp_path / "r.h5", group="ours", engine=engine) as found:
        assert found["loss"].sel(split="tést", alpha=1, beta=2).item() == record.loss[1, 1, 2]


def test_flags_are_uint8_with_their_meanings(tmp_path):
    store.save({"line": example("line"), "eigenpairs": example("eigenpairs")}, tmp_path / "r.h5")
    with h5py.File(tmp_path / "r.h5") as file:
        assert file["line/status"].dtype == file["eigenpairs/converged"].dtype == np.uint8
        assert file["line/status"].attrs["flag_meanings"] == "pending done not_finite left_out"
        assert file["line/status"].attrs["flag_values"].tolist() == [0, 1, 2, 3]
        assert file["eigenpairs"].attrs["probe_passed"].dtype == np.uint8
        assert [d.label or d[0].name for d in file["line/loss"].dims] == ["/line/split", "/line/alpha"]


def test_labels_carry_units_where_there_are_any():
    assert axis_label(example("line"), "loss") == "loss (nat)"
    assert axis_label(example("line"), "alpha") == "α"
    assert axis_label(example("epsilon_sharpness"), "stronger").endswith("(percent)")


def test_files_load_where_torch_cannot_be_imported(tmp_path):
    store.save(example("line"), tmp_path / "line.h5")
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "import sharpness\n"
        "record = sharpness.load(sys.argv[1])\n"
        "sharpness.save(record, sys.argv[2])\n"
        "print(record.loss.shape, 'torch' in sys.modules and sys.modules['torch'])"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "line.h5", tmp_path / "copy.h5"], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["(2,", "3)", "None"]
    assert_same(store.load(tmp_path / "copy.h5"), example("line"))


# Files of earlier releases


def test_a_plane_of_an_earlier_release_with_a_status_for_every_beta_is_read(tmp_path):
    path, loss = tmp_path / "old.h5", np.array([[[1.0, np.nan], [2.0, np.nan], [np.inf, np.nan]]])
    with h5py.File(path, "w") as file:
        file.attrs.update({"format": "sharpness", "schema_version": 1})
        group = file.create_group("plane")
        group.attrs.update({"kind": "plane", "conditions": "{}"})
        group.attrs.update({"batchnorm": "none", "origin": "a", "first": "b", "second": "c"})
        group.create_dataset("split", data=np.array(["train"], object), dtype=h5py.string_dtype())
        for name, values in {"alpha": [0.0, 1, 2], "beta": [5.0, 6], "loss": loss, "accuracy": loss}.items():
            group.create_dataset(name, data=values)
        group.create_dataset("status", data=np.array([2, 0], np.uint8))
        for name, dims in {"loss": ("split", "alpha", "beta"), "status": ("beta",)}.items():
            for axis, dim in enumerate(dims):
                group[dim].is_scale or group[dim].make_scale(dim)
                group[name].dims[axis].attach_scale(group[dim])
    before, found = path.read_bytes(), store.load(path)
    assert found.status.tolist() == [[2, 0]] * 3
    assert found.status.dtype == np.uint8
    assert np.array_equal(found.loss, loss, equal_nan=True)
    assert (found.share, found.mark, found.length, found.directions) == (1.0, None, None, "")
    assert np.isnan(found.cosine)
    assert_same(store.load(store.save(found, tmp_path / "new.h5")), found)
    with pytest.raises(SchemaError, match="directions is '' there"):  # its rows are others: not to be gone on with
        store.begin(path, {"plane": dataclasses.replace(found, directions="given directions")})
    assert path.read_bytes() == before


# Where it comes from


def test_provenance_names_versions_commit_command_machine_and_choices(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/sharpness", "run", "a file.toml"])
    store.save({"eigenpairs": example("eigenpairs")}, tmp_path / "r.h5")
    found = store.load_provenance(tmp_path / "r.h5")
    assert found["sharpness"] == version("sharpness")
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {name: found["libraries"][name] for name in ("torch", "numpy", "h5py")} == {
        name: version(name) for name in ("torch", "numpy", "h5py")
    }
    assert found["command"] == "sharpness run 'a file.toml'"
    assert "cores" in found["machine"]
    assert found["git_commit"] == "unknown" or len(found["git_commit"].removesuffix("-dirty")) == 40
    assert found["written"].endswith("+00:00")
    assert found["choices"]["eigenpairs"]["seed"] == CHOICES["int"]
    assert found["choices"]["eigenpairs"]["train"] == CONDITIONS["train"]
    with h5py.File(tmp_path / "r.h5") as file:
        assert (file.attrs["format"], file.attrs["schema_version"]) == ("sharpness", 1)


# Atomic


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, failure):
    path = tmp_path / "line.h5"
    store.save(example("line"), path)
    before = path.read_bytes()

    def full(_):
        raise failure

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(type(failure)):
        store.save(example("plane"), path)
    assert path.read_bytes() == before
    with pytest.raises(type(failure)):
        store.save(example("plane"), tmp_path / "new.h5")
    assert list(tmp_path.iterdir()) == [path]


def test_a_record_that_cannot_be_stored_leaves_the_old_file(tmp_path):
    path = tmp_path / "line.h5"
    store.save(example("line"), path)
    before = path.read_bytes()
    with pytest.raises(TypeError, match="that JSON can hold; got object"):
        store.save(example("line", conditions={"not JSON": object()}), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_content_is_in_place_before_the_write_returns(tmp_path, monkeypatch):
    seen = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: seen.append(sorted(p.name for p in tmp_path.iterdir())) or sync(fd))
    assert write_atomically(tmp_path / "a.txt", b"abc").read_bytes() == b"abc"
    assert seen == [[".a.txt.part"]]  # synced under the temporary name, before it is put in place
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


# Refusals


def refused(path, match):
    for read in (store.load, store.load_all, store.load_provenance):
        with pytest.raises(SchemaError, match=match) as caught:
            read(path)
        assert str(path) in str(caught.value)


@pytest.fixture
def saved(tmp_path):
    """A file of three records."""
    return store.save({kind: example(kind) for kind in ("plane", "eigenpairs", "history")}, tmp_path / "saved.h5")


@pytest.mark.parametrize("found", [0, 2, 999, "1.5"])
def test_another_schema_version_is_refused_by_name(saved, found):
    with h5py.File(saved, "r+") as file:
        file.attrs["schema_version"] = found
    refused(saved, f"expected schema version 1 .* has version {found}")


@pytest.mark.parametrize("found", ["other", ""])
def test_another_format_is_refused_by_name(saved, found):
    with h5py.File(saved, "r+") as file:
        file.attrs["format"] = found
    refused(saved, f"its format is {found!r}")


def test_an_hdf5_file_of_someone_else_is_refused(tmp_path):
    with h5py.File(tmp_path / "theirs.h5", "w") as file:
        file["numbers"] = np.arange(3)
    refused(tmp_path / "theirs.h5", "its format is None")


def test_missing_files_and_folders_are_refused(tmp_path):
    refused(tmp_path / "nothing.h5", "there is none")
    refused(tmp_path, "there is a folder")
    with pytest.raises(SchemaError, match="there is a folder"):
        store.begin(tmp_path, {"line": example("line")})


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x89HDF\r\n\x1a\n", b"\x89HDF\r\n\x1a\n" + bytes(5000)])
def test_garbage_is_refused(tmp_path, content):
    path = tmp_path / "garbage.h5"
    path.write_bytes(content)
    refused(path, "damaged or something else")
    with pytest.raises(SchemaError):
        store.begin(path, {"line": example("line")})
    assert path.read_bytes() == content


def test_a_file_cut_off_anywhere_is_refused(saved):
    content = saved.read_bytes()
    for length in range(0, len(content), 499):
        saved.write_bytes(content[:length])
        with pytest.raises(SchemaError, match="damaged"):
            store.load(saved)


@pytest.mark.parametrize("member", ["plane/loss", "eigenpairs/eigenvalues", "history/split"])
def test_a_record_without_one_of_its_variables_is_refused(saved, member):
    with h5py.File(saved, "r+") as file:
        del file[member]
    with pytest.raises(SchemaError, match=member.split("/")[1]):
        store.load(saved)


@pytest.mark.parametrize("attribute", ["seed", "conditions"])
def test_a_record_without_one_of_its_attributes_is_refused(saved, attribute):
    with h5py.File(saved, "r+") as file:
        del file["eigenpairs"].attrs[attribute]
    with pytest.raises(SchemaError, match=attribute):
        store.load(saved)


def test_conditions_that_are_no_json_are_refused(saved):
    with h5py.File(saved, "r+") as file:
        file["plane"].attrs["conditions"] = '{"cut off'
    with pytest.raises(SchemaError, match="damaged"):
        store.load(saved)


def test_a_kind_of_record_from_elsewhere_is_refused_by_name(saved):
    with h5py.File(saved, "r+") as file:
        file["plane"].attrs["kind"] = "volume"
    with pytest.raises(SchemaError, match="'volume'"):
        store.load(saved)


def test_a_file_without_records_is_refused_by_load_and_empty_to_load_all(tmp_path):
    store.save({}, tmp_path / "none.h5")
    assert store.load_all(tmp_path / "none.h5") == {}
    with pytest.raises(SchemaError, match="it holds none"):
        store.load(tmp_path / "none.h5")


@pytest.mark.parametrize("signature", [b"TREE", b"HEAP", b"SNOD", b"GCOL"])
def test_a_file_with_a_broken_block_is_refused(saved, signature):
    content = saved.read_bytes()
    assert signature in content  # the first belongs to the root group, or to the records themselves
    saved.write_bytes(content.replace(signature, b"XXXX", 1))
    with pytest.raises(SchemaError, match="damaged"):
        store.load(saved)


# Files in progress


def line(rows=4, **replaced):
    values = {
        "split": np.array(["train"]), "alpha": np.linspace(0, 1, rows), "loss": np.full((1, rows), np.nan),
        "accuracy": np.full((1, rows), np.nan), "status": np.zeros(rows, np.uint8), "batchnorm": "none",
        "start": "a", "end": "b",
    }  # fmt: skip
    return LineLosses(**{**values, **replaced})


def test_a_file_in_progress_is_a_record_file_that_xarray_opens(tmp_path):
    path = tmp_path / "line.h5"
    with store.begin(path, {"line": line()})["line"] as journal:
        journal.commit(1, {"loss": 0.5, "accuracy": 0.25})
    found = store.load(path)
    assert found.status.tolist() == [0, 1, 0, 0]
    assert np.array_equal(found.loss, [[np.nan, 0.5, np.nan, np.nan]], equal_nan=True)
    with xarray.open_dataset(path, group="line", engine="h5netcdf") as opened:
        assert opened["loss"].sel(split="train").values[1] == 0.5


def test_begin_goes_on_with_the_same_computation_and_keeps_its_rows(tmp_path):
    path = tmp_path / "line.h5"
    with store.begin(path, {"line": line()})["line"] as journal:
        journal.commit(2, {"loss": 0.5, "accuracy": 0.25})
    with store.begin(path, {"line": line()})["line"] as journal:
        assert journal.status.tolist() == [0, 0, 1, 0]
        assert journal.column("loss")[0, 2] == 0.5


def test_begin_refuses_another_computation_and_leaves_the_file(tmp_path):
    path = tmp_path / "line.h5"
    store.begin(path, {"line": line()})["line"].close()
    before = path.read_bytes()
    for templates, match in (
        ({"line": line(5)}, "α differs"),
        ({"line": line(end="c")}, "end is 'b' there and 'c' here"),
        ({"line": line(split=np.array(["test"]))}, "data set differs"),
        ({"line": line(), "plane": example("plane")}, "'plane'.*it is missing"),
        ({"line": example("plane")}, "it holds 'line' instead of 'plane'"),
    ):
        with pytest.raises(SchemaError, match=match) as caught:
            store.begin(path, templates)
        assert str(path) in str(caught.value)
        assert path.read_bytes() == before


def plane(across=3, along=2, **replaced):
    empty = np.full((1, across, along), np.nan)
    values = {
        "split": np.array(["train"]), "alpha": np.arange(float(across)), "beta": np.arange(float(along)),
        "loss": empty, "accuracy": empty, "status": np.zeros((across, along), np.uint8), "batchnorm": "none",
        "origin": "a", "first": "b", "second": "c",
    }  # fmt: skip
    return PlaneLosses(**{**values, **replaced})


def test_begin_goes_on_where_only_rounding_or_the_execution_plan_differ(tmp_path):
    path, plan = tmp_path / "plane.h5", {"points_at_once": 1, "train": {"threads": 1, "l2": 0.0}}
    store.begin(path, {"plane": plane(cosine=1e-17, conditions=plan)})["plane"].close()
    other = {"points_at_once": 8, "train": {"threads": 2, "l2": 0.0}}
    for template in (plane(cosine=2e-17, conditions=other), plane(cosine=np.nan, conditions=plan)):
        with store.begin(path, {"plane": template})["plane"] as journal:
            assert journal.conditions == plan
    with pytest.raises(SchemaError, match=r"its conditions are .*'l2': 0.0.* there and .*'l2': 0.5.* here"):
        store.begin(path, {"plane": plane(conditions={"train": {"l2": 0.5}})})


@pytest.mark.parametrize("name", ["mark", "epoch"])
def test_begin_refuses_other_marks_and_marks_where_there_were_none(tmp_path, name):
    one, other = {"mark": ("a", "b"), "epoch": (1.0, 2.0)}[name]
    bare, marked, moved = plane(), plane(**{name: np.array([one])}), plane(**{name: np.array([other])})
    for first in (bare, marked):
        path = tmp_path / f"{first is bare}.h5"
        store.begin(path, {"plane": first})["plane"].close()
        before = path.read_bytes()
        for second in (bare, marked, moved):
            if second is first:
                store.begin(path, {"plane": second})["plane"].close()
                continue
            with pytest.raises(SchemaError, match=f"{'point' if name == 'mark' else 'epoch'} differs"):
                store.begin(path, {"plane": second})
            assert path.read_bytes() == before


def test_begin_refuses_a_damaged_file_and_leaves_it(saved):
    content = saved.read_bytes()[:-1]
    saved.write_bytes(content)
    with pytest.raises(SchemaError, match="damaged"):
        store.begin(saved, {"plane": example("plane")})
    assert saved.read_bytes() == content


def test_records_are_frozen():
    for record in (example("history"), example("plane"), example("eigenpairs")):
        assert isinstance(record, (History, PlaneLosses, EigenPairs))
        with pytest.raises(dataclasses.FrozenInstanceError):
            record.kind = "other"
