"""Two real processes of four CPU devices each against one process of eight."""

import json

import jax
import numpy as np
import pytest
from processes import run_processes
from tiny_runs import norm_net, saved, tiny_run

from jaxdist.data import make_augment
from jaxdist.training import train

CHILD = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
from jaxdist.training import multihost
multihost.initialize()
assert (jax.process_count(), jax.device_count(), jax.local_device_count()) == (2, 8, 4)
from test_multiprocess import make
from jaxdist.training import train
train(make(3), sys.argv[1], progress=False)
summary = train(make(6), sys.argv[1], progress=False)
print(summary["steps"], jax.process_index(), "done", flush=True)
"""


def make(steps):
    """A run with a centre, random augmentation and re-estimated statistics."""
    return tiny_run(
        hyper={"period": 2},
        model=norm_net(),
        augment=make_augment(crop=1),
        batch_norm="reestimate",
        steps=steps,
        eval_every=2,
    )


@pytest.mark.slow
def test_two_processes_are_one(tmp_path):
    """Three steps, a checkpoint, a resumption and three more: the same numbers and files."""
    one, two = tmp_path / "one", tmp_path / "two"
    for code, output in run_processes(2, CHILD, two):
        assert code == 0, output[-3000:]
        assert "6" in output.splitlines()[-1], output[-3000:]
    summary = train(make(6), one, progress=False)

    close = lambda a, b: np.testing.assert_allclose(a, b, 1e-6, 1e-6)
    jax.tree.map(close, saved(make(6), two), saved(make(6), one))
    told = json.loads((two / "summary.json").read_text())
    for name in ("test_accuracy", "test_loss", "worker_accuracies", "consensus_distance"):
        np.testing.assert_allclose(told[name], summary[name], rtol=1e-5)
    assert told["bytes_sent_per_worker"] == summary["bytes_sent_per_worker"]

    lines = [json.loads(line) for line in (two / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == [1, 2, 3, 4, 5, 6]
    first = json.loads((one / "metrics.jsonl").read_text().splitlines()[0])
    np.testing.assert_allclose(lines[0]["loss"], first["loss"], rtol=1e-6)
    assert json.loads((two / "config.json").read_text())["devices"]["processes"] == 2
    assert sorted(path.name for path in (two / "plots").iterdir()) == sorted(
        path.name for path in (one / "plots").iterdir()
    )
