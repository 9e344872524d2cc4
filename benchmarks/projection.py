"""The factored projection against the dense one, in size and time: SmolLM2's covariances, and a wide one."""

import tempfile
from pathlib import Path

import torch
from interleaved import seconds

from alphaedit_plugin.model import DEMO_MODEL
from alphaedit_plugin.model.loading import load
from alphaedit_plugin.nullspace.null_spaces import null_spaces_of
from alphaedit_plugin.nullspace.projection import Criterion, NullSpace
from alphaedit_plugin.nullspace.statistics import prepare_statistics

model, tokenizer = load(DEMO_MODEL)
statistics = prepare_statistics(model, tokenizer, [4, 5, 6, 7, 8], progress=True)
spaces = null_spaces_of(statistics)
with tempfile.TemporaryDirectory() as folder:
    ours, dense = Path(folder) / "factored.safetensors", Path(folder) / "dense.pt"
    spaces.save(ours)
    torch.save(torch.stack([space.dense().float() for space in spaces.values()]), dense)
    size_ours, size_dense = ours.stat().st_size, dense.stat().st_size
print(f"factored P, layers 4–8  {size_ours / 1e6:8.2f} MB")
print(f"dense P as float32      {size_dense / 1e6:8.2f} MB")
print(f"ratio (dense/factored)  {size_dense / size_ours:8.2f} ×")


def authors(covariance: torch.Tensor, threshold: float) -> torch.Tensor:
    """The published recipe: a full SVD, and the dense product of the null vectors."""
    u, s, _ = torch.linalg.svd(covariance.float(), full_matrices=False)
    null = u[:, s < threshold]
    return null @ null.T


def compare(name: str, covariance: torch.Tensor, threshold: float, rounds: int) -> None:
    criterion = Criterion(threshold=threshold)
    times = seconds(
        {"svd": lambda: authors(covariance, threshold), "ours": lambda: NullSpace.of(covariance, criterion)},
        rounds=rounds,
    )
    print(f"{name}: SVD and dense product   {times['svd']:8.2f} s a layer")
    print(f"{name}: ours, factored          {times['ours']:8.2f} s a layer")
    print(f"{name}: ratio (SVD/ours)        {times['svd'] / times['ours']:8.2f} ×")


compare("SmolLM2, layer 6 (1,536)", statistics.covariances[6].matrix, 2e-2, rounds=3)
# A spectrum like a real layer's: from 1e-4 to 10, and a sink of 4e4.
d = 4096
spectrum = torch.logspace(-4, 1, d, dtype=torch.float64)
spectrum[-1] = 4e4
vectors = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q
compare("d_in 4,096", vectors * spectrum @ vectors.T, 2e-2, rounds=1)
