"""Optimisers and learning-rate schedules.

Owns which parameter gets which update rule and rate. `adamw` everywhere, or `muon`: orthogonalised
momentum on the hidden matrices, AdamW on embeddings, output matrix and norms.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from onpol_cli.core.config import OptimConfig, Schedule
from onpol_cli.core.errors import OnpolError
from onpol_cli.learner.parallel import like, whole


def schedule_factor(step: int, total: int, config: OptimConfig) -> float:
    """Share of the peak rate at 0-based `step` of `total`: warm-up, plateau, then decay to `final`."""
    warmup = round(config.warmup * total)
    if step < warmup:
        return (step + 1) / warmup
    if config.schedule is Schedule.constant:
        return 1.0
    start = max(warmup, round((1 - config.decay) * total))
    if step < start:
        return 1.0
    progress = min(1.0, (step - start) / max(1, total - start))
    falling = 1 - progress if config.schedule is Schedule.linear else (1 + math.cos(math.pi * progress)) / 2
    return config.final + (1 - config.final) * falling


class Optimiser:
    """One or two torch optimisers under a common schedule.

    Args:
        named: trainable parameters by name.
        outer: names that are not hidden matrices (embeddings, output matrix); matters for muon.
        config: rule, rates, schedule.
        total_steps: length of the schedule.
    """

    def __init__(
        self,
        named: Sequence[tuple[str, torch.nn.Parameter]],
        outer: Iterable[str],
        config: OptimConfig,
        total_steps: int,
    ) -> None:
        self.config = config
        self.total_steps = total_steps
        self.steps_done = 0
        self.parameters = [parameter for _, parameter in named]
        outside = set(outer)
        matrices = [p for name, p in named if p.ndim == 2 and name not in outside]
        others = [p for name, p in named if p.ndim != 2 or name in outside]
        self._parts: list[tuple[torch.optim.Optimizer, float]] = []
        if config.name == "adamw":
            self._add_adamw(matrices, others)
        elif config.name == "muon":
            self._add_muon(matrices)
            self._add_adamw([], others)
        else:
            raise OnpolError(f"optim.name={config.name!r} is unknown. Allowed: adamw, muon.")

    def _add_adamw(self, decayed: list[torch.nn.Parameter], others: list[torch.nn.Parameter]) -> None:
        config = self.config
        groups: list[dict[str, Any]] = [
            {"params": params, "weight_decay": decay}
            for params, decay in ((decayed, config.weight_decay), (others, 0.0))
            if params
        ]
        if groups:
            betas = (config.beta1, config.beta2)
            # One kernel, for shards as well; the for-each route holds a copy as large as one moment of everything.
            adamw = torch.optim.AdamW(groups, lr=config.lr, betas=betas, eps=config.eps, fused=True)
            self._parts.append((adamw, config.lr))

    def _add_muon(self, matrices: list[torch.nn.Parameter]) -> None:
        if matrices:
            rate, decay = self.config.matrix_lr, self.config.weight_decay
            self._parts.append((torch.optim.Muon(matrices, lr=rate, weight_decay=decay), rate))

    @property
    def rate(self) -> float:
        """Rate of `optim.lr` parameters at the coming step."""
        return self.config.lr * schedule_factor(self.steps_done, self.total_steps, self.config)

    def clip(self) -> Tensor:
        """Norm of the gradient before it is scaled down to `optim.clip` (0: not scaled)."""
        bound = self.config.clip if self.config.clip > 0 else math.inf
        return whole(torch.nn.utils.clip_grad_norm_(self.parameters, bound))

    def step(self) -> None:
        """One update at the scheduled rate; gradients are freed."""
        factor = schedule_factor(self.steps_done, self.total_steps, self.config)
        for optimiser, rate in self._parts:
            for group in optimiser.param_groups:
                group["lr"] = rate * factor
            optimiser.step()
        self.zero_grad()
        self.steps_done += 1

    def zero_grad(self) -> None:
        """Free all gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on exactly here."""
        return {"steps_done": self.steps_done, "parts": [optimiser.state_dict() for optimiser, _ in self._parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.steps_done = state["steps_done"]
        for (optimiser, _), part in zip(self._parts, state["parts"], strict=True):
            optimiser.load_state_dict(_cut(part, optimiser))


def _cut(state: dict[str, Any], optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """Optimiser state with whole tensors cut up as the parameters are."""
    parameters = [p for group in optimiser.param_groups for p in group["params"]]

    def cut(value: Any, parameter: torch.nn.Parameter) -> Any:
        if not isinstance(value, Tensor):
            return value
        # torch keeps step counts as they come, which would hold on to the file that they may be mapped from
        return value.clone() if value.ndim == 0 else like(value, parameter)

    moments = {
        index: {name: cut(value, parameters[index]) for name, value in of.items()}
        for index, of in state["state"].items()
    }
    return {**state, "state": moments}
