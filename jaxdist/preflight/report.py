"""What a run will do on a machine: its programs, their estimates, and whether it fits."""

import dataclasses
import math
from typing import Any

import numpy as np

from jaxdist.preflight.estimate import Estimate, estimate, link, sent
from jaxdist.preflight.programs import HORIZON, Program, bytes_by_step, compile_programs
from jaxdist.preflight.targets import Target
from jaxdist.training import Run
from jaxdist.training.due import traffic_of


@dataclasses.dataclass(frozen=True)
class Report:
    """What `preflight` found.

    Attributes:
        target: the machine.
        workers: W.
        chips_per_worker: over which a worker is split.
        batch_size: examples of a worker and step.
        programs: what was compiled.
        syncs: bytes that a worker sends on average at a step, over those that it sends at the
            largest sync.
    """

    target: Target
    workers: int
    chips_per_worker: int
    batch_size: int
    programs: tuple[Program, ...]
    syncs: float

    @property
    def estimates(self) -> dict[str, Estimate]:
        """The roofline of each program."""
        return {program.name: estimate(program, self.target.chip) for program in self.programs}

    @property
    def largest(self) -> Program:
        """The program that needs the most memory."""
        return max(self.programs, key=lambda program: program.memory.total)

    @property
    def missing(self) -> int:
        """The bytes by which the largest program exceeds a chip's memory; 0 if it fits."""
        return max(self.largest.memory.total - self.target.chip.memory, 0)

    @property
    def step_seconds(self) -> float:
        """The estimate of a step on average, with its part of the syncs."""
        of = self.estimates
        if "sync" not in of:
            return of["local step"].seconds
        local = of["local step"].seconds if "local step" in of else 0.0
        return local + self.syncs * (of["sync"].seconds - local)

    @property
    def communication(self) -> float:
        """The share of a step's time, on average, in which nothing is done but to send."""
        of = self.estimates
        exposed = {name: of[name].exposed if name in of else 0.0 for name in ("local step", "sync")}
        rest = self.syncs * (exposed["sync"] - exposed["local step"])
        return (exposed["local step"] + rest) / self.step_seconds

    def remedies(self) -> list[str]:
        """Settings near this one that would fit, as flags; estimates, none if it fits."""
        memory, room = self.largest.memory, self.target.chip.memory
        if not self.missing:
            return []
        fixed, varying = memory.parameters + memory.states + memory.code, memory.batch
        varying += memory.temporaries
        found = []
        if fixed < room and self.largest.steps:
            parts = math.ceil(varying / (room - fixed))
            divisors = [n for n in range(parts, self.batch_size + 1) if self.batch_size % n == 0]
            if divisors:
                found.append(f"--microbatches {divisors[0]}")
                found.append(f"--batch_size {self.batch_size // divisors[0]}")
        chips = len(self.target.devices)
        for inside in range(2 * self.chips_per_worker, chips + 1):
            scale = self.chips_per_worker / inside
            if chips % inside == 0 and scale * memory.total <= room:
                found.append(f"--mesh.fsdp {inside} (and {chips // inside} workers)")
                break
        return found

    def clock(self) -> dict[str, float]:
        """The same estimates as `jaxdist.clock` takes them: a step, and the slowest link used."""
        of = self.estimates
        name = "local step" if "local step" in of else "sync"
        between = any(s.between for program in self.programs for s in program.sendings)
        slowest = link(self.target.chip, between)
        compute = max(of[name].matrix, of[name].memory)
        return {
            "step_seconds": compute,
            "latency": slowest.latency,
            "bandwidth": slowest.bandwidth,
        }

    def plain(self) -> dict[str, Any]:
        """All of it in JSON types."""
        programs = {}
        for program in self.programs:
            of = self.estimates[program.name]
            programs[program.name] = {
                "steps": program.steps,
                "compile_seconds": program.seconds,
                "memory": dataclasses.asdict(program.memory) | {"total": program.memory.total},
                "flops": program.flops,
                "bytes_accessed": program.accessed,
                "matrix_products": program.products,
                "share_of_peak": of.share_of_peak,
                "sent_inside": sent(program.sendings, between=False),
                "sent_between": sent(program.sendings, between=True),
                "collectives": [
                    {
                        "kind": s.collective.kind,
                        "bytes": s.collective.bytes,
                        "members": s.collective.members,
                        "between": s.between,
                        "asynchronous": s.overlapped is not None,
                        "products_meanwhile": s.overlapped or 0,
                    }
                    for s in program.sendings
                ],
                "estimate": dataclasses.asdict(of) | {"seconds": of.seconds},
            }
        return {
            "on": self.target.name,
            "chips": len(self.target.devices),
            "chip": dataclasses.asdict(self.target.chip),
            "workers": self.workers,
            "chips_per_worker": self.chips_per_worker,
            "batch_size": self.batch_size,
            "programs": programs,
            "step_seconds": self.step_seconds,
            "communication": self.communication,
            "fits": not self.missing,
            "missing_bytes": self.missing,
            "remedies": self.remedies(),
            "clock": self.clock(),
        }


def preflight(run: Run, target: Target) -> Report:
    """Compiles a run's programs for a machine, and reads what they will do there.

    Args:
        run: built on `target.devices`, as `jaxdist.config.build(config, target.devices)`.
        target: the machine.

    Raises:
        ValueError: if the rule does not fit the workers.
        jax.errors.JaxRuntimeError: what the machine's compiler refuses.
    """
    traffic = traffic_of(run)
    sent_at = bytes_by_step(traffic, np.arange(min(run.steps, HORIZON)))
    most = sent_at.max(initial=0)
    mesh = run.workers.mesh
    return Report(
        target=target,
        workers=run.workers.num,
        chips_per_worker=mesh.size // mesh.shape["worker"],
        batch_size=run.batch_size,
        programs=tuple(compile_programs(run, traffic)),
        syncs=float(sent_at.mean() / most) if most else 0.0,
    )
