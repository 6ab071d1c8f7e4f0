"""The facts in the rows of `RULES`: they are what the rules do."""

import inspect

import jax
import numpy as np
import optax
import pytest

from jaxdist import rules
from jaxdist.config import component, register
from jaxdist.traffic import Traffic
from tests.rules.cases import CASES, W, extra, healthy_inputs, hyper_of, make, rule_of, start

PARAMS = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), start())
STEPS = np.arange(48)


def traffic(name, **given):
    return Traffic.of(make(name, ("worker", "local")), PARAMS, W, **given)


def test_a_row_looks_like_its_factory():
    row = rules.RULES["mgrawa"]
    assert row.__wrapped__ is row.factory is rules.mgrawa
    assert (row.__name__, row.__doc__) == ("mgrawa", rules.mgrawa.__doc__)
    assert inspect.signature(row) == inspect.signature(rules.mgrawa)
    assert inspect.getdoc(row) == inspect.getdoc(rules.mgrawa)
    assert hash(row) == hash(rules.row("mgrawa"))


def test_a_function_of_ones_own_is_a_row_without_facts():
    @register("rule")
    def mine(axis, *, period: int = 4):
        """Mine."""
        return rules.local_sgd(axis, period=period)

    try:
        assert rules.row("mine") == rules.Rule(mine)
        assert rules.row("mine").barrier(component("rule", "mine", period=3).options()) == 3
        assert rules.compose(optax.sgd(0.1), "mine", "w").init(PARAMS)
    finally:
        del rules.RULES["mine"]


def test_a_row_of_ones_own_has_its_facts():
    def before(axis):
        return rules.average_gradients(axis)

    register("rule", rules.Rule(before, first=True))
    try:
        assert component("rule", "before").plain() == {"factory": "before", "import": __file__}
        first, last = rules.compose(optax.sgd(0.1), "before", "w").init(PARAMS)
        assert rules.is_rule(first)
        assert not rules.is_rule(last)
    finally:
        del rules.RULES["before"]


@pytest.mark.parametrize("name", CASES)
def test_it_asks_for_what_it_needs(name):
    row = rules.row(rule_of(name))
    asked = row.asks(row.options(**hyper_of(name)))
    updates, values, grads = healthy_inputs(0)
    tx = make(name)

    def trace(names):
        def one(x, u, v, g):
            given = {key: x for key, x in extra(u, v, g).items() if key in names}
            return tx.update(u, tx.init(x), x, step=1, **given)

        jax.eval_shape(jax.vmap(one, axis_name="w"), start(), updates, values, grads)

    trace(asked)
    for key in asked:
        with pytest.raises(ValueError, match=f"^{key}=None: allowed for "):
            trace({*asked} - {key})


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_it_syncs_and_is_late_as_its_row_says(name):
    row, hyper = rules.row(rule_of(name)), hyper_of(name)
    options = row.options(**hyper)
    assert (row.late is not None) == bool(traffic(name, only=("launch",)).entries)
    assert {row.late, row.table, row.bound} - {None} <= options.keys()
    at = STEPS[traffic(name).due(STEPS).any(0)]
    if row.periodic:
        assert ((at + 1) % row.barrier(options) == 0).all()
    if row.first:
        assert (at == STEPS).all()


def test_workers_meet_in_groups_before_they_all_do():
    row = rules.row("lsgd")
    meets = lambda **given: row.barrier(row.options(**given))
    assert meets(period=16) == 16
    assert meets(period=16, groups=((0, 1), (2, 3))) == 4
    assert meets(period=16, local_period=8, groups=((0, 1), (2, 3))) == 8
    assert meets(period=5, groups=((0, 1), (2, 3))) == 5


def test_only_knows_its_parts():
    tx, x = rules.average_gradients("w"), start()
    with pytest.raises(ValueError, match="only='locall'"):
        tx.update(x, tx.init(x), x, only=("locall",))
