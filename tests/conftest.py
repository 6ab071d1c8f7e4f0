"""Eight CPU devices for every test, no implicit broadcasting across ranks, and quick compiling.

Compiling is most of what the tests spend time on. So XLA's back end does not optimize unless
XLA_FLAGS says otherwise (`XLA_FLAGS= pytest` tests what users run), also not in the processes
that tests start; and what one process has compiled no other needs to (`startup/sitecustomize.py`).
"""

import os
import runpy
import shutil
import sys
import tempfile
from pathlib import Path

os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_parallel_codegen_split_count=1 --xla_cpu_use_fusion_emitters=false",
)
STARTUP = Path(__file__).parent / "startup"
FIRST = "TESTS_COMPILED" not in os.environ  # not a process that pytest-xdist has started
if FIRST:
    os.environ["TESTS_COMPILED"] = tempfile.mkdtemp(prefix="compiled-")
    paths = [str(STARTUP), os.environ.get("PYTHONPATH")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
if not hasattr(sys.modules.get("sitecustomize"), "CHANGES"):
    assert "jax" not in sys.modules
    runpy.run_path(str(STARTUP / "sitecustomize.py"))

import jax  # noqa: E402
import pytest  # noqa: E402

from jaxdist.training import plots  # noqa: E402

collect_ignore = ["startup"]
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


SLOW_DOCUMENTS = ("docs/start_and_end.md", "docs/which_rule.md")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Files with slow tests come first, lest one of pytest's processes is left alone with them."""
    for item in items:
        if item.nodeid.startswith(SLOW_DOCUMENTS):
            item.add_marker(pytest.mark.slow)
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_unconfigure():
    if FIRST:
        shutil.rmtree(os.environ["TESTS_COMPILED"], ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def devices():
    """All eight, before a command of a test asks for fewer."""
    jax.devices()


@pytest.fixture
def without_plots(monkeypatch):
    """Runs of this process draw nothing at their end, which takes longer than a small run."""
    monkeypatch.setattr(plots, "draw", lambda *_: [])
