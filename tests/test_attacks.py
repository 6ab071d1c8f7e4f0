"""What bad workers bring to a sync, and what it does to a mean and to robust aggregates."""

import dataclasses
import json

import jax
import numpy as np
import optax
import pytest

from experiments import configs
from experiments.studies.bad_workers import run as bad_workers
from jaxdist import attacks
from jaxdist.config import build, from_plain, read_component
from tests.training.ways import advanced

W, BAD, D = 6, 2, 4
RNG = np.random.default_rng(0)
START, UPDATES = RNG.normal(size=D), RNG.normal(size=(3, W, D))


def brought(attack, steps=3):
    """The parameters `[W, D]` that workers bring to the last step's sync, without a rule."""

    def one(updates, x):
        state = attack.init(x)
        for t in range(steps):
            found, state = attack.update(updates[t], state, x, step=t)
            x = optax.apply_updates(x, found)
        return x

    updates = np.float32(UPDATES).swapaxes(0, 1)
    start = np.tile(np.float32(START), (W, 1))
    return np.asarray(jax.vmap(one, axis_name="w")(updates, start))


GOOD = START + UPDATES.sum(0)
MEAN, DEVIATION = GOOD[:-BAD].mean(0), GOOD[:-BAD].std(0)


@pytest.mark.parametrize(
    ("attack", "want"),
    [
        (attacks.sign_flip("w", 3, workers=BAD, scale=2.0), START - 2 * (MEAN - START)),
        (attacks.little("w", 3, workers=BAD, scale=1.5), MEAN - 1.5 * DEVIATION),
        (attacks.nan("w", 3, workers=BAD), np.full(D, np.nan)),
    ],
)
def test_bad_workers_bring_what_the_equation_says(attack, want):
    found = brought(attack)
    np.testing.assert_allclose(found[:-BAD], GOOD[:-BAD], rtol=1e-5)
    np.testing.assert_allclose(found[-BAD:], np.tile(want, (BAD, 1)), rtol=1e-5, atol=1e-5)


def test_noise_is_around_the_mean_and_each_attacker_s_own():
    first, second = brought(attacks.noise("w", 3, workers=BAD, scale=10.0))[-BAD:] - MEAN
    assert 1 < np.abs(first).mean() < 30
    assert np.abs(first - second).max() > 1


def test_before_the_sync_they_do_nothing():
    found = brought(attacks.nan("w", 3, workers=BAD), steps=2)
    np.testing.assert_allclose(found, START + UPDATES[:2].sum(0), rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: attacks.sign_flip("w", 0), "period=0"),
        (lambda: attacks.sign_flip("w", 1, workers=-1), "workers=-1"),
        (lambda: attacks.noise("w", 1, scale=0.0), "scale=0.0"),
        (lambda: attacks.little("w", 1, scale=-1.0), "scale=-1.0"),
        (lambda: brought(attacks.nan("w", 1, workers=W)), "workers=6 of 6: allowed are at most 5"),
    ],
)
def test_wrong_arguments_are_named(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def attacked(attack, **options):
    parts = [f"attack={attack}", "rule=local_sgd(period=4)"]
    config = configs.load("digits", "local_sgd")
    config = dataclasses.replace(config, **dict(map(read_component, parts)), steps=8, **options)
    assert from_plain(config.plain()) == config
    rule = dataclasses.replace(config.rule, aggregate="median")
    return config, dataclasses.replace(config, rule=rule)


@pytest.mark.slow
def test_in_a_run_the_mean_is_carried_away_and_the_median_is_not():
    plain, _ = advanced(build(attacked("none")[0]))
    norm = lambda state: np.sqrt(sum(np.square(x[0]).sum() for x in jax.tree.leaves(state.params)))
    moved = {}
    for config in attacked("noise(scale=10.0)"):
        state, _ = advanced(build(config))
        moved[config.rule.aggregate] = norm(state) / norm(plain)
    assert moved[None] > 10
    assert moved["median"] < 1.5


def test_flipped_labels_are_those_of_the_last_shards():
    config, _ = attacked("label_flip(workers=2)")
    run, clean = build(config), build(attacked("none")[0])
    source, true = run.dataset.train, clean.dataset.train
    for i, shard in enumerate(run.shards):
        np.testing.assert_array_equal(shard, clean.shards[i])
        want = 9 - true[shard][1] if i >= 6 else true[shard][1]
        np.testing.assert_array_equal(source[shard][1], want)


def test_a_rule_without_syncs_of_parameters_is_refused():
    config = dataclasses.replace(
        configs.load("digits", "average_gradients"), **dict([read_component("attack=nan")])
    )
    with pytest.raises(ValueError, match="'average_gradients' has no period"):
        build(config)


@pytest.mark.slow
def test_the_study_runs_goes_on_and_names_what_is_wrong(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bad_workers, "AGGREGATES", (None, "median"))
    words = ["--workdir", str(tmp_path), "--attacks", "none", "nan", "--steps", "8"]
    bad_workers.main(words)
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "bad_workers.json").read_text())
    assert {attack: list(of) for attack, of in found.items()} == {
        "none": ["mean", "median"],
        "nan": ["mean", "median"],
    }
    assert f"| `mean` | {100 * found['none']['mean'][0]:.1f} |" in said
    again = (tmp_path / "nan" / "median" / "seed_0" / "metrics.jsonl").read_text()
    bad_workers.main(words)
    assert (tmp_path / "nan" / "median" / "seed_0" / "metrics.jsonl").read_text() == again
    with pytest.raises(SystemExit) as stop:
        bad_workers.main([*words[:2], "--attacks", "nana"])
    assert stop.value.code == 2
    assert "did you mean 'nan'" in capsys.readouterr().err
