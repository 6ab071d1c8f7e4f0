"""MGRAWA and D-PSGD written plainly in PyTorch: the peers of the throughput benchmarks.

Eight (or W) processes with one thread each, gloo between them, the usual ways to be fast on a CPU:
channels_last, in-place ReLU, the fused optimizer, multi-tensor operations, and messages of all
parameters as one array: an all-reduce a sync for MGRAWA, and for D-PSGD one message to and from
each neighbour a step. The file is also what those processes run; only they import torch.
"""

import contextlib
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

PATIENCE = 5.0  # seconds that the processes have to end by themselves


class TorchSide:
    """The workers' processes: started once, asleep between two calls of `run`.

    Args:
        start: the parameters that all workers start from, by name as "conv1/kernel", in JAX's
            layouts (HWIO, and [in, out]).
        images: float32 `[batches, W, B, H, W, C]`; step t uses batch t modulo their number.
        labels: integers `[batches, W, B]`.
        sgd: "learning_rate" and "momentum" (Nesterov's).
        rule: one of `RULES`.
        **hyper: its hyper-parameters.

    Raises:
        ValueError: if torch is not installed.
    """

    def __init__(
        self,
        start: Mapping[str, np.ndarray],
        images: np.ndarray,
        labels: np.ndarray,
        *,
        sgd: Mapping[str, float],
        rule: str,
        **hyper: Any,
    ):
        if importlib.util.find_spec("torch") is None:
            raise ValueError("torch is not installed: pip install torch, or jaxdist[bench]")
        self._folder = tempfile.TemporaryDirectory(prefix="torch_workers_")
        folder = Path(self._folder.name)
        np.savez(folder / "start.npz", **start)
        num = images.shape[1]
        for rank in range(num):
            np.savez(folder / f"data{rank}.npz", images=images[:, rank], labels=labels[:, rank])
        setting = {"sgd": dict(sgd), "rule": rule, "hyper": hyper}
        self._num = num
        self._command = [sys.executable, __file__, str(folder), str(num), json.dumps(setting)]

    def __enter__(self) -> "TorchSide":
        from jaxdist.launch.children import Children  # not in the processes: they are this file

        self._children = Children().__enter__()
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._processes = [
            self._children.start([*self._command, str(rank)], **pipes) for rank in range(self._num)
        ]
        return self

    def __exit__(self, *error) -> None:
        for process in self._processes:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()  # which ends it
        deadline = time.monotonic() + PATIENCE
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
        self._children.__exit__(*error)
        self._folder.cleanup()

    def run(self, steps: int) -> float:
        """All workers take `steps` more steps; returns the seconds until the last is done."""
        start = time.perf_counter()
        self._ask(f"run {steps}")
        return time.perf_counter() - start

    def weights(self) -> list[dict[str, np.ndarray]]:
        """The parameters of each worker, named and laid out as those at the start."""
        self._ask("save")
        folder = Path(self._folder.name)
        return [dict(np.load(folder / f"saved{rank}.npz")) for rank in range(len(self._processes))]

    def version(self) -> str:
        """The version of torch."""
        return self._ask("version")[0]

    def _ask(self, request: str) -> list[str]:
        for process in self._processes:
            with contextlib.suppress(BrokenPipeError):
                print(request, file=process.stdin, flush=True)
        answers = [process.stdout.readline().strip() for process in self._processes]
        if not all(answers):
            raise RuntimeError(f"worker {answers.index('')} of the PyTorch side has ended")
        return answers


def worker(folder: Path, num: int, setting: Mapping[str, Any], rank: int) -> None:
    """One worker: answers the requests on standard input until it is closed."""
    import torch
    import torch.distributed as dist
    from torch import nn
    from torch.nn import functional

    torch.set_num_threads(1)
    where = f"file://{folder / 'rendezvous'}"
    dist.init_process_group("gloo", init_method=where, rank=rank, world_size=num)
    data = np.load(folder / f"data{rank}.npz")
    images = [
        torch.from_numpy(x).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
        for x in data["images"]
    ]
    labels = list(torch.from_numpy(data["labels"].astype(np.int64)))

    start = dict(np.load(folder / "start.npz"))
    layers = nn.ModuleDict()
    for name in ("conv1", "conv2", "dense", "head"):
        kernel = start[f"{name}/kernel"]
        if kernel.ndim == 4:
            layers[name] = nn.Conv2d(*kernel.shape[2:], kernel.shape[0], padding="same")
        else:
            layers[name] = nn.Linear(*kernel.shape)
        layers[name].weight.data = torch.from_numpy(_swap(kernel, to_torch=True))
        layers[name].bias.data = torch.from_numpy(start[f"{name}/bias"])
    layers = layers.to(memory_format=torch.channels_last)
    conv1, conv2, dense, head = layers.values()
    params = list(layers.parameters())
    optimizer = torch.optim.SGD(
        params,
        lr=setting["sgd"]["learning_rate"],
        momentum=setting["sgd"]["momentum"],
        nesterov=True,
        fused=True,
    )
    communicate = torch.no_grad()(RULES[setting["rule"]](params, **setting["hyper"]))
    done = 0

    def logits(x):
        x = functional.max_pool2d(functional.relu_(conv1(x)), 2)
        x = functional.max_pool2d(functional.relu_(conv2(x)), 2)
        return head(functional.relu_(dense(x.permute(0, 2, 3, 1).flatten(1))))

    def step():
        nonlocal done
        batch = done % len(images)
        optimizer.zero_grad()
        functional.cross_entropy(logits(images[batch]), labels[batch]).backward()
        optimizer.step()
        communicate()
        done += 1

    for request in sys.stdin:
        what, *steps = request.split()
        answer = "done"
        if what == "run":
            for _ in range(int(steps[0])):
                step()
        elif what == "save":
            saved = {}
            for name, layer in layers.items():
                saved[f"{name}/kernel"] = _swap(layer.weight.detach().numpy(), to_torch=False)
                saved[f"{name}/bias"] = layer.bias.detach().numpy()
            np.savez(folder / f"saved{rank}.npz", **saved)
        else:
            answer = torch.__version__
        print(answer, flush=True)


def mgrawa(
    params: Sequence, *, period: int, strength: float, prox: float, decay: float
) -> Callable[[], None]:
    """MGRAWA: what a worker does after each step of its optimizer."""
    import torch
    import torch.distributed as dist

    center = [p.detach().clone() for p in params]
    norm, count = torch.zeros(()), 0

    def sync():
        u = 1 / (norm / (1 - decay**count)).clamp(min=1e-12)
        flat = torch.cat([*(p.flatten() for p in params), torch.ones(1)]).mul_(u)
        dist.all_reduce(flat)
        mean = (flat[:-1] / flat[-1]).split([p.numel() for p in params])
        torch._foreach_copy_(center, [m.view(p.shape) for m, p in zip(mean, params, strict=True)])
        torch._foreach_lerp_(params, center, strength)

    def communicate():
        nonlocal norm, count
        total = torch.stack(torch._foreach_norm([p.grad for p in params])).sum()
        norm, count = decay * norm + (1 - decay) * total, count + 1
        torch._foreach_lerp_(params, center, prox / period)
        if count == period:
            sync()
            norm, count = torch.zeros(()), 0

    return communicate


def dpsgd(params: Sequence, *, matrix: Sequence[Sequence[float]]) -> Callable[[], None]:
    """D-PSGD over any undirected graph, x_i <- sum_j matrix[i][j] x_j, likewise."""
    import torch
    import torch.distributed as dist

    sizes = [p.numel() for p in params]
    flat = torch.empty(sum(sizes))
    for p, part in zip(params, flat.split(sizes), strict=True):  # parameters become views of it
        p.data = part.as_strided(p.shape, p.stride()).copy_(p.data)
    me = dist.get_rank()
    received = {j: torch.empty_like(flat) for j, w in enumerate(matrix[me]) if w and j != me}
    messages = [dist.P2POp(dist.irecv, x, j) for j, x in received.items()]
    messages += [dist.P2POp(dist.isend, flat, j) for j in received]

    def communicate():
        for message in dist.batch_isend_irecv(messages):
            message.wait()
        flat.mul_(matrix[me][me])
        for j, x in received.items():
            flat.add_(x, alpha=matrix[me][j])

    return communicate


RULES = {"mgrawa": mgrawa, "dpsgd": dpsgd}


def _swap(kernel: np.ndarray, *, to_torch: bool) -> np.ndarray:
    """A kernel from JAX's layout to PyTorch's, or back."""
    order = (1, 0) if kernel.ndim == 2 else (3, 2, 0, 1) if to_torch else (2, 3, 1, 0)
    return np.ascontiguousarray(kernel.transpose(order))


if __name__ == "__main__":
    folder, num, setting, rank = sys.argv[1:]
    worker(Path(folder), int(num), json.loads(setting), int(rank))
