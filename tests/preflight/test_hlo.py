"""What is read from compiled programs: collectives, the links they go over, what runs meanwhile."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdist.preflight import sendings
from jaxdist.preflight.flops import flops
from jaxdist.preflight.hlo import matrix_products
from jaxdist.traffic import Collective

HEAD = "HloModule jit_step, is_scheduled=true, num_partitions=4\n\n"
TWO_HOMES = [0, 0, 1, 1]

ASYNC = """
%sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %add = f32[] add(%a, %b)
}

%fused_product (p: f32[8,8]) -> f32[8,8] {
  ROOT %convolution.1 = f32[8,8]{1,0} convolution(%p, %p), dim_labels=bf_io->bf
}

ENTRY %main (x: f32[8,8]) -> f32[8,8] {
  %before = f32[8,8]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %all-reduce-start = f32[8,8]{1,0} all-reduce-start(%x), channel_id=1, GROUPS, to_apply=%sum
  %meanwhile = f32[8,8]{1,0} fusion(%x), kind=kOutput, calls=%fused_product
  %meanwhile.2 = f32[8,8]{1,0} dot(%x, %meanwhile), lhs_contracting_dims={1}
  %all-reduce-done = f32[8,8]{1,0} all-reduce-done(%all-reduce-start)
  ROOT %after = f32[8,8]{1,0} dot(%x, %all-reduce-done), lhs_contracting_dims={1}
}
"""


@pytest.mark.parametrize(
    ("groups", "members", "between"),
    [
        ("replica_groups={{0,1},{2,3}}", 2, False),
        ("replica_groups={{0,2},{1,3}}", 2, True),
        ("replica_groups=[2,2]<=[4]", 2, False),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", 2, True),
        ("replica_groups=[1,4]<=[4]", 4, True),
        ("replica_groups=[4]<=[4]", 4, True),
        ("replica_groups=@mesh['x'=2,'y'=2] {'y'}", 2, False),
        ("replica_groups=@mesh['x'=2,'y'=2] {'x'}", 2, True),
        ("replica_groups=@mesh['x'=4] {'x':(2)2}", 2, False),
        ("replica_groups=@mesh['x'=4] {'x':(1)2}", 2, True),
        ("replica_groups={}", 4, True),
    ],
)
def test_groups_of_every_form(groups, members, between):
    (sending,) = sendings(HEAD + ASYNC.replace("GROUPS", groups), TWO_HOMES)
    assert sending.collective == Collective("all-reduce", 256, members)
    assert sending.between == between


def test_groups_of_an_unknown_form_are_no_guess():
    with pytest.raises(ValueError, match="replica_groups of an unknown form"):
        sendings(HEAD + ASYNC.replace("GROUPS", "replica_groups=<8>"), TWO_HOMES)


def test_what_runs_between_start_and_done():
    """A product in a fusion and one by itself; none before and none after."""
    text = HEAD + ASYNC.replace("GROUPS", "replica_groups={}")
    (sending,) = sendings(text, TWO_HOMES)
    assert sending.overlapped == 2
    assert matrix_products(text) == 4


def test_what_is_not_started_is_not_overlapped():
    text = ASYNC.replace("GROUPS", "replica_groups={}").replace("all-reduce-start(", "all-reduce(")
    (sending,) = sendings(HEAD + text, TWO_HOMES)
    assert sending.overlapped is None


WRAPPED = """
%async_computation (p: f32[8]) -> f32[32] {
  ROOT %all-gather.1 = f32[32]{0} all-gather(%p), replica_groups={{0,1,2,3}}, dimensions={0}
}

ENTRY %main (x: f32[8], y: f32[8,8]) -> f32[32] {
  %all-gather-start = ((f32[8]), f32[32]) async-start(%x), calls=%async_computation
  %meanwhile = f32[8,8]{1,0} dot(%y, %y), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %all-gather-done = f32[32]{0} async-done(%all-gather-start)
}
"""


def test_a_collective_that_is_wrapped_counts_once():
    (sending,) = sendings(HEAD + WRAPPED, TWO_HOMES)
    assert sending.collective == Collective("all-gather", 128, 4)
    assert (sending.between, sending.overlapped) == (True, 1)


PERMUTE = """
ENTRY %main (x: f32[8,8]) -> f32[8,8] {
  %collective-permute-start = (f32[8,8]{1,0:T(8,128)}, f32[8,8]{1,0:T(8,128)}, u32[], u32[]) \
collective-permute-start(%x), channel_id=1, source_target_pairs={PAIRS}
  ROOT %collective-permute-done = f32[8,8] collective-permute-done(%collective-permute-start)
}
"""


@pytest.mark.parametrize(
    ("pairs", "between"), [("{0,1},{1,0},{2,3},{3,2}", False), ("{0,1},{1,2},{2,3},{3,0}", True)]
)
def test_a_permute_with_contexts(pairs, between):
    """The bytes are those of what arrives, not of the counters that TPUs have beside it."""
    (sending,) = sendings(HEAD + PERMUTE.replace("PAIRS", pairs), TWO_HOMES)
    assert sending.collective == Collective("collective-permute", 256, 4, messages=4)
    assert (sending.between, sending.overlapped) == (between, 0)


SLICES = """
ENTRY %main (x: f32[8,128], y: f32[8,8]) -> f32[1,8,128] {
  %send = (f32[1,8,128]{2,1,0:T(8,128)}, u32[], token[]) send(%x, %after-all), channel_id=2, \
is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime"\
,_xla_host_transfer_rendezvous="all-reduce_0",_xla_megascale_reduce_operation="SUM"}
  %recv = (f32[1,8,128]{2,1,0:T(8,128)}, u32[], token[]) recv(%after-all), channel_id=1, \
is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime"\
,_xla_host_transfer_rendezvous="all-reduce_0",_xla_megascale_reduce_operation="SUM"}
  %meanwhile = f32[8,8]{1,0} dot(%y, %y), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %send-done = token[] send-done(%send), channel_id=2, is_host_transfer=true
  %recv-done = (f32[1,8,128]{2,1,0:T(8,128)}, token[]) recv-done(%recv), channel_id=1
  ROOT %result = f32[1,8,128]{2,1,0:T(8,128)} get-tuple-element(%recv-done), index=0
}
"""


def test_messages_between_slices():
    (sending,) = sendings(HEAD + SLICES, TWO_HOMES)
    assert sending.collective.sent == 4 * 8 * 128
    assert (sending.between, sending.overlapped) == (True, 1)


@pytest.mark.parametrize("by", ["products", "convolution", "scan", "branch", "inside"])
def test_floating_point_operations(by):
    x, y = jnp.zeros((3, 5)), jnp.zeros((5, 7))
    images, kernel = jnp.zeros((2, 8, 8, 4)), jnp.zeros((3, 3, 2, 6))
    product = 2 * 3 * 5 * 7
    dims = ("NHWC", "HWIO", "NHWC")

    def convolve(images, kernel):
        return jax.lax.conv_general_dilated(
            images, kernel, (1, 1), "VALID", dimension_numbers=dims, feature_group_count=2
        )

    cases = {
        "products": (lambda: x @ y, product),
        "convolution": (lambda: convolve(images, kernel), 2 * (2 * 6 * 6 * 6) * (3 * 3 * 2)),
        "scan": (lambda: jax.lax.map(lambda a: a @ y, jnp.stack([x] * 4)), 4 * product),
        "branch": (
            lambda: jax.lax.cond(x[0, 0] > 0, lambda: x @ y @ y.T, lambda: x),
            2 * product,
        ),
        "inside": (lambda: jax.jit(jax.checkpoint(lambda a: a @ y))(x), product),
    }
    function, want = cases[by]
    assert flops(jax.make_jaxpr(function)()) == want


def test_products_in_this_machine_s_own_text():
    text = jax.jit(lambda x: jnp.tanh(x @ x) @ x).lower(np.ones((64, 64), np.float32)).compile()
    assert matrix_products(text.as_text()) in (1, 2)  # XLA's CPU may put them into one call
    assert sendings(text.as_text(), [0]) == []
