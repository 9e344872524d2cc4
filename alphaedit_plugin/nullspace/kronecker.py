"""The directions of a weight in which the loss on preserved text is flat, chosen on both sides at once (CrispEdit)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import NullSpaceError
from ..model.decoder import Decoder
from ..storage.store import Store
from .covariance import Covariance
from .curvature import prepare_output_gradients
from .null_spaces import Spaces
from .projection import Criterion
from .statistics import Statistics, prepare_statistics

FLAT = Criterion(energy=0.1)


@dataclass(frozen=True)
class Kronecker:
    """ΔW → U_out((U_outᵀ ΔW U_in) ⊙ 1[λ_out,i λ_in,j < γ])U_inᵀ (CrispEdit, arXiv 2602.15823).

    λ_in and U_in are the eigenvalues and eigenvectors of C, the covariance of the inputs, λ_out and U_out those of B,
    the covariance of the loss's gradients with respect to the outputs. λ_out,i λ_in,j is then the curvature of the loss
    in the direction u_i u_jᵀ, as far as B ⊗ C describes it.

    Invariant: it is an orthogonal projection of matrices (linear, idempotent, symmetric under ⟨X, Y⟩ = tr XᵀY), so a
    guard that projects twice projects once. It is no product of a projection on the left with one on the right.

    Kept is what the projection takes out, ΔW − left((leftᵀ ΔW right) ⊙ spared)rightᵀ: `left`, d_out × a, and `right`,
    d_in × b, float32, hold only the eigenvectors that a direction with λ_out,i λ_in,j ≥ γ needs, and `spared`, a × b,
    says which of their pairs are such a direction. `leakage` is the share of Σ λ_out,i λ_in,j, all of it, that lies in
    the directions which may be written.
    """

    left: Tensor
    right: Tensor
    spared: Tensor
    leakage: float

    @classmethod
    def of(
        cls,
        inputs: Covariance | Tensor,
        outputs: Covariance | Tensor,
        criterion: Criterion = FLAT,
        *,
        name: str = "the layer",
    ) -> Kronecker:
        """From C (`inputs`, d_in × d_in) and B (`outputs`, d_out × d_out), decided in float64.

        `criterion` is asked about the d_out·d_in products λ_out,i λ_in,j. Its `threshold` is γ itself, which depends on
        the model and on the unit of the loss; its `nullity` counts directions of the matrix. With `energy` the smallest
        products are written to that together hold at most this share of tr(B)·(tr(C) − λ_in,max): as for a null space,
        the largest input direction does not count to the whole, since an attention sink would be nearly all of it. (The
        authors' code spares the largest products that together hold a given share, 0.99 in its YAML of Llama 3, and
        counts all. The paper itself was not at hand.)

        Raises NullSpaceError if a factor is not finite, or if no direction or every direction may be written.
        """
        (values_out, left), (values_in, right) = (
            _eigen(each, f"the {kind} covariance of {name}") for each, kind in ((outputs, "gradient"), (inputs, "key"))
        )
        products = torch.outer(values_out, values_in.to(values_out.device))
        ascending = products.flatten().sort().values
        if criterion.energy is not None:
            whole = values_out.sum() * values_in[:-1].sum().to(values_out.device)
            count = int((ascending.cumsum(0) <= criterion.energy * whole).sum())
        else:
            count = criterion.nullity_of(ascending)
        spared = products >= ascending[min(count, len(ascending) - 1)]
        if count >= len(ascending) or spared.all():
            raise NullSpaceError(
                f"{'nothing' if count < len(ascending) else 'everything'} is flat in {name} at {criterion}: its "
                f"curvatures go from {ascending[0]:.3g} over {ascending.median():.3g} to {ascending[-1]:.3g}. Choose "
                f"a {'larger' if count < len(ascending) else 'smaller'} value, or a relative criterion (energy or "
                "nullity)"
            )
        rows, columns = spared.any(1), spared.any(0)
        return cls(
            left[:, rows].to(torch.float32),
            right[:, columns.to(right.device)].to(torch.float32),
            spared[rows][:, columns],
            float(products[~spared].sum() / ascending.sum()),
        )

    @property
    def d_in(self) -> int:
        return self.right.shape[0]

    @property
    def d_out(self) -> int:
        return self.left.shape[0]

    @property
    def nullity(self) -> int:
        """The dimension of the space of matrices that may be written, of d_out·d_in."""
        return self.d_out * self.d_in - int(self.spared.sum())

    def project(self, delta: Tensor) -> Tensor:
        """What of Δ, d_out × d_in, may be written; in float32 or better, in Δ's type and on Δ's device.

        Raises NullSpaceError if Δ has another shape.
        """
        if delta.shape != (self.d_out, self.d_in):
            raise NullSpaceError(
                f"an update of shape {tuple(delta.shape)} is not d_out × d_in = {self.d_out} × {self.d_in}"
            )
        x = delta.to(torch.promote_types(delta.dtype, torch.float32))
        left, right, spared = self.left.to(x), self.right.to(x), self.spared.to(x.device)
        return (x - left @ ((left.T @ x @ right) * spared) @ right.T).to(delta.dtype)

    def to(self, device: torch.device | str) -> Kronecker:
        return replace(self, left=self.left.to(device), right=self.right.to(device), spared=self.spared.to(device))


def _eigen(covariance: Covariance | Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending, none below zero, and eigenvectors, float64. Raises NullSpaceError if it is not finite."""
    matrix = (covariance.matrix if isinstance(covariance, Covariance) else covariance).to(torch.float64)
    if not torch.isfinite(matrix.sum()):
        raise NullSpaceError(f"{name} is not finite: compute it again")
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    return values.clamp_min(0), vectors


@dataclass(frozen=True)
class LowCurvature(Spaces[Kronecker]):
    """layer → Kronecker, for one model: what keeps a training loop, of whatever kind, off what the model knows.

        spaces = LowCurvature.prepare(model, tokenizer, layers=[4, 5, 6], energy=0.1)
        with guard(model, spaces):
            trainer.train()

    Every write of the optimiser is projected, so ΔW as a whole stays in the directions that are flat for the text. (The
    authors' code projects the gradient, which Adam then divides entry by entry, so that ΔW leaves them.) The guard
    holds the out-projections of `layers` only: freeze what else the trainer should not change.

    `provenance` is as in `Spaces`. Its fingerprints are of the weights below each layer, while gradients depend on all:
    that a layer above has changed is not noticed.
    """

    @classmethod
    def prepare(
        cls,
        model: nn.Module,
        tokenizer: Any,
        layers: Sequence[int],
        *,
        threshold: float | None = None,
        energy: float | None = None,
        nullity: float | None = None,
        corpus: str | Path | None = None,
        tokens: int | None = None,
        template: str | None = None,
        store: Store | None = None,
        progress: bool = False,
    ) -> LowCurvature:
        """Both covariances of `layers`, from the cache or computed once, and the directions that are flat in both.

        One of `threshold` (γ), `energy` (the default: 0.1) and `nullity` says which, as in `Kronecker.of`. All else is
        as in `NullSpaces.prepare`. The text is read twice; with gradients, its beginning only
        (`prepare_output_gradients`).

        Raises ModelStructureError, StatisticsError, CorpusError or NullSpaceError, each naming the remedy.
        """
        criterion = Criterion.given(FLAT, threshold=threshold, energy=energy, nullity=nullity)
        decoder, store = Decoder.of(model, template), store or Store()
        inputs = prepare_statistics(
            decoder, tokenizer, layers, source=corpus, tokens=tokens, store=store, progress=progress
        )
        outputs = prepare_output_gradients(
            decoder, tokenizer, layers, source=corpus, tokens=tokens, store=store, progress=progress
        )
        return cls.of(inputs, outputs, criterion)

    @classmethod
    def of(cls, inputs: Statistics, outputs: Mapping[int, Covariance], criterion: Criterion = FLAT) -> LowCurvature:
        """From covariances of the inputs and of the loss's gradients with respect to the outputs, of the same layers.

        Raises NullSpaceError as `Kronecker.of` does.
        """
        spaces = {
            layer: Kronecker.of(covariance, outputs[layer], criterion, name=f"layer {layer}")
            for layer, covariance in inputs.covariances.items()
        }
        return cls(spaces, {**inputs.provenance, "criterion": str(criterion)})
