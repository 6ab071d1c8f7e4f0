"""Wrong shapes are refused where they would end in a broadcast or a reshape.

NumPy's broadcasting across ranks is allowed here, as it is for users; the other tests forbid it.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdist import collectives, robust, rules, topology
from jaxdist.data import TokenSource, diabetes, digit_sequences, digits, make_augment, normalize
from jaxdist.losses import cross_entropy
from jaxdist.models import Model, mlp
from jaxdist.sharpness import Problem
from jaxdist.tasks import TASKS
from jaxdist.training.checkpoint import Checkpoints
from jaxdist.training.evaluate import _summed
from jaxdist.training.feed import Feed
from jaxdist.training.state import abstract
from jaxdist.training.step import make_step
from jaxdist.trees import check_alike
from tests.tasks.test_tasks import run_of


@pytest.fixture(autouse=True)
def as_for_users():
    with jax.numpy_rank_promotion("allow"):
        yield


DATA = {"classification": digits, "language_model": digit_sequences, "regression": diabetes}
RIGHT = {"classification": (5, 10), "language_model": (5, 63, 17), "regression": (5, 1)}


def both(name, outputs, y=None, loss=None):
    """The training loss, and the measures, of outputs of this shape."""
    dataset = DATA[name]()
    give = lambda params, state, x, train, key=None: (jnp.zeros(outputs) + params, state)
    model = Model(lambda key: (jnp.zeros(()), {}), give, None)
    task = TASKS[name](model, dataset, **({} if loss is None else {"loss": loss}))
    batch = dataset.test[np.arange(5)]
    batch = batch if y is None else (batch[0], np.zeros(y, batch[1].dtype))
    params, state = task.init(jax.random.key(0))
    loss = lambda: task.loss(params, state, batch, jax.random.key(0))[0]
    return loss, lambda: task.measure(params, state, batch)


@pytest.mark.parametrize("name", DATA)
def test_the_right_shapes_are_taken(name):
    loss, measure = both(name, RIGHT[name])
    chex.assert_shape(loss(), ())
    chex.assert_tree_shape_prefix(measure(), (5,))


WRONG = [
    ("classification", (1, 10), None),  # one row for five labels
    ("classification", (6, 10), None),
    ("classification", (5, 1, 10), None),
    ("classification", (5, 9), None),  # a label had no logit
    ("classification", (5, 10), (5, 1)),
    ("classification", (5, 10), (1,)),
    ("classification", (5, 10), (5, 5)),
    ("language_model", (5, 1, 17), None),
    ("language_model", (5, 62, 17), None),
    ("language_model", (5, 17), None),
    ("regression", (1, 5), None),
    ("regression", (5, 5), None),
    ("regression", (5, 1, 1), None),
    ("regression", (5, 1), (1, 5)),
    ("regression", (5, 1), (1,)),
    ("regression", (5, 1), (5, 1, 1)),
    ("regression", (5,), (5, 1)),
]


@pytest.mark.parametrize(("name", "outputs", "y"), WRONG)
def test_tasks_refuse_outputs_and_targets_that_do_not_fit(name, outputs, y):
    for numbers in both(name, outputs, y):
        with pytest.raises(ValueError, match="allowed"):
            numbers()


def test_a_task_checks_for_a_loss_of_ones_own():
    by_index = lambda logits, y: -jax.nn.log_softmax(logits)[jnp.arange(len(logits)), y].mean()
    loss, _ = both("classification", (5, 10), (5, 1), by_index)
    with pytest.raises(ValueError, match=r"logits of shape \[5, 10\], labels of shape \[5, 1\]"):
        loss()


@pytest.mark.parametrize(
    ("logits", "labels"), [((5, 3), (5, 1)), ((5, 3), (1,)), ((1, 3), (5,)), ((3,), (5,))]
)
def test_the_cross_entropy_refuses_what_would_broadcast(logits, labels):
    with pytest.raises(ValueError, match=r"allowed are \[\.\.\., K\]"):
        cross_entropy(jnp.zeros(logits), jnp.zeros(labels, int))
    problem = Problem(lambda params, x: params)
    with pytest.raises(ValueError, match=r"allowed are \[\.\.\., K\]"):
        problem(jnp.zeros(logits), (None, jnp.zeros(labels, int)))


def test_the_cross_entropy_refuses_real_labels():
    with pytest.raises(ValueError, match="allowed are integers"):
        cross_entropy(jnp.zeros((5, 3)), jnp.zeros(5))


@pytest.mark.parametrize(
    ("shape", "mean", "std"), [((2, 8, 8, 1), 3, 3), ((2, 8, 8, 3), 3, 1), ((2, 8, 8, 3), 1, 1)]
)
def test_normalize_takes_one_number_a_channel(shape, mean, std):
    with pytest.raises(ValueError, match="one for each of the"):
        normalize(jnp.zeros(shape), (0.5,) * mean, (0.5,) * std)


@pytest.mark.parametrize("options", [{"crop": 1}, {"flip": True}, {"cutout": 2}])
def test_augmentation_takes_batches_of_images(options):
    with pytest.raises(ValueError, match=r"x.shape=\[8, 8, 3\]"):
        make_augment(**options)(jnp.zeros((8, 8, 3)), jax.random.key(0))


def test_sequences_and_their_labels_fit():
    with pytest.raises(ValueError, match=r"sequences are \[4\]"):
        TokenSource(np.zeros(4, np.uint8))
    with pytest.raises(ValueError, match=r"labels are \[3\]"):
        TokenSource(np.zeros((4, 6), np.uint8), np.zeros(3, int))


def workers(fn, *stacked):
    return jax.vmap(fn, axis_name="w")(*stacked)


@pytest.mark.parametrize("shape", [(2,), (4,), (2, 3), (1, 1)])
def test_a_weight_of_the_mean_makes_no_leaf_larger(shape):
    with pytest.raises(ValueError, match=r"weight of shape .* for a leaf of \[1\]"):
        workers(lambda x, w: collectives.mean(x, "w", w), jnp.ones((4, 1)), jnp.ones((4, *shape)))
    with pytest.raises(ValueError, match=r"weight of shape .*: allowed is a scalar"):
        workers(
            lambda x, w: collectives.mean({"x": x}, "w", w), jnp.ones((4, 3)), jnp.ones((4, *shape))
        )


def test_what_stands_for_no_mean_is_like_the_tree():
    with pytest.raises(ValueError, match=r"otherwise of shape \[2, 3\]"):
        workers(lambda x: collectives.mean(x, "w", otherwise=jnp.stack([x, x])), jnp.ones((4, 3)))


@pytest.mark.parametrize("shape", [(1,), (3,), (4,)])
def test_scores_and_scalars_are_scalars(shape):
    x, wrong = jnp.ones((4, 3)), jnp.arange(4.0).reshape(4, *[1] * len(shape)) + jnp.zeros(shape)
    for fn in (
        lambda x, s: collectives.from_argmin(x, s, "w"),
        lambda x, s: collectives.gather_scalars(s, "w"),
        lambda x, s: robust.aggregate(robust.median(), x, "w", s > 0),
    ):
        with pytest.raises(ValueError, match="allowed is a scalar"):
            workers(fn, x, wrong)


def stepped(name, params, updates, value):
    tx = rules.compose(optax.sgd(0.1), name, "w", period=1)

    def one(x, g, value):
        return tx.update(g, tx.init(x), x, step=0, value=value, grad=g)[0]

    return workers(one, params, updates, value)


@pytest.mark.parametrize(("name", "num"), [("lsgd", 4), ("al_dsgd", 8)])
@pytest.mark.parametrize("shape", [(1,), (3,)])
def test_rules_take_one_loss_a_worker(name, num, shape):
    ones = jnp.ones((num, 3))
    with pytest.raises(ValueError, match="value of shape"):
        stepped(name, ones, ones, jnp.ones((num, *shape)))


@pytest.mark.parametrize("name", ["local_sgd", "easgd", "mgrawa"])
@pytest.mark.parametrize("shape", [(1,), (2, 3), ()])
def test_rules_refuse_updates_of_another_shape(name, shape):
    with pytest.raises(ValueError, match="updates of shape"):
        stepped(name, jnp.ones((4, 3)), jnp.ones((4, *shape)), jnp.ones(4))


@pytest.mark.parametrize("shape", [(), (1,), (2,)])
def test_evaluations_take_a_row_for_each_example(shape):
    with pytest.raises(ValueError, match=r"measure 'right' of shape .* for 3 examples"):
        _summed({"right": jnp.ones(shape)}, np.array([True, True, False]))


def traced(task=None, **options):
    """Traces a step of a run of such a task."""
    dataset = digits()
    task = TASKS["classification"](mlp(dataset.input_shape, 10, widths=()), dataset)._replace(
        **task or {}
    )
    run = run_of(task, dataset, **options)
    return jax.eval_shape(make_step(run), abstract(run), Feed(run).shapes, None)


def test_what_a_task_tells_for_the_log_is_a_scalar():
    def loss(params, state, batch, key):
        return sum(x.sum() for x in jax.tree.leaves(params)), (state, {"each": jnp.ones(6)})

    with pytest.raises(ValueError, match=r"the task's metric 'each' of shape \[6\]"):
        traced({"loss": loss})


def test_gradients_and_updates_are_like_the_parameters():
    def oracle(objective, has_aux):
        found = jax.value_and_grad(objective, has_aux=has_aux)

        def gradient(params, batch, *, key, **_):
            value, grads = found(params, batch, key)
            return value, jax.tree.map(lambda g: g[:1], grads)

        return gradient

    with pytest.raises(ValueError, match=r"the gradient.* of shape"):
        traced(gradient=oracle)
    cut = optax.stateless(lambda updates, _: jax.tree.map(lambda u: u[:1], updates))
    with pytest.raises(ValueError, match=r"what tx.update gives.* of shape"):
        traced(tx=optax.with_extra_args_support(cut))


@pytest.mark.parametrize("matrix", [np.full((3, 1), 1.0), np.eye(3)[None], np.full(3, 1.0)])
def test_a_mixing_matrix_is_square(matrix):
    ring = topology.make("ring", 3)[0]
    with pytest.raises(ValueError, match="matrix of shape"):
        topology.Topology("ring", ring.graph, matrix, ring.rounds)


def test_trees_are_alike_in_structure_and_shapes():
    check_alike({"a": jnp.ones(3)}, {"a": np.ones(3)}, "x", "y")
    with pytest.raises(ValueError, match=r"x\['a'\] of shape \[1\]: allowed is that of y, \[3\]"):
        check_alike({"a": jnp.ones(1)}, {"a": jnp.ones(3)}, "x", "y")
    with pytest.raises(ValueError, match=r"^x is .*: allowed is the structure of y"):
        check_alike({"a": jnp.ones(3)}, [jnp.ones(3)], "x", "y")


@pytest.mark.parametrize("ask", ["restore", "note"])
def test_a_folder_without_checkpoints_is_named(tmp_path, ask):
    with pytest.raises(ValueError, match="holds no complete checkpoint"):
        getattr(Checkpoints(tmp_path, None), ask)()
