"""Recorded products: answered from the journal to the bit, computed where it does not hold them, refused elsewhere."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import killed
import numpy as np
import pytest
import torch
import xarray
from command_line import environment
from matrices import OUTLIERS, Diagonal, Poisoned

from sharpness import store
from sharpness.errors import NonFiniteError, SchemaError, ShapeError
from sharpness.journal import DONE, NOT_FINITE, PENDING, MemoryJournal
from sharpness.objective import Objective, cross_entropy
from sharpness.operators import Hessian, Recorded, begin_products
from sharpness.spectrum import eigenpairs, spectral_density, trace

pytestmark = pytest.mark.usefixtures("one_thread")
pytest_plugins = "command_line"
ROWS = 150


def outliers(n=400):
    return Diagonal(torch.cat([torch.tensor(OUTLIERS), torch.linspace(-1, 1, n - 10)]))


def in_memory(n=400, rows=ROWS, dtype=np.float32):
    return MemoryJournal({"image": np.full((n, rows), np.nan, dtype), "digest": np.zeros((32, rows), np.uint8)}, rows)


@pytest.fixture(params=["memory", "hdf5"])
def again(request, tmp_path):
    """Gives the same journal at every start, as a process finds it that is started again."""
    if request.param == "memory":
        journal = in_memory()
        yield lambda operator: journal
        return
    opened = []

    def start(operator):
        if opened:
            opened.pop().close()
        opened.append(begin_products(tmp_path / "products.h5", operator, ROWS))
        return opened[-1]

    yield start
    opened.pop().close()


def same(first, second):
    names = ("eigenvalues", "residuals", "recurrence_residuals", "converged", "audit_agrees")
    assert all(getattr(first, name).tobytes() == getattr(second, name).tobytes() for name in names)
    assert torch.equal(first.vectors, second.vectors)
    assert (first.products, first.floor, first.conditions) == (second.products, second.floor, second.conditions)


# Answers


@pytest.mark.parametrize("options", [{}, {"block": 3}, {"max_vectors": 20, "which": "both"}, {"tolerance": 1e-5}])
def test_what_was_computed_is_not_computed_again_and_the_result_is_the_same_to_the_bit(again, options):
    plain = eigenpairs(outliers(), 4, **options)
    first, second = outliers(), outliers()
    same(eigenpairs(first, 4, journal=again(first), **options), plain)
    assert first.products == plain.products
    same(eigenpairs(second, 4, journal=again(second), **options), plain)
    assert second.products == 0


@pytest.mark.parametrize("block", [1, 3])
@pytest.mark.parametrize("kept", [0, 1, 7, 13])
def test_a_solver_goes_on_after_the_last_product_that_was_kept(again, kept, block):
    whole, first, second = outliers(), outliers(), outliers()
    plain = eigenpairs(whole, 4, block=block)
    with pytest.raises(KeyboardInterrupt):
        eigenpairs(first, 4, block=block, journal=again(first), progress=interrupt_after(kept))
    found = eigenpairs(second, 4, block=block, journal=again(second))
    same(found, plain)
    assert first.products + second.products == whole.products


def interrupt_after(products):
    def progress(done, total, note):
        if done >= products:
            raise KeyboardInterrupt

    return progress


class Listing(Diagonal):
    """A diagonal that lists what it is multiplied with."""

    def __init__(self):
        super().__init__(outliers().entries)
        self.seen = set()

    def _product(self, vectors):
        self.seen.add(vectors.T.contiguous().numpy().tobytes())
        return super()._product(vectors)


def test_other_settings_share_the_products_that_they_have_in_common(again):
    known = set()
    for k, tolerance, shared in ((4, 1e-3, 0), (4, 1e-4, 10), (6, 1e-4, 12)):
        plain, operator = Listing(), Listing()
        expected = eigenpairs(plain, k, tolerance=tolerance, max_vectors=60)
        same(eigenpairs(operator, k, tolerance=tolerance, max_vectors=60, journal=again(operator)), expected)
        assert operator.seen == plain.seen - known
        assert len(plain.seen & known) >= shared  # at least all steps until the first had converged
        known |= plain.seen


def test_any_algorithm_resumes(again):
    first, second = outliers(), outliers()
    density = spectral_density(Recorded(first, again(first)), probes=2, steps=15)
    repeated = spectral_density(Recorded(second, again(second)), probes=2, steps=15)
    assert density.density.tobytes() == repeated.density.tobytes()
    assert (first.products, second.products) == (30, 0)


def test_a_call_is_answered_wherever_it_was_recorded_and_new_ones_are_appended(again):
    vectors = torch.randn(6, 400, generator=torch.Generator().manual_seed(0))
    operator = outliers()
    recorded = Recorded(operator, again(operator))
    images = [recorded @ vector for vector in vectors[:3]]
    changed = Recorded(operator, again(operator))
    for row in (2, 4, 0, 5, 4):
        assert torch.equal(changed @ vectors[row], operator.entries * vectors[row])
    assert torch.equal(changed @ vectors[1], images[1])
    assert (operator.products, changed.answered) == (5, 4)
    assert again(operator).status.tolist()[:6] == [DONE] * 5 + [PENDING]


def test_a_block_is_another_call_than_its_vectors(again):
    operator, block = outliers(), torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
    recorded = Recorded(operator, again(operator))
    for call in (block[:, 0], block[:, 1], block, block.flip(1), block):
        recorded @ call
    assert (operator.products, recorded.answered) == (6, 2)
    later = Recorded(operator, again(operator))
    assert torch.equal(later @ block.flip(1), operator.entries[:, None] * block.flip(1))
    assert later.answered == 2


def test_a_change_of_the_last_bit_is_another_vector(again):
    operator, vector = outliers(), torch.ones(400)
    Recorded(operator, again(operator)) @ vector
    changed = vector.clone()
    changed[7] = torch.nextafter(changed[7], torch.tensor(2.0))
    assert torch.equal(Recorded(operator, again(operator)) @ changed, operator.entries * changed)
    assert operator.products == 2


def test_when_the_journal_is_full_products_are_computed_and_not_kept():
    operator, journal = outliers(), in_memory(rows=10)
    plain = eigenpairs(outliers(), 4)
    same(eigenpairs(operator, 4, journal=journal), plain)
    assert (journal.status == DONE).all()
    again = outliers()
    same(eigenpairs(again, 4, journal=journal), plain)
    assert again.products == operator.products - 10


def test_a_block_that_does_not_fit_is_not_split():
    operator, journal = outliers(), in_memory(rows=10)
    recorded = Recorded(operator, journal)
    block = torch.randn(400, 4, generator=torch.Generator().manual_seed(0))
    for turn in range(3):
        assert torch.equal(recorded @ (block + turn), operator.entries[:, None] * (block + turn))
    assert journal.status.tolist() == [DONE] * 8 + [PENDING] * 2


def test_products_that_are_not_finite_are_marked_and_tried_again():
    journal = in_memory()
    with pytest.raises(NonFiniteError, match="product 5"):
        eigenpairs(Poisoned(outliers().entries, float("nan"), 5), 4, journal=journal)
    assert journal.status.tolist()[:6] == [DONE] * 4 + [NOT_FINITE, PENDING]
    same(eigenpairs(outliers(), 4, journal=journal), eigenpairs(outliers(), 4))


def test_float64_is_kept_in_float64(tmp_path):
    operator = Diagonal(outliers().entries.double())
    with begin_products(tmp_path / "p.h5", operator, ROWS) as journal:
        plain = eigenpairs(operator, 4)
        same(eigenpairs(operator, 4, journal=journal), plain)
        assert journal.row("image", 0).dtype == np.float64
    with pytest.raises(ShapeError, match="type float32"):
        Recorded(outliers(), in_memory(dtype=np.float64))


@pytest.mark.parametrize(
    "journal",
    [
        in_memory(n=399),
        MemoryJournal({"image": np.zeros((400, 3), np.float32), "digest": np.zeros((32, 3))}, 3),
        MemoryJournal({"image": np.zeros((400, 3), np.float32), "digest": np.zeros((20, 3), np.uint8)}, 3),
    ],
)
def test_columns_that_do_not_fit_are_refused(journal):
    with pytest.raises(ShapeError, match="expected a journal with a column"):
        eigenpairs(outliers(), 4, journal=journal)


# The file


def test_the_file_is_netcdf_takes_room_as_it_is_written_and_is_no_record(tmp_path):
    path, operator = tmp_path / "made" / "p.h5", Diagonal(torch.linspace(-1, 1, 100_000))
    with begin_products(path, operator, 500) as journal:
        empty = path.stat()
        image = Recorded(operator, journal) @ torch.ones(100_000)
    written = path.stat()
    assert empty.st_size == written.st_size > 4 * 100_000 * 500  # all places are there from the beginning
    assert empty.st_blocks * 512 < 4 * 100_000
    assert written.st_blocks * 512 < 3 * 4 * 100_000
    for engine in ("h5netcdf", "netcdf4"):
        if engine == "netcdf4":
            pytest.importorskip("netCDF4")
        with xarray.open_dataset(path, group="products", engine=engine) as found:
            assert found["image"].dims == ("parameter", "row")
            assert found["digest"].sizes == {"byte": 32, "row": 500}
            assert np.array_equal(found["image"][:, 0], image)
            assert json.loads(found.attrs["conditions"]) == operator.conditions
    assert store.load_all(path) == {}
    assert store.load_provenance(path)["sharpness"]
    assert [p.name for p in path.parent.iterdir()] == ["p.h5"]


def test_the_file_of_a_failed_begin_is_not_there(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        begin_products(tmp_path / "p.h5", outliers(), 10)
    assert not (tmp_path / "p.h5").exists()


def test_rows_written_again_are_pending_meanwhile(tmp_path, monkeypatch):
    operator, seen, flush = outliers(), [], h5py.File.flush
    with begin_products(tmp_path / "p.h5", operator, 5) as journal:
        digests = np.zeros((32, 3), np.uint8)
        journal.commit(range(2), {"image": np.full((400, 2), 10.0), "digest": digests[:, :2]})

        def watched(file):
            flush(file)
            (tmp_path / "copy.h5").write_bytes((tmp_path / "p.h5").read_bytes())
            with h5py.File(tmp_path / "copy.h5") as copy:
                seen.append((copy["products/status"][:3].tolist(), float(copy["products/image"][0, 0])))

        monkeypatch.setattr(h5py.File, "flush", watched)
        journal.commit(range(3), {"image": np.full((400, 3), 20.0), "digest": digests})
        monkeypatch.undo()
    assert seen == [([0, 0, 0], 10.0), ([0, 0, 0], 20.0), ([1, 1, 1], 20.0)]


class Described(Diagonal):
    """A diagonal under given conditions."""

    def __init__(self, **conditions):
        super().__init__(outliers().entries)
        self.said = conditions

    @property
    def conditions(self):
        return {"operator": "hessian", "theta_sha256": "a", **self.said}


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"theta_sha256": "b"}, "theta_sha256 ('a' there, 'b' here)"),
        ({"l2": 0.1}, "l2 (None there, 0.1 here)"),
        ({"operator": "fisher", "l2": 1}, "l2 (None there, 1 here); operator ('hessian' there, 'fisher' here)"),
    ],
)
def test_products_under_other_conditions_are_refused_by_the_difference(tmp_path, change, difference):
    path = tmp_path / "p.h5"
    begin_products(path, Described(), 5).close()
    before = path.read_bytes()
    with pytest.raises(SchemaError) as caught:
        begin_products(path, Described(**change), 5)
    assert difference in str(caught.value)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before
    begin_products(path, Described(), 5).close()


@pytest.mark.parametrize("change", [{"threads": 2}, {"execution": {"kernels": "torch"}}])
def test_another_execution_plan_is_accepted_and_noted_for_good(tmp_path, change):
    path, note = tmp_path / "p.h5", {"resumed_under_other_plan": True}
    plan = {"threads": 1, "execution": {"kernels": "onednn", "why": "0.1 s against 0.2 s"}}
    with begin_products(path, Described(**plan), 50) as journal:
        assert journal.notes == {}
    other = Described(**{**plan, **change})
    with begin_products(path, other, 50) as journal:
        pairs = eigenpairs(other, 4, journal=journal)
    assert pairs.conditions.items() >= note.items()
    with begin_products(path, Described(**plan), 50) as journal:  # whose products are now of both plans
        assert journal.notes == note
        assert Recorded(Described(**plan), journal).conditions.items() >= note.items()
        assert trace(Recorded(Described(**plan), journal), samples=2).conditions.items() >= note.items()


def test_reasons_for_the_same_plan_may_differ(tmp_path):
    begin_products(tmp_path / "p.h5", Described(execution={"replay": "graph", "why": "0.1 s"}), 5).close()
    with begin_products(tmp_path / "p.h5", Described(execution={"replay": "graph", "why": "0.2 s"}), 5) as journal:
        assert journal.notes == {}


def test_the_hessian_at_another_place_is_refused(tmp_path):
    torch.manual_seed(0)
    data = (torch.randn(20, 4), torch.arange(20) % 3)
    f, theta = Objective.from_module(torch.nn.Linear(4, 3), cross_entropy, data)
    begin_products(tmp_path / "p.h5", Hessian(f, theta), 5).close()
    begin_products(tmp_path / "p.h5", Hessian(f, theta), 5).close()
    with pytest.raises(SchemaError, match=r"theta_sha256 \(.*there, .*here\)"):
        begin_products(tmp_path / "p.h5", Hessian(f, theta + 1e-3), 5)


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x89HDF\r\n\x1a\n" + bytes(5000)])
def test_a_damaged_file_is_refused(tmp_path, content):
    (tmp_path / "p.h5").write_bytes(content)
    with pytest.raises(SchemaError, match="damaged"):
        begin_products(tmp_path / "p.h5", outliers(), 5)


def test_a_file_of_something_else_is_refused(tmp_path):
    with h5py.File(tmp_path / "p.h5", "w") as file:
        file["numbers"] = np.arange(3)
    with pytest.raises(SchemaError, match="something else"):
        begin_products(tmp_path / "p.h5", outliers(), 5)
    with h5py.File(tmp_path / "p.h5", "r+") as file:  # which is closed again
        assert list(file) == ["numbers"]
    with pytest.raises(ShapeError, match="rows >= 1"):
        begin_products(tmp_path / "new.h5", outliers(), 0)


# Kills


@pytest.mark.parametrize("block", [1, 3])
def test_a_search_killed_again_and_again_repeats_no_product_and_ends_with_the_same_bits(tmp_path, block):
    script = Path(__file__).with_name("killed.py")
    done = subprocess.run(
        [sys.executable, script, tmp_path, str(block), "0"],
        capture_output=True, text=True, env=environment(), timeout=300, check=True,
    )  # fmt: skip
    *cut, last = json.loads(done.stdout)
    assert [end["code"] for end in cut] == [-signal.SIGKILL] * len(cut)
    assert last["code"] == 0
    for end, following in zip(cut, [*cut[1:], last], strict=True):
        assert not set(end["computed"]) & set(end["recorded"])
        # at most the last one computed had no time to be recorded
        assert set(end["recorded"]) | set(end["computed"][:-1]) <= set(following["recorded"])
        assert set(following["recorded"]) <= set(end["recorded"]) | set(end["computed"])
    assert not set(last["computed"]) & set(last["recorded"])
    whole = killed.operator()
    plain = killed.solve(whole, block, None)
    every = {name for end in [*cut, last] for name in end["computed"]}
    assert len(every) == whole.calls
    assert len({len(end["recorded"]) for end in cut}) > 3  # kills came at different places
    with np.load(tmp_path / "result.npz") as found:
        assert found["eigenvalues"].tobytes() == plain.eigenvalues.tobytes()
        assert found["residuals"].tobytes() == plain.residuals.tobytes()
        assert found["vectors"].tobytes() == plain.vectors.numpy().tobytes()
