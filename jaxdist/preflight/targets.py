"""Machines that are not there: what they are made of, and devices to compile for."""

import dataclasses
import importlib.util
import os
import re
from collections.abc import Sequence
from typing import Any

import jax

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a chip has, as its maker says: peaks, which programs come near at best.

    Attributes:
        memory: bytes.
        flops: floating-point operations a second of the matrix units, in bfloat16.
        bandwidth: bytes a second between the chip and its memory.
        inside: bytes a second that it sends to chips of its slice or host, over all its links.
        between: bytes a second that it sends to other slices or hosts: its part of the network.
        latency: seconds of a message inside.
        latency_between: seconds of a message between.
    """

    memory: int
    flops: float
    bandwidth: float
    inside: float
    between: float
    latency: float = 1e-6
    latency_between: float = 1e-5


CHIPS = {
    "v5e": Chip(16 * 10**9, 197e12, 819e9, 1600e9 / 8, 25e9 / 8),
    "v5p": Chip(95 * GIB, 459e12, 2765e9, 4800e9 / 8, 50e9 / 8),
    "v6e": Chip(32 * 10**9, 918e12, 1640e9, 3200e9 / 8, 100e9 / 8),
    "h100": Chip(84_978_434_048, 989e12, 3350e9, 450e9, 400e9 / 8),
}
"""From the pages "TPU v5e", "TPU v5p" and "TPU v6e" of Google Cloud's documentation (the network of
a pod over its chips) and from NVIDIA's data sheets of the H100 SXM and the DGX H100. The latencies
are round numbers, not measured."""

_TPU = re.compile(r"(?P<slice>(?:v5e|v6e):\d+x\d+|v5p:\d+x\d+x\d+)(?:\*(?P<slices>\d+))?")
_GPU = re.compile(r"h100:(?P<hosts>\d+)x(?P<gpus>\d+)")
ALLOWED = (
    "TPU slices such as 'v5e:4x4', 'v5p:4x4x4', 'v6e:8x8' or 'v5e:16x16*2' for two of them, and "
    "hosts of GPUs such as 'h100:2x8'"
)

_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84978434048 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


@dataclasses.dataclass(frozen=True)
class Target:
    """A machine to compile for.

    Attributes:
        name: as it was asked for.
        chip: what each of its chips has.
        devices: its chips, which only compile.
    """

    name: str
    chip: Chip
    devices: Sequence[Any]


def target(name: str) -> Target:
    """The machine of a name, described by the compiler that is installed for it.

    Args:
        name: a TPU slice as "v5e:4x4", several as "v5e:4x4*2", or hosts of GPUs as "h100:2x8".

    Raises:
        ValueError: for another name, one that the compiler refuses, or without the compiler, with
            what to install.

    Example:
        >>> target("v4:2x2x1")
        Traceback (most recent call last):
        ...
        ValueError: on='v4:2x2x1': allowed are TPU slices such as 'v5e:4x4', 'v5p:4x4x4', 'v6e:8x8'
        or 'v5e:16x16*2' for two of them, and hosts of GPUs such as 'h100:2x8'
    """
    if match := _TPU.fullmatch(name):
        devices = _tpu(name, match["slice"], int(match["slices"] or 1))
    elif match := _GPU.fullmatch(name):
        devices = _gpu(name, int(match["hosts"]), int(match["gpus"]))
    else:
        raise ValueError(f"on={name!r}: allowed are {ALLOWED}")
    return Target(name, CHIPS[name.partition(":")[0]], devices)


def _tpu(name: str, shape: str, slices: int) -> Sequence[Any]:
    _needs(name, "libtpu", "tpu")
    import libtpu

    alone = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
    alone |= {"TPU_ACCELERATOR_TYPE": "v5litepod-8", "ALLOW_MULTIPLE_LIBTPU_LOAD": "true"}
    for variable, value in (alone | {"TPU_MIN_LOG_LEVEL": "3"}).items():
        os.environ.setdefault(variable, value)
    os.environ.setdefault("TPU_LIBRARY_PATH", libtpu.get_library_path())
    more = {"num_slices": slices} if slices != 1 else {}
    return _described(name, topology_name=shape, platform="tpu", **more)


def _gpu(name: str, hosts: int, gpus: int) -> Sequence[Any]:
    _needs(name, "jax_cuda13_plugin", "cuda")
    shape = f"1x{hosts}x{gpus}"
    return _described(name, topology=shape, platform="cuda", target_config=_H100)


def _described(name: str, **options: Any) -> Sequence[Any]:
    from jax.experimental import topologies

    try:
        return topologies.get_topology_desc(**options).devices
    except (RuntimeError, ValueError, jax.errors.JaxRuntimeError) as error:
        (first, *_) = str(error).splitlines()
        raise ValueError(
            f"on={name!r}: allowed are {ALLOWED}; the compiler refused it: {first}"
        ) from None


def _needs(name: str, package: str, extra: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ValueError(
            f"on={name!r}: allowed with the compiler of that machine, which is not installed: "
            f"pip install 'jaxdist[{extra}]'"
        )
