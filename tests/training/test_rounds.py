"""Compiled rounds: the numbers of single steps, in few programs, with averages beside the steps."""

import functools
import re

import jax
import numpy as np
import pytest

from jaxdist import Workers
from jaxdist.training import train
from jaxdist.training.advance import make_advance
from jaxdist.training.due import traffic_of
from jaxdist.training.ways import Rounds
from tests.training.test_resume import equal, told
from tests.training.tiny_runs import saved, tiny_run
from tests.training.ways import advanced, close, linear_run

HALVES = [[0, 1, 2, 3], [4, 5, 6, 7]]
# rule: its hyper-parameters, and a number of steps that needs few different rounds
RULES = {
    "mgrawa": ({"period": 4}, 12),
    "lasgd": ({"period": 4, "delay": 3}, 11),
    "streaming_diloco": ({"period": 4, "fragments": 2, "delay": 1}, 9),
    "lsgd": ({"period": 4, "local_period": 2, "groups": HALVES}, 10),
    "dpsgd": ({}, 9),
    "post_local_sgd": ({"period": 4, "after": 3}, 9),
}


def make(rule, **options):
    """Eight workers; of some rules with stops to log and to evaluate before the end."""
    hyper, steps = RULES[rule]
    stops = {"log_every": 4, "eval_every": 8} if rule == "mgrawa" else {"log_every": steps}
    return linear_run(rule, hyper, **{"num": 8, "devices": 8, "steps": steps} | stops | options)


@pytest.fixture(scope="module")
def step_by_step(tmp_path_factory):
    """Rule -> the folder of its run with one step in a program."""

    @functools.cache
    def run(rule):
        folder = tmp_path_factory.mktemp(rule)
        train(make(rule), folder, progress=False)
        return folder

    return run


def apart(lines):
    """The distances looked at around syncs, not all of which rounds show; and the other lines."""
    looks = ("consensus_before_sync", "consensus_after_sync")
    looked = {(x["step"], name): x[name] for x in lines for name in looks if name in x}
    rest = [{name: x[name] for name in x if name not in looks} for x in lines]
    return looked, [x for x in rest if "consensus_distance" in x]


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_rounds_are_the_single_steps(rule, step_by_step, tmp_path):
    """The state that is saved, and the lines of metrics."""
    train(make(rule, way=Rounds(4)), tmp_path, progress=False)
    close(saved(make(rule), tmp_path), saved(make(rule), step_by_step(rule)))
    looked, lines = apart(told(tmp_path))
    of_steps, wanted = apart(told(step_by_step(rule)))
    both = looked.keys() & of_steps.keys()
    close({at: looked[at] for at in both}, {at: of_steps[at] for at in both})
    assert len(lines) == (5 if rule == "mgrawa" else 2)
    for line, want in zip(lines, wanted, strict=True):
        assert line.keys() == want.keys()
        for name in want:
            np.testing.assert_allclose(line[name], want[name], rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_two_workers_a_device(rule, step_by_step):
    got, stops = advanced(make(rule, devices=4, way=Rounds(4)))
    assert len(stops) <= 4 < RULES[rule][1]
    close(got, saved(make(rule), step_by_step(rule)), rtol=2e-6)


@pytest.mark.slow
def test_resumed_within_a_round(tmp_path):
    """At the checkpoint after six steps the average that was launched after four is on its way."""
    rounds = lambda steps: make("lasgd", steps=steps, way=Rounds(4), checkpoint_every=6)
    train(rounds(11), tmp_path / "whole", progress=False)
    for steps in (6, 11):
        train(rounds(steps), tmp_path / "halves", progress=False)
    equal(saved(rounds(11), tmp_path / "halves"), saved(rounds(11), tmp_path / "whole"))


class Program:
    """A jitted function: how often it was traced, and with arrays like which it was called."""

    def __init__(self):
        self.traces, self.jitted, self.like = 0, None, None

    @property
    def text(self):
        return self.jitted.lower(*self.like).compile().as_text()


@pytest.fixture
def programs(monkeypatch):
    """The programs that workers run, in the order in which they are first run."""
    spmd, found = Workers.spmd, []

    def recording(self, fn, **options):
        program = Program()

        def traced(*args):
            program.traces += 1
            return fn(*args)

        program.jitted = spmd(self, traced, **options)

        def call(*args):
            if not any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(args)):
                like = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
                program.like = jax.tree.map(like, args)
                if program not in found:
                    found.append(program)
            return program.jitted(*args)

        return call

    monkeypatch.setattr(Workers, "spmd", recording)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "hyper", "wanted", "number"),
    [
        ("local_sgd", {"period": 4}, [4, 8, 12, 16, 18], 2),  # a round, and the two last steps
        ("local_sgd", {"period": 2}, [2, 6, 10, 14, 18], 2),  # the first round is short
        ("lasgd", {"period": 4, "delay": 2}, [3, 7, 11, 15, 18], 3),  # from launch to launch
        ("lasgd", {"period": 8, "delay": 8}, [3, 7, 11, 15, 18], 4),
    ],
)
def test_rounds_in_which_the_same_is_due_share_a_program(rule, hyper, wanted, number, programs):
    _, stops = advanced(
        linear_run(rule, hyper, num=2, devices=2, steps=18, log_every=18, way=Rounds(4))
    )
    assert stops == wanted
    assert [program.traces for program in programs] == [1] * number


def test_too_many_different_rounds_are_refused():
    hyper = {"topology": "ring", "budget": 0.5, "seed": 1}
    run = tiny_run(rule="matcha", hyper=hyper, steps=400, log_every=400, way=Rounds(4))
    with pytest.raises(ValueError, match=r"Rounds\(4\): the run has \d\d+ different rounds"):
        make_advance(run, traffic_of(run))


# What XLA's text of a computation looks like: `%name = type opcode(%operands), ...`, where the type
# may be a tuple.
COMPUTATION = re.compile(r"^(?:ENTRY )?%?(\S+) \(.*\) -> .* \{$")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?(\S+) = (?:\([^=]*?\)|\S+) ([\w-]+)\((.*)$")
CALLED = re.compile(r"(?:calls|to_apply)=%?([\w.-]+)")


def computations(text):
    """Name -> {instruction: (opcode, its operands, the computations it calls)}."""
    found, body = {}, {}
    for line in text.splitlines():
        if match := COMPUTATION.match(line):
            body = found[match[1]] = {}
        elif match := INSTRUCTION.match(line):
            name, opcode, rest = match.groups()
            operands = re.findall(r"%([\w.-]+)", rest.split("), ")[0])
            body[name] = opcode, operands, CALLED.findall(rest)
    return found


def matmuls(text):
    """Of the steps' matrix products: how many the only all-reduce needs, need it, and neither."""
    bodies = computations(text)

    def count(name):
        """Of an instruction of `body`, or of what it calls."""
        opcode, _, called = body[name]
        inside = lambda c: sum(op == "dot" for op, *_ in bodies[c].values())
        return (opcode == "dot") + sum(map(inside, called))

    def reached(edges):
        seen, rest = set(), [reduce]
        while rest:
            new = {*edges[rest.pop()]} - seen
            seen |= new
            rest += new
        return seen

    body, reduce = next(
        (body, name)
        for body in bodies.values()
        for name, (opcode, *_) in body.items()
        if opcode.startswith("all-reduce")
    )
    assert len(re.findall(r" all-reduce(?:-start)?\(", text)) == 1
    operands = {name: [o for o in ops if o in body] for name, (_, ops, _) in body.items()}
    users = {name: [n for n, ops in operands.items() if name in ops] for name in body}
    before, after = reached(operands), reached(users)
    assert not before & after
    parts = before, after, body.keys() - before - after
    return tuple(sum(map(count, part)) for part in parts)


PRODUCTS = 5
"""Of a step: two layers forward and their weights' and the hidden layer's gradients."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "hyper", "round_steps", "steps", "wanted"),
    [
        # steps 4 to 7: launched after the first, used after the last
        ("lasgd", {"period": 4, "delay": 3}, 4, 7, (1, 0, 3)),
        # steps 5 to 11, with an average after the eighth
        ("local_sgd", {"period": 4}, 8, 11, (4, 3, 0)),
    ],
)
def test_an_average_on_its_way_and_the_steps_meanwhile_need_not_wait(
    rule, hyper, round_steps, steps, wanted, programs
):
    options = {"num": 2, "devices": 2, "rule": rule, "hyper": hyper, "log_every": steps}
    advanced(tiny_run(steps=steps, way=Rounds(round_steps), **options))
    assert matmuls(programs[-1].text) == tuple(PRODUCTS * number for number in wanted)
