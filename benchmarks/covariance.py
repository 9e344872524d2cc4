"""Collecting the covariances of five layers against the model's own forward pass, same tokens, same batches."""

import torch
from interleaved import seconds

from alphaedit_plugin.model import DEMO_MODEL
from alphaedit_plugin.model.batches import batches
from alphaedit_plugin.model.loading import load
from alphaedit_plugin.nullspace.covariance import collect

model, _ = load(DEMO_MODEL)
layers = [4, 5, 6, 7, 8]
generator = torch.Generator().manual_seed(0)
windows = torch.randint(100, len(model.model.embed_tokens.weight), (16, 256), generator=generator).tolist()
tokens = sum(map(len, windows))


@torch.no_grad()
def forward() -> None:
    for batch in batches(windows, 4096, sort=False):
        model.model(**batch.model_inputs(), use_cache=False)


times = seconds({"forward": forward, "collect": lambda: collect(model, windows, layers)})
print(f"plain forward pass, 30 layers       {tokens / times['forward']:8.0f} tokens/s")
print(f"covariances of layers 4–8, one pass {tokens / times['collect']:8.0f} tokens/s")
print(f"ratio (collect / forward)           {times['forward'] / times['collect']:8.2f} ×")
