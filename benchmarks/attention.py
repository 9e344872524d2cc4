"""One new token against a cache, 64 sequences at once: the CPU's fused attention kernel against plain matrices."""

import torch
from interleaved import seconds

from alphaedit_plugin.model import DEMO_MODEL
from alphaedit_plugin.model.decoder import eager_attention
from alphaedit_plugin.model.loading import load

model, _ = load(DEMO_MODEL)
ids = torch.randint(100, 40000, (64, 16))


@torch.no_grad()
def two_tokens() -> None:
    cache = model(ids, use_cache=True, logits_to_keep=1).past_key_values
    for _ in range(2):
        model(ids[:, :1], past_key_values=cache, use_cache=True)


def eager() -> None:
    with eager_attention(model):
        two_tokens()


times = seconds({"fused": two_tokens, "eager": eager}, rounds=3)
print(f"fused (sdpa)         {times['fused']:8.2f} s")
print(f"eager                {times['eager']:8.2f} s")
print(f"ratio (fused/eager)  {times['fused'] / times['eager']:8.2f} ×")
