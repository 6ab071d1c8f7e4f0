"""Eight CPU devices for every test, and no implicit broadcasting across ranks."""

import jax
import pytest

from jaxdist.training import plots

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def without_plots(monkeypatch):
    """Runs of this process draw nothing at their end, which takes longer than a small run."""
    monkeypatch.setattr(plots, "draw", lambda *_: [])
