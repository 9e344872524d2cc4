"""What it takes to project a method of EasyEdit, beside the guard around its editing function: for +P and the flag."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..nullspace.null_spaces import NullSpaces
from .methods import Method


def projectable(hparams: Any, method: Method) -> Any:
    """Hyperparameters with which the method writes weights only and takes P from its globals.

    FT and DINM train every parameter whose name holds the template: with ".weight" in it, no bias is trained, which no
    guard would project. AlphaEdit and SPHERE compute a P of their own unless P_loc is a file that exists. Returns a
    copy if anything has to change.
    """
    if not (method.by_substring or method.remembers):
        return hparams
    made = copy.copy(hparams)
    if method.by_substring:
        made.rewrite_module_tmp = made.rewrite_module_tmp.removesuffix(".weight") + ".weight"
    if method.remembers:
        made.P_loc = os.devnull
    return made


def stacked(null_spaces: NullSpaces, layers: Sequence[int]) -> Tensor:
    """P as AlphaEdit and SPHERE keep it: layers × d_in × d_in, float32."""
    return torch.stack([null_spaces[layer].dense().to(torch.float32) for layer in layers])


def globals_of(p: Tensor, keys: Tensor) -> dict[str, Any]:
    """What AlphaEdit and SPHERE find in their module: P, and Kp Kpᵀ of earlier edits, both layers × d_in × d_in."""
    return {"P": p, "P_loaded": True, "cache_c": keys, "cache_c_new": True}
