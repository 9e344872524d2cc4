"""Keys and hidden states at the subject's last token, over context templates."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..model.batches import PaddedBatch, batches
from ..model.branch import Branch, probe
from ..model.decoder import Decoder, OutProjection, first_stream, hidden_states
from ..model.gradients import gradients
from ..model.sampling import SEED, sample, unsayable
from ..model.standin import standing_in
from ..model.trace import hooks, inputs_of, stop, stopping
from .requests import Encoded, Request, encode

_OPENINGS = ("The", "Therefore", "Because", "I", "You")
_TOP_K = 5
_BATCH_TOKENS = 4096

TemplateLengths = Sequence[tuple[int, int]]
"""(tokens, number of templates of that length), like EasyEdit's context_template_length_params."""

MEMIT_TEMPLATES: TemplateLengths = ((10, 5),)


def context_templates(
    model: nn.Module, tokenizer: Any, lengths: TemplateLengths = MEMIT_TEMPLATES, seed: int = SEED
) -> tuple[str, ...]:
    """ "{}" and short openings that the model writes itself; each has a "{}" for the prompt at its end.

    A key averaged over them stands for the subject anywhere, not only at the beginning of a text (MEMIT §4.3). As in
    EasyEdit, the count per length is split evenly over five openings: 10 means two each.
    """
    templates = ["{}"]
    banned = unsayable(model, tokenizer)
    for tokens, count in lengths:
        for opening in _OPENINGS:
            ids = list(tokenizer(opening, add_special_tokens=True)["input_ids"])
            while ids and ids[-1] in tokenizer.all_special_ids:
                ids.pop()
            length = len(ids) + tokens
            starts = [ids] * (count // len(_OPENINGS))
            if not starts:
                continue
            for written in sample(model, starts, length, seed=seed, banned=banned, top_k=_TOP_K):
                text = tokenizer.decode(written, skip_special_tokens=True).replace("{", " ").replace("}", " ")
                templates.append(f"{' '.join(text.split())}. {{}}")
    return tuple(templates)


def in_context(context: str, request: Request) -> str:
    """The prompt, its subject still "{}", inside a context template."""
    return context.replace("{}", request.prompt, 1)


def subject_prompts(tokenizer: Any, requests: Sequence[Request], contexts: Sequence[str]) -> list[Encoded]:
    """One encoded prompt per request and context, request by request."""
    return [
        encode(tokenizer, in_context(context, request), request.subject) for request in requests for context in contexts
    ]


def half_bare(keys: Tensor) -> Tensor:
    """Mean over contexts, n × contexts × d → n × d. As in MEMIT, the bare prompt weighs half."""
    return keys[:, 0] if keys.shape[1] == 1 else (keys[:, 0] + keys[:, 1:].mean(1)) / 2


class Sweep:
    """Keys of some requests at one layer after another, while the layers are being edited.

    Ask for layers in ascending order. Editing a block does not change its own input or that of the blocks below, so the
    input is kept, and going from one layer to the next runs only the blocks between them: all layers together cost
    little more than one pass. Tokens after the subject's last one are never run.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        requests: Sequence[Request],
        contexts: Sequence[str],
    ) -> None:
        """The first of `contexts` is the bare prompt, "{}"."""
        self.contexts, self.prompts = len(contexts), len(requests) * len(contexts)
        decoder = Decoder(model)
        sequences = [p.ids[: p.subject_last + 1] for p in subject_prompts(tokenizer, requests, contexts)]
        self._parts = [_Part(decoder, batch) for batch in batches(sequences, _BATCH_TOKENS, decoder.device)]

    def keys(self, projection: OutProjection) -> Tensor:
        """The input of an out-projection, n × contexts × d_in, float64, with the weights as they are now."""
        return self._gather(self._parts, lambda part: part.keys(projection))

    def hidden(self, layer: int) -> Tensor:
        """What block `layer` returns for the bare prompts, n × d, float64, with the weights as they are now."""
        bare = [part.of_rows(self.contexts) for part in self._parts]
        return self._gather([part for part in bare if part.batch.rows], lambda part: part.output(layer))[:, 0]

    @gradients(False)
    def branch(self, projection: OutProjection) -> Branch:
        """The branch at the bare prompts, n tokens, with the weights as they are now."""
        parts = [part for part in (part.of_rows(self.contexts) for part in self._parts) if part.batch.rows]
        found = [part.branch(projection) for part in parts]
        order = torch.tensor([row for part in parts for row in part.batch.rows]).argsort()
        value, gain = (torch.cat(each)[order] for each in ([b.value for b in found], [b.gain for b in found]))
        return Branch(projection, value, gain, all(each.saturates for each in found))

    @gradients(False)
    def _gather(self, parts: Sequence[_Part], run: Callable[[_Part], Tensor]) -> Tensor:
        """The results of `run` for all parts, put into the order of requests and contexts, n × contexts × d."""
        result: Tensor | None = None
        for part in parts:
            found = run(part)
            if result is None:
                result = found.new_zeros(self.prompts, found.shape[-1])
            result[torch.tensor(part.batch.rows, device=found.device)] = found
        assert result is not None
        return result.view(-1, self.contexts, result.shape[-1])


class _Part:
    """A batch of prompts. `hidden` is the known output of block `below`; `like` is that block's full return value."""

    def __init__(self, decoder: Decoder, batch: PaddedBatch) -> None:
        self.decoder, self.batch = decoder, batch
        self.below = -1
        self.hidden: Tensor | None = None
        self.like: Any = None

    def of_rows(self, every: int) -> _Part:
        """Only the prompts whose row is a multiple of `every`: the bare ones."""
        chosen = [i for i, row in enumerate(self.batch.rows) if row % every == 0]
        part = copy.copy(self)
        part.batch = PaddedBatch([self.batch.rows[i] for i in chosen], self.batch.ids[chosen], self.batch.mask[chosen])
        part.hidden = None if self.hidden is None else self.hidden[chosen]
        return part

    def keys(self, projection: OutProjection) -> Tensor:
        """The projection's inputs at the last tokens. From then on, stand-ins replace the blocks below it."""
        outputs: list[Any] = []
        below = projection.layer - 1
        proceeds = below > self.below
        watched = self.decoder.block(below) if proceeds else nn.Identity()
        with hooks((watched, lambda _m, _a, output: outputs.append(output))):
            seen = inputs_of({projection.layer: projection.module}, self._forward, last=projection.layer)
        if proceeds:
            self.below, self.like, self.hidden = below, outputs[0], hidden_states(outputs[0])
        return self._at_last(seen[projection.layer])

    def branch(self, projection: OutProjection) -> Branch:
        return probe(projection, self.decoder.block(projection.layer), self._forward, self.batch.lengths - 1)

    def output(self, layer: int) -> Tensor:
        """What block `layer` returns at the last tokens."""
        outputs: list[Any] = []

        def keep(_module: nn.Module, _args: Any, output: Any) -> None:
            outputs.append(output)
            stop()

        with hooks((self.decoder.block(layer), keep)), stopping():
            self._forward()
        return self._at_last(first_stream(hidden_states(outputs[0]), self.decoder.hidden_size))

    def _forward(self) -> None:
        with standing_in(self.decoder, self.below, self.hidden, self.like):
            self.decoder.model(**self.batch.model_inputs(), use_cache=False)

    def _at_last(self, states: Tensor) -> Tensor:
        states = states.detach().reshape(len(self.batch.rows), -1, states.shape[-1])  # OPT flattens batch and tokens
        last = (self.batch.lengths - 1).to(states.device)
        return states[torch.arange(len(states), device=states.device), last].double()
