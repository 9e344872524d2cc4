"""What one forward call through a guarded layer costs, against the same layer unguarded.

On a narrow layer, where the product itself takes a few microseconds and cannot hide the difference.
"""

import torch
from interleaved import seconds
from transformers import LlamaConfig, LlamaForCausalLM

from alphaedit_plugin.model.decoder import Decoder
from alphaedit_plugin.nullspace.guard import guard
from alphaedit_plugin.nullspace.projection import Criterion, NullSpace

CALLS = 5000
torch.set_num_threads(1)
model = LlamaForCausalLM(
    LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, vocab_size=64)
)
layer = Decoder(model).out_projection(1)
keys = torch.randn(4 * layer.d_in, layer.d_in, dtype=torch.float64)
space = NullSpace.of(keys.T @ keys, Criterion(nullity=0.5))
twin = torch.nn.Linear(layer.d_in, layer.d_out, bias=False)
one_key = torch.randn(1, layer.d_in)


@torch.no_grad()
def calls(module: torch.nn.Module) -> None:
    for _ in range(CALLS):
        module(one_key)


with guard(model, {1: space}):
    times = seconds({"plain": lambda: calls(twin), "guarded": lambda: calls(layer.module)}, rounds=15)
print(f"plain    {times['plain'] / CALLS * 1e6:8.2f} µs a call")
print(f"guarded  {times['guarded'] / CALLS * 1e6:8.2f} µs a call")
print(f"more     {(times['guarded'] - times['plain']) / CALLS * 1e6:8.2f} µs a call (limit: 5)")
