"""Why a long sequence loses its first facts: the hidden state at the subject, or what the model around it makes of it?

    python benchmarks/lost.py RUN [METHOD] [FACTS]

RUN is the folder of a model and a data set in a run of `compare --keep-sessions`. The first FACTS facts of METHOD's
session are asked (with the object given token by token) after 5, 10, 20, … batches: of the edited model;
with z* put in the place of the hidden state at the subject's last token of the last edited layer; of the unedited model
with the edited one's hidden state there; and of the unedited model with z*.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from alphaedit_plugin.editors.keys import Sweep
from alphaedit_plugin.editors.requests import Request, encode
from alphaedit_plugin.model import DEMO_MODEL
from alphaedit_plugin.model.decoder import Decoder
from alphaedit_plugin.model.loading import load
from alphaedit_plugin.model.trace import evaluating, hooks
from alphaedit_plugin.session.session import Session


@torch.no_grad()
def hidden(session: Session, facts: list[Request]) -> Tensor:
    """The hidden states at the subjects' last tokens, n × d."""
    with evaluating(session.model):
        sweep = Sweep(session.model, session.tokenizer, facts, session.editor.contexts[:1])
        return sweep.hidden(max(session.projections))


@torch.no_grad()
def said(session: Session, facts: list[Request], put: Tensor | None = None) -> int:
    """How many of the facts the model says, with `put` as their hidden states."""
    block, count = Decoder(session.model).block(max(session.projections)), 0
    for row, fact in enumerate(facts):
        one = encode(session.tokenizer, fact.prompt, fact.subject, fact.target_new)
        ids = list(one.ids)
        if ids[-len(one.target) :] != list(one.target):
            ids += one.target

        def replaced(_module: nn.Module, _args: object, output: object, row: int = row, at: int = one.subject_last):
            states = output[0] if isinstance(output, tuple) else output
            if put is not None:
                states[0, at] = put[row].to(states)
            return output

        with evaluating(session.model), hooks((block, replaced)):
            likeliest = session.model(torch.tensor([ids])).logits[0].argmax(-1).tolist()
        count += likeliest[-len(one.target) - 1 : -1] == list(one.target)
    return count


def main(run: str, method: str = "alphaedit", count: str = "100") -> None:
    torch.set_num_threads(1)
    model, tokenizer = load(DEMO_MODEL)
    (folder,) = Path(run).glob(f"sessions/{method}-*")
    session = Session.resume(folder, model, tokenizer, check_model=False, read_only=True)
    facts = session.facts[: int(count)]
    with session.at(0):
        z = hidden(session, facts)
    if any(batch.written.z_star is None for batch in session.batches):
        sys.exit(f"{folder} was written by a version that did not keep z*: run it again")
    z_star = torch.cat([batch.written.z_star for batch in session.batches])[: len(facts)].to(z)
    print("| edits | left of δ | edited | edited, z* put | unedited, edited z put | unedited, z* put |")
    print("| --- " * 6 + "|")
    for batches in (5 * 2**n for n in range(20)):
        if batches > len(session.batches):
            return
        with session.at(batches):
            edits = sum(len(batch.requests) for batch in session.batches)
            now = hidden(session, facts)
            edited, back = said(session, facts), said(session, facts, z_star)
        with session.at(0):
            alone, best = said(session, facts, now), said(session, facts, z_star)
        left = float(((z_star - now).norm(dim=1) / (z_star - z).norm(dim=1)).mean())
        print(f"| {edits} | {left:.2f} | {edited} | {back} | {alone} | {best} |", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
