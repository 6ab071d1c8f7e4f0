"""Programs of TPU slices and of H100s, compiled by their own compilers; run where these are.

libtpu (0.2 GB) is no part of the test environment, as every process that finds it asks for TPUs
first and says on its standard error that there are none; `.ci/run` installs it after the other
tests and runs these. The CUDA packages take 4 GB, and are left to who has them.
"""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from jaxdist import rules
from tests.processes import ROOT

there = lambda package: importlib.util.find_spec(package) is not None
tpu = pytest.mark.skipif(not there("libtpu"), reason="needs libtpu: pip install 'jaxdist[tpu]'")
cuda = pytest.mark.skipif(
    not there("jax_cuda13_plugin"), reason="needs 4 GB of CUDA packages: jaxdist[cuda]"
)


def found(*words):
    """What the command says, in a process of its own, as it changes where JAX looks for devices."""
    done = subprocess.run(
        [sys.executable, "-m", "experiments.preflight", *words],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@tpu
@pytest.mark.slow
def test_all_rules_on_a_slice():
    """None sends at a local step; nothing goes between slices where there is one."""
    reports = found("--config", "digits", "--rule", *rules.RULES, "--on", "v5e:2x4")
    assert len(reports) == len(rules.RULES)
    for report in reports:
        programs = report["programs"]
        assert programs.get("local step", {"collectives": []})["collectives"] == []
        assert programs["sync"]["sent_inside"] > 0
        assert programs["sync"]["sent_between"] == 0
        assert report["fits"]


@tpu
@pytest.mark.slow
def test_between_slices_goes_the_rule_s_own():
    """A worker's chips are of one slice: of the model each sends its part to the other slice."""
    (report,) = found(
        *("--config", "digits", "--rule", "diloco", "--on", "v5e:2x2*2", "--mesh.fsdp", "2")
    )
    assert (report["workers"], report["chips_per_worker"]) == (4, 2)
    programs = report["programs"]
    assert programs["local step"]["sent_between"] == 0
    model = programs["local step"]["memory"]["parameters"]  # of a chip: half of it
    assert 0 < programs["sync"]["sent_between"] <= model + 4096  # and what tiles are padded with


@tpu
def test_a_shape_that_is_not_made_is_refused():
    done = subprocess.run(
        [sys.executable, "-m", "experiments.preflight", "--config", "digits", "--on", "v5e:3x3"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2
    assert "on='v5e:3x3': allowed are TPU slices" in done.stderr
    assert "the compiler refused it" in done.stderr


@cuda
@pytest.mark.slow
def test_hosts_of_gpus():
    (report,) = found("--config", "digits", "--rule", "mgrawa", "--on", "h100:2x4")
    sync = report["programs"]["sync"]
    (collective,) = sync["collectives"]
    assert collective["between"]
    assert collective["asynchronous"]
    assert sync["sent_between"] > 0
