"""PyHessian's measures of ResNet-20 in PyTorch: the peer of the sharpness benchmark.

Written from the published description (Yao, Gholami, Keutzer, Mahoney, PyHessian: Neural Networks
Through the Lens of the Hessian, 2020) and its documented defaults: products by differentiating the
gradient a second time, of one batch with the gradient's graph kept, of several with a new one for
each batch and product; power iteration; Hutchinson's estimator; Lanczos with reorthogonalisation.
Its own rules stop when a value stands still, which may be far from it; here they stop at a given
accuracy. The file is also the process that does it; only it imports torch.
"""

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

PATIENCE = 5.0  # seconds that the process has to end by itself


class TorchHessian:
    """The process: started once, asleep between two requests.

    Args:
        arrays: parameters and running statistics by name, "blocks/0/body/1/conv/kernel", in JAX's
            layouts.
        images: float32 `[batches, B, H, W, C]`.
        labels: integers `[batches, B]`.

    Raises:
        ValueError: if torch is not installed.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], images: np.ndarray, labels: np.ndarray):
        if importlib.util.find_spec("torch") is None:
            raise ValueError("torch is not installed: pip install torch, or jaxdist[bench]")
        self._folder = tempfile.TemporaryDirectory(prefix="torch_hessian_")
        folder = Path(self._folder.name)
        np.savez(folder / "arrays.npz", **arrays)
        np.savez(folder / "data.npz", images=images, labels=labels)

    def __enter__(self) -> "TorchHessian":
        from jaxdist.launch.children import Children  # not in the process: it is this file

        self._children = Children().__enter__()
        self._process = self._children.start(
            [sys.executable, __file__, self._folder.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *error) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()  # which ends it
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(PATIENCE)
        self._children.__exit__(*error)
        self._folder.cleanup()

    def __call__(self, measure: str, **options: Any) -> dict[str, Any]:
        """One of `MEASURES`: its "value", "error" if it has one, and the number of "products"."""
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps([measure, options]), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError("the PyTorch side has ended")
        return json.loads(answer)

    def product(self, vector: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The Hessian's product with a vector like the parameters, in JAX's layouts."""
        folder = Path(self._folder.name)
        np.savez(folder / "vector.npz", **vector)
        self("product")
        return dict(np.load(folder / "product.npz"))


class Hessian:
    """Products with the Hessian of the mean loss over all batches; PyTorch's part begins here."""

    def __init__(self, loss: Callable, params: Sequence, batches: Sequence):
        self._loss, self._batches, self._kept = loss, batches, None
        self.params, self.products = params, 0

    def gradient(self, batch):
        """The gradient with its graph."""
        import torch

        return torch.autograd.grad(self._loss(batch), self.params, create_graph=True)

    def start(self) -> None:
        """Forgets what was kept: of one batch the next measure computes the gradient anew."""
        self._kept, self.products = None, 0

    def __call__(self, v: Sequence) -> list:
        """H v."""
        import torch

        self.products += 1
        second = lambda grad, keep: torch.autograd.grad(
            grad, self.params, grad_outputs=v, retain_graph=keep
        )
        if len(self._batches) == 1:
            if self._kept is None:
                self._kept = self.gradient(self._batches[0])
            return list(second(self._kept, True))
        total = [torch.zeros_like(p) for p in self.params]
        for batch in self._batches:  # of one size
            torch._foreach_add_(total, second(self.gradient(batch), False))
        torch._foreach_div_(total, len(self._batches))
        return total


def eigenvalue(hessian: Hessian, *, near: float, within: float, most: int) -> dict[str, float]:
    """The eigenvalue of the largest magnitude, by power iteration until it is near to a value."""
    v = _normalized(_normal(hessian.params))
    for _ in range(most):
        product = hessian(v)
        value = _dot(v, product)
        v = _normalized(product)
        if abs(value - near) <= within * abs(near):
            break
    return {"value": value}


def trace(hessian: Hessian, *, error: float, most: int, least: int = 10) -> dict[str, float]:
    """The trace by random signs, until its standard error is so small; at least `least` of them."""
    estimates = []
    while len(estimates) < most:
        v = _signs(hessian.params)
        estimates.append(_dot(v, hessian(v)))
        if len(estimates) >= least and _estimate(estimates)["error"] <= error:
            break
    return _estimate(estimates)


def dimension(hessian: Hessian, *, steps: int, samples: int, shift: float) -> dict[str, float]:
    """Sum of max(l, 0) / (max(l, 0) + shift) over the spectral density by Lanczos."""
    size, estimates = sum(p.numel() for p in hessian.params), []
    for _ in range(samples):
        values, weights = _lanczos(hessian, steps)
        values = np.maximum(values, 0)
        estimates.append(size * float(weights @ (values / (values + shift))))
    return _estimate(estimates)


def _lanczos(hessian, steps):
    """Ritz values and their weights, from random signs."""
    import torch

    basis, diagonal, off = [_normalized(_signs(hessian.params))], [], []
    for i in range(steps):
        w = hessian(basis[-1])
        diagonal.append(_dot(w, basis[-1]))
        if i + 1 == steps:
            break
        for v in (*basis, *basis[-2:]):  # all, and the last again
            torch._foreach_add_(w, v, alpha=-_dot(w, v))
        off.append(_dot(w, w) ** 0.5)
        basis.append(_normalized(w))
    values, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(off, 1) + np.diag(off, -1))
    return values, vectors[0] ** 2


def _estimate(estimates):
    error = float(np.std(estimates, ddof=1) / len(estimates) ** 0.5) if len(estimates) > 1 else None
    return {"value": float(np.mean(estimates)), "error": error}


MEASURES = {"eigenvalue": eigenvalue, "trace": trace, "dimension": dimension}


def _normal(params):
    import torch

    return [torch.randn_like(p) for p in params]


def _signs(params):
    import torch

    return [torch.randint_like(p, 2).mul_(2).sub_(1) for p in params]


def _dot(a, b):
    return sum(float((x * y).sum()) for x, y in zip(a, b, strict=True))


def _normalized(v):
    import torch

    return list(torch._foreach_div(v, _dot(v, v) ** 0.5))


def resnet20(arrays: Mapping[str, Any]) -> Callable:
    """ResNet-20 with option A in evaluation mode, as a function of images, of tensors by name."""
    from torch.nn import functional

    def normalized(x, name, stride=1):
        get = lambda part: arrays[f"{name}/{part}"]
        x = functional.conv2d(x, get("conv/kernel"), stride=stride, padding=1)
        return functional.batch_norm(
            x, *(get(f"norm/{part}") for part in ("mean", "var", "scale", "bias")), eps=1e-5
        )

    def logits(x):
        x = functional.relu(normalized(x, "stem"))
        for block in range(9):
            stride = 2 if block in (3, 6) else 1
            y = functional.relu(normalized(x, f"blocks/{block}/body/0", stride))
            y = normalized(y, f"blocks/{block}/body/1")
            x = functional.pad(
                x[:, :, ::stride, ::stride], (0, 0, 0, 0, 0, y.shape[1] - x.shape[1])
            )
            x = functional.relu(x + y)
        return functional.linear(x.mean((2, 3)), arrays["head/kernel"], arrays["head/bias"])

    return logits


def main(folder: Path) -> None:
    """Answers the requests on standard input until it is closed."""
    import torch
    from torch.nn.functional import cross_entropy

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    data = np.load(folder / "data.npz")
    images = [
        torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2))) for x in data["images"]
    ]
    labels = list(torch.from_numpy(data["labels"].astype(np.int64)))
    arrays = {k: _to_torch(a) for k, a in np.load(folder / "arrays.npz").items()}
    params = {k: a.requires_grad_() for k, a in arrays.items() if not k.endswith(("mean", "var"))}
    logits = resnet20(arrays)
    hessian = Hessian(
        lambda batch: cross_entropy(logits(batch[0]), batch[1]),
        list(params.values()),
        list(zip(images, labels, strict=True)),
    )
    for request in sys.stdin:
        measure, options = json.loads(request)
        hessian.start()
        if measure == "version":
            answer = {"value": torch.__version__}
        elif measure == "product":
            vector = np.load(folder / "vector.npz")
            product = hessian([_to_torch(vector[k]) for k in params])
            product = {k: _to_jax(h.numpy()) for k, h in zip(params, product, strict=True)}
            np.savez(folder / "product.npz", **product)
            answer = {}
        else:
            answer = MEASURES[measure](hessian, **options)
        print(json.dumps(answer | {"products": hessian.products}), flush=True)


def _to_torch(array):
    import torch

    order = {2: (1, 0), 4: (3, 2, 0, 1)}.get(array.ndim, (0,))
    return torch.from_numpy(np.ascontiguousarray(array.transpose(order)))


def _to_jax(array):
    order = {2: (1, 0), 4: (2, 3, 1, 0)}.get(array.ndim, (0,))
    return np.ascontiguousarray(array.transpose(order))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
