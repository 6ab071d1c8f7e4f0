"""The documents' examples with a worker on each device: what runs on a laptop runs on a pod."""

import doctest
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN = [path for path in DOCUMENTS if re.search(r"^>>> .*(spmd|advance)\(", path.read_text(), re.M)]
ON_ONE = re.compile(r"Workers\.create\((\d+), devices=jax\.devices\(\)\[:1\]\)")


@pytest.mark.slow
@pytest.mark.parametrize("path", RUN, ids=lambda path: path.stem)
def test_the_first_workers_of_a_document_may_be_on_many_devices(path):
    text, found = ON_ONE.subn(
        r"Workers.create(\1, devices=jax.devices()[:\1])", path.read_text(), 1
    )
    assert found == 1
    examples = doctest.DocTestParser().get_doctest(text, {}, path.name, str(path), 0)
    said = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE, verbose=False)
    result = runner.run(examples, out=said.append)
    assert result.attempted > 8
    assert not result.failed, "".join(said)


def test_no_example_makes_a_rule_for_a_part_of_the_axis():
    """`"worker"` is the whole axis only where every worker has a device; `workers.axis` always."""
    files = [*DOCUMENTS, *(ROOT / "jaxdist").rglob("*.py")]
    lines = [(path.name, line) for path in files for line in path.read_text().splitlines()]
    examples = [(name, line) for name, line in lines if re.match(r"\s*(>>>|\.\.\.) ", line)]
    assert len(examples) > 200
    assert [(name, line) for name, line in examples if '"worker"' in line] == []
