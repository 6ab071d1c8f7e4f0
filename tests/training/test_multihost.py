"""Real processes of eight CPU devices in all against one process of eight."""

import dataclasses
import json
from itertools import chain

import jax
import numpy as np
import pytest

from jaxdist.data import make_augment
from jaxdist.training import loop, train
from tests.processes import run_processes
from tests.training.tiny_runs import few_digits, norm_net, saved, tiny_run
from tests.training.ways import linear

RUNS = {
    "mgrawa": {"rule": "mgrawa", "hyper": {"period": 3}},
    "al_dsgd": {"rule": "al_dsgd", "hyper": {"period": 2, "topologies": "ring, torus"}},
    "diloco": {"rule": "diloco", "hyper": {"period": 3}},
    "4 x fsdp 2": {
        "num": 4,
        "inner": {"fsdp": 2},
        "rule": "mgrawa",
        "hyper": {"period": 3, "norm_source": "probe"},
        "probe_period": 3,
    },
    "2 x fsdp 4": {"num": 2, "inner": {"fsdp": 4}, "rule": "diloco", "hyper": {"period": 3}},
}
STEPS = 8

CHILD = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 8 // int(sys.argv[1]))
jax.config.update("jax_numpy_rank_promotion", "raise")
from pathlib import Path
from jaxdist.training import multihost
multihost.initialize()
assert (jax.process_count(), jax.device_count()) == (int(sys.argv[1]), 8)
from tests.training.test_multihost import train_all
train_all(Path(sys.argv[2]))
"""


class Recorded:
    """A source that remembers which examples it was asked for."""

    def __init__(self, source):
        self.source, self.labels, self.asked = source, source.labels, []

    def __len__(self):
        return len(self.source)

    def __getitem__(self, indices):
        if indices.tolist() != [0]:  # by which a loader learns the examples' shape
            self.asked += indices.tolist()
        return self.source[indices]


def make(name, steps=6):
    """One of `RUNS`; or "resumed", with random augmentation and re-estimated statistics."""
    dataset = few_digits()
    dataset = dataclasses.replace(dataset, train=Recorded(dataset.train))
    if name in RUNS:
        return tiny_run(dataset=dataset, model=linear(), steps=STEPS, **RUNS[name])
    return tiny_run(
        dataset=dataset,
        hyper={"period": 2},
        model=norm_net(),
        augment=make_augment(crop=1),
        batch_norm="reestimate",
        steps=steps,
        eval_every=2,
    )


def names(processes):
    """What so many processes train, to save time: of four, two hold a worker together."""
    of_two = ["al_dsgd", "diloco", "4 x fsdp 2", "resumed"]
    of_four = ["mgrawa", "al_dsgd", "2 x fsdp 4"]
    return {1: sorted({*of_two, *of_four}), 2: of_two, 4: of_four}[processes]


def train_all(folder):
    """Trains them one after the other; each process notes what it reads, and the shards' shapes."""
    for name in names(jax.process_count()):
        run, note = make(name), {}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "make_advance", noting(loop.make_advance, note))
            if name == "resumed":
                first = make(name, steps=3)
                train(first, folder / name, progress=False)
                run.dataset.train.asked += first.dataset.train.asked
            else:
                patch.setattr(loop.plots, "draw", lambda *_: None)
            train(run, folder / name, progress=False)
        note["asked"] = sorted(run.dataset.train.asked)
        (folder / f"{name} {jax.process_index()}.json").write_text(json.dumps(note))


def noting(make_advance, note):
    """`make_advance`, and in the note the shapes of the trained leaves and of their shards here."""

    def instead(run, traffic):
        advance = make_advance(run, traffic)

        def noted(state, done):
            progress = advance(state, done)
            leaves = jax.tree.leaves(progress.state.own)
            note["leaves"] = [x.shape for x in leaves]
            note["shards"] = [[s.data.shape for s in x.addressable_shards] for x in leaves]
            return progress

        return noted

    return instead


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of what one process trained."""
    folder = tmp_path_factory.mktemp("alone")
    train_all(folder)
    return folder


@pytest.fixture(scope="module", params=[2, 4])
def together(request, tmp_path_factory):
    """The number of processes, and the folder of what they trained."""
    folder = tmp_path_factory.mktemp("together")
    ended = run_processes(request.param, CHILD, request.param, folder, seconds=400)
    for code, output in ended:
        assert code == 0, output[-3000:]
    return request.param, folder


def notes(folder, name, processes):
    return [json.loads((folder / f"{name} {i}.json").read_text()) for i in range(processes)]


def batches(name):
    """The examples `[W, B]` of all batches that a run needs."""
    run = make(name)
    one = lambda sampler, t: np.stack([sampler.indices(w, t) for w in range(run.workers.num)])
    found = [one(run.sampler, t) for t in range(run.steps)]
    if run.probe_period is not None:
        due = range(run.probe_period - 1, run.steps, run.probe_period)
        found += [one(run.probe_sampler, t) for t in due]
    if name == "resumed":  # an epoch for the statistics, at each evaluation: steps 2, 3, 4 and 6
        found += [one(run.sampler, t) for t in range(run.sampler.steps_per_epoch)] * 4
    return found


@pytest.mark.slow
def test_processes_are_one(together, alone):
    """The same parameters, momentum and rule state, in whatever processes the devices are."""
    processes, folder = together
    close = lambda a, b: np.testing.assert_allclose(a, b, 1e-6, 1e-6)
    for name in names(processes):
        run = make(name)
        state = saved(run, folder / name)
        assert state.step == run.steps
        jax.tree.map(close, state, saved(run, alone / name))


@pytest.mark.slow
def test_a_process_reads_what_its_devices_hold(together, alone):
    """Each of these examples once, and no others; together they read what one process reads."""
    processes, folder = together
    for name in names(processes):
        needed = batches(name)
        asked = [note["asked"] for note in notes(folder, name, processes)]
        for i, own in enumerate(asked):
            held = [batch.reshape(processes, -1)[i] for batch in needed]
            assert own == np.sort(held, axis=None).tolist()
        (whole,) = notes(alone, name, 1)
        assert whole["asked"] == np.sort(needed, axis=None).tolist() == sorted(chain(*asked))


@pytest.mark.slow
def test_workers_stay_split_over_their_devices(together):
    """Of the kernel, its momentum and its centre or anchor a device holds a part of one worker's.

    After training: what the compiled step gives is laid out as what it was given.
    """
    processes, folder = together
    (name,) = [name for name in names(processes) if "fsdp" in name]
    (inside,) = RUNS[name]["inner"].values()
    for note in notes(folder, name, processes):
        assert len(note["shards"][0]) == 8 // processes
        kernels = 0
        for leaf, shards in zip(note["leaves"], note["shards"], strict=True):
            assert all(shard[0] == 1 for shard in shards)
            if leaf[1:] == [64, 10]:
                assert all(shard[1:] == [64 // inside, 10] for shard in shards)
                kernels += 1
        assert kernels >= 3


@pytest.mark.slow
@pytest.mark.parametrize("together", [2], indirect=True)
def test_files_of_two_processes(together, alone):
    """Three steps, a checkpoint, a resumption and three more: the same summary, metrics, plots."""
    _, folder = together
    two, one = folder / "resumed", alone / "resumed"
    told, summary = (json.loads((run / "summary.json").read_text()) for run in (two, one))
    for name in ("test_accuracy", "test_loss", "worker_accuracies", "consensus_distance"):
        np.testing.assert_allclose(told[name], summary[name], rtol=1e-5)
    assert (told["steps"], told["bytes_sent_per_worker"]) == (6, summary["bytes_sent_per_worker"])

    lines = [json.loads(line) for line in (two / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == [1, 2, 3, 4, 5, 6]
    first = json.loads((one / "metrics.jsonl").read_text().splitlines()[0])
    for name in ("loss", "mean_loss"):
        np.testing.assert_allclose(lines[0][name], first[name], rtol=1e-6)
    assert json.loads((two / "config.json").read_text())["devices"]["processes"] == 2
    assert sorted(path.name for path in (two / "plots").iterdir()) == sorted(
        path.name for path in (one / "plots").iterdir()
    )
