"""Eight CPU devices for every test, no implicit broadcasting across ranks, and quick compiling.

Compiling is most of what the tests spend time on. So XLA's back end does not optimize unless
XLA_FLAGS says otherwise (`XLA_FLAGS= pytest` tests what users run), also not in the processes
that tests start, and what one of pytest's processes has compiled it keeps.
"""

import os

os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_parallel_codegen_split_count=1",
)

import jax
import pytest

from jaxdist.training import plots

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session", autouse=True)
def compiled(tmp_path_factory):
    """A cache for this process and those it starts; JAX's is not safe for several at a time."""
    options = {
        "compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "persistent_cache_min_compile_time_secs": 0,
    }
    for name, value in options.items():
        jax.config.update(f"jax_{name}", value)
        os.environ[f"JAX_{name.upper()}"] = str(value)
    jax.devices()  # all eight, before a command of a test asks for fewer


@pytest.fixture
def without_plots(monkeypatch):
    """Runs of this process draw nothing at their end, which takes longer than a small run."""
    monkeypatch.setattr(plots, "draw", lambda *_: [])
