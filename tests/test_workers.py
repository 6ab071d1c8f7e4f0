"""Where workers lie on devices of several slices or hosts, which CPU devices stand in for."""

import jax
import numpy as np
import pytest

from jaxdist import Workers, collectives, workers


@pytest.fixture
def homes(monkeypatch):
    """Makes so many devices a slice each; gives the slices of the devices of a mesh."""

    def of(size):
        monkeypatch.setattr(workers, "home", lambda device: device.id // size)
        return lambda mesh: np.vectorize(lambda device: device.id // size)(mesh.devices)

    return of


@pytest.mark.parametrize("inside", [1, 2, 4])
def test_a_worker_stays_in_a_slice(homes, inside):
    """In whatever order the devices are given."""
    slices = homes(4)
    shuffled = np.random.default_rng(0).permutation(np.array(jax.devices())).tolist()
    made = Workers.create(8 // inside, devices=shuffled, inner={"fsdp": inside})
    of_workers = slices(made.mesh)
    assert (of_workers == of_workers[:, :1]).all()
    assert len(set(made.mesh.devices.flat)) == 8
    changes = np.flatnonzero(np.diff(of_workers[:, 0]))
    assert len(changes) == 1  # one slice after the other


def test_a_worker_may_take_several_slices(homes):
    slices = homes(2)
    made = Workers.create(2, inner={"fsdp": 4})
    assert slices(made.mesh).tolist() == [[0, 0, 1, 1], [2, 2, 3, 3]]


def test_two_axes_inside(homes):
    slices = homes(4)
    made = Workers.create(2, inner={"fsdp": 2, "tensor": 2})
    assert made.mesh.shape == {"worker": 2, "fsdp": 2, "tensor": 2}
    assert [len(set(block.flat)) for block in slices(made.mesh)] == [1, 1]


def test_a_worker_on_two_slices_is_refused(homes):
    homes(3)
    with pytest.raises(ValueError, match=r"inner of 2 devices, with \[3\] on a slice or host"):
        Workers.create(3, devices=jax.devices()[:6], inner={"fsdp": 2})


@pytest.mark.parametrize("devices", [8, 4, 2])
def test_groups_are_the_workers_of_a_slice(homes, devices):
    homes(2)
    made = Workers.create(8, devices=jax.devices()[:devices])
    size = 16 // devices
    assert made.groups == [[*range(at, at + size)] for at in range(0, 8, size)]


def test_sums_over_groups_that_are_slices(homes):
    homes(4)
    made = Workers.create(8)
    sums = made.spmd(lambda t, x: (t, collectives.sum(x, made.axis, made.groups)))
    found = sums(0, made.put(np.arange(8, dtype=np.float32)))[1]
    assert np.asarray(found).tolist() == [6] * 4 + [22] * 4


def test_one_slice_is_one_group():
    assert Workers.create(8).groups == [[*range(8)]]
