"""Several processes in one run: joining, the main one, waiting for each other."""

import functools
import ipaddress
import itertools
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax._src import distributed, xla_bridge
from jax._src.clusters.cloud_tpu_cluster import GceTpuCluster
from jax.experimental import multihost_utils
from jaxlib import _jax

PARTING = 20
"""Seconds for which a process that ends waits for the others."""

HEARTBEAT = 20
"""Seconds after which JAX's runtime takes a silent process for dead."""

JOINING = 100
"""Seconds that the processes of one machine wait for each other to join; JAX's own are 300."""

COLLECTIVE_TIMEOUT = 100
"""Seconds for which a collective on CPU devices waits for a process that does not come."""

_DECISIONS = itertools.count()  # all processes come to the same ones

_MPI = ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")
_JOIN = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_BIND = "JAX_COORDINATOR_BIND_ADDRESS"


def initialize() -> None:
    """Joins the other processes if the environment names any; call it before JAX starts.

    Where `JAX_COORDINATOR_ADDRESS` (`host:port`), `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` are set
    it joins by them; under Open MPI the first is enough, and needed from version 5 on. In a
    Slurm step or under Open MPI 4 with several tasks, and on the hosts of a TPU slice, as JAX
    detects. Otherwise it does nothing.

    Where the address is this machine's own (`127.0.0.1`, `[::1]`, `localhost`) all sockets listen
    there and nowhere else. JAX's own choice is every address for the coordinator, and that of the
    host's name for collectives on CPU devices.

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
    host = address.rpartition(":")[0].strip("[]")
    if not _is_own(host):
        _join(address, int(num), int(index))
        return
    bind = os.environ.get(_BIND) or address
    of_one_machine = {"coordinator_bind_address": bind, "initialization_timeout": JOINING}
    _join(address, int(num), int(index), **of_one_machine)
    if jax.config.values["jax_cpu_collectives_implementation"] == "gloo":
        xla_bridge.register_backend_factory(
            "cpu", functools.partial(_cpu_client, host), fail_quietly=False
        )


def _is_own(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _cpu_client(host: str) -> Any:
    """JAX's client of the CPU devices, with collectives that listen on `host`."""
    of_runtime = distributed.global_state.client
    return xla_bridge.make_cpu_client(_jax.make_gloo_tcp_collectives(of_runtime, hostname=host))


def _join(
    address: str | None = None, num: int | None = None, index: int | None = None, **options: Any
) -> None:
    flag = "--xla_cpu_collective_timeout_seconds"
    if flag not in (flags := os.environ.get("XLA_FLAGS", "")):  # without it, for ever
        os.environ["XLA_FLAGS"] = f"{flags} {flag}={COLLECTIVE_TIMEOUT}".strip()
    jax.distributed.initialize(
        address,
        num,
        index,
        shutdown_timeout_seconds=PARTING,
        heartbeat_timeout_seconds=HEARTBEAT,
        **options,
    )


def is_main() -> bool:
    """Whether this process writes the files that are written once."""
    return jax.process_index() == 0


def decided_by_main(action: Callable[[], None], within: float) -> None:
    """Runs at the main process alone what may refuse to go on, which then holds for all.

    Args:
        action: what the main process does.
        within: seconds that the others wait for its result.

    Raises:
        ValueError: at all processes, with the main one's message, if it raises one or an OSError;
            at the others also if there is no result in time.
    """
    store, place = Store("jaxdist/decisions"), next(_DECISIONS)
    if is_main():
        refusal = "process 0 has ended"
        try:
            action()
            refusal = ""
        except (ValueError, OSError) as error:
            refusal = str(error)
            raise
        finally:
            store.set(place, refusal)
    elif refusal := store.get(place, 0, within):
        raise ValueError(refusal)
    elif refusal is None:
        raise ValueError(f"process 0 did not say within {within:g} s whether the run may begin")


def barrier(name: str) -> None:
    """Waits until every process has come here."""
    multihost_utils.sync_global_devices(name)


def leave(status: int) -> None:
    """Ends this process at once if it is one of several: JAX's own way out waits for the others."""
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        os._exit(status)


class Store:
    """Counters and marks that all processes share, in the key-value store of JAX's runtime.

    Args:
        name: keeps what it holds apart from other stores; the same on all processes.
    """

    def __init__(self, name: str):
        # The runtime's client has no public name (jax 0.10), nor have the detection of a TPU slice
        # and the CPU client above; this is the only file that knows of them.
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

    def barrier(self, place: str, seconds: float) -> None:
        """Waits until every process has come to `place`, where each comes once.

        Raises:
            TimeoutError: if some have not come after `seconds`, with their indices.
        """
        self.set(place)
        deadline = time.monotonic() + seconds
        missing = [
            i
            for i in range(jax.process_count())
            if self.get(place, i, deadline - time.monotonic()) is None
        ]
        if missing:
            raise TimeoutError(_late(missing, place, seconds))

    def set(self, place: str | int, text: str = "") -> None:
        """Leaves a text of this process at `place`, where it left none before."""
        if self._client is not None:
            self._client.key_value_set(self._mark(place, jax.process_index()), text)

    def get(self, place: str | int, process: int, seconds: float) -> str | None:
        """The text that a process leaves at `place`; None if it has not after `seconds`."""
        if self._client is None:
            return ""
        mark, milliseconds = self._mark(place, process), round(1000 * seconds)
        try:
            if milliseconds > 0:
                return self._client.blocking_key_value_get(mark, milliseconds)
            return self._client.key_value_try_get(mark)
        except jax.errors.JaxRuntimeError as error:
            if not any(kind in str(error) for kind in ("DEADLINE_EXCEEDED", "NOT_FOUND")):
                raise
        return None

    def take_back(self, place: str | int) -> None:
        """Removes this process's own text at `place`, if there is one."""
        if self._client is not None:
            self._client.key_value_delete(self._mark(place, jax.process_index()))

    def _mark(self, place: str | int, process: int) -> str:
        return f"{self._name}/{place}/{process}"


def _late(missing: Sequence[int], place: str, seconds: float) -> str:
    who = ", ".join(map(str, missing))
    return f"process {who} of {jax.process_count()} did not come to {place} within {seconds:g} s"


def _check_open_mpi() -> None:
    if int(os.environ.get(_MPI[0], 1)) > 1 and "OMPI_MCA_orte_hnp_uri" not in os.environ:
        raise ValueError(
            "under Open MPI 5 JAX does not know where rank 0 is; set "
            "JAX_COORDINATOR_ADDRESS=HOST:PORT, where HOST is its machine, on all ranks"
        )


def _tasks() -> int:
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
    slurm, mpi = (os.environ.get(n, "1") for n in ("SLURM_STEP_NUM_TASKS", _MPI[0]))
    return max(len(hosts), int(slurm), int(mpi))
