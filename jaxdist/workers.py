"""Workers: the one place where a function for one worker is put on a mesh of devices."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxdist.axes import Axis, split_axis

Tree = Any
P = PartitionSpec


@dataclasses.dataclass(frozen=True)
class Workers:
    """W workers on a mesh that has an axis named "worker"; further mesh axes lie inside a worker.

    Each device (or sub-mesh) along "worker" holds k = W / mesh.shape["worker"] workers. One device
    is a mesh of size 1 with k = W: there is no other single-device version of anything.

    Args:
        num: W, the number of workers.
        mesh: the devices, with an axis "worker" whose size divides W.

    Raises:
        ValueError: if the mesh has no axis "worker", or its size does not divide `num`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxdist import Workers, collectives
        >>> workers = Workers.create(4, devices=jax.devices()[:1])
        >>> f = workers.spmd(lambda t, x: (t + 1, collectives.mean(x, workers.axis)[0]))
        >>> f(0, jnp.array([1.0, 2.0, 3.0, 6.0]))[1].tolist()
        [3.0, 3.0, 3.0, 3.0]
    """

    num: int
    mesh: Mesh

    def __post_init__(self):
        if "worker" not in self.mesh.shape:
            raise ValueError(f"mesh has axes {self.mesh.axis_names}: allowed is one named 'worker'")
        if self.num < 1 or self.num % self.mesh.shape["worker"]:
            raise ValueError(
                f"num={self.num}: allowed is a positive multiple of the "
                f"{self.mesh.shape['worker']} devices along the mesh axis 'worker'"
            )

    @classmethod
    def create(
        cls,
        num: int,
        *,
        devices: Sequence[jax.Device] | None = None,
        inner: Mapping[str, int] | None = None,
    ) -> "Workers":
        """Spreads `num` workers evenly over the devices.

        A worker's devices share fast links, those of a TPU slice or of a host of GPUs, where they
        fit in one; workers go across slices and hosts, one slice after the other.

        Args:
            num: W.
            devices: the devices to use, all of JAX's if None.
            inner: names and sizes of the mesh axes inside a worker, as `{"fsdp": 2}`.

        Raises:
            ValueError: if the devices cannot be divided evenly among the workers, or a slice's
                or a host's among its own.
        """
        devices = jax.devices() if devices is None else list(devices)
        inner = dict(inner or {})
        inside = math.prod(inner.values())
        outer, rest = divmod(len(devices), inside)
        if rest or not outer or num < 1 or num % outer:
            raise ValueError(
                f"num={num} with {len(devices)} devices and inner={inner}: allowed are devices "
                f"that split into groups of {inside} whose number divides num; pass devices=, or "
                f"choose a multiple of {max(outer, 1)} workers"
            )
        names = ("worker", *inner)
        grid = _grid(devices, tuple(inner.values()))
        return cls(num, Mesh(grid, names, axis_types=(AxisType.Auto,) * len(names)))

    @property
    def per_device(self) -> int:
        """k, the number of workers on each device along "worker"."""
        return self.num // self.mesh.shape["worker"]

    @property
    def groups(self) -> list[list[int]]:
        """The workers of each TPU slice, or of each host of other devices, in lists."""
        first = self.mesh.devices.reshape(self.mesh.shape["worker"], -1)[:, 0]
        homes = [home(device) for device in first for _ in range(self.per_device)]
        return [[i for i, h in enumerate(homes) if h == which] for which in dict.fromkeys(homes)]

    @property
    def axis(self) -> Axis:
        """The axis (name or pair of names) that rules are made with."""
        return "worker" if self.per_device == 1 else ("worker", "local")

    @property
    def sharding(self) -> NamedSharding:
        """Of stacked arrays `[W, ...]`."""
        return NamedSharding(self.mesh, P("worker"))

    @property
    def replicated(self) -> NamedSharding:
        """Of what all workers share."""
        return NamedSharding(self.mesh, P())

    def shardings(self, tree: Tree) -> Tree:
        """The sharding of every leaf of a stacked tree.

        `P("worker")`, and, where the mesh has axes inside a worker, their product on the leaf's
        first further dimension that it divides.
        """
        inner = tuple(name for name in self.mesh.axis_names if name != "worker")
        inside = self.mesh.size // self.mesh.shape["worker"]

        def one(x):
            spec: list[Any] = ["worker", *[None] * (len(x.shape) - 1)]
            if (axis := split_axis(x.shape[1:], inside)) is not None:
                spec[1 + axis] = inner
            return NamedSharding(self.mesh, P(*spec))

        return jax.tree.map(one, tree)

    def put(self, tree: Tree) -> Tree:
        """Places a stacked tree `[W, ...]` on the mesh.

        Raises:
            ValueError: if an array has no first axis of length W.
        """
        self._check_rows("tree", tree)
        return jax.device_put(tree, self.shardings(tree))

    def put_shared(self, tree: Tree) -> Tree:
        """Places a tree that all workers share on every device."""
        return jax.device_put(tree, self.replicated)

    def _check_rows(self, name: str, tree: Tree) -> None:
        for path, x in jax.tree_util.tree_leaves_with_path(tree):
            shape = jnp.shape(x)
            if not shape or shape[0] != self.num:
                at = jax.tree_util.keystr(path)
                raise ValueError(
                    f"{name}{at} of shape {list(shape)}: allowed is [{self.num}, ...], whose first "
                    f"axis is that of the {self.num} workers"
                )

    def spmd(self, fn: Callable, *, donate_argnums: int | Sequence[int] = ()) -> Callable:
        """Compiles a function of one worker into one program of all workers.

        Args:
            fn: `fn(shared, *per_worker) -> (shared, per_worker)`. Inside, every per-worker array is
                one worker's (no leading axis), and `self.axis` is bound for `collectives` and
                rules. `shared` must come out the same on all workers.
            donate_argnums: arguments whose memory the results may reuse, as in `jax.jit`.

        Returns:
            The jitted function of stacked arrays `[W, ...]`.

        Raises:
            ValueError: when it is called, if an array of the workers has no first axis of length W.
        """
        k = self.per_device

        def block(shared, *stacked):
            if k == 1:
                shared, out = fn(shared, *jax.tree.map(lambda x: x[0], stacked))
                return shared, jax.tree.map(lambda x: x[None], out)
            in_axes = (None, *[0] * len(stacked))
            return jax.vmap(fn, in_axes, out_axes=(None, 0), axis_name="local")(shared, *stacked)

        def program(shared, *stacked):
            for number, tree in enumerate(stacked, 1):
                self._check_rows(f"argument {number}", tree)
            return jax.shard_map(
                block,
                mesh=self.mesh,
                in_specs=(P(), *[P("worker")] * len(stacked)),
                out_specs=(P(), P("worker")),
                axis_names={"worker"},
                check_vma=k == 1,
            )(shared, *stacked)

        return jax.jit(program, donate_argnums=donate_argnums)


def home(device: jax.Device) -> int:
    """What a device shares its fastest links with: its TPU slice, or its host."""
    if device.platform == "tpu":
        return getattr(device, "slice_index", 0) or 0  # a described slice alone has none
    return device.process_index


def _grid(devices: Sequence[jax.Device], inner: tuple[int, ...]) -> np.ndarray:
    """The devices as [workers, *inner], such that a row leaves no slice or host that it fits in."""
    by_home: dict[int, list[jax.Device]] = {}
    for device in devices:
        by_home.setdefault(home(device), []).append(device)
    inside = math.prod(inner)
    sizes = {len(together) for together in by_home.values()}
    if any(size % inside for size in sizes) and max(sizes) > inside:
        raise ValueError(
            f"inner of {inside} devices, with {sorted(sizes)} on a slice or host: allowed is what "
            f"divides these, so that no worker lies on two"
        )
    if any(size % inside for size in sizes):  # a worker takes several slices or hosts
        flat = [device for together in by_home.values() for device in together]
        return np.array(flat).reshape(-1, *inner)
    names = tuple(map(str, range(1 + len(inner))))
    rows = [
        jax.make_mesh(
            (len(together) // inside, *inner),
            names,
            axis_types=(AxisType.Auto,) * len(names),
            devices=together,
        ).devices
        for together in by_home.values()
    ]
    return np.concatenate(rows)


def unroll(fn: Callable) -> Callable:
    """Makes `vmap` run `fn` as an unrolled loop, one call a worker.

    Batched convolutions with a kernel for each worker are slow on CPU; the same ones written out
    are not. For the gradient part of a step, which communicates nothing and is not differentiated.

    Args:
        fn: a function of pytrees of arrays, written for one worker.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> jax.vmap(unroll(lambda x: {"twice": 2 * x}))(jnp.arange(3))["twice"].tolist()
        [0, 2, 4]
    """
    wrapped = custom_vmap(fn)

    @wrapped.def_vmap
    def rule(num, batched, *args):
        def take(i):
            return jax.tree.map(lambda x, b: x[i] if b else x, args, tuple(batched))

        outs = [wrapped(*take(i)) for i in range(num)]
        out = jax.tree.map(lambda *xs: jnp.stack(xs), *outs)
        return out, jax.tree.map(lambda _: True, out)

    return wrapped


def force_host_devices(num: int) -> None:
    """Asks for `num` CPU devices; other platforms are left as they are.

    Call it before JAX starts. Workers on their own host devices run several times faster than
    batched on one.

    Raises:
        ValueError: if `num` < 1, or JAX has started with fewer CPU devices.
    """
    if num < 1:
        raise ValueError(f"num={num}: allowed are integers from 1")
    try:
        jax.config.update("jax_num_cpu_devices", num)
    except RuntimeError:
        have = len(jax.devices("cpu"))
        if have < num:
            raise ValueError(
                f"num={num}: allowed are integers to {have}, the CPU devices that JAX has started "
                f"with; call this first"
            ) from None
