"""Where the workers of a run are, of the devices that there are."""

import jax

from jaxdist.config.config import Config


def places(config: Config) -> list[list[jax.Device]]:
    """Where the workers are, and where averages overlap with their steps.

    All devices; of a CPU's forced ones, which may be too many, one for each worker's part.
    Averages that overlap get the second half of each process's.
    """
    by_process: dict[int, list[jax.Device]] = {}
    for device in jax.devices():
        by_process.setdefault(device.process_index, []).append(device)
    if jax.default_backend() == "cpu" and len(by_process) == 1:
        by_process = {0: by_process[0][: config.devices]}
    num, each = sum(map(len, by_process.values())), config.devices_per_worker
    of = f"{num} devices" + f" of {len(by_process)} processes" * (len(by_process) > 1)
    if num % each:
        raise ValueError(
            f"mesh.fsdp={config.mesh.fsdp}, overlap={config.overlap!r} on {of}: allowed is what "
            f"divides them; each worker takes {each}"
        )
    if config.workers % (num // each):
        raise ValueError(
            f"workers={config.workers} on {of}: allowed are multiples of {num // each}, or 0 for "
            f"{num // each} workers"
        )
    if config.overlap == "inside":
        return [[device for devices in by_process.values() for device in devices]]
    if odd := [process for process, devices in by_process.items() if len(devices) % 2]:
        raise ValueError(
            f"overlap='devices' with {len(by_process[odd[0]])} devices of process {odd[0]}: "
            f"allowed are even numbers, half of them for the workers"
        )
    cut = lambda devices: (devices[: len(devices) // 2], devices[len(devices) // 2 :])
    halves = zip(*map(cut, by_process.values()), strict=True)
    return [[device for devices in half for device in devices] for half in halves]
