"""The training step, evaluation, and what a run writes down."""

import dataclasses
import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdist import stacked, traffic
from jaxdist.data import ArraySource, Loader, make_augment, normalize
from jaxdist.losses import cross_entropy
from jaxdist.training import (
    create,
    make_evaluate,
    make_step,
    multihost,
    plots,
    train,
)
from jaxdist.training.metrics import MetricsWriter
from jaxdist.training.progress import progress
from tests.training.tiny_runs import few_digits, mlp, norm_net, saved, tiny_run


def steps(run, num):
    """The states after 0, 1, ..., num steps, as numpy arrays, and the metrics of each step."""
    state, step = create(run), make_step(run)
    load = Loader(run.dataset.train, run.sampler, run.batch_sharding)
    probes = Loader(run.dataset.train, run.probe_sampler, run.batch_sharding)
    own = lambda state: jax.tree.map(np.array, state[2:])  # copies: the memory is reused
    states, told = [own(state)], []
    for t in range(num):
        due = run.probe_period is not None and (t + 1) % run.probe_period == 0
        state, metrics = step(state, load(t), probes(t) if due else None)
        states.append(own(state))
        told.append(jax.tree.map(np.asarray, metrics))
    return states, told


def close(a, b, tolerance=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, tolerance, tolerance), a, b)


def test_step_is_the_plain_algorithm():
    """Four steps of local SGD with period 2, written out worker by worker."""
    run = tiny_run(rule="local_sgd", hyper={"period": 2})
    states, told = steps(run, 4)
    workers, *_ = states[0]
    assert all((np.ptp(x, axis=0) == 0).all() for x in jax.tree.leaves(workers))
    params = [jax.tree.map(lambda x, i=i: x[i], workers) for i in range(8)]
    sgd = optax.sgd(0.1, momentum=0.9)
    local = [sgd.init(p) for p in params]
    model = mlp(run.dataset)

    @jax.jit
    def objective(params, x, y):
        x = normalize(x, run.dataset.mean, run.dataset.std)
        logits = model.apply(params, {}, x, True)[0]
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1).mean()

    for t in range(4):
        for i in range(8):
            x, y = run.dataset.train[run.sampler.indices(i, t)]
            loss, grads = jax.value_and_grad(objective)(params[i], x, y)
            np.testing.assert_allclose(told[t]["loss"][i], loss, rtol=1e-5)
            np.testing.assert_allclose(told[t]["grad_norm"][i], optax.tree.norm(grads), rtol=1e-5)
            updates, local[i] = sgd.update(grads, local[i])
            params[i] = optax.apply_updates(params[i], updates)
        if t % 2 == 1:
            params = [jax.tree.map(lambda *xs: sum(xs) / 8, *params)] * 8
        close(states[t + 1][0], jax.tree.map(lambda *xs: jnp.stack(xs), *params), 1e-5)


@pytest.mark.slow
def test_layouts_agree():
    """The same numbers on 8, 4 and 1 devices, in sub-meshes, vmapped or unrolled."""
    options = {"hyper": {"period": 2}, "augment": make_augment(crop=1), "model": norm_net()}
    reference = steps(tiny_run(**options), 5)
    for layout in (
        {"devices": 1},
        {"devices": 4, "local": "unroll"},
        {"devices": 8, "inner": {"fsdp": 2}},
    ):
        close(steps(tiny_run(**options | layout), 5), reference, 2e-6)


def test_workers_draw_different_random_numbers():
    """With equal batches and dropout the workers part after one step, and every step differs."""
    same = [np.arange(8)] * 8
    noise = lambda x, key: x + jax.random.randint(key, x.shape, 0, 3, jnp.uint8)
    run = tiny_run(rule="local_sgd", hyper={"period": 9}, augment=noise, shards=same)
    (_, (params, *_), *_), told = steps(run, 2)
    leaf = max(jax.tree.leaves(params), key=lambda x: x.size)
    assert len(np.unique(leaf.reshape(8, -1), axis=0)) == 8
    assert len({*told[0]["loss"], *told[1]["loss"]}) == 16


def spy(run):
    """The run with an optimizer that moves nothing and remembers the probe gradient."""

    def update(updates, state, params, *, probe_grad, **_):
        return jax.tree.map(jnp.zeros_like, updates), probe_grad

    tx = optax.GradientTransformationExtraArgs(lambda p: jax.tree.map(jnp.zeros_like, p), update)
    return dataclasses.replace(run, tx=tx)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [8, 1])
def test_probe_gradient(devices):
    """On sync steps: of the summed loss of an unaugmented batch of the whole set, in train mode."""
    blank = lambda x, key: jnp.zeros_like(x)  # the probe must not see this
    run = spy(tiny_run(model=norm_net(), probe_period=2, augment=blank, devices=devices))
    states, _ = steps(run, 2)
    params = states[0][0]
    for i in range(8):
        x, y = run.dataset.train[run.probe_sampler.indices(i, 1)]
        x = np.asarray(normalize(x, run.dataset.mean, run.dataset.std)).reshape(8, -1)
        x = (x - x.mean(0)) / np.sqrt(x.var(0) + 0.1)

        def summed(own, x=x, y=y):
            logits = x @ own["kernel"] + own["bias"][None]
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).sum()

        expected = jax.grad(summed)(jax.tree.map(lambda a, i=i: a[i], params))
        close(jax.tree.map(lambda a, i=i: a[i], states[2][2]), expected, 1e-4)


def test_probe_leaves_no_trace_in_the_model_state():
    plain = steps(tiny_run(model=norm_net(), rule="local_sgd"), 4)[0]
    probed = steps(tiny_run(model=norm_net(), rule="local_sgd", probe_period=2), 4)[0]
    assert (np.diff([s[1]["norm"]["mean"] for s in plain], axis=0) != 0).any()
    jax.tree.map(np.testing.assert_array_equal, [s[1] for s in plain], [s[1] for s in probed])


def test_a_step_without_rule_communicates_nothing():
    run = dataclasses.replace(tiny_run(probe_period=2, model=norm_net()), tx=optax.sgd(0.1))
    state, step = create(run), make_step(run)
    batch = Loader(run.dataset.train, run.sampler, run.batch_sharding)(0)
    hlo = jax.jit(step).lower(state, batch, batch).compile().as_text()
    assert "fusion" in hlo
    assert traffic.compiled(hlo) == []


def test_nothing_is_compiled_twice():
    traced = []

    def loss(logits, labels):
        traced.append(None)
        return cross_entropy(logits, labels)

    run = tiny_run(loss=loss)
    state, step, evaluate = create(run), make_step(run), make_evaluate(run)
    load = Loader(run.dataset.train, run.sampler, run.batch_sharding)
    counts = []
    for t in range(5):
        state, _ = step(state, load(t))
        evaluate(state)
        counts.append(len(traced))
    assert counts[0] > 0
    assert len(set(counts)) == 1


# Evaluation


def spread(run, seed=0):
    """A state whose workers are far apart, in parameters and statistics."""
    state = create(run)
    rng = np.random.default_rng(seed)
    noisy = lambda x: x + run.workers.put(rng.uniform(0.1, 0.7, x.shape).astype(x.dtype))
    new = [jax.tree.map(noisy, part) for part in (state.params, state.model_state)]
    return state._replace(params=new[0], model_state=new[1])


def numpy_score(kernel, bias, mean, var, x, y):
    logits = (x - mean) / np.sqrt(var + 0.1) @ kernel + bias
    logits -= logits.max(1, keepdims=True)
    nll = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(y)), y]
    return (logits.argmax(1) == y), nll


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batch_norm", "devices"), [("local", 8), ("local", 1), ("average", 8), ("reestimate", 2)]
)
def test_evaluation_is_numpys(batch_norm, devices, monkeypatch):
    """Mean, centre and each worker, in two chunks of which one is padded."""
    monkeypatch.setattr("jaxdist.training.evaluate.CHUNK", 30)
    run = tiny_run(
        rule="easgd",
        hyper={"period": 4, "alpha": 0.05},
        model=norm_net(),
        batch_norm=batch_norm,
        devices=devices,
        local="vmap" if devices == 8 else "unroll",
    )
    state = spread(run)
    found = make_evaluate(run)(state)

    def inputs(source, index):
        x, y = source[index]
        x = np.asarray(normalize(x, run.dataset.mean, run.dataset.std), np.float64)
        return x.reshape(len(x), -1), y

    x, y = inputs(run.dataset.test, np.arange(52))
    params, norm = jax.tree.map(
        lambda a: np.asarray(a, np.float64), (state.params, state.model_state)
    )
    norm = norm["norm"]
    own = [
        numpy_score(params["kernel"][i], params["bias"][i], norm["mean"][i], norm["var"][i], x, y)
        for i in range(8)
    ]
    np.testing.assert_allclose(found["worker_accuracies"], [right.mean() for right, _ in own])

    if batch_norm == "reestimate":
        seen = [
            inputs(run.dataset.train, run.sampler.indices(i, t))[0]
            for i in range(8)
            for t in range(run.sampler.steps_per_epoch)
        ]
        statistics = np.concatenate(seen).mean(0), np.concatenate(seen).var(0)
    elif batch_norm == "average":
        statistics = norm["mean"].mean(0), norm["var"].mean(0)
    else:  # each worker's own on its part of a chunk: chunks of 32, 4 a worker
        worker = np.arange(52) % 32 // 4
        statistics = norm["mean"][worker], norm["var"][worker]
    center = jax.tree.map(lambda a: np.asarray(a[0]), create(run).params)  # none has moved it yet
    mean = jax.tree.map(lambda a: a.mean(0), params)
    for name, p in {"test": mean, "center": center}.items():
        right, nll = numpy_score(p["kernel"], p["bias"], *statistics, x, y)
        np.testing.assert_allclose(found[f"{name}_accuracy"], right.mean(), atol=1e-7)
        if name == "test":
            np.testing.assert_allclose(found["test_loss"], nll.mean(), rtol=1e-5)


def test_evaluation_leaves_out_a_worker_that_is_not_finite():
    run = tiny_run(model=norm_net(), batch_norm="local", rule="local_sgd")
    state = spread(run)
    broken = jax.tree.map(lambda a: a.at[3].set(jnp.nan), (state.params, state.model_state))
    found = make_evaluate(run)(state._replace(params=broken[0], model_state=broken[1]))
    assert np.isfinite([found["test_loss"], found["consensus_distance"]]).all()


# What is written down


def poisoned(lasting):
    """Worker 3 meets a nine once per epoch of three steps: its loss is NaN, and its gradient too
    or zero.
    """
    whole = few_digits()
    common = np.flatnonzero(whole.train.labels != 9)
    parts = np.split(common[: 8 * 24], 8)
    parts[3] = np.concatenate([parts[3][1:], np.flatnonzero(whole.train.labels == 9)[:1]])
    test = ArraySource(*whole.test[np.flatnonzero(whole.test.labels != 9)])
    dataset = dataclasses.replace(whole, test=test)

    def loss(logits, labels):
        right, nine = cross_entropy(logits, labels), (labels == 9).any()
        return right * jnp.where(nine, jnp.nan, 1) if lasting else jnp.where(nine, jnp.nan, right)

    return tiny_run(
        dataset=dataset, shards=parts, loss=loss, hyper={"period": 2}, log_every=3, steps=6
    )


def lines(workdir):
    """The metrics file, read strictly."""

    def refuse(constant):
        raise AssertionError(constant)

    text = (workdir / "metrics.jsonl").read_text()
    assert text.endswith("\n")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("lasting", [False, True])
def test_nan_worker_is_reported_and_steers_nobody(lasting, tmp_path, caplog):
    """Also where the loss was NaN at a step between two lines only."""
    run = poisoned(lasting)
    with caplog.at_level(logging.WARNING):
        summary = train(run, tmp_path, progress=False)
    found = [line for line in lines(tmp_path) if "loss" in line]
    assert [line["nonfinite_workers"] for line in found] == [[3], [3]]
    assert [record.getMessage() for record in caplog.records] == [
        "worker 3: its loss is not finite (noticed at step 3)"
    ]
    others = np.delete(np.array([line["loss"] for line in found], float), 3, axis=1)
    assert np.isfinite(others).all()
    assert np.isfinite([summary["test_loss"], summary["consensus_distance"]]).all()
    for leaf in jax.tree.leaves(saved(run, tmp_path).params):
        assert np.isfinite(leaf).all(tuple(range(1, leaf.ndim))).tolist() == [
            worker != 3 or not lasting for worker in range(8)
        ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 10 steps that logs every 3 and evaluates every 4, its folder and its summary."""
    folder = tmp_path_factory.mktemp("runs") / "new" / "folder"
    run = tiny_run(log_every=3, eval_every=4)
    return run, folder, train(run, folder, progress=False)


def test_metrics_file(finished):
    run, folder, _ = finished
    found = lines(folder)
    training = [line for line in found if "loss" in line]
    evaluations = [line for line in found if "test_loss" in line]
    assert [line["step"] for line in training] == [3, 6, 9, 10]
    assert [line["step"] for line in evaluations] == [4, 8, 10]
    assert len(found) == 10
    assert [line["step"] for line in found] == sorted(line["step"] for line in found)
    assert (np.diff([line["seconds"] for line in found]) >= 0).all()
    assert all(line["train_seconds"] < line["seconds"] for line in found)  # it compiled
    states, told = steps(run, 10)
    for when, at in {"before": [3, 7], "after": [4, 8]}.items():  # the last sync of each line
        name = f"consensus_{when}_sync"
        looked = [(line["step"], line[name]) for line in found if name in line]
        want = [(done, float(stacked.consensus_distance(states[done][0]))) for done in at]
        np.testing.assert_allclose(looked, want, rtol=1e-5)
    for line, since in zip(training, (0, 3, 6, 9), strict=True):
        losses = [each["loss"] for each in told[since : line["step"]]]
        np.testing.assert_allclose(line["mean_loss"], np.mean(losses, 0), rtol=1e-5)
    # A sync moves (d + 1) floats through a ring of 8: 2 * 7 / 8 of them. d = 64 * 16 + 16 + 170.
    per_sync = 2 * 7 * 4 * (1210 + 1) / 8
    for line in training:
        step = line["step"]
        assert line["epoch"] == pytest.approx(step / 3, abs=1e-4)
        assert line["bytes_sent"] == pytest.approx(step // 4 * per_sync, abs=2)
        assert line["nonfinite_workers"] == []
        assert line["consensus_distance"] > 0
        for name in ("loss", "grad_norm", "weight", "center_distance"):
            np.testing.assert_allclose(line[name], told[step - 1][name], rtol=1e-5)
    assert all(line["steps_per_second"] > 0 for line in training)
    assert sum(training[1]["weight"]) == pytest.approx(1)


def test_summary_and_config(finished):
    run, folder, summary = finished
    assert json.loads((folder / "summary.json").read_text()) == summary
    last = lines(folder)[-1]
    for name in ("test_accuracy", "test_loss", "consensus_distance", "worker_accuracies"):
        assert summary[name] == last[name]
    assert (summary["rule"], summary["workers"], summary["steps"]) == ("mgrawa", 8, 10)
    assert len(summary["worker_accuracies"]) == 8
    sent = [line["bytes_sent"] for line in lines(folder)[-2:]]  # of training and of evaluation
    assert sent == [summary["bytes_sent_per_worker"]] * 2
    assert sent[0] > 0
    assert summary["seconds"] >= last["seconds"]
    config = json.loads((folder / "config.json").read_text())
    assert config["config"] == run.description
    assert config["versions"]["jax"] == jax.__version__
    assert config["devices"]["mesh"] == {"worker": 8}


def test_plots(finished):
    _, folder, _ = finished
    drawn = sorted((folder / "plots").iterdir())
    assert [path.name for path in drawn] == [
        "consensus_distance.png",
        "loss_and_accuracy.png",
        "rule_weights.png",
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)


def test_plots_of_weights_by_layer_and_without_weights(tmp_path):
    line = {"step": 1, "loss": [1.0, None], "consensus_distance": 0.5, "test_loss": 1.0}
    line |= {"test_accuracy": 0.5, "worker_accuracies": [0.5, 0.6]}
    weights = {"weight/a": [0.4, 0.6], "weight/b": [0.2, 0.8]}
    for name, extra in {"without": {}, "layers": weights}.items():
        file = tmp_path / f"{name}.jsonl"
        file.write_text(json.dumps(line | extra) + "\n")
        drawn = [path.stem for path in plots.draw(file, tmp_path / name)]
        assert ("rule_weights" in drawn) == bool(extra)
    steps, values = plots.series([line], "loss")
    assert steps.tolist() == [1]
    np.testing.assert_array_equal(values, [[1.0, np.nan]])


@pytest.mark.parametrize("leaders", [[], [[-1, -1]], [[-1, -1], [0, 0], [1, 0]]])
def test_plot_of_leaders(tmp_path, leaders):
    line = {"loss": [1.0, 1.0], "consensus_distance": 0.5}
    end = {"test_loss": 1.0, "test_accuracy": 0.5, "worker_accuracies": [0.5, 0.6]}
    found = [line | {"step": 10 + 10 * t, "leader": leader} for t, leader in enumerate(leaders)]
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(f"{json.dumps(one)}\n" for one in [*found, end | {"step": 40}]))
    drawn = [path.stem for path in plots.draw(file, tmp_path / "plots")]
    assert ("leaders" in drawn) == bool(leaders)


def test_metrics_writer_survives_a_torn_line(tmp_path):
    file = tmp_path / "metrics.jsonl"
    writer = MetricsWriter(file)
    for step in (1, 2, 3):
        writer.write({"step": step, "x": np.float32(step), "w": np.array([1.0, np.inf])})
    writer.close()
    with file.open("a") as torn:
        torn.write('{"step": 4, "x"')
    writer = MetricsWriter(file, step=2)
    assert writer.last == {"step": 2, "x": 2.0, "w": [1.0, None]}
    writer.write({"step": 3, "x": 5})
    writer.close()
    assert [(line["step"], line["x"]) for line in lines(tmp_path)] == [(1, 1), (2, 2), (3, 5)]


def test_metrics_writer_names_a_line_that_is_no_json(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\nnonsense\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2 is no JSON object: 'nonsense'"):
        MetricsWriter(file)
    assert "nonsense" in file.read_text()


LINE = {"step": 5, "loss": [1.0, 3.0], "consensus_distance": 0.25, "steps_per_second": None}


def test_progress_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    with progress("mgrawa", 0, 10, visible=True) as show:
        show(LINE)
    shown = capsys.readouterr().out
    assert "5/10" in shown
    assert "loss 2, consensus 0.25" in shown


def test_progress_elsewhere(capsys):
    with progress("mgrawa", 0, 10, visible=True) as show:
        for step in (1, 2, 10):
            show(LINE | {"step": step, "steps_per_second": 2.0})
    assert capsys.readouterr().out.splitlines() == [
        f"mgrawa: step {step} of 10, loss 2, consensus 0.25, 2 steps/s" for step in (1, 10)
    ]
    with progress("mgrawa", 0, 10, visible=False) as show:
        show(LINE)
    assert capsys.readouterr().out == ""


# Bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size=0: allowed are integers from 1"),
        ({"steps": 0}, "steps=0: allowed are integers from 1"),
        ({"log_every": 0}, "log_every=0: allowed are integers from 1"),
        ({"eval_every": -1}, "eval_every=-1: allowed are integers from 0"),
        ({"checkpoint_every": -2}, "checkpoint_every=-2: allowed are integers from 0"),
        ({"seed": -1}, "seed=-1: allowed are integers from 0"),
        ({"probe_period": 0}, "probe_period=0"),
        ({"local": "unrol"}, "unknown local 'unrol'; did you mean 'unroll'"),
        ({"batch_norm": "mean"}, "unknown batch_norm 'mean'"),
        ({"shards": [np.arange(9)]}, r"len\(shards\)=1: allowed is"),
        ({"batch_size": 31}, "batch_size=31 exceeds the shard of worker 0"),
        (
            {"batch_norm": "reestimate", "model": norm_net()._replace(statistics=None)},
            "reestimate",
        ),
    ],
)
def test_bad_runs(change, message):
    with pytest.raises(ValueError, match=message):
        tiny_run(**change)


JOIN = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("localhost:1",), "JAX_COORDINATOR_ADDRESS set without JAX_NUM_PROCESSES, JAX_PROCESS_ID"),
        (("localhost:1", "two", "0"), "JAX_NUM_PROCESSES='two': allowed are integers from 0"),
        (("localhost:1", "2", "-1"), "JAX_PROCESS_ID='-1'"),
    ],
)
def test_bad_multihost_environment(given, message, monkeypatch):
    for name, value in zip(JOIN, given, strict=False):
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        multihost.initialize()


def test_one_process_joins_nobody(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError

    monkeypatch.setattr("jax.distributed.initialize", refuse)
    multihost.initialize()
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    with pytest.raises(AssertionError):
        multihost.initialize()


def test_open_mpi_needs_an_address_from_version_5_on_and_no_more(monkeypatch):
    monkeypatch.setattr(multihost, "_join", lambda *where: joined.append(where))
    joined = []
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "3")
    with pytest.raises(ValueError, match="set JAX_COORDINATOR_ADDRESS=HOST:PORT"):
        multihost.initialize()
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "node0:8476")
    multihost.initialize()
    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS")
    monkeypatch.setenv("OMPI_MCA_orte_hnp_uri", "1.0;tcp://10.0.0.1:1")
    multihost.initialize()
    assert joined == [("node0:8476", 4, 3), ()]


def test_a_host_of_a_tpu_slice_joins_as_jax_detects(monkeypatch):
    joined = []
    monkeypatch.setattr(multihost, "_join", lambda *where: joined.append(where))
    monkeypatch.setattr(multihost.GceTpuCluster, "is_env_present", lambda: True)
    multihost.initialize()
    assert joined == [()]


def test_a_graph_that_does_not_fit_is_refused_before_a_file_is_written(tmp_path):
    run = tiny_run(num=4, devices=4, rule="dpsgd", hyper={"topology": "al_dsgd"})
    with pytest.raises(ValueError, match="num=4: allowed for al_dsgd is 8"):
        train(run, tmp_path, progress=False)
    assert not (tmp_path / "config.json").exists()
