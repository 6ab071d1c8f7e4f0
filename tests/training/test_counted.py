"""Count-triggered rounds: unequal numbers of local steps, then a sync of all."""

import dataclasses
import functools
import json
import operator
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdist import rules
from jaxdist.config.optimizers import by_step
from jaxdist.data import make_augment
from jaxdist.training import train
from jaxdist.training.advance import make_advance
from jaxdist.training.due import traffic_of
from jaxdist.training.feed import Feed
from jaxdist.training.state import create
from jaxdist.training.ways import Asynchronous
from tests.oracles import counted as counted_oracles
from tests.processes import run_processes, started
from tests.rules.test_rules import flat, problem
from tests.training.test_resume import equal, told
from tests.training.tiny_runs import few_digits, norm_net, saved
from tests.training.ways import advanced, close, linear_run

W, TRIGGER = 4, 4
LR, MOMENTUM = 0.1, 0.5
GRAWA = {"period": 4, "strength": 0.5, "prox": 0.05}
LSGD = {"period": 4, "local_period": 2, "groups": [[0, 2, 3], [1]]}
LSGD |= {"strength": 0.3, "prox": 0.1, "local_strength": 0.2, "local_prox": 0.05}
ARRIVED = [[True, True, False, True], [False, True, False, False], [True] * W]

# rule, its hyper-parameters, the trigger
CASES = {
    "local_sgd": ("local_sgd", {"period": 4}, 4),
    "local_sgd, every other round": ("local_sgd", {"period": 8}, 4),
    "easgd": ("easgd", {"period": 4, "alpha": 0.2}, 4),
    "eamsgd": ("eamsgd", {"period": 4, "alpha": 0.2, "momentum": 0.6}, 4),
    "lsgd": ("lsgd", LSGD, 2),
    "mgrawa": ("mgrawa", GRAWA, 4),
    "mgrawa, probe": ("mgrawa", GRAWA | {"norm_source": "probe"}, 4),
    "lgrawa": ("lgrawa", GRAWA, 4),
    "lgrawa, probe": ("lgrawa", GRAWA | {"norm_source": "probe"}, 4),
    "dppf": ("dppf", {"period": 4, "pull": 0.4, "push": 0.05}, 4),
    "diloco": ("diloco", {"period": 4, "outer_lr": 0.7, "momentum": 0.6}, 4),
    "slowmo": ("slowmo", {"period": 4, "outer_lr": 0.9, "momentum": 0.5}, 4),
    "decoupled": (
        "decoupled",
        {"period": 4, "arrived": ARRIVED, "quorum": 2, "outer_lr": 0.7, "momentum": 0.6},
        4,
    ),
}
GRANTS = {
    "equal": [[4, 4, 4, 4]] * 4,
    "nobody idle": [[4, 5, 4, 4], [7, 5, 2, 2], [1, 4, 7, 4], [3, 2, 1, 4]],
    "idle in a later round": [[4, 4, 4, 4], [7, 5, 2, 2], [0, 7, 7, 2], [3, 0, 2, 1], [1, 2, 0, 4]],
    "idle in the first round": [[1, 3, 0, 2], [2, 0, 4, 4], [5, 1, 0, 1]],
}


@functools.cache
def compiled():
    """Every rule's masked local step, sync and transformation, each of all rules as one program."""
    txs = {
        name: rules.compose(optax.sgd(LR, momentum=MOMENTUM), rule, "w", **hyper)
        for name, (rule, hyper, _) in CASES.items()
    }

    def loss(x, target, c):
        pairs = zip(jax.tree.leaves(x), jax.tree.leaves(target), strict=True)
        return sum(0.5 * c * jnp.square(a - b).sum() for a, b in pairs)

    def local(taken, active, xs, states, target, c):
        found = {}
        for name, tx in txs.items():
            value, grad = jax.value_and_grad(loss)(xs[name], target, c)
            updates, state = tx.update(
                grad,
                states[name],
                xs[name],
                step=taken,
                value=value,
                grad=grad,
                probe_grad=grad,
                only=("local",),
            )
            found[name] = optax.apply_updates(xs[name], updates), state
        new = tuple({name: pair[k] for name, pair in found.items()} for k in (0, 1))
        return jax.tree.map(lambda new, old: jnp.where(active, new, old), new, (xs, states))

    def sync(number, xs, states, probe):
        for name, tx in txs.items():
            end = (number + 1) * CASES[name][2]
            xs[name], states[name] = rules.communicate(
                tx, states[name], xs[name], step=end - 1, value=jnp.nan, probe_grad=probe
            )
        return xs, states

    in_axes = (None, 0, 0, 0)
    return jax.jit(jax.vmap(local)), jax.jit(jax.vmap(sync, in_axes, axis_name="w")), txs


@functools.cache
def trajectories(table):
    """The parameters of every case after the rounds of a table."""
    local, sync, txs = compiled()
    x0, targets, probes, curvature = problem(W)
    put = lambda tree: jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)
    xs = {name: put(x0) for name in txs}
    states = {name: jax.vmap(tx.init)(xs[name]) for name, tx in txs.items()}
    taken = np.zeros(W, int)
    for number, row in enumerate(GRANTS[table]):
        for turn in range(max(row)):
            active = turn < np.array(row)
            target = put(jax.tree.map(lambda a: a[taken, range(W)], targets))  # noqa: B023
            xs, states = local(taken, active, xs, states, target, put(curvature))
            taken += active
        xs, states = sync(
            number, xs, states, put(jax.tree.map(operator.itemgetter(number), probes))
        )
    return jax.tree.map(np.asarray, xs)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("table", GRANTS)
def test_rule_matches_its_oracle(table, name):
    rule, hyper, trigger = CASES[name]
    x0, targets, probes, curvature = problem(W)
    oracle = getattr(counted_oracles, rule.title().replace("_", ""))(flat(x0, 1), **hyper)
    data = flat(x0, 1), flat(targets, 2), flat(probes, 2)
    want = counted_oracles.run(oracle, GRANTS[table], trigger, *data, LR, MOMENTUM, curvature)
    for g, w in zip(flat(trajectories(table)[name], 1), want, strict=True):
        np.testing.assert_allclose(g, w, rtol=0, atol=1e-6)


def test_a_sync_does_not_touch_the_optimizer():
    """Bit for bit; that of an idle worker stands still in the rounds of a run, see below."""
    tx = rules.compose(optax.adam(0.1), "local_sgd", "w", period=4)
    x = {"a": jnp.arange(6.0).reshape(2, 3)}
    _, state = jax.vmap(lambda x: tx.update(x, tx.init(x), x, only=("local",)))(x)
    sync = lambda state, x: rules.communicate(tx, state, x, step=3)
    moved, after = jax.vmap(sync, axis_name="w")(state, x)
    equal(after[0], state[0])
    assert not np.array_equal(moved["a"], x["a"])
    assert after[1].count.tolist() == state[1].count.tolist() == [1, 1]


GROUPS = {"period": 4, "local_period": 2, "groups": [[0, 2, 3], [1]]}
CENTER = {
    "local_sgd": {"period": 4},
    "local_sgd, every other round": {"period": 8},
    "easgd": {"period": 4},
    "eamsgd": {"period": 4, "momentum": 0.5},
    "lsgd": GROUPS,
    "lsgd, with its first losses": {"period": 2},
    "mgrawa": {"period": 4},
    "lgrawa": {"period": 4},
    "dppf": {"period": 4},
    "diloco": {"period": 4},
    "slowmo": {"period": 4},
    "decoupled": {"period": 4, "arrived": ARRIVED},
    "cocod": {"period": 4},
    "mgrawa, random_k": {"period": 4, "compress": "random_k(fraction=0.3)"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CENTER)
def test_equal_grants_are_the_ordinary_run(name):
    rule, hyper = name.split(",")[0], CENTER[name]
    trigger = hyper.get("local_period", min(hyper["period"], 4))
    grants = np.full((8 // trigger, W), trigger)
    make = functools.partial(linear_run, rule, hyper, steps=8, log_every=8, seed=0)
    got, stops = advanced(make(way=Asynchronous(trigger, grants)))
    assert stops == [*range(trigger, 9, trigger)]
    close(got, advanced(make())[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mgrawa", "mgrawa, random_k"])
def test_the_centre_is_the_same_for_all_after_unequal_rounds(name):
    hyper = CENTER[name] | {"strength": 1.0, "prox": 0.0}
    grants = np.array([[7, 5, 2, 2], [3, 6, 4, 3]])
    state, _ = advanced(linear_run("mgrawa", hyper, steps=8, way=Asynchronous(4, grants)))
    assert state.taken.tolist() == [10, 11, 6, 5]
    jax.tree.map(lambda x: np.testing.assert_allclose(x, x[[1, 2, 3, 0]], atol=1e-6), state.params)


@pytest.mark.slow
@pytest.mark.parametrize("layout", [{"devices": 2}, {"devices": 8, "inner": {"fsdp": 2}}])
def test_other_layouts(layout):
    grants = np.array([[7, 5, 2, 2], [3, 6, 0, 7]])
    make = functools.partial(
        linear_run, "mgrawa", {"period": 4}, steps=8, log_every=8, way=Asynchronous(4, grants)
    )
    close(advanced(make(**layout))[0], advanced(make())[0], rtol=2e-6)


def test_without_grants_one_process_takes_equal_steps():
    make = functools.partial(linear_run, "mgrawa", {"period": 4})
    counted, granted = Asynchronous(4), Asynchronous(4, np.full((3, W), 4))
    equal(advanced(make(way=counted))[0], advanced(make(way=granted))[0])


def alone(**options):
    """A rule that syncs nothing, of workers with random augmentation and running statistics."""
    hyper = {"period": 8, "strength": 0.0, "prox": 0.0}
    defaults = {"model": norm_net(), "augment": make_augment(crop=1), "steps": 8, "log_every": 8}
    return linear_run("mgrawa", hyper, **defaults | options)


@pytest.mark.slow
def test_a_worker_goes_by_its_own_steps():
    """After h steps of its own a worker is where it is after h steps of an ordinary run.

    Its parameters, momentum, running statistics, batches and random numbers; one without a step is
    where it began, bit for bit.
    """
    grants = np.array([[8, 5, 3, 0]])
    run = alone()
    state, advance = create(run), make_advance(run, traffic_of(run))
    read = lambda state: jax.tree.map(np.asarray, (*state.own[:2], state.opt_state[0], state.taken))
    history = [read(state)]
    for t in range(8):
        _, state, *_ = advance(state, t)
        history.append(read(state))
    got = read(advanced(alone(way=Asynchronous(8, grants)))[0])
    for i, steps in enumerate(grants[0]):
        row = lambda tree: jax.tree.map(lambda x: x[i], tree)  # noqa: B023
        close(row(got), row(history[steps]))
    equal(row(got), row(history[0]))
    assert got[-1].tolist() == grants[0].tolist()


def test_the_probe_is_taken_where_the_last_local_step_has_led():
    """The gradient of the summed loss of the probe batch, at the parameters before the pull."""
    hyper = {"period": 4, "strength": 0.0, "prox": 0.0, "norm_source": "probe"}
    grants = np.array([[4, 6, 5, 1]])
    run = linear_run("mgrawa", hyper, steps=4, way=Asynchronous(4, grants), probe_period=4)
    state, _ = advanced(run)
    (x, y), params = Feed(run).probe(3), state.params

    def loss(params, x, y):
        logits = run.task.predict(params, {}, (x, y))
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).sum()

    grads = jax.vmap(jax.grad(loss))(params, x, y)
    wanted = sum(np.linalg.norm(np.reshape(g, (W, -1)), axis=1) for g in jax.tree.leaves(grads))
    found = rules.metrics(state.opt_state)["gradient_norm"]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.slow
def test_resumed_after_a_round(tmp_path):
    """Bitwise, and the lines of metrics but for the evaluation in between."""
    grants = np.array([[4, 4, 4, 4], [7, 5, 0, 4], [2, 2, 6, 6]])
    make = lambda rounds: linear_run(
        "lsgd",
        {"period": 4, "groups": [[0, 1], [2, 3]], "local_period": 4},
        steps=4 * rounds,
        way=Asynchronous(4, grants[:rounds]),
        log_every=4,
    )
    train(make(3), tmp_path / "whole", progress=False)
    for rounds in (2, 3):
        train(make(rounds), tmp_path / "halves", progress=False)
    equal(saved(make(3), tmp_path / "halves"), saved(make(3), tmp_path / "whole"))
    lines = [line for line in told(tmp_path / "halves") if "loss" in line or line["step"] != 8]
    assert lines == told(tmp_path / "whole")
    steps = [line["local_steps"] for line in lines if "loss" in line]
    np.testing.assert_array_equal(steps, grants.cumsum(0))


def test_resumed_within_a_round_is_refused(tmp_path):
    """What an ordinary run has left at step 6 cannot go on in rounds of 4."""
    train(linear_run("local_sgd", {"period": 4}, steps=6), tmp_path, progress=False)
    with pytest.raises(ValueError, match=r"rounds of 4 steps"):
        train(linear_run("local_sgd", {"period": 4}, way=Asynchronous(4)), tmp_path, progress=False)


EVEN = np.full((3, W), 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trigger": 5}, "trigger=5: allowed are integers from 1 that divide the steps, 12"),
        ({"trigger": 0}, "Asynchronous: trigger=0: allowed are integers from 1"),
        ({"trigger": 4, "grants": EVEN[:2]}, r"grants=.*\[rounds, W\] = \[3, 4\]"),
        ({"trigger": 4, "grants": EVEN[:, :3]}, "grants="),
        ({"trigger": 4, "grants": EVEN[0]}, "grants="),
        ({"trigger": 4, "grants": EVEN - 5}, "grants="),
        ({"trigger": 4, "grants": EVEN / 3}, "grants="),
        ({"trigger": 4, "patience": 0.0}, "patience=0.0: allowed are seconds above 0"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=f"(?s)^{message}"):
        linear_run("local_sgd", {"period": 4}, way=Asynchronous(**options))


@pytest.mark.parametrize(
    ("rule", "hyper", "message"),
    [
        ("average_gradients", {}, "'average_gradients' communicates at every local step"),
        ("dpsgd", {}, "'dpsgd' has something to do after step 1$"),
        ("lasgd", {"period": 4, "delay": 2}, "'lasgd' has something to do after step 6$"),
        ("local_sgd", {"period": 2}, "'local_sgd' has something to do after step 2$"),
        ("local_sgd", {"period": 6}, "'local_sgd' has something to do after step 6$"),
        ("lsgd", GROUPS, "'lsgd' has something to do after step 2$"),
    ],
)
def test_rules_that_sync_within_a_round_are_refused(rule, hyper, message):
    run = linear_run(rule, hyper, way=Asynchronous(4, EVEN))
    with pytest.raises(ValueError, match=f"^trigger=4: allowed .*; {message}"):
        make_advance(run, traffic_of(run))


SAVED = 20
"""Rounds from one checkpoint to the next."""

CHILD = """
import sys, threading, time
import jax
jax.config.update("jax_num_cpu_devices", 1)
jax.config.update("jax_numpy_rank_promotion", "raise")
from jaxdist.training import multihost
multihost.initialize()
from tests.training.test_counted import TRIGGER, two_workers
from jaxdist.training import train
from jaxdist.training.ways import Asynchronous
workdir, stuck, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])

class Slow:
    # Process 1 takes longer; process `stuck` reads 30 batches and no more.
    def __init__(self, source):
        self.source, self.reads = source, 0

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        self.reads += 1
        if jax.process_index() == stuck and self.reads > 30:
            threading.Event().wait()
        time.sleep(0.005 * jax.process_index())
        return self.source[index]

way = Asynchronous(TRIGGER, patience=5 if stuck >= 0 else 60)
train(two_workers(rounds, Slow, way), workdir, progress=False)
"""


def two_workers(rounds, slow=lambda source: source, way=Asynchronous(TRIGGER)):  # noqa: B008
    """MGRAWA of two workers; `slow` wraps the training examples."""
    data = few_digits()
    return linear_run(
        "mgrawa",
        {"period": TRIGGER},
        num=2,
        devices=2,
        dataset=dataclasses.replace(data, train=slow(data.train)),
        steps=TRIGGER * rounds,
        way=way,
        log_every=TRIGGER,
        checkpoint_every=TRIGGER * SAVED,
    )


def check(workdir, rounds):
    """Each round has exactly 4 steps a worker, the fast one more; and a masked replay is equal."""
    lines = [line for line in told(workdir) if "loss" in line]
    assert [line["step"] for line in lines] == [*range(TRIGGER, TRIGGER * rounds + 1, TRIGGER)]
    grants = np.diff([line["local_steps"] for line in lines], axis=0, prepend=0)
    assert grants.sum(1).tolist() == [2 * TRIGGER] * rounds
    fast, slow = grants.sum(0)
    assert fast > 1.1 * slow
    run = two_workers(rounds, way=Asynchronous(TRIGGER, grants))
    close(saved(run, workdir), advanced(run)[0])


def test_schedules_go_by_the_runs_step():
    """A rate of 0 from step 4 on: in the second round nobody moves but by the sync."""
    rate = by_step(lambda step: jnp.where(step < 4, 0.1, 0.0))
    grants = np.array([[7, 5, 3, 1], [1, 3, 5, 7]])
    run = linear_run("local_sgd", {"period": 4}, way=Asynchronous(4, grants), steps=8)
    tx = rules.compose(optax.chain(optax.sgd(1.0), rate), "local_sgd", "worker", period=4)
    short = dataclasses.replace(run, steps=4, way=Asynchronous(4, grants[:1]))
    first = advanced(dataclasses.replace(short, tx=tx))[0]
    plain = advanced(dataclasses.replace(short, tx=plain_sgd()))[0]
    close(first.params, plain.params)
    both = advanced(dataclasses.replace(run, tx=tx))[0]
    close(both.params, first.params)
    assert both.taken.tolist() == [8, 8, 8, 8]


def plain_sgd():
    return rules.compose(optax.sgd(0.1), "local_sgd", "worker", period=4)


@pytest.mark.slow
def test_two_processes_of_unequal_speed(tmp_path):
    for code, output in run_processes(2, CHILD, tmp_path, -1, 60):
        assert code == 0, output[-3000:]
    check(tmp_path, rounds=60)


@pytest.mark.slow
def test_two_processes_that_are_killed_go_on(tmp_path):
    """SIGKILL to both after the second checkpoint; the same command again takes them to the end."""
    deadline = time.monotonic() + 60
    with started(2, CHILD, tmp_path, -1, 100):
        while not (tmp_path / "checkpoints" / f"{2 * SAVED * TRIGGER}").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert not (tmp_path / "summary.json").exists()
    for code, output in run_processes(2, CHILD, tmp_path, -1, 100):
        assert code == 0, output[-3000:]
    check(tmp_path, rounds=100)
    assert json.loads((tmp_path / "summary.json").read_text())["steps"] == 100 * TRIGGER


@pytest.mark.slow
@pytest.mark.parametrize("stuck", [0, 1])
def test_a_process_that_never_comes_to_the_sync_is_named(stuck, tmp_path):
    """The other one ends with an error, 5 s after it has come there."""
    with started(2, CHILD, tmp_path, stuck, 100) as children:
        output, _ = children[1 - stuck].communicate(timeout=60)
    assert children[1 - stuck].returncode not in (None, 0)
    late = rf"TimeoutError: process {stuck} of 2 did not come to the sync of round \d+ within 5 s"
    assert re.search(late, output), output[-3000:]
