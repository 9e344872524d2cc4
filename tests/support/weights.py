"""The weights of a model: copied, and compared to the last bit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from alphaedit_plugin.model.decoder import Decoder


def parameters(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters by name."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def matrices(model: nn.Module, layers: Iterable[int]) -> dict[int, Tensor]:
    """W of the out-projections, d_out × d_in: the weights themselves, no copies."""
    return {layer: projection.matrix for layer, projection in Decoder(model).out_projections(list(layers)).items()}


def bits(tensor: Tensor) -> Tensor:
    """Tells also zeros of different signs apart."""
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.detach().contiguous().view(whole[tensor.itemsize])


def everything(model: nn.Module) -> dict[str, Tensor]:
    """All that a checkpoint of the model would hold, in bits."""
    return {name: bits(tensor).clone() for name, tensor in model.state_dict().items()}


def assert_same(found: Mapping[Any, Tensor], expected: Mapping[Any, Tensor]) -> None:
    assert found.keys() == expected.keys()
    different = [name for name in expected if not torch.equal(found[name], expected[name])]
    assert not different, f"{different} differ"


def assert_unchanged(model: nn.Module, before: Mapping[str, Tensor]) -> None:
    """Every parameter has the type and the values that `parameters` found."""
    assert {name: parameter.dtype for name, parameter in model.named_parameters()} == {
        name: tensor.dtype for name, tensor in before.items()
    }
    assert_same(dict(model.named_parameters()), before)


def differ(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    return any(not torch.equal(found[name], expected[name]) for name in expected)


def same_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    """By name, with their types."""
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], expected[name]) and found[name].dtype == expected[name].dtype for name in expected
    )
