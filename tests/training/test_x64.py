"""Runs with `jax_enable_x64`, which float32 parameters must not notice."""

import jax
import numpy as np
import pytest

from jaxdist.training import train
from tests.training.tiny_runs import saved, tiny_run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "hyper"),
    [("mgrawa", {"period": 4}), ("al_dsgd", {"topologies": "ring", "compress": "int8"})],
)
def test_a_run_with_x64_trains_resumes_and_stays_in_float32(rule, hyper, tmp_path, without_plots):
    make = lambda steps: tiny_run(rule=rule, hyper=hyper, steps=steps, eval_every=4)
    plain = train(make(6), tmp_path / "plain", progress=False)
    with jax.enable_x64(True):
        for steps in (3, 6):
            found = train(make(steps), tmp_path / "halves", progress=False)
        state = saved(make(6), tmp_path / "halves")
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {np.dtype(np.float32)}
    assert found["test_loss"] == pytest.approx(plain["test_loss"], rel=1e-4)
