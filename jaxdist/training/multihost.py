"""Several processes in one run: joining, the main one, waiting for each other."""

import os

import jax
from jax.experimental import multihost_utils

_JOIN = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def initialize() -> None:
    """Joins the other processes if the environment tells of any; call it before JAX starts.

    Where `JAX_COORDINATOR_ADDRESS` (`host:port`), `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` are set
    it joins as they say; in a Slurm step or under Open MPI with several tasks, and on a TPU slice
    whose hosts are listed in `TPU_WORKER_HOSTNAMES`, as JAX detects. Otherwise it does nothing.

    Raises:
        ValueError: if only some of the three variables are set, or a number is no integer.
    """
    given = {name: os.environ[name] for name in _JOIN if os.environ.get(name)}
    if not given:
        if _tasks() > 1:
            jax.distributed.initialize()
        return
    if missing := [name for name in _JOIN if name not in given]:
        raise ValueError(f"{', '.join(given)} set without {', '.join(missing)}: set all or none")
    for name in _JOIN[1:]:
        if not given[name].isdigit():
            raise ValueError(f"{name}={given[name]!r}: allowed are integers from 0")
    address, num, index = given.values()
    jax.distributed.initialize(address, int(num), int(index))


def is_main() -> bool:
    """Whether this process writes the files that are written once."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process has come here."""
    multihost_utils.sync_global_devices(name)


def _tasks() -> int:
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
    slurm, mpi = (os.environ.get(n, "1") for n in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"))
    return max(len(hosts), int(slurm), int(mpi))
