"""Gradient oracles, losses and label noise in training runs."""

import dataclasses
import functools

import chex
import jax
import numpy as np
import pytest

from experiments import configs
from jaxdist import rules
from jaxdist.config import build, from_plain, read_component
from jaxdist.flatness import lpf_value_and_grad, sam_value_and_grad
from tests.training.ways import advanced, linear_run


def linear(gradient=None, **options):
    return linear_run("mgrawa", {"period": 4}, gradient=gradient, steps=6, **options)


def oracle(factory, **options):
    return functools.partial(factory, **options)


def test_without_noise_it_is_the_plain_gradient():
    plain, _ = advanced(linear())
    still, _ = advanced(linear(oracle(lpf_value_and_grad, gamma=0.0)))
    chex.assert_trees_all_equal(still, plain)


@pytest.mark.slow
@pytest.mark.parametrize(
    "gradient",
    [
        oracle(lpf_value_and_grad, gamma=0.05, num_samples=4),
        oracle(sam_value_and_grad, rho=0.5),
    ],
)
def test_layouts_agree_and_it_differs_from_plain(gradient):
    many, _ = advanced(linear(gradient))
    few, _ = advanced(linear(gradient, devices=2, local="unroll"))
    close = lambda a, b: np.testing.assert_allclose(a, b, 2e-6, 2e-6)
    jax.tree.map(close, few.params, many.params)
    plain, _ = advanced(linear())
    assert np.abs(many.params["kernel"] - plain.params["kernel"]).max() > 1e-4


def test_noise_of_each_worker_or_shared():
    """On the same batches without syncs, workers stay together only with the same noise."""
    same = [np.arange(8)] * 4
    gradient = oracle(lpf_value_and_grad, gamma=0.05)
    options = {"gradient": gradient, "shards": same, "steps": 3}
    apart, _ = advanced(linear_run("local_sgd", {"period": 9}, **options))
    alike, _ = advanced(linear_run("local_sgd", {"period": 9}, shared_noise=True, **options))
    spread = lambda state: np.ptp(state.params["kernel"], axis=0).max()
    assert spread(alike) < 1e-6 < 1e-4 < spread(apart)


@pytest.mark.slow
def test_from_the_command_line():
    parts = ["gradient=lpf(gamma=0.01, num_samples=4)", "loss=output_regularized(coef=0.2)"]
    config = dataclasses.replace(
        configs.load("digits_mgrawa"), **dict(map(read_component, parts)), label_noise=0.25
    )
    assert not hasattr(config.gradient, "has_aux")
    assert from_plain(config.plain()) == config
    noisy, clean = build(config), build(dataclasses.replace(config, label_noise=0.0))
    labels = [run.dataset.train[np.arange(len(run.dataset.train))][1] for run in (noisy, clean)]
    assert round(np.mean(labels[0] != labels[1]), 2) == 0.25
    assert noisy.dataset.test is not None
    for a, b in zip(noisy.shards, clean.shards, strict=True):
        np.testing.assert_array_equal(a, b)
    batch, key = noisy.dataset.train[np.arange(4)], jax.random.key(0)
    params, model_state = noisy.task.init(key)
    logits = np.asarray(noisy.task.predict(params, model_state, batch), np.float64)
    wanted = (np.log(np.exp(logits).sum(1)) - logits[np.arange(4), batch[1]]).mean()
    np.testing.assert_allclose(noisy.task.criterion(logits, batch), wanted, rtol=1e-5)
    assert noisy.task.loss(params, model_state, batch, key)[0] > wanted
    state, _ = advanced(dataclasses.replace(noisy, steps=2))
    chex.assert_tree_all_finite(state.params)


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("gradient=lpf(gamma=-1.0)", "gamma"),
        ("gradient=lpf(num_samples=0)", "num_samples"),
        ("gradient=lpf(num_samples=5)", "num_samples"),  # does not divide the batch of 16
        ("gradient=sam(rho=-0.1)", "rho"),
        ("gradient=lpf_increasing(transition_steps=0)", "transition_steps"),
        ("drop=autodrop", "total_steps"),  # one step is no three snapshots
        ("loss=output_regularized(coef=-1.0)", "coef"),
        ("loss=output_regularized(kind='smooth')", "kind"),
    ],
)
def test_bad_input(part, said):
    def begin():
        config = dataclasses.replace(
            configs.load("digits_mgrawa"), **dict([read_component(part)]), steps=1
        )
        advanced(build(config))

    with pytest.raises(ValueError, match=said):
        begin()


def test_label_noise_out_of_range():
    with pytest.raises(ValueError, match="rate"):
        build(dataclasses.replace(configs.load("digits_mgrawa"), label_noise=1.5))


@pytest.mark.slow
def test_workers_drop_their_rate_as_one():
    """Any two angles differ by less than 180: with snapshots at 2, 13, 24, ..., drops at 35, 46."""
    chosen = read_component("drop=autodrop(theta=180.0, theta_max=180.0, extra_epochs=1, rho=0.5)")
    config = dataclasses.replace(configs.load("digits_mgrawa"), **dict([chosen]), steps=46)
    assert from_plain(config.plain()) == config
    run = build(config)
    assert run.sampler.steps_per_epoch == 11
    for steps, scale in ((34, 1.0), (35, 0.5), (46, 0.25)):
        state, _ = advanced(dataclasses.replace(run, steps=steps))
        told = rules.metrics(state.opt_state)
        np.testing.assert_array_equal(told["learning_rate_scale"], np.full(8, scale))


def test_growing_noise_ends_where_the_paper_says():
    """At the last step the noise is 15 times as large as at the first, and so is what it does."""
    _, made = read_component(
        "gradient=lpf_increasing(gamma=1e-3, transition_steps=10, num_samples=1)"
    )
    oracle = made(lambda params, batch, key: (params**2).sum() / 2, has_aux=False)
    params, key = np.ones(4, np.float32), jax.random.key(0)
    first, last = (oracle(params, None, key=key, step=step)[1] - params for step in (0, 10))
    np.testing.assert_allclose(last, 15 * first, rtol=1e-3)
    assert np.abs(first).max() > 1e-4
