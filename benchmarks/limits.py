"""How near targets and statistics come to what the processor can do, one thread, SmolLM2.

Counted are the operations of all matrix products, forward and backward, with padding; the processor's rate is measured
in the same run, on products of the model's own shapes. Twenty facts (or N) in one batch; statistics over 4,096 tokens.
`python benchmarks/limits.py [N]`.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from alphaedit_plugin.editors.hyperparameters import Hyperparameters
from alphaedit_plugin.editors.keys import context_templates
from alphaedit_plugin.editors.targets import optimise_targets
from alphaedit_plugin.evaluation.datasets import load_facts
from alphaedit_plugin.model import DEMO_MODEL
from alphaedit_plugin.model.decoder import Decoder
from alphaedit_plugin.model.loading import load
from alphaedit_plugin.model.precision import in_bfloat16
from alphaedit_plugin.model.trace import evaluating
from alphaedit_plugin.nullspace import corpus
from alphaedit_plugin.nullspace.covariance import collect
from alphaedit_plugin.storage.shipped import shipped

TOKENS, REPEATS = 512, 40
torch.set_num_threads(1)
model, tokenizer = load(DEMO_MODEL)
decoder = Decoder(model)
requests = [fact.request for fact in load_facts(shipped("examples/facts.json"))[: int((sys.argv[1:] or ["20"])[0])]]
settings = Hyperparameters.for_model("alphaedit", model, DEMO_MODEL)


def rate(dtype: torch.dtype) -> float:
    """Operations a second of 512 tokens through an MLP's two shapes; the best of three."""
    d_out, d_in = decoder.out_projection(0).matrix.shape
    narrow, wide = torch.randn(TOKENS, d_out, dtype=dtype), torch.randn(TOKENS, d_in, dtype=dtype)
    weight = torch.randn(d_out, d_in, dtype=dtype)
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        for _ in range(REPEATS):
            wide @ weight.T
            narrow @ weight
        best = min(best, time.perf_counter() - started)
    return REPEATS * 2 * 2 * TOKENS * d_out * d_in / best


def report(name: str, run: Callable[[], Any], dtype: torch.dtype) -> None:
    run()  # what is only done once
    with FlopCounterMode(display=False) as counter:
        run()
    limit = rate(dtype)
    started = time.perf_counter()
    run()
    taken = time.perf_counter() - started
    needed = counter.get_total_flops()
    print(
        f"{name:34} {needed / 1e9:8.0f} G operations, {taken:6.2f} s: {needed / taken / 1e9:5.0f} of "
        f"{limit / 1e9:5.0f} G/s, {100 * needed / taken / limit:3.0f} % of the processor's rate",
        flush=True,
    )


with evaluating(model):
    contexts = context_templates(model, tokenizer)
    layer = max(settings.layers)
    plain = replace(settings.target_settings, reduced_precision=False)
    report(
        "targets, float32",
        lambda: optimise_targets(decoder, tokenizer, requests, contexts, layer, plain),
        torch.float32,
    )
    if in_bfloat16(model) is not model:
        reduced = replace(plain, reduced_precision=True)
        report(
            "targets, bfloat16",
            lambda: optimise_targets(decoder, tokenizer, requests, contexts, layer, reduced),
            torch.bfloat16,
        )
    text = corpus.windows(corpus.documents(shipped("examples/heldout.txt")), tokenizer, 4096)
    report("statistics, float32", lambda: collect(decoder, text, list(settings.layers)), torch.float32)
