"""What editing a learned model is measured by: the same settings for every architecture, tuned on none of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alphaedit_plugin.editors.hyperparameters import Hyperparameters
from alphaedit_plugin.editors.targets import Targets
from alphaedit_plugin.evaluation.fact_scores import score
from alphaedit_plugin.nullspace.null_spaces import NullSpaces, null_spaces_of
from alphaedit_plugin.nullspace.projection import Criterion
from alphaedit_plugin.nullspace.statistics import Statistics, prepare_statistics
from alphaedit_plugin.session.session import Session
from alphaedit_plugin.storage.store import Store
from support import world
from support.learned import learned

FACTS = world.counterfacts(8)
REQUESTS = [fact.request for fact in FACTS]
LAYERED = Hyperparameters(
    layers=(0, 1, 2),
    v_num_grad_steps=40,
    clamp_norm_factor=1.5,
    mom2_update_weight=5.0,
    L2=0.05,
    null_space=Criterion(nullity=0.7),
)
ROME = Hyperparameters(layers=(1,), clamp_norm_factor=4.0, null_space=Criterion(nullity=0.7))


@dataclass(frozen=True)
class Outcome:
    """What one edit of all facts did. Shares from 0 to 1; hidden states n × layers × d, `wanted` by its targets."""

    scores: Mapping[str, float]
    drift: Mapping[int, float]
    outside: Mapping[int, float]
    wanted: Tensor | None = None
    achieved: Tensor | None = None

    @property
    def cosine(self) -> float:
        """The median cosine between what the hidden states at the last layer moved by and what was wanted."""
        return float(torch.cosine_similarity(self.wanted[:, -1], self.achieved[:, -1], dim=-1).median())

    @property
    def length(self) -> float:
        """The median ratio of their lengths, achieved / wanted."""
        return float((self.achieved[:, -1].norm(dim=-1) / self.wanted[:, -1].norm(dim=-1)).median())


class Bed:
    """One architecture: a learned model, its statistics and null spaces. Every edit begins with the same weights."""

    def __init__(self, name: str, folder: Path) -> None:
        self.model, self.tokenizer = learned(name)
        corpus = folder / "world.jsonl"
        corpus.write_text("\n".join(json.dumps({"text": text}) for text in world.corpus()), "utf-8")
        self.statistics: Statistics = prepare_statistics(
            self.model, self.tokenizer, LAYERED.layers, source=corpus, store=Store(folder / "store")
        )
        self.null_spaces: NullSpaces = null_spaces_of(
            self.statistics, LAYERED.null_space, store=Store(folder / "store")
        )
        # Where attention and feed-forward part are parallel, the first keys are those of single tokens, too few; and a
        # ReLU may leave a dimension that is always zero.
        self.layers = tuple(
            layer
            for layer, covariance in self.statistics.covariances.items()
            if torch.linalg.matrix_rank(covariance.matrix) == len(covariance.matrix)
        )

    def session(self, method: str, hyperparameters: Hyperparameters = LAYERED) -> Session:
        layers = self.layers if len(hyperparameters.layers) > 1 else self.layers[len(self.layers) // 2 :][:1]
        hyperparameters = hyperparameters.with_layers(layers)
        return Session(
            self.model,
            self.tokenizer,
            method,
            self.null_spaces,
            hyperparameters=hyperparameters,
            covariances=self.statistics.covariances,
            contexts=world.CONTEXTS,
        )

    @property
    def before(self) -> Mapping[str, float]:
        return score(self.model, self.tokenizer, FACTS).means()

    @property
    def branch(self) -> str:
        """In a word, what the blocks make of their out-projections' outputs."""
        session = self.session("memit")
        if session.editor.direct:
            return "identity"
        branches, _ = session.editor._branches(REQUESTS[:1], session.editor.stages[0])
        return "norm" if branches[-1].saturates else "scale"

    @cache  # noqa: B019 - a bed lives as long as the tests of its architecture
    def targets(self) -> Targets:
        """z* of the layered methods: the same for all of them."""
        return self.session("memit").editor.targets(REQUESTS)

    def outcome(self, method: str) -> Outcome:
        """Write all facts, look, and take them back."""
        layered = not method.startswith("rome")
        session = self.session(method, LAYERED if layered else ROME)
        layers = session.editor.target_layers if layered else session.hyperparameters.layers
        before = self.hidden_states(layers)
        targets = self.targets() if layered else None
        session.edit(REQUESTS, targets, on_failure="ignore")
        report = session.report()
        wanted = targets.delta.reshape(len(REQUESTS), len(layers), -1).double() if targets else None
        found = Outcome(
            score(self.model, self.tokenizer, FACTS).means(),
            report.drift,
            report.outside,
            wanted,
            self.hidden_states(layers) - before,
        )
        session.undo()
        return found

    @torch.no_grad()
    def hidden_states(self, layers: Sequence[int]) -> Tensor:
        """n × layers × d at the subjects' last tokens, by Hugging Face's own forward, one prompt at a time."""
        found: list[Any] = []
        for request in REQUESTS:
            text = request.prompt.partition("{}")[0] + request.subject
            ids = torch.tensor([self.tokenizer(text)["input_ids"]])
            states = self.model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
            found.append(torch.stack([states[layer + 1][0, -1] for layer in layers]))
        return torch.stack(found).double()
