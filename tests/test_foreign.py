"""Files of loss-landscape: every value at its place, what was not computed pending, and nothing claimed that they do
not say. The files are laid out as its code lays them out: values at the places of ``meshgrid``, -1 until computed.
"""

from __future__ import annotations

import copy

import h5py
import numpy as np
import pytest
import torch
from command_line import invoke, refused
from torch import nn
from torch.nn import functional

from sharpness import Objective, Plane, cross_entropy, evaluate_plane, store
from sharpness.errors import SchemaError, ShapeError
from sharpness.foreign import load_loss_landscape, read_directions
from sharpness.geometry import load_directions
from sharpness.params import ParamSpace
from sharpness.records import LineLosses, PlaneLosses
from sharpness.render import draw

pytest_plugins = "command_line"
X, Y = np.linspace(-1, 1, 5), np.linspace(-0.5, 0.5, 3)
NAME = "nets/resnet56_lr=0.1/model_300.t7_weights_xignore=biasbn_xnorm=filter_yignore=biasbn_ynorm=filter.h5"


def loss_at(x, y=0.0):
    """Unlike under exchange, reflection or transposition of x and y."""
    return 3 + x + 0.2 * x**2 + 0.1 * y + 0.01 * x * y


def write_surface(path, x=X, y=None, computed=("train",), points=None, value=loss_at, named=NAME):
    """Coordinates, then for each data set arrays of -1, filled point by point (the first ``points``, or all)."""
    with h5py.File(path, "a") as file:
        file["dir_file"], file["xcoordinates"] = named, x
        if y is not None:
            file["ycoordinates"] = y
        shape = x.shape if y is None else (len(x), len(y))
        places = (x,) if y is None else tuple(mesh.ravel() for mesh in np.meshgrid(x, y))
        for number, split in enumerate(computed):
            loss, accuracy = -np.ones(shape), -np.ones(shape)
            for index, place in list(enumerate(zip(*places, strict=True)))[:points]:
                loss.ravel()[index] = value(*place) + number
                accuracy.ravel()[index] = 100 * place[0] ** 2
            file[f"{split}_loss"], file[f"{split}_acc"] = loss, accuracy
    return path


def write_directions(path, *directions, **more):
    with h5py.File(path, "w") as file:
        for name, direction in zip(("xdirection", "ydirection"), directions, strict=False):
            group = file.create_group(name)
            for number, entry in enumerate(direction):
                group.create_dataset(str(number), data=entry)
        for name, values in more.items():
            file[name] = values
    return path


# Surfaces


@pytest.mark.parametrize("y", [X, Y, np.linspace(0, 1, 7)], ids=["square", "wide", "tall"])
def test_every_value_of_a_plane_lies_at_its_place(tmp_path, y):
    record = load_loss_landscape(write_surface(tmp_path / "s.h5", y=y))
    assert isinstance(record, PlaneLosses)
    assert record.split.tolist() == ["train"]
    np.testing.assert_array_equal(record.alpha, X)
    np.testing.assert_array_equal(record.beta, y)
    np.testing.assert_allclose(record.loss[0], loss_at(X[:, None], y[None, :]), rtol=1e-15)
    np.testing.assert_allclose(record.accuracy[0], np.tile(X[:, None] ** 2, len(y)), rtol=1e-15)
    assert (record.status == 1).all()


def test_a_square_plane_is_what_its_own_plots_show(tmp_path):
    record = load_loss_landscape(write_surface(tmp_path / "s.h5", y=X))
    with h5py.File(tmp_path / "s.h5") as file:  # they hand these rows to contour(X, Y, Z), which wants them along y
        np.testing.assert_array_equal(record.loss[0].T, file["train_loss"][()])


def test_a_line_with_test_data(tmp_path):
    record = load_loss_landscape(write_surface(tmp_path / "s.h5", computed=("test", "train")))
    assert isinstance(record, LineLosses)
    assert record.split.tolist() == ["train", "test"]
    np.testing.assert_allclose(record.loss, [loss_at(X) + 1, loss_at(X)], rtol=1e-15)
    np.testing.assert_allclose(record.accuracy[1], X**2, rtol=1e-15)


def test_what_was_not_computed_is_pending(tmp_path):
    record = load_loss_landscape(write_surface(tmp_path / "s.h5", y=Y, points=7))
    done = np.zeros((3, 5), bool)
    done.ravel()[:7] = True
    np.testing.assert_array_equal(record.status, done.T)
    np.testing.assert_array_equal(np.isnan(record.loss[0]), ~done.T)
    np.testing.assert_array_equal(np.isnan(record.accuracy[0]), ~done.T)


def test_a_point_is_pending_while_one_data_set_lacks_it(tmp_path):
    write_surface(tmp_path / "s.h5")
    with h5py.File(tmp_path / "s.h5", "a") as file:
        file["test_loss"], file["test_acc"] = np.array([[2, -1, -1, -1, -1], [50.0, -1, -1, -1, -1]])
    record = load_loss_landscape(tmp_path / "s.h5")
    assert record.status.tolist() == [1, 0, 0, 0, 0]
    np.testing.assert_allclose(record.loss[0], loss_at(X), rtol=1e-15)
    assert record.accuracy[1, 0] == 0.5


def test_a_data_set_that_was_never_computed_is_left_out(tmp_path):
    write_surface(tmp_path / "s.h5")
    with h5py.File(tmp_path / "s.h5", "a") as file:
        file["test_loss"], file["test_acc"] = -np.ones(5), -np.ones(5)
    record = load_loss_landscape(tmp_path / "s.h5")
    assert record.split.tolist() == ["train"]
    assert (record.status == 1).all()


def test_values_are_never_repaired(tmp_path):
    write_surface(tmp_path / "s.h5")
    with h5py.File(tmp_path / "s.h5", "a") as file:
        file["train_loss"][:] = [-1, np.nan, np.inf, -0.5, 2]
        file["train_acc"][:] = [30, 10, 10, 10, -1]
    record = load_loss_landscape(tmp_path / "s.h5")
    assert record.status.tolist() == [1, 2, 2, 1, 1]  # -1 with an accuracy is a loss
    np.testing.assert_array_equal(record.loss[0], [-1, np.nan, np.inf, -0.5, 2])
    np.testing.assert_array_equal(record.accuracy[0], [0.3, 0.1, 0.1, 0.1, np.nan])


def test_losses_without_accuracies(tmp_path):
    write_surface(tmp_path / "s.h5", points=3)
    with h5py.File(tmp_path / "s.h5", "a") as file:
        del file["train_acc"]
    record = load_loss_landscape(tmp_path / "s.h5")
    assert record.status.tolist() == [1, 1, 1, 0, 0]
    assert np.isnan(record.accuracy).all()


@pytest.mark.parametrize("form", [np.bytes_, str, lambda text: np.array([text.encode()]), "attribute"])
def test_every_form_of_text_is_read(tmp_path, form):
    write_surface(tmp_path / "s.h5")
    with h5py.File(tmp_path / "s.h5", "a") as file:
        del file["dir_file"]
        if form == "attribute":
            file.attrs["dir_file"] = np.bytes_(NAME)
        else:
            file["dir_file"] = form(NAME)
    assert load_loss_landscape(tmp_path / "s.h5").conditions["imported"]["dir_file"] == NAME


def test_padded_files_and_foreign_byte_orders_are_read(tmp_path):
    with h5py.File(tmp_path / "s.h5", "w", userblock_size=1024) as file:
        file["xcoordinates"] = X.astype(">f4")
        file["train_loss"] = loss_at(X).astype(">f4")
    with (tmp_path / "s.h5").open("ab") as file:
        file.write(bytes(4096))
    record = load_loss_landscape(tmp_path / "s.h5")
    np.testing.assert_array_equal(record.loss[0], loss_at(X).astype(np.float32))
    store.save(record, tmp_path / "r.h5")


def test_the_record_claims_nothing_that_the_file_does_not_say(tmp_path):
    write_surface(tmp_path / "s.h5", y=Y)
    with h5py.File(tmp_path / "s.h5", "a") as file:
        file["max_eig"] = np.ones((5, 3))
    record = load_loss_landscape(tmp_path / "s.h5")
    assert (record.origin, record.first, record.second, record.batchnorm) == ("", "", "", "unknown")
    assert np.isnan(record.cosine)
    assert record.length is None
    assert {"weights", "batch norm", "loss", "data", "seed", "directions"} <= set(record.conditions["not recorded"])
    source = record.conditions["imported"]
    assert (source["file"], source["not read"]) == ("s.h5", ["max_eig"])


@pytest.mark.parametrize(
    ("named", "file", "expected"),
    [
        (NAME, "s.h5", ["weights", "xignore=biasbn", "xnorm=filter", "yignore=biasbn", "ynorm=filter"]),
        ("a_bs=128_b_bs=8192_states.h5", "s.h5", ["states"]),
        ("nets/PCA_weights_ignore=biasbn_save_epoch=1/directions.h5", "s.h5", ["PCA", "weights", "ignore=biasbn"]),
        ("m_weights_same_dir_idx=3.h5", "m_weights.h5_rawdata.h5", ["weights", "same_dir", "idx=3", "rawdata"]),
        ("", "my.h5", []),
    ],
)
def test_what_file_names_say_is_said_as_such(tmp_path, named, file, expected):
    record = load_loss_landscape(write_surface(tmp_path / file, y=Y, named=named))
    assert record.conditions["imported"]["named"] == expected
    assert record.directions.startswith("of a loss-landscape file")
    assert all(name in record.directions for name in expected)


def test_an_imported_surface_comes_back_from_disk_and_can_be_drawn(tmp_path):
    for y in (None, Y):
        record = load_loss_landscape(write_surface(tmp_path / f"s{y is None}.h5", y=y, points=4))
        store.save(record, tmp_path / "r.h5")
        found = store.load(tmp_path / "r.h5")
        np.testing.assert_array_equal(found.loss, record.loss)
        assert found.conditions == record.conditions
        assert draw(found).get_xlabel()


# What is no surface


def test_other_files_are_refused(tmp_path):
    with pytest.raises(SchemaError, match="there is none"):
        load_loss_landscape(tmp_path / "s.h5")
    (tmp_path / "s.h5").write_bytes(b"no HDF5")
    with pytest.raises(SchemaError, match="damaged or something else"):
        load_loss_landscape(tmp_path / "s.h5")
    store.save(load_loss_landscape(write_surface(tmp_path / "t.h5")), tmp_path / "ours.h5")
    with pytest.raises(SchemaError, match="it is of sharpness"):
        load_loss_landscape(tmp_path / "ours.h5")
    with pytest.raises(SchemaError, match=r"expected a surface file .* it is a direction file"):
        load_loss_landscape(write_directions(tmp_path / "d.h5", [np.ones(2)]))
    with pytest.raises(SchemaError, match=r"expected a direction file .* it is a surface file"):
        read_directions(tmp_path / "t.h5")


def test_a_surface_that_was_only_begun_is_refused(tmp_path):
    with pytest.raises(SchemaError, match="none of its points has been computed"):
        load_loss_landscape(write_surface(tmp_path / "a.h5", y=Y, points=0))
    with pytest.raises(SchemaError, match="none of its points has been computed"):
        load_loss_landscape(write_surface(tmp_path / "b.h5", y=Y, computed=()))


def test_sizes_that_do_not_fit_are_refused(tmp_path):
    write_surface(tmp_path / "s.h5", y=Y)
    with h5py.File(tmp_path / "s.h5", "a") as file:
        del file["ycoordinates"]
        file["ycoordinates"] = np.arange(4.0)
    with pytest.raises(SchemaError, match=r"expected 5 × 4 values in /train_loss of .*got shape \(5, 3\)"):
        load_loss_landscape(tmp_path / "s.h5")
    with h5py.File(tmp_path / "s.h5", "a") as file:
        file["ycoordinates"][0] = np.nan
    with pytest.raises(SchemaError, match=r"expected ycoordinates .* list of finite numbers"):
        load_loss_landscape(tmp_path / "s.h5")


@pytest.mark.parametrize("command", ["info", "figures", "export"])
def test_commands_say_how_to_convert_a_surface(tmp_path, command):
    path = write_surface(tmp_path / "their [1,2].h5")
    parts = "its format is None", "a surface of loss-landscape", f"`sharpness import '{path}' --out RESULT.h5`"
    assert refused(invoke(command, path), 2, *parts)
    assert list(tmp_path.iterdir()) == [path]


def test_commands_say_what_directions_and_trajectories_are_for(tmp_path):
    write_directions(tmp_path / "d.h5", [np.ones(2)])
    write_directions(tmp_path / "t.h5", proj_xcoord=np.ones(2), proj_ycoord=np.ones(2))
    assert refused(invoke("info", tmp_path / "d.h5"), 2, "--directions")
    assert refused(invoke("info", tmp_path / "t.h5"), 2, "--trajectory")


# The command


def test_import_writes_a_results_file_and_says_what_it_lacks(tmp_path):
    write_surface(tmp_path / "their.h5", y=Y, points=7)
    ended = invoke("import", tmp_path / "their.h5", "--out", tmp_path / "new" / "ours.h5")
    assert ended.code == 0, ended
    assert "plane, 15 points, 8 of them pending" in ended.stdout
    for what in ("batch norm", "seed", "of the random directions", str(tmp_path / "new" / "ours.h5")):
        assert what in ended.stdout
    assert np.isfinite(store.load(tmp_path / "new" / "ours.h5").loss).sum() == 7
    assert invoke("figures", tmp_path / "new" / "ours.h5", "--format", "png").code == 0


def test_import_into_a_folder_and_over_nothing(tmp_path):
    write_surface(tmp_path / "their.h5")
    before = (tmp_path / "their.h5").read_bytes()
    assert invoke("import", tmp_path / "their.h5", "--out", tmp_path, "--quiet").code == 0
    assert store.load(tmp_path / "line.h5").loss.shape == (1, 5)
    assert refused(invoke("import", tmp_path / "their.h5", "--out", tmp_path), 2, "line.h5 exists")
    assert refused(invoke("import", tmp_path / "their.h5", "--out", tmp_path / "their.h5"), 2, "their.h5 exists")
    assert (tmp_path / "their.h5").read_bytes() == before


# Directions


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Linear(4, 6, bias=False)
        self.norm = nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(functional.relu(self.norm(self.features(x))))


def network():
    torch.manual_seed(3)
    net = Net()
    net(torch.randn(50, 4))  # running statistics that are not those of a new network
    return net.eval()


def drawn(tensors, seed):
    generator = torch.Generator().manual_seed(seed)
    return [0.3 * torch.randn(tensor.shape, generator=generator).numpy() for tensor in tensors]


@pytest.mark.parametrize("kind", ["weights", "states", "states without counters"])
def test_directions_are_laid_into_theta(tmp_path, kind):
    net = network()
    names = [name for name, _ in net.named_parameters()] if kind == "weights" else list(net.state_dict())
    names = [name for name in names if "without" not in kind or not name.endswith("tracked")]
    both = [dict(zip(names, drawn([net.state_dict()[name] for name in names], seed), strict=True)) for seed in (1, 2)]
    path = write_directions(tmp_path / "d.h5", *(list(direction.values()) for direction in both))
    found = load_directions(path, net)
    space = ParamSpace.of(net)
    assert len(found) == 2
    for vector, direction in zip(found, both, strict=True):
        assert vector.shape == (space.size,)
        for name, piece in space.unflatten(vector).items():
            np.testing.assert_array_equal(piece.numpy(), direction[name])


def test_more_than_nine_entries_keep_their_order_and_one_direction_is_one(tmp_path):
    net = nn.Sequential(*(nn.Linear(1, 1) for _ in range(6)))
    path = write_directions(tmp_path / "d.h5", [np.full(p.shape, i, "f4") for i, p in enumerate(net.parameters())])
    (found,) = load_directions(path, net)
    assert found.tolist() == list(range(12))


def test_directions_of_another_model_are_refused(tmp_path):
    net = network()
    weights = drawn(net.parameters(), 1)
    with pytest.raises(ShapeError, match="5 parameters and 8 state-dict entries; there are 4"):
        load_directions(write_directions(tmp_path / "d.h5", weights[:-1]), net)
    weights[3] = weights[3].T
    with pytest.raises(ShapeError, match=r"array 3 has shape \(6, 3\) and 'head.weight' \(3, 6\)"):
        load_directions(write_directions(tmp_path / "d.h5", weights), net)


def test_directions_that_move_a_constant_are_refused(tmp_path):
    net = network()
    net.features.requires_grad_(False)
    weights = drawn(net.parameters(), 1)
    with pytest.raises(ShapeError, match=r"'features.weight' too, which is frozen"):
        load_directions(write_directions(tmp_path / "d.h5", weights), net)
    weights[0][:] = 0
    (found,) = load_directions(write_directions(tmp_path / "d.h5", weights), net)
    assert found.shape == (ParamSpace.of(net).size,)


def test_a_surface_of_theirs_is_measured_again_along_its_directions(tmp_path):
    """Computed point by point as their code does, imported, and evaluated here: the same losses at the same places."""
    net = network()
    inputs, targets = torch.randn(40, 4), torch.arange(40) % 3
    first, second = drawn(net.parameters(), 1), drawn(net.parameters(), 2)
    moved = copy.deepcopy(net)

    def crunched(x, y):
        for p, w, dx, dy in zip(moved.parameters(), net.parameters(), first, second, strict=True):
            p.data = w.data + torch.tensor(dx * x + dy * y, dtype=torch.float32)
        with torch.no_grad():
            return functional.cross_entropy(moved(inputs), targets).item()

    theirs = load_loss_landscape(write_surface(tmp_path / "s.h5", y=Y, value=crunched))
    objective, theta = Objective.from_module(net, cross_entropy, (inputs, targets))
    plane = Plane(theta, *load_directions(write_directions(tmp_path / "d.h5", first, second), net, objective.space))
    ours = evaluate_plane({"train": objective}, plane, theirs.alpha, theirs.beta, batchnorm="eval")
    np.testing.assert_allclose(ours.loss, theirs.loss, rtol=1e-5)  # float32 sums in another order
    assert np.ptp(ours.loss) > 0.1


# Planes with their directions and a training run


def test_directions_give_a_plane_its_angle_and_lengths(tmp_path):
    write_surface(tmp_path / "s.h5", y=Y)
    first, second = [np.array([[3.0, 0]]), np.array([4.0])], [np.array([[0.0, 2]]), np.array([2.0])]
    ratio = np.array([0.75, 0.125])
    directions = write_directions(tmp_path / "d.h5", first, second, explained_variance_ratio_=ratio)
    record = load_loss_landscape(tmp_path / "s.h5", directions=directions)
    np.testing.assert_allclose(record.length, [5, np.sqrt(8)])
    assert record.cosine == pytest.approx(8 / (5 * np.sqrt(8)))
    assert record.explained.tolist() == [0.75, 0.125]
    states = load_loss_landscape(
        write_surface(tmp_path / "t.h5", y=Y, named="m_states.h5"), directions=tmp_path / "d.h5"
    )
    assert states.length is None  # it would hold the running statistics


def test_a_trajectory_is_placed_where_it_was(tmp_path):
    """Their coordinates are d·v/‖v‖ of either direction; α and β are those of d = α·first + β·second."""
    write_surface(tmp_path / "s.h5", y=Y)
    draw = np.random.default_rng(0)
    first, second, places = draw.normal(size=12), draw.normal(size=12), draw.normal(size=(6, 2))
    iterates = places @ np.stack([first, second])
    lengths = [iterates @ v / np.linalg.norm(v) for v in (first, second)]
    both = [[v[:8].reshape(2, 4), v[8:], np.float32(7)] for v in (first, second)]  # the last, a counter, is left out
    directions = write_directions(tmp_path / "d.h5", *both)
    for name, coordinates in {"d_proj_cos.h5": lengths, "d_proj_lstsq.h5": places.T}.items():
        path = write_directions(tmp_path / name, proj_xcoord=coordinates[0], proj_ycoord=coordinates[1])
        record = load_loss_landscape(tmp_path / "s.h5", directions=directions, trajectory=path)
        np.testing.assert_allclose(record.walk_place[:, :2], places, rtol=1e-10)
        assert np.isnan(record.walk_place[:, 2]).all()
        assert record.epoch.tolist() == list(range(6))


def test_import_takes_directions_and_trajectory(tmp_path):
    write_surface(tmp_path / "s.h5", y=Y)
    directions = write_directions(tmp_path / "d.h5", [np.array([1.0, 0])], [np.array([0, 2.0])])
    walk = write_directions(tmp_path / "p.h5", proj_xcoord=np.array([0.5, 0]), proj_ycoord=np.array([0.5, 0]))
    options = ("--directions", directions, "--trajectory", walk, "--out", tmp_path / "r.h5")
    assert invoke("import", tmp_path / "s.h5", *options).code == 0
    record = store.load(tmp_path / "r.h5")
    assert record.length.tolist() == [1, 2]
    np.testing.assert_allclose(record.walk_place[:, :2], [[0.5, 0.25], [0, 0]], atol=1e-15)
    assert draw(record).get_xlabel()


def test_what_does_not_go_together_is_refused(tmp_path):
    write_surface(tmp_path / "line.h5")
    write_surface(tmp_path / "plane.h5", y=Y)
    one = write_directions(tmp_path / "one.h5", [np.ones(2)])
    with pytest.raises(SchemaError, match="expected a surface over two directions"):
        load_loss_landscape(tmp_path / "line.h5", directions=one)
    with pytest.raises(SchemaError, match=r"expected two directions of one length in .*got \[2\] entries"):
        load_loss_landscape(tmp_path / "plane.h5", directions=one)
    with pytest.raises(SchemaError, match="expected the direction file beside a trajectory"):
        load_loss_landscape(tmp_path / "plane.h5", trajectory=one)
