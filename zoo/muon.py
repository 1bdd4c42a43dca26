"""Muon: momentum whose update is orthogonalised, for the matrices inside a network.

Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024). PyTorch has one since 2.9, which
works in bfloat16, matrix by matrix; on a CPU and with many small matrices, float32 and one batched product for all
matrices of one shape are several times faster.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

_A, _B, _C = 3.4445, -4.7750, 2.0315
"""The quintic of the Newton-Schulz iteration: slopes high at zero, stays within about 0.7..1.2 near one."""


def orthogonalize(matrices: Tensor, iterations: int = 5) -> Tensor:
    """The orthogonal matrices nearest to these, roughly: singular values end between about 0.7 and 1.2.

    Args:
        matrices: float32 [n, rows, columns].
        iterations: of the quintic Newton-Schulz iteration.

    Returns:
        float32 [n, rows, columns].
    """
    wide = matrices.mT if matrices.shape[-2] > matrices.shape[-1] else matrices
    x = wide / (wide.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    result: Tensor = x.mT if matrices.shape[-2] > matrices.shape[-1] else x
    return result


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay.

    Args:
        matrices: float32 parameters of two dimensions.
        lr: step size; the update's root mean square is about ``lr`` × sqrt(max(1, rows / columns) / columns).
        momentum: of the running gradient.
        weight_decay: share of a weight that a step of ``lr`` 1 removes.
    """

    def __init__(
        self, matrices: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.01
    ) -> None:
        by_shape: dict[tuple[int, ...], list[Tensor]] = {}
        for matrix in matrices:
            by_shape.setdefault(tuple(matrix.shape), []).append(matrix)
        groups = [{"params": same} for same in by_shape.values()]
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update every matrix by its orthogonalised momentum.

        Raises:
            ValueError: a closure is given; none is supported.
        """
        if closure is not None:
            raise ValueError("Muon takes no closure: compute the gradients before the step.")
        for group in self.param_groups:
            matrices: list[Tensor] = group["params"]
            gradients = torch.stack([matrix.grad for matrix in matrices if matrix.grad is not None])
            state = self.state[matrices[0]]
            if not state:
                state["momentum"] = torch.zeros_like(gradients)
            running: Tensor = state["momentum"]
            running.lerp_(gradients, 1 - group["momentum"])
            updates = orthogonalize(gradients.lerp(running, group["momentum"]))
            rows, columns = gradients.shape[-2:]
            scale = -group["lr"] * max(1.0, rows / columns) ** 0.5
            for matrix, update in zip(matrices, updates, strict=True):
                matrix.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=scale)
