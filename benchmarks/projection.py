"""The factored projection against the dense one: size on disk, and time to make, on SmolLM2's own covariances."""

import tempfile
from pathlib import Path

import torch
from interleaved import seconds

from alphaedit_plugin.loading import DEMO_MODEL, load
from alphaedit_plugin.nullspace import PAPER, NullSpace
from alphaedit_plugin.prepare import null_spaces_of, prepare_statistics

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

covariance = statistics.covariances[6].matrix


def authors() -> torch.Tensor:
    """The published recipe: a full SVD, and the dense product of the null vectors."""
    u, s, _ = torch.linalg.svd(covariance.float(), full_matrices=False)
    null = u[:, s < 2e-2]
    return null @ null.T


times = seconds({"svd": authors, "eigh": lambda: NullSpace.of(covariance, PAPER)}, rounds=3)
print(f"SVD and dense product   {times['svd']:8.2f} s a layer")
print(f"eigh, factored          {times['eigh']:8.2f} s a layer")
print(f"ratio (SVD/eigh)        {times['svd'] / times['eigh']:8.2f} ×")
