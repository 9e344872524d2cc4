"""Random covariances and null spaces that fit a tiny model, and what it means to lie inside one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from alphaedit_plugin.model.decoder import Decoder
from alphaedit_plugin.model.fingerprint import fingerprints
from alphaedit_plugin.nullspace.covariance import Covariance
from alphaedit_plugin.nullspace.null_spaces import NullSpaces
from alphaedit_plugin.nullspace.projection import Criterion, NullSpace


def rotation(d, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=generator)).Q


def matrix_with(eigenvalues, seed=0):
    q = rotation(len(eigenvalues), seed)
    return (q * torch.as_tensor(eigenvalues, dtype=torch.float64)) @ q.T


def random_covariance(d: int, seed: int = 0, tokens: int = 200) -> Covariance:
    """Of random keys whose directions differ in energy by four orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=generator, dtype=torch.float64)
    keys = torch.randn(tokens, d, generator=generator, dtype=torch.float64) @ (
        torch.logspace(-1, 1, d)[:, None] * mixing
    )
    covariance = Covariance.empty(d)
    covariance.add(keys)
    return covariance


def random_spaces(model: nn.Module, layers: Iterable[int], nullity: int = 15, *, seed: int = 0) -> NullSpaces:
    """Null spaces of `nullity` dimensions, with the model's fingerprint. 15 of 24 are kept as the range's basis."""
    projections = Decoder(model).out_projections(list(layers))
    prints = fingerprints(model, list(projections))
    spaces = {
        layer: NullSpace.of(random_covariance(p.d_in, seed + layer), Criterion(nullity=nullity))
        for layer, p in projections.items()
    }
    return NullSpaces(spaces, {"model": "tiny", "fingerprints": {str(layer): prints[layer] for layer in projections}})


def as_d_out_by_d_in(stored: Tensor, transposed: bool) -> Tensor:
    return stored.detach().double().T if transposed else stored.detach().double()


def outside(space: NullSpace, start: Tensor, now: Tensor, transposed: bool) -> tuple[float, float]:
    """(‖ΔW(I − P)‖, ‖ΔW‖), in float64 and with the dense P; the tensors as they are stored."""
    delta = as_d_out_by_d_in(now, transposed) - as_d_out_by_d_in(start, transposed)
    return float((delta - delta @ space.dense()).norm()), float(delta.norm())


def assert_inside(
    spaces: NullSpaces,
    start: Mapping[int, Tensor],
    now: Mapping[int, Tensor],
    share: float,
    *,
    transposed: bool = False,
) -> None:
    """In each layer something was written, and no more than this share of it lies outside of the null space."""
    for layer, weight in now.items():
        out, size = outside(spaces[layer], start[layer], weight, transposed)
        assert size > 0, f"layer {layer}: the update was lost"
        assert out <= share * size, layer


def same_covariances(found: Mapping[int, Covariance], expected: Mapping[int, Covariance]) -> bool:
    """To the last bit, and of as many tokens."""
    return found.keys() == expected.keys() and all(
        torch.equal(found[layer].total, expected[layer].total) and found[layer].count == expected[layer].count
        for layer in expected
    )


def in_float64(spaces: NullSpaces) -> NullSpaces:
    """P orthogonal to the last bit that float64 has, instead of to float32's."""
    exactly = {
        layer: replace(space, factor=torch.linalg.qr(space.factor.double())[0]) for layer, space in spaces.items()
    }
    return NullSpaces(exactly, spaces.provenance)
