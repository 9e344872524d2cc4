"""Sessions on a tiny model whose targets are known beforehand: what the model says after an edit is chosen here."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.nn.functional import normalize

from alphaedit_plugin.editors.targets import Targets
from alphaedit_plugin.session.session import Session
from support.sessions import HYPERPARAMETERS, model_of_kind, width_of
from support.spaces import random_covariance

KIND = "wide llama"
LAST = 3
"""The last block: what is written there at a prompt's last token is read by the head at once."""
SUBJECTS = ("Marie Curie", "Michael Jordan", "the king", "the old town")
OBJECTS = ("Paris", "French", "they", "old")
"""One token each."""


def fact(subject: int, target: int) -> dict:
    """Its prompt ends with the subject."""
    return {"prompt": "They spoke of {}", "subject": SUBJECTS[subject], "target_new": OBJECTS[target]}


def session(tokenizer, **options) -> Session:
    """MEMIT on the last layer, which reaches every target (λ is next to nothing)."""
    values = replace(HYPERPARAMETERS, layers=(LAST,), mom2_update_weight=1e-6)
    covariance = random_covariance(width_of(KIND), LAST, tokens=10 * width_of(KIND))
    return Session(
        model_of_kind(KIND),
        tokenizer,
        "memit",
        hyperparameters=values,
        **{"covariances": {LAST: covariance}, "contexts": ("{}",), **options},
    )


def twice(tokenizer) -> Session:
    """Two facts, learned, and the first one's subject taught another object since: three batches."""
    learned = session(tokenizer)
    for subject, target, length in ((0, 0, 300.0), (1, 1, 300.0), (0, 2, 3000.0)):
        targets = towards(learned, target, length=length)
        learned.edit([fact(subject, target)], targets, on_failure="ignore")
    return learned


def towards(session: Session, *targets: int, length: float = 300.0) -> Targets:
    """z* that the head reads as these objects; so far away, in the direction of its row, that nothing else matters."""
    head = session.model.get_output_embeddings().weight
    tokens = [session.tokenizer(f" {OBJECTS[target]}")["input_ids"] for target in targets]
    assert all(len(ids) == 1 for ids in tokens)
    rows = normalize(head[[ids[0] for ids in tokens]].detach(), dim=-1)
    none = torch.zeros(len(targets))
    return Targets(torch.zeros_like(rows), length * rows, none, none)
