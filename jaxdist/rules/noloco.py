"""NoLoCo: outer steps in random pairs, with no collective at all."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdist import checks, exchange
from jaxdist import topology as graphs_of
from jaxdist.collectives import Axis
from jaxdist.compression import Compressor
from jaxdist.rules import base, mixing
from jaxdist.trees import choose, wide


class NolocoState(NamedTuple):
    """State of `noloco`.

    Attributes:
        count: steps taken.
        slow: phi, this worker's slow parameters, in float32 or wider.
        momentum: m, of the outer steps.
        metrics: partner, the index of the last one (-1: none yet).
    """

    count: base.Count
    slow: optax.Params
    momentum: optax.Params
    metrics: dict[str, Any]


def noloco(
    axis: Axis,
    *,
    period: int = 50,
    outer_lr: float = 0.7,
    momentum: float = 0.9,
    coupling: float = 0.7,
    seed: int = 0,
    compress: str | Compressor | None = None,
) -> optax.GradientTransformationExtraArgs:
    """NoLoCo: DiLoCo's outer step within random pairs instead of over all workers.

    D = mean of x - phi, phibar = mean of phi, both over the pair
    m_i <- momentum m_i + outer_lr D + coupling (phibar - phi_i)
    phi_i <- phi_i + m_i;  x_i <- phi_i

    With these defaults, those of the code read, the momentum of the coupling lets few workers drift
    apart where periods are short: with 8 on the digits at period 8, a momentum of 0.5 held them
    together and 0.9 did not. Pairs are drawn like those of `ad_psgd`; a worker without a
    partner, or with one that is not finite, is a pair by itself. Sends 2 d numbers a sync, to one
    worker.

    Args:
        axis: the workers' axis.
        period: local steps from one sync to the next.
        outer_lr: the outer step size, above 0.
        momentum: the decay of m, in [0, 1].
        coupling: the pull to the pair's mean, in [0, 1]; the code read has it equal to `outer_lr`.
        seed: decides the pairs.
        compress: how phi and x - phi travel, "int8" or "bf16"; None for as they are.

    Raises:
        ValueError: if `period` < 1, or a coefficient is outside its range.

    Example:
        >>> import jax, jaxdist
        >>> workers = jaxdist.Workers.create(8, devices=jax.devices()[:1])
        >>> rule = jaxdist.rules.noloco(workers.axis, period=100)

    Reference:
        arXiv 2506.10911; read in the first author's code (jkolehm/noloco sparse_optimizer_c.py),
        with plain heavy-ball momentum as there; a coefficient of its own for the coupling is from
        memory of the paper.
    """
    base.check_axis(axis)
    checks.check_period("period", period)
    checks.check_between("momentum", momentum, 0, 1)
    checks.check_between("coupling", coupling, 0, 1)
    checks.check_positive("outer_lr", outer_lr)
    wire = exchange.wire(compress, "noloco")

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, wide(params))
        return NolocoState(base.counter(), wide(params), zeros, {"partner": jnp.int32(-1)})

    def act_on(graph):
        def act(x, state, extra):
            apart = jax.tree.map(jnp.subtract, wide(x), state.slow)
            message, own = wire.send((state.slow, apart), extra.step)
            none = jnp.int32(-1)

            def visit(carry, arrived, sender, weight):
                del weight
                theirs = wire.read(arrived, own, extra.step)
                met = (sender >= 0) & base.healthy(theirs)
                return choose(met, (theirs, sender), carry)

            start = own, none
            (slow, change), partner = mixing.fold(visit, start, message, graph, axis, extra.step)

            def outer(m, phi, their_phi, moved, they_moved):
                pull = coupling * (their_phi - phi) / 2  # towards the mean of the pair
                return momentum * m + outer_lr * (moved + they_moved) / 2 + pull

            m = jax.tree.map(outer, state.momentum, own[0], slow, own[1], change)
            phi = jax.tree.map(jnp.add, state.slow, m)
            m, phi = choose(base.healthy((m, phi)), (m, phi), (state.momentum, state.slow))
            x = jax.tree.map(lambda x, p: p.astype(x.dtype), x, phi)
            return x, state._replace(slow=phi, momentum=m, metrics={"partner": partner})

        return act

    def syncs(num):
        graphs = graphs_of.make(f"random_pairs(seed={seed})", num)
        return [
            (mixing.draw(period, seed, number, len(graphs)), act_on(graph))
            for number, graph in enumerate(graphs)
        ]

    return base.rule_of_size(axis, init, syncs)
