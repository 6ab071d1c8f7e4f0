"""Several processes in one run: joining, the main one, waiting for each other."""

import os
import time
from collections.abc import Sequence
from typing import Any

import jax
from jax._src import distributed
from jax._src.clusters.cloud_tpu_cluster import GceTpuCluster
from jax.experimental import multihost_utils

PARTING = 20
"""Seconds for which a process that ends waits for the others."""

HEARTBEAT = 20
"""Seconds after which JAX's runtime takes a process that is not heard of for dead."""

COLLECTIVE_TIMEOUT = 100
"""Seconds for which a collective on CPU devices waits for a process that does not come."""

_MPI = ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")
_JOIN = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def initialize() -> None:
    """Joins the other processes if the environment tells of any; call it before JAX starts.

    Where `JAX_COORDINATOR_ADDRESS` (`host:port`), `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` are set
    it joins as they say; under Open MPI the first is enough, and needed from version 5 on. In a
    Slurm step or under Open MPI 4 with several tasks, and on the hosts of a TPU slice, as JAX
    detects. Otherwise it does nothing.

    Raises:
        ValueError: if only some of the three variables are set, or a number is no integer, or Open
            MPI 5 has started several tasks without an address.
    """
    given = {name: os.environ[name] for name in _JOIN if os.environ.get(name)}
    if not given:
        if _tasks() > 1 or GceTpuCluster.is_env_present():
            _check_open_mpi()
            _join()
        return
    if _JOIN[0] in given and _MPI[0] in os.environ:
        for name, of_mpi in zip(_JOIN[1:], _MPI, strict=True):
            given.setdefault(name, os.environ[of_mpi])
    if missing := [name for name in _JOIN if name not in given]:
        raise ValueError(f"{', '.join(given)} set without {', '.join(missing)}: set all or none")
    for name in _JOIN[1:]:
        if not given[name].isdigit():
            raise ValueError(f"{name}={given[name]!r}: allowed are integers from 0")
    address, num, index = (given[name] for name in _JOIN)
    _join(address, int(num), int(index))


def _join(*where: Any) -> None:
    flag = "--xla_cpu_collective_timeout_seconds"
    if flag not in (flags := os.environ.get("XLA_FLAGS", "")):  # without it, for ever
        os.environ["XLA_FLAGS"] = f"{flags} {flag}={COLLECTIVE_TIMEOUT}".strip()
    jax.distributed.initialize(
        *where, shutdown_timeout_seconds=PARTING, heartbeat_timeout_seconds=HEARTBEAT
    )


def is_main() -> bool:
    """Whether this process writes the files that are written once."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process has come here."""
    multihost_utils.sync_global_devices(name)


class Store:
    """Counters and marks that all processes share, in the key-value store of JAX's runtime.

    Args:
        name: keeps what it holds apart from other stores; the same on all processes.
    """

    def __init__(self, name: str):
        # The runtime's client, like the detection of a TPU slice above, has no public name (jax
        # 0.10); this is the only file that knows of them.
        self._client, self._name = distributed.global_state.client, name
        self._alone: dict[str, int] = {}  # where there is no runtime

    def increment(self, counter: str) -> int:
        """Adds 1 to a counter that begins at 0, and returns what it is then."""
        if self._client is None:
            self._alone[counter] = self._alone.get(counter, 0) + 1
            return self._alone[counter]
        return self._client.key_value_increment(f"{self._name}/{counter}", 1)

    def forget(self, place: str) -> None:
        """Removes the marks of a place and the counters under it, `<place>/...`."""
        if self._client is None:
            self._alone = {
                name: n for name, n in self._alone.items() if not name.startswith(f"{place}/")
            }
        else:
            self._client.key_value_delete(f"{self._name}/{place}/")

    def meet(self, place: str, seconds: float) -> None:
        """Waits until every process has come to `place`, where each comes once.

        Raises:
            TimeoutError: if some have not come after `seconds`, with their indices.
        """
        if self._client is None:
            return
        there = lambda i: f"{self._name}/{place}/{i}"
        self._client.key_value_set(there(jax.process_index()), "")
        deadline, missing = time.monotonic() + seconds, []
        for i in range(jax.process_count()):
            left = max(1, round(1000 * (deadline - time.monotonic())))
            try:
                self._client.blocking_key_value_get(there(i), left)
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise
                missing.append(i)
        if missing:
            raise TimeoutError(_late(missing, place, seconds))


def _late(missing: Sequence[int], place: str, seconds: float) -> str:
    who = ", ".join(map(str, missing))
    return f"process {who} of {jax.process_count()} did not come to {place} within {seconds:g} s"


def _check_open_mpi() -> None:
    if int(os.environ.get(_MPI[0], 1)) > 1 and "OMPI_MCA_orte_hnp_uri" not in os.environ:
        raise ValueError(
            "Open MPI 5 does not tell JAX where rank 0 is; set JAX_COORDINATOR_ADDRESS=HOST:PORT, "
            "where HOST is its machine, on all ranks"
        )


def _tasks() -> int:
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
    slurm, mpi = (os.environ.get(n, "1") for n in ("SLURM_STEP_NUM_TASKS", _MPI[0]))
    return max(len(hosts), int(slurm), int(mpi))
