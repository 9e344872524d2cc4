"""AlphaEdit whose memory also holds the keys of a prompt's other tokens, or keys found anew: a prototype.

For docs/successors.md:

    python benchmarks/other_tokens.py RUN DATA [METHOD] [WEIGHT] [ANEW] [HELD_OUT]

RUN is the folder of a model and a data set in a run of `compare --targets once --keep-sessions`; METHOD, one of its
methods that solve as AlphaEdit does, is edited again, with the same targets, beside what the run's own session holds.
DATA are its facts. WEIGHT is that of the keys at all tokens of prompt and object but the subject's last, in λI + KpKpᵀ;
ANEW (1) finds all remembered keys again before every batch, on the model as it then is.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alphaedit_plugin.editors.alphaedit import AlphaEdit
from alphaedit_plugin.editors.requests import Request, encode
from alphaedit_plugin.editors.targets import Targets
from alphaedit_plugin.evaluation.datasets import load_facts
from alphaedit_plugin.evaluation.fact_scores import score
from alphaedit_plugin.evaluation.perplexity import Perplexity
from alphaedit_plugin.model import DEMO_MODEL
from alphaedit_plugin.model.batches import batches
from alphaedit_plugin.model.loading import load
from alphaedit_plugin.model.trace import evaluating, inputs_of
from alphaedit_plugin.session.session import Session
from alphaedit_plugin.storage.shipped import shipped

AT, SAMPLE, FIRST, CHARACTERS = (100, 250, 500, 1000, 2000), 200, 100, 40_000


@dataclass(frozen=True)
class Dense:
    """λI + ΣKKᵀ, d × d, as a memory."""

    matrix: Tensor
    count: int = 0

    def add(self, new: Tensor) -> tuple[Tensor, Dense]:
        grown = self.matrix + new.double() @ new.double().T
        return torch.cholesky_solve(new.double(), torch.linalg.cholesky(grown)), Dense(grown, self.count + new.shape[1])


class Keeping(AlphaEdit):
    """AlphaEdit with the other tokens' keys in its memory."""

    weight: float
    anew: bool
    past: list[Request]

    def edit(self, requests: Any, targets: Targets | None = None) -> Any:
        self.now = list(requests)
        if self.anew and self.past:
            for layer, (subjects, others) in self.grams(self.past, list(self.projections)).items():
                kept = self.inside(layer, subjects + self.weight * others)
                self.memory = {**self.memory, layer: Dense(self.empty(layer).matrix + kept, len(self.past))}
        written = super().edit(requests, targets)
        self.past += self.now
        return written

    def _ridge(self, layer: int) -> Any:
        memory = self.memory.get(layer) or self.empty(layer)
        if not self.weight:
            return memory
        others = self.grams(self.now, [layer])[layer][1]
        return Dense(memory.matrix + self.weight * self.inside(layer, others), memory.count)

    def empty(self, layer: int) -> Dense:
        return Dense(self.regularisation * torch.eye(self.projections[layer].d_in, dtype=torch.float64))

    def inside(self, layer: int, gram: Tensor) -> Tensor:
        """PGP."""
        space = self.null_spaces[layer]
        return space.project(space.project(gram).T)

    @torch.no_grad()
    def grams(self, requests: list[Request], layers: list[int]) -> dict[int, tuple[Tensor, Tensor]]:
        """layer → KKᵀ of the subjects' last tokens, and of all others, on the weights as they are now."""
        whole = [encode(self.tokenizer, each.prompt, each.subject, each.target_new) for each in requests]
        sequences = [[*each.ids, *each.target][:-1] for each in whole]
        modules = {layer: self.projections[layer].module for layer in layers}
        found = {layer: [0.0, 0.0] for layer in layers}
        with evaluating(self.model):
            for batch in batches(sequences, 4096):
                seen = inputs_of(modules, lambda batch=batch: self.model(**batch.model_inputs()), last=max(layers))
                subject = torch.zeros_like(batch.mask, dtype=torch.bool)
                subject[range(len(batch.rows)), [whole[row].subject_last for row in batch.rows]] = True
                for layer, inputs in seen.items():
                    for kind, chosen in enumerate((subject, batch.mask.bool() & ~subject)):
                        keys = inputs[chosen].double()
                        found[layer][kind] += keys.T @ keys
        return {layer: (subjects, others) for layer, (subjects, others) in found.items()}


def main(run: str, data: str, method: str = "alphaedit", weight: str = "0.1", anew: str = "0", text: str = "") -> None:
    torch.set_num_threads(1)
    model, tokenizer = load(DEMO_MODEL)
    (folder,) = Path(run).glob(f"sessions/{method}-*")
    plain = Session.resume(folder, model, tokenizer, check_model=False, read_only=True)
    if any(batch.written.z_star is None for batch in plain.batches):
        sys.exit(f"{folder} was written by a version that did not keep z*: run it again")
    facts, written = load_facts(data), list(plain.batches)
    source = Path(text or shipped("examples/heldout.txt"))
    held_out = Perplexity(source.read_text(encoding="utf-8")[:CHARACTERS], tokenizer)

    def told(name: str, edits: int) -> None:
        first = score(model, tokenizer, facts[:FIRST]).means()["exact"]
        found = score(model, tokenizer, facts[: edits : max(1, edits // SAMPLE)]).means()
        points = [100 * first, *(100 * found[each] for each in ("exact", "generalization", "specificity"))]
        (perplexity,) = held_out(model, tokenizer, [], None).estimates.values()
        print(
            f"| {name} | {edits} | " + " | ".join(f"{each:.1f}" for each in (*points, perplexity.value)) + " |",
            flush=True,
        )

    print(
        f"| | edits | first {FIRST} exact | exact | generalization | specificity | perplexity |\n" + "| --- " * 7 + "|"
    )
    for edits in AT:
        if edits <= len(plain.facts):
            with plain.at(next(i for i in range(len(written)) if sum(map(_size, written[: i + 1])) >= edits) + 1):
                told(method, edits)
    with plain.at(0):
        again = Session(
            model, tokenizer, method, plain.null_spaces, covariances=plain.covariances, contexts=plain.editor.contexts,
            hyperparameters=plain.hyperparameters,
        )  # fmt: skip
        editor = again.editor
        editor.__class__, editor.weight, editor.anew, editor.past = Keeping, float(weight), anew == "1", []
        for batch in written:
            editor.edit(list(batch.requests), Targets.kept(batch.written.z_star, batch.written.losses))
            if len(editor.past) in AT:
                told(f"weight {weight}{', anew' * editor.anew}", len(editor.past))


def _size(batch: Any) -> int:
    return len(batch.requests)


if __name__ == "__main__":
    main(*sys.argv[1:])
