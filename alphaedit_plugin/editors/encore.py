"""ENCORE (Gupta et al. 2025, "Lifelong Knowledge Editing requires Better Regularization", arXiv 2502.01636)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from ..errors import HyperparameterError
from .hyperparameters import Hyperparameters, TargetSettings
from .memit import MEMITSequential
from .preserved import Preserved
from .registry import method
from .ridge import Memory
from .whitening import Whitening


@method(
    "encore",
    summary="memit-seq with a bound on ‖Δ‖, and targets that stop as soon as the model says the object",
    source="Gupta et al. 2025, arXiv 2502.01636",
    folder="MEMIT",
)
class ENCORE(MEMITSequential):
    """Δ = R K1ᵀ (λC + λ_p KpKpᵀ + λ_n I + K1K1ᵀ)⁻¹, λ = `mom2_update_weight`: the Frobenius norm ‖Δ‖² costs λ_n.

    With LLᵀ = λC + λ_n I it is R (I + λ_p K'pK'pᵀ + K'1K'1ᵀ)⁻¹K'1 in whitened keys K' = L⁻¹K.

    `most_probable` stops a target as soon as every token of the object is the most probable one in all contexts
    (`targets.py`).

    The authors' code (github.com/scalable-model-editing/encore) has no λ_p, which is 1, as here by default; its λ_n is
    20 on Llama-3-8B and 10 on GPT-2 XL. It stops a target when it has been most probable for the second (Llama-3) or
    fourth time, and counts five tokens in all contexts but the bare prompt, so that objects of several tokens never
    stop early; the paper says when the object is most probable, which is what we do.
    """

    settings: ClassVar[Mapping[str, Any]] = {
        **MEMITSequential.settings,
        "lambda_p": 1.0,
        "lambda_n": 10.0,
        "most_probable": True,
    }

    @classmethod
    def adapted(cls, hyperparameters: Hyperparameters, name: str) -> Hyperparameters:
        for key in ("lambda_p", "lambda_n"):
            if hyperparameters.own.get(key, 0.0) < 0:
                raise HyperparameterError(f"{name}: {key} must not be negative, not {hyperparameters.own[key]:g}")
        return super().adapted(hyperparameters, name)

    def prepare(self, preserved: Preserved) -> None:
        self.whitening = Whitening(preserved.covariances, self.projections, self._metric)

    def _metric(self, covariance: Tensor) -> Tensor:
        metric = self.hyperparameters.mom2_update_weight * covariance
        metric.diagonal().add_(self.own["lambda_n"])
        return metric

    @property
    def regularisation(self) -> float:
        return 1.0

    @property
    def target_settings(self) -> TargetSettings:
        return replace(super().target_settings, most_probable=self.own["most_probable"])

    def _ridge(self, layer: int) -> Memory:
        return self.memory.get(layer) or Weighted(super()._ridge(layer), self.own["lambda_p"] ** 0.5)


@dataclass(frozen=True)
class Weighted:
    """A memory whose keys K count as `root` · K once they are no longer new."""

    memory: Memory
    root: float

    @property
    def count(self) -> int:
        return self.memory.count

    def add(self, new: Tensor) -> tuple[Tensor, Weighted]:
        solution, grown = self.memory.add(new)
        if self.root != 1.0:
            grown = self.memory.add(self.root * new)[1]
        return solution, replace(self, memory=grown)

    def truncated(self, count: int) -> Weighted:
        return replace(self, memory=self.memory.truncated(count))

    def weights(self) -> Tensor:
        return self.memory.weights()
