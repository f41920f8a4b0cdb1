"""Journals: in memory and on disk the same, and what was committed survives a kill."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharpness import store
from sharpness.journal import DONE, LEFT_OUT, NOT_FINITE, PENDING, HDF5Journal, MemoryJournal
from sharpness.records import LineLosses, PlaneLosses

FEW = settings(max_examples=25, deadline=None, derandomize=True, database=None)
number = st.one_of(st.floats(width=64), st.sampled_from([0.0, -0.0, np.nan, np.inf, -np.inf]))


def line(rows, splits=2):
    return LineLosses(
        split=np.array(["train", "test", "more"][:splits]), alpha=np.arange(rows, dtype=float),
        loss=np.full((splits, rows), np.nan), accuracy=np.full((splits, rows), np.nan),
        status=np.zeros(rows, np.uint8), batchnorm="none", start="a", end="b",
    )  # fmt: skip


def plane(across=3, along=2):
    empty = np.full((1, across, along), np.nan)
    return PlaneLosses(
        split=np.array(["train"]), alpha=np.arange(across, dtype=float), beta=np.arange(along, dtype=float),
        loss=empty, accuracy=empty.copy(), status=np.zeros((across, along), np.uint8), batchnorm="none",
        origin="a", first="b", second="c",
    )  # fmt: skip


def in_memory(record):
    return MemoryJournal({"loss": record.loss, "accuracy": record.accuracy}, record.status.shape)


@pytest.fixture(params=["memory", "hdf5"])
def journal(request, tmp_path):
    """A journal of 4 rows of 2 values."""
    if request.param == "memory":
        yield in_memory(line(4))
    else:
        with store.begin(tmp_path / "line.h5", {"line": line(4)})["line"] as opened:
            yield opened


def test_a_new_journal_is_pending_and_empty(journal):
    assert journal.status.tolist() == [PENDING] * 4
    assert journal.status.dtype == np.uint8
    assert np.isnan(journal.column("loss")).all()


def test_a_committed_row_is_read_back_and_its_neighbours_stay(journal):
    journal.commit(2, {"loss": np.array([0.1, 0.2]), "accuracy": np.array([0.3, 0.4])})
    assert journal.status.tolist() == [PENDING, PENDING, DONE, PENDING]
    assert journal.column("loss")[:, 2].tolist() == [0.1, 0.2]
    assert journal.column("accuracy")[:, 2].tolist() == [0.3, 0.4]
    assert np.isnan(np.delete(journal.column("loss"), 2, axis=1)).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_kept_and_marked(journal, value):
    journal.commit(0, {"loss": np.array([value, 1.0]), "accuracy": np.array([0.5, 0.5])})
    assert journal.status.tolist() == [NOT_FINITE, PENDING, PENDING, PENDING]
    assert np.array_equal(journal.column("loss")[:, 0], [value, 1.0], equal_nan=True)


def test_the_committer_may_say_what_counts_as_finite(journal):
    journal.commit(0, {"loss": np.zeros(2), "accuracy": np.full(2, np.nan)}, finite=True)
    journal.commit(1, {"loss": np.zeros(2), "accuracy": np.zeros(2)}, finite=False)
    assert journal.status.tolist() == [DONE, NOT_FINITE, PENDING, PENDING]


def test_a_row_may_be_committed_again(journal):
    journal.commit(1, {"loss": np.array([np.inf, 2.0])})
    journal.commit(1, {"loss": np.array([1.0, 2.0])})
    assert journal.status.tolist() == [PENDING, DONE, PENDING, PENDING]
    assert journal.column("loss")[:, 1].tolist() == [1.0, 2.0]


def test_neighbouring_rows_are_committed_together(journal):
    assert len(journal) == 4
    journal.commit(range(1, 3), {"loss": np.array([[0.1, 0.2], [0.3, 0.4]]), "accuracy": np.zeros((2, 2))})
    assert journal.status.tolist() == [PENDING, DONE, DONE, PENDING]
    assert journal.column("loss")[:, 1:3].tolist() == [[0.1, 0.2], [0.3, 0.4]]
    journal.commit(range(2, 4), {"loss": np.array([[0.5, np.nan], [0.6, 0.7]])})
    assert journal.status.tolist() == [PENDING, DONE, NOT_FINITE, NOT_FINITE]
    for row, expected in ((1, [0.1, 0.3]), (2, [0.5, 0.6])):
        assert journal.row("loss", row).tolist() == expected
    assert journal.notes == {}


def test_scattered_rows_are_committed_together_each_finite_or_not(journal):
    values = np.array([[0.3, np.inf, 0.1], [0.6, 0.5, 0.4]])
    journal.commit([3, 0, 1], {"loss": values}, finite=np.isfinite(values).all(axis=0))
    assert journal.status.tolist() == [NOT_FINITE, DONE, PENDING, DONE]
    for row, expected in ((3, [0.3, 0.6]), (0, [np.inf, 0.5]), (1, [0.1, 0.4])):
        assert journal.row("loss", row).tolist() == expected
    assert np.isnan(journal.column("accuracy")).all()
    journal.commit([], {"loss": np.zeros((2, 0))})
    journal.commit(np.int64(2), {"loss": np.array([0.7, 0.8])})  # as np.flatnonzero gives rows
    assert journal.status.tolist() == [NOT_FINITE, DONE, DONE, DONE]
    assert journal.row("loss", 2).tolist() == [0.7, 0.8]


def test_rows_that_are_left_out_have_no_values(journal):
    journal.commit(1, {"loss": np.zeros(2), "accuracy": np.zeros(2)})
    journal.leave_out([0, 3])
    journal.leave_out([])
    assert journal.status.tolist() == [LEFT_OUT, DONE, PENDING, LEFT_OUT]
    assert np.isnan(journal.column("loss")[:, [0, 2, 3]]).all()


@pytest.mark.parametrize("kind", ["memory", "hdf5"])
def test_rows_over_two_axes_are_counted_in_c_order(tmp_path, kind):
    if kind == "memory":
        journal = in_memory(plane(3, 4))
    else:
        journal = store.begin(tmp_path / "plane.h5", {"plane": plane(3, 4)})["plane"]
    assert (len(journal), journal.status.shape) == (12, (3, 4))
    for row in (0, 3, 4, 11):
        journal.commit(row, {"loss": np.array([row / 8])})
    journal.commit([7, 2], {"loss": np.array([[0.75, np.nan]])}, finite=np.array([True, False]))
    journal.leave_out([1])
    status, loss = journal.status, journal.column("loss")[0]
    assert status.tolist() == [[1, 3, 2, 1], [1, 0, 0, 1], [0, 0, 0, 1]]
    assert np.array_equal(loss.reshape(-1)[[0, 3, 4, 11, 7, 2]], [0, 0.375, 0.5, 1.375, 0.75, np.nan], equal_nan=True)
    assert np.isnan(loss[status != DONE]).all()
    assert journal.row("loss", 7).tolist() == [0.75]
    with pytest.raises(IndexError):
        journal.commit(12, {"loss": np.zeros(1)})
    if kind == "hdf5":
        journal.close()
        assert store.load(tmp_path / "plane.h5").status.tolist() == status.tolist()


def test_what_is_read_is_a_copy(journal):
    journal.status[:] = DONE
    journal.column("loss")[:] = 5.0
    journal.row("loss", 0)[:] = 5.0
    assert journal.status.tolist() == [PENDING] * 4
    assert np.isnan(journal.column("loss")).all()


def test_rows_and_columns_that_are_not_there_are_refused(journal):
    for rows in (4, -1, range(3, 5)):
        with pytest.raises(IndexError):
            journal.commit(rows, {"loss": np.zeros((2, 2))})
    for rows in ([0, 4], [-1, 0], np.int64(4)):
        with pytest.raises(IndexError):
            journal.commit(rows, {"loss": np.zeros((2, 2))})
    with pytest.raises(KeyError):
        journal.commit(0, {"nothing": np.zeros(2)})
    with pytest.raises(KeyError):
        journal.column("nothing")
    assert journal.status.tolist() == [PENDING] * 4


def test_a_memory_journal_leaves_its_columns_to_the_caller():
    columns = {"loss": np.zeros((1, 3))}
    MemoryJournal(columns, 3).commit(0, {"loss": np.ones(1)})
    assert not columns["loss"].any()


@FEW
@given(
    commits=st.lists(
        st.tuples(st.lists(st.integers(0, 5), max_size=6, unique=True), st.lists(number, min_size=12, max_size=12)),
        max_size=8,
    ),
    reopen=st.booleans(),
)
def test_memory_and_hdf5_are_indistinguishable_to_the_bit(tmp_path_factory, commits, reopen):
    path = tmp_path_factory.mktemp("journal") / "plane.h5"
    mine, theirs = in_memory(plane(3, 2)), store.begin(path, {"plane": plane(3, 2)})["plane"]
    for rows, values in commits:
        loss, accuracy = np.array(values).reshape(2, 1, 6)[..., : len(rows)]
        for journal in (mine, theirs):
            journal.commit(rows, {"loss": loss, "accuracy": accuracy}, finite=np.isfinite(loss[0]))
        if reopen:
            theirs.close()
            theirs = HDF5Journal(path, "plane")
    with theirs:
        assert mine.status.tobytes() == theirs.status.tobytes()
        for name in ("loss", "accuracy"):
            assert mine.column(name).dtype == theirs.column(name).dtype
            assert mine.column(name).tobytes() == theirs.column(name).tobytes()
    stored = store.load(path)
    assert stored.loss.tobytes() == mine.column("loss").tobytes()
    assert stored.status.tobytes() == mine.status.tobytes()


def on_disk(path, folder):
    """The record in the bytes that another process would find now."""
    copy = folder / "copy.h5"
    copy.write_bytes(path.read_bytes())
    return store.load(copy)


def test_a_row_is_in_the_file_when_commit_returns(tmp_path):
    path = tmp_path / "line.h5"
    with store.begin(path, {"line": line(4)})["line"] as journal:
        for row in (2, 0):
            journal.commit(row, {"loss": np.array([row, 0.5]), "accuracy": np.zeros(2)})
            found = on_disk(path, tmp_path)
            assert found.status[row] == DONE
            assert found.loss[:, row].tolist() == [row, 0.5]


def test_the_values_of_a_row_are_in_the_file_before_its_status(tmp_path, monkeypatch):
    path, seen, flush = tmp_path / "line.h5", [], h5py.File.flush

    def watched(file):
        flush(file)
        found = on_disk(path, tmp_path)
        seen.append((found.loss[:, 2].tolist(), int(found.status[2])))

    with store.begin(path, {"line": line(4)})["line"] as journal:
        monkeypatch.setattr(h5py.File, "flush", watched)
        journal.commit(2, {"loss": np.array([0.25, 0.5])})
        monkeypatch.undo()
    assert seen == [([0.25, 0.5], PENDING), ([0.25, 0.5], DONE)]


def test_the_values_of_all_rows_of_a_commit_are_in_the_file_before_the_first_status(tmp_path, monkeypatch):
    path, seen, flush = tmp_path / "plane.h5", [], h5py.File.flush

    def watched(file):
        flush(file)
        found = on_disk(path, tmp_path)
        seen.append((found.loss.reshape(-1)[[1, 2, 4]].tolist(), found.status.reshape(-1).tolist()))

    with store.begin(path, {"plane": plane(3, 2)})["plane"] as journal:
        monkeypatch.setattr(h5py.File, "flush", watched)
        journal.commit([4, 1, 2], {"loss": np.array([[0.25, 0.5, 0.75]])})
        monkeypatch.undo()
    assert seen == [([0.5, 0.75, 0.25], [0] * 6), ([0.5, 0.75, 0.25], [0, 1, 1, 0, 1, 0])]


def test_several_journals_of_one_file_keep_apart(tmp_path):
    journals = store.begin(tmp_path / "two.h5", {"line": line(2), "plane": plane(3, 2)})
    journals["line"].commit(1, {"loss": np.array([1.0, 2.0])})
    journals["plane"].commit([0, 2, 5], {"loss": np.array([[3.0, 4.0, 5.0]])})
    for journal in journals.values():
        journal.close()
    found = store.load(tmp_path / "two.h5")
    assert found["line"].status.tolist() == [0, 1]
    assert found["plane"].status.tolist() == [[1, 0], [1, 0], [0, 1]]
    assert found["plane"].loss[0][found["plane"].status == DONE].tolist() == [3.0, 4.0, 5.0]


ROWS, SPLITS = 120_000, 3  # ten times what a pipe holds reports of: no writer gets done before it is killed
WRITER = """
import os, sys
from pathlib import Path
import numpy as np
from sharpness.journal import HDF5Journal
with HDF5Journal(Path(sys.argv[1]), "line") as journal:
    os.write(1, b"ready\\n")
    for row in np.flatnonzero(journal.status == 0):
        values = row + np.arange(3) / 8
        journal.commit(int(row), {"loss": values, "accuracy": -values})
        os.write(1, b"%d\\n" % row)
"""


def test_a_killed_writer_leaves_a_readable_file_with_every_row_that_it_reported(tmp_path):
    path = tmp_path / "line.h5"
    store.save(line(ROWS, SPLITS), path)
    moments, before = random.Random(0), 0
    for _ in range(10):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE)
        assert writer.stdout.readline() == b"ready\n"
        time.sleep(moments.uniform(0.0, 0.05))
        writer.send_signal(signal.SIGKILL)
        reported = [int(row) for row in writer.stdout.read().split(b"\n")[:-1]]
        writer.stdout.close()
        assert writer.wait() == -signal.SIGKILL  # not done yet: there was something to interrupt
        found = store.load(path)
        done = np.flatnonzero(found.status == DONE)
        assert set(reported) <= set(done)
        assert (
            before + len(reported) <= len(done) <= before + len(reported) + 1
        )  # at most the one it had no time to report
        right = done + np.arange(SPLITS)[:, None] / 8
        assert np.array_equal(found.loss[:, done], right)
        assert np.array_equal(found.accuracy[:, done], -right)
        assert (found.status[np.setdiff1d(np.arange(ROWS), done)] == PENDING).all()
        before = len(done)
    assert before > 10
