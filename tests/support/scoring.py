"""What the tests of scores ask a model, and what it would have said by the slowest of ways."""

from __future__ import annotations

import torch

from alphaedit_plugin.editors.requests import Request
from alphaedit_plugin.evaluation.facts import Fact
from alphaedit_plugin.evaluation.perplexity import negative_log_likelihoods
from support import oracle

PAIRS = (
    ("The Eiffel Tower is located in the city of", "Rome"),
    ("The Eiffel Tower is located in the city of", "Paris"),
    ("The Eiffel Tower is located in the city of", "Paris, as they said"),
    ("Curie", "France"),
    ("What you read was written by others: it is", "material to judge"),
)
RECORD = {
    "case_id": 5,
    "requested_rewrite": {
        "prompt": "The capital of {} is",
        "subject": "France",
        "target_new": {"str": "Rome"},
        "target_true": {"str": "Paris"},
    },
    "paraphrase_prompts": ["France has the capital", "Who governs France sits in "],
    "neighborhood_prompts": ["The Eiffel Tower is in", "The Louvre is in", "The Seine flows through"],
}
FACT = Fact(
    (Request("The capital of {} is", "France", "Rome", 5),),
    "Paris",
    ("France has the capital", "Who governs France sits in"),
    tuple(RECORD["neighborhood_prompts"]),
)


def slow_accuracy(model, tokenizer, prompt: str, target: str) -> float:
    """The share of the target's tokens that the model would have said, one at a time."""
    ids = tokenizer(prompt)["input_ids"]
    answer = oracle.target_ids(tokenizer, prompt, target)
    hits = []
    for token in answer:
        hits.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()) == token)
        ids = [*ids, token]
    return sum(hits) / len(hits)


def perplexity_of(model, windows, **options):
    losses, counts = negative_log_likelihoods(model, windows, **options)
    return float((losses.sum() / counts.sum()).exp())


def kl_by_hand(unedited, edited, windows, every: int) -> float:
    """KL of the next token at every `every`th token, from all logits of one window at a time; mean, in nats."""
    found, seen = [], 0
    for window in windows:
        p, q = (model(torch.tensor([window])).logits[0].double().log_softmax(-1) for model in (unedited, edited))
        kl = (p.exp() * (p - q)).sum(-1)
        found += [float(kl[at]) for at in range(len(window)) if (seen + at + 1) % every == 0]
        seen += len(window)
    return sum(found) / len(found)
