"""Eight CPU devices for every test, no implicit broadcasting across ranks, and quick compiling.

Compiling is most of what the tests spend time on. So XLA's back end does not optimize unless
XLA_FLAGS says otherwise (`XLA_FLAGS= pytest` tests what users run), also not in the processes
that tests start; and all of pytest's own share what they have compiled.
"""

import os
import tempfile

os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # this one is removed when pytest ends
    compiled = tempfile.TemporaryDirectory(prefix="jaxdist-compiled-", ignore_cleanup_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled.name

import jax
import pytest

from jaxdist.training import plots

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def without_plots(monkeypatch):
    """Runs of this process draw nothing at their end, which takes longer than a small run."""
    monkeypatch.setattr(plots, "draw", lambda *_: [])
