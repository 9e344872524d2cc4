"""What one forward call through a guarded layer costs, against the same layer unguarded."""

import torch
from interleaved import seconds

from alphaedit_plugin.hook import guard
from alphaedit_plugin.loading import DEMO_MODEL, load
from alphaedit_plugin.modules import Decoder
from alphaedit_plugin.nullspace import Criterion, NullSpace

CALLS = 5000
torch.set_num_threads(1)
model, _ = load(DEMO_MODEL)
layer = Decoder(model).out_projection(5)
keys = torch.randn(4 * layer.d_in, layer.d_in, dtype=torch.float64)
space = NullSpace.of(keys.T @ keys, Criterion(nullity=0.5))
twin = torch.nn.Linear(layer.d_in, layer.d_out, bias=False)
one_key = torch.randn(1, layer.d_in)


@torch.no_grad()
def calls(module: torch.nn.Module) -> None:
    for _ in range(CALLS):
        module(one_key)


with guard(model, {5: space}):
    times = seconds({"plain": lambda: calls(twin), "guarded": lambda: calls(layer.module)}, rounds=9)
print(f"plain    {times['plain'] / CALLS * 1e6:8.2f} µs a call")
print(f"guarded  {times['guarded'] / CALLS * 1e6:8.2f} µs a call")
print(f"more     {(times['guarded'] - times['plain']) / CALLS * 1e6:8.2f} µs a call (limit: 5)")
