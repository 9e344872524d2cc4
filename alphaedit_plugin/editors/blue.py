"""BLUE (Li et al. 2025, "Rethinking Residual Distribution in Locate-then-Edit Model Editing", arXiv 2502.03748).

A setting of the layered editors, `blue`: only the first and the last of the layers are edited, each with a z* of its
own, which is found on the model as it is when that layer's turn comes, and each is asked for all of its residual:

    R_l = z*_l − z_l,    l = the first layer, then the last, with the first one written

instead of a share of the last layer's, R / (layers left). The authors' code (github.com/xpq-tech/BLUE,
`execute_memit_blue`, `apply_AlphaEdit_to_model`) does this for every layer that it is given; its files for BLUE name
two, and differ in other settings too (AlphaEdit's L2 is 1 there, not 10, on Llama-3-8B). Two layers is what the paper
says, so a file of five serves both.
"""

from __future__ import annotations


def boundary(layers: tuple[int, ...]) -> tuple[int, ...]:
    """The first and the last layer, once if they are the same one."""
    return tuple(sorted({min(layers), max(layers)}))


def stages(layers: tuple[int, ...], blue: bool) -> list[tuple[int, ...]]:
    """The groups of layers that share a residual, in ascending order: each by itself, or all of them."""
    return [(layer,) for layer in layers] if blue else [layers]
