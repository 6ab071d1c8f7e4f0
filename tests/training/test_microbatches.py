"""A worker's batch in parts: the numbers of the whole batch, in less memory."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import configs
from jaxdist import Workers, rules, traffic
from jaxdist.config import build, from_plain, read_component
from jaxdist.data import Loader, make_augment, normalize
from jaxdist.flatness import sam_value_and_grad
from jaxdist.models import Model
from jaxdist.training import create, make_step, train
from jaxdist.training.due import traffic_of
from jaxdist.training.ways import Asynchronous, Overlap, Rounds
from tests.training.test_resume import equal
from tests.training.test_training import spy, steps
from tests.training.tiny_runs import few_digits, norm_net, saved, tiny_run
from tests.training.ways import advanced, close, linear, linear_run

STEPS = 8
HYPER = {"period": 4, "prox": 0.05}


@functools.cache
def run(microbatches, rule="mgrawa"):
    """Two workers with Adam, large batches of changed images."""
    made = tiny_run(
        num=2,
        devices=2,
        batch_size=96,
        steps=STEPS,
        microbatches=microbatches,
        augment=make_augment(crop=1),
    )
    tx = optax.adam(1e-2)
    if rule is not None:
        tx = rules.compose(tx, rule, made.workers.axis, **HYPER)
    return dataclasses.replace(made, tx=tx)


@functools.cache
def compiled(microbatches, rule="mgrawa"):
    made = run(microbatches, rule)
    batch = Loader(made.dataset.train, made.sampler, made.batch_sharding)(0)
    return jax.jit(make_step(made)).lower(create(made), batch, None).compile()


@pytest.mark.slow
def test_the_numbers_are_those_of_the_whole_batch():
    """Losses, gradient norms, weights and parameters, with the same augmentation."""
    whole, parts = (steps(run(number), STEPS) for number in (1, 4))
    close(parts[1], whole[1], 2e-5)
    for want, got in zip(whole[0], parts[0], strict=True):
        params = lambda state: jax.tree.leaves(state[0])
        for a, b in zip(params(got), params(want), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


@pytest.mark.slow
def test_it_sends_what_whole_batches_send():
    whole, parts = (traffic_of(run(number)) for number in (1, 4))
    counts = [len(parts.at(step)) for step in range(STEPS)]
    assert counts == [0, 0, 0, 1, 0, 0, 0, 1]
    assert parts.bytes_sent(0, STEPS) == whole.bytes_sent(0, STEPS) > 0
    sent = [traffic.compiled(compiled(number).as_text()) for number in (1, 4)]
    assert len(sent[0]) == 1
    assert sent[1] == sent[0]
    assert traffic.compiled(compiled(4, rule=None).as_text()) == []


def test_less_memory():
    """The activations are of a part; what remains is the gradient and its sum."""
    memory = [compiled(number).memory_analysis().temp_size_in_bytes for number in (1, 4)]
    assert memory[1] < 0.6 * memory[0]


def test_one_part_is_no_loop():
    for number, wanted in ((1, 0), (4, 1)):
        made = run(number, rule=None)
        batch = Loader(made.dataset.train, made.sampler, made.batch_sharding)(0)
        traced = jax.make_jaxpr(make_step(made))(create(made), batch, None)
        assert str(traced).count(" scan[") == wanted


WAYS = {
    "one device, unrolled": {"devices": 1, "local": "unroll"},
    "two workers a device": {"devices": 2},
    "workers of two devices": {"devices": 8, "inner": {"fsdp": 2}},
    "rounds": {"way": Rounds(4)},
    "count-triggered": {"way": Asynchronous(4, np.full((3, 4), 4))},
    "beside": {"rule": "lasgd", "hyper": {"period": 4, "delay": 2}},
}


@functools.cache
def whole_batches(rule):
    hyper = {"mgrawa": {"period": 4}, "lasgd": {"period": 4, "delay": 2}}
    return advanced(linear_run(rule, hyper[rule]))[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", WAYS)
def test_in_every_layout_and_way(name):
    options = {"rule": "mgrawa", "hyper": {"period": 4}, "microbatches": 2} | WAYS[name]
    if name == "beside":
        options["way"] = Overlap(Workers.create(4, devices=jax.devices()[4:]))
    got, _ = advanced(linear_run(**options))
    want = whole_batches(options["rule"])
    close(got.params, want.params, 2e-6)
    close(got.opt_state, want.opt_state, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 4])
def test_probe_gradients_are_sums_over_all_parts(devices):
    options = {"probe_period": 2, "steps": 2, "devices": devices}
    found = [
        steps(spy(linear_run("mgrawa", {}, microbatches=number, **options)), 2)[0][2][2]
        for number in (1, 4)
    ]
    close(found[1], found[0], 1e-5)


def test_batch_norm_takes_one_part_after_the_other():
    """Which are every N-th example: the running mean by hand, after two steps of N = 2."""
    made = tiny_run(model=norm_net(), microbatches=2, rule="local_sgd")
    states, _ = steps(made, 2)
    for worker in range(8):
        want = np.zeros(64)
        for t in range(2):
            x, _ = made.dataset.train[made.sampler.indices(worker, t)]
            x = np.asarray(normalize(x, made.dataset.mean, made.dataset.std)).reshape(8, 64)
            for part in (x[::2], x[1::2]):
                want = 0.9 * want + 0.1 * part.mean(0)
        np.testing.assert_allclose(states[2][1]["norm"]["mean"][worker], want, rtol=1e-5, atol=1e-6)


def test_probes_leave_no_trace_in_batch_norm():
    options = {"model": norm_net(), "microbatches": 2, "rule": "local_sgd"}
    plain, probed = (steps(tiny_run(probe_period=p, **options), 2)[0] for p in (None, 2))
    equal(plain[2][1], probed[2][1])


def test_every_part_draws_its_own_random_numbers():
    """The model's state remembers what its last four keys gave; a part of it is made anew."""
    net = linear()

    def apply(params, state, x, train, key):
        drawn = jnp.concatenate([state["drawn"][1:], jax.random.uniform(key, (1,))])
        return net.apply(params, {}, x, train)[0], {"drawn": drawn, "fixed": jnp.zeros(())}

    init = lambda key: (net.init(key)[0], {"drawn": jnp.zeros(4), "fixed": jnp.zeros(())})
    made = linear_run("local_sgd", {}, model=Model(init, apply, None), microbatches=2)
    drawn = steps(made, 2)[0][2][1]["drawn"]
    assert drawn.shape == (4, 4)
    assert len(np.unique(drawn)) == 16


def test_oracles_are_of_each_part():
    """One step of SAM, which climbs in each part, by hand."""
    sam = functools.partial(sam_value_and_grad, rho=0.5)
    made = linear_run("local_sgd", {}, gradient=sam, microbatches=2, steps=1)
    (before, *_), (after, *_) = steps(made, 1)[0]
    one = lambda tree: jax.tree.map(lambda a: a[1], tree)

    def loss(params, batch, key):
        return made.task.loss(params, {}, batch, key)[0]

    x, y = made.dataset.train[made.sampler.indices(1, 0)]
    oracle = jax.jit(sam_value_and_grad(loss, rho=0.5))
    parts = [oracle(one(before), (x[i::2], y[i::2]), key=None)[1] for i in range(2)]
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *parts)
    close(one(after), jax.tree.map(lambda p, g: p - 0.1 * g, one(before), mean), 1e-5)
    whole = oracle(one(before), (x, y), key=None)[1]
    assert np.abs(whole["kernel"] - mean["kernel"]).max() > 1e-4


def test_sums_are_in_float32():
    """In bfloat16 the sum of 256, 1, 1 and 1 is 256."""
    rows = jnp.array([256.0, 1, 1, 1])
    init = lambda key: ({"w": jnp.zeros((1, 1), jnp.bfloat16)}, {})
    outputs = lambda x, w: jnp.pad(x * w, ((0, 0), (0, 9)))  # ten classes
    apply = lambda params, state, x, train, key=None: (outputs(x, params["w"]), state)
    made = tiny_run(
        num=1,
        devices=1,
        model=Model(init, apply, None),
        dataset=dataclasses.replace(few_digits(), mean=(), std=()),
        augment=lambda x, key: rows[:, None].astype(jnp.bfloat16),
        loss=lambda logits, labels: logits[:, 0].mean(),
        batch_size=4,
        microbatches=4,
    )
    states, _ = steps(dataclasses.replace(made, tx=optax.sgd(1.0)), 1)
    assert states[1][0]["w"].tolist() == [[[-65.0]]]  # 64.75 rounded; the sum in bfloat16 gives 64
    assert states[1][0]["w"].dtype == jnp.bfloat16


@pytest.mark.slow
def test_goes_on_bit_for_bit(tmp_path, without_plots):
    make = lambda length: tiny_run(
        num=4, devices=4, model=norm_net(), microbatches=2, steps=length, checkpoint_every=5
    )
    for folder, lengths in {"whole": [10], "halves": [5, 10]}.items():
        for length in lengths:
            train(make(length), tmp_path / folder, progress=False)
    equal(*(saved(make(10), tmp_path / folder) for folder in ("whole", "halves")))


def test_from_the_command_line():
    config = dataclasses.replace(configs.load("digits_mgrawa"), microbatches=4)
    assert from_plain(config.plain()) == config
    assert build(config).microbatches == 4
    # An elastic run goes on with any number of workers: its batches are rounded to whole parts.
    elastic = dataclasses.replace(config, batch_size=32, base_workers=8)
    sizes = [dataclasses.replace(elastic, workers=w).rescaled[0] for w in (8, 7, 3, 64)]
    assert sizes == [32, 36, 84, 4]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"microbatches": 0}, "microbatches=0: allowed are integers from 1"),
        ({"batch_size": 32, "microbatches": 5}, "batch_size=32 with microbatches=5"),
        ({"base_workers": 5, "batch_size": 32, "microbatches": 5}, "batch_size=32 with micro"),
    ],
)
def test_batches_that_do_not_divide_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(configs.load("digits_mgrawa"), **options)
    own = {name: value for name, value in options.items() if name != "base_workers"}
    with pytest.raises(ValueError, match=said):
        linear_run("mgrawa", {}, **own)


def test_samples_that_do_not_divide_a_part_are_refused():
    chosen = dict([read_component("gradient=lpf(num_samples=4)")])
    config = dataclasses.replace(
        configs.load("digits_mgrawa"), **chosen, batch_size=16, microbatches=8, steps=1
    )
    with pytest.raises(ValueError, match="num_samples"):
        advanced(build(config))
