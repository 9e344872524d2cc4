"""The loss of target optimisation as a function of δ (MEMIT eq. 16, DESIGN §6).

The tokens before the subject's last one and the layers below cannot change, so both are computed once. Each step runs
only the tokens from the subject's last one on, only through the layers above, and the head only where a token is
predicted. Stand-ins replace the blocks below, a Hugging Face cache replaces the prefix, and everything else (masks,
positions, scaled logits) is the model's own forward pass: there is no per-model code.
"""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..model.batches import pad
from ..model.branch import Branch
from ..model.decoder import Decoder, first_stream, hidden_states
from ..model.gradients import gradients
from ..model.standin import standing_in
from ..model.trace import hooks, logits_at
from ..model.wrappers import inner
from ..restoring import restoring
from .hyperparameters import TargetSettings
from .keys import in_context
from .requests import Encoded, Request, encode

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rows:
    """One request's token sequences: one per context, and "{subject} is a" for the KL term."""

    rewrites: list[Encoded]
    kl: Encoded

    @classmethod
    def of(cls, tokenizer: Any, request: Request, contexts: Sequence[str]) -> Rows:
        return cls(
            [
                encode(tokenizer, in_context(context, request), request.subject, request.target_new)
                for context in contexts
            ],
            encode(tokenizer, "{} is a", request.subject),
        )

    @property
    def suffix(self) -> int:
        """The number of tokens from the subject's last one to the last one that predicts a target token."""
        return max(len(row.ids) + len(row.target) - 1 - row.subject_last for row in self.rewrites)


class TargetLoss:
    """The loss of a batch of requests as a function of their δ.

    Blocks up to `below` return what they are known to return; the others run. A row of a batch is
    [prefix, padded | suffix, padded]; the suffix begins at the subject's last token. Without a usable cache the prefix
    is empty and the suffix is the whole sequence. The head of a prefix is what the rows of a context have in common:
    it is run once for all requests.
    """

    def __init__(
        self,
        decoder: Decoder,
        layer: int,
        rows: Sequence[Rows],
        use_prefix_cache: bool,
        branches: Sequence[Branch] = (),
    ) -> None:
        self.model, self.decoder, self.branches = decoder.model, decoder, branches
        self.layers = [branch.projection.layer for branch in branches] or [layer]
        self.below = layer
        if branches:
            self.below = self.layers[0] - 1
            self.projections: list[Any] = [inner(decoder.model.get_submodule(b.projection.name)) for b in branches]
            self.unit: Tensor | None = torch.stack([b.unit for b in branches], 1)[..., None].to(decoder.device)
        else:
            self.projections, self.unit = [], None
        self.contexts = len(rows[0].rewrites)
        self.device = self.decoder.device
        sequences, starts, wanted = [], [], []
        for request, row in enumerate(rows):
            for context, rewrite in enumerate(row.rewrites):
                sequences.append([*rewrite.ids, *rewrite.target[:-1]])
                starts.append(rewrite.subject_last)
                first = len(rewrite.ids) - 1
                wanted += [
                    (request, context, first + i - rewrite.subject_last, token)
                    for i, token in enumerate(rewrite.target)
                ]
            # Only the next-token distribution at the subject's last token is needed: " is a" is never run.
            sequences.append(row.kl.ids[: row.kl.subject_last + 1])
            starts.append(row.kl.subject_last)
        self.wanted = torch.tensor(wanted)  # (request, context, offset from the subject's last token, token)
        self.target_lengths = torch.tensor([len(row.rewrites[0].target) for row in rows])
        self.width = self.contexts + 1  # rows of one request
        self.subject_last = torch.tensor(starts)
        nowhere = [0] * len(starts)
        cached = use_prefix_cache and decoder.prefix_cache is not False
        if cached:
            heads = _common_heads(sequences, starts, self.width) if decoder.prefix_cache else nowhere
            self._lay_out(sequences, heads, starts)
            cached = self.ids.shape[1] < _window(self.model)
        if not cached:
            self._lay_out(sequences, nowhere, nowhere)
        self._first_pass(cached)
        if cached and self.prefix and self.cache is None:
            if decoder.prefix_cache is not False:
                log.info("%s: this cache cannot be cut: targets run whole sequences", type(self.model).__name__)
            self._lay_out(sequences, nowhere, nowhere)
            self._first_pass(False)

    def _lay_out(self, sequences: list[list[int]], heads: list[int], starts: list[int]) -> None:
        """Rows of [head | rest of the prefix | suffix], each padded; the suffix begins at `starts`."""
        ends = [len(sequence) for sequence in sequences]
        cuts = [[0] * len(sequences), heads, starts, ends]
        ids, masks, positions = [], [], []
        for begin, end in itertools.pairwise(cuts):
            part, mask = pad([s[b:e] for s, b, e in zip(sequences, begin, end, strict=True)])
            ids.append(part)
            masks.append(mask)
            positions.append(torch.tensor(begin)[:, None] + torch.arange(part.shape[1]))
        self.head, self.prefix = max(heads), ids[0].shape[1] + ids[1].shape[1]
        mask = torch.cat(masks, 1)
        self.ids, self.mask = torch.cat(ids, 1).to(self.device), mask.to(self.device)
        self.positions = (torch.cat(positions, 1) * mask).to(self.device)
        self.inject = self.subject_last - torch.tensor(starts)  # where in the suffix δ goes: 0 behind a cached prefix

    @gradients(False)
    def _first_pass(self, use_cache: bool) -> None:
        """Everything that no δ can change: the prefix's cache, the suffix's hidden states, the KL term's base."""
        self.hidden, self.output, self.cache = None, None, None
        kl_rows = torch.arange(self.contexts, len(self.ids), self.width)
        heads = self._heads()
        skipped = self.prefix - self.head
        with (
            self._captured([*self.layers, max(self.below, 0)]) as captured,
            logits_at(self.decoder.head, kl_rows, skipped + self.inject[kl_rows]),
        ):
            output = self.model(
                input_ids=self.ids[:, self.head :],
                attention_mask=self.mask,
                **({} if heads is None else {"past_key_values": heads}),
                use_cache=use_cache and self.prefix > 0,
                **self._position_ids(self.positions[:, self.head :]),
            )
        self.output = captured[max(self.below, 0)]
        self.hidden = hidden_states(self.output)[:, skipped:].clone()
        self.kl_base = _log_softmax(output.logits[0])
        if use_cache and self.prefix:
            suffix = self.ids.shape[1] - self.prefix
            every_row = torch.arange(len(self.ids), device=self.device)
            given = getattr(output, "past_key_values", None)
            if given is None:
                self.decoder.prefix_cache = _has_no_cache(self.decoder)
            self.cache = _cut(given, suffix, self.prefix, every_row)
        at_layers = [self._at_bare(hidden_states(captured[layer])[:, skipped:]) for layer in self.layers]
        self.z = at_layers[0] if self.unit is None else torch.stack([z.to(self.device) for z in at_layers], 1)
        self.norms = self.z.norm(dim=-1)

    def _heads(self) -> Any:
        """The cache of every row's head, or None without heads. All requests have the first one's.

        A row without a head gets another's: it is hidden by the mask, and must only be finite.
        """
        if not self.head:
            return None
        has = self.mask[: self.width, : self.head].any(1).nonzero().squeeze(1)
        ids, mask, positions = (each[has, : self.head] for each in (self.ids, self.mask, self.positions))
        nothing = torch.zeros(0, dtype=torch.long)
        with logits_at(self.decoder.head, nothing, nothing):
            cache = self.model(
                input_ids=ids, attention_mask=mask, use_cache=True, **self._position_ids(positions)
            ).past_key_values
        place = torch.zeros(self.width, dtype=torch.long, device=self.device)
        place[has] = torch.arange(len(has), device=self.device)
        cache.batch_select_indices(place.repeat(len(self.ids) // self.width))
        return cache

    def _at_bare(self, states: Tensor) -> Tensor:
        """States of the suffix at the bare prompts' subjects, n × d, detached, in float32 or better."""
        rows = torch.arange(0, len(self.ids), self.width)
        states = first_stream(states, self.decoder.hidden_size)
        chosen = states.detach()[rows, self.inject[rows].to(states.device)]
        return chosen.to(torch.promote_types(states.dtype, torch.float32))

    @restoring
    def _captured(self, layers: Sequence[int]) -> Iterator[dict[int, Any]]:
        """layer → what its block returns inside the `with`."""
        seen: dict[int, Any] = {}

        def watch(layer: int) -> tuple[nn.Module, Any]:
            def hook(_module: nn.Module, _args: Any, output: Any) -> None:
                seen[layer] = output

            return self.decoder.block(layer), hook

        with hooks(*map(watch, sorted(set(layers)))):
            yield seen

    def _position_ids(self, positions: Tensor) -> dict[str, Tensor]:
        return {"position_ids": positions} if self.decoder.takes("position_ids") else {}

    def of_contexts(self, count: int) -> TargetLoss:
        """The same loss over the first `count` contexts only."""
        few = copy.copy(self)
        few.cache, few.contexts, few.width = self._borrowed_cache(), count, count + 1
        kept = torch.tensor([*range(count), self.contexts])
        few._select_rows((torch.arange(len(self.target_lengths))[:, None] * self.width + kept).flatten())
        few.wanted = self.wanted[self.wanted[:, 1] < count]
        return few

    def select(self, keep: Tensor) -> None:
        """Continue with some of the requests only."""
        self._select_rows((keep[:, None] * self.width + torch.arange(self.width)).flatten())
        self.kl_base = self.kl_base[keep.to(self.kl_base.device)]
        self.norms = self.norms[keep.to(self.norms.device)]
        self.z = self.z[keep.to(self.z.device)]
        if self.unit is not None:
            self.unit = self.unit[keep.to(self.unit.device)]
        self.target_lengths = self.target_lengths[keep]
        renumbered = torch.full((int(keep.max()) + 1,), -1)
        renumbered[keep] = torch.arange(len(keep))
        wanted = self.wanted[torch.isin(self.wanted[:, 0], keep)]
        wanted[:, 0] = renumbered[wanted[:, 0]]
        self.wanted = wanted

    def _select_rows(self, rows: Tensor) -> None:
        on = rows.to(self.device)
        self.ids, self.mask, self.positions = self.ids[on], self.mask[on], self.positions[on]
        assert self.hidden is not None
        self.hidden = self.hidden[rows.to(self.hidden.device)]
        self.inject = self.inject[rows]
        if self.cache is not None:
            self.cache.batch_select_indices(on)

    def _borrowed_cache(self) -> Any:
        """A cache that can grow without changing ours: its own lists and counters around the same tensors.

        Caches grow by concatenation, so tensors need no copy; `_cut` rejects a cache that writes into them.
        """
        layers = getattr(self.cache, "layers", [])
        tensors = [value for layer in layers for value in vars(layer).values() if isinstance(value, Tensor)]
        return copy.deepcopy(self.cache, {id(tensor): tensor for tensor in tensors})

    def _moved(self, states: Tensor, delta: Tensor) -> Tensor:
        """States of the suffix, each request's rows moved by its δ at the subject's last token."""
        row = torch.arange(len(self.ids), device=states.device)
        moved = delta.to(states).repeat_interleave(self.width, 0)
        return states.index_put((row, self.inject.to(states.device)), moved, accumulate=True)

    def _adding(self, shift: Tensor) -> Any:
        """A forward hook that moves the output of an out-projection by `shift`, n × d."""

        def hook(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
            by_row = output.reshape(len(self.ids), -1, output.shape[-1])  # some blocks flatten batch and tokens
            return self._moved(by_row, shift).reshape(output.shape)

        return hook

    def losses(self, delta: Tensor, settings: TargetSettings) -> Tensor:
        """The loss of each request, n, for δ shaped like `z`. With branches, `moved` is then what z has moved by.

        `said`, n, is then whether every token of the object is the most probable one in all contexts.
        """
        requests = len(self.target_lengths)
        assert self.hidden is not None
        hidden, moving = self.hidden, []
        if self.unit is None:
            hidden = self._moved(hidden, delta)
        else:
            shifts = (delta * self.unit.to(delta)).unbind(1)
            moving = [
                (projection, self._adding(shift)) for projection, shift in zip(self.projections, shifts, strict=True)
            ]
        request, context, offset, token = self.wanted.T
        rewrite_rows = request * self.width + context
        kl_rows = torch.arange(self.contexts, len(self.ids), self.width)
        rows = torch.cat([rewrite_rows, kl_rows])
        columns = torch.cat([offset + self.inject[rewrite_rows], self.inject[kl_rows]])
        with (
            standing_in(self.decoder, self.below, hidden, self.output),
            hooks(*moving),
            self._captured(self.layers if self.unit is not None else []) as captured,
            logits_at(self.decoder.head, rows, columns),
        ):
            logits = self.model(
                input_ids=self.ids[:, self.prefix :],
                attention_mask=self.mask,
                past_key_values=self._borrowed_cache(),
                use_cache=self.cache is not None,
                **self._position_ids(self.positions[:, self.prefix :]),
            ).logits[0]
        if self.unit is not None:
            now = [self._at_bare(hidden_states(captured[layer])).to(self.device) for layer in self.layers]
            self.moved = torch.stack(now, 1) - self.z
        of_targets, of_kl = logits.split([len(request), requests])
        if settings.most_probable:
            wrong = of_targets.argmax(-1).cpu() != token
            self.said = torch.zeros(requests, dtype=torch.long).index_add(0, request, wrong.long()) == 0
        nll = _NegativeLogLikelihood.apply(of_targets, token.to(logits.device))
        per_request = nll.new_zeros(requests).index_add(0, request.to(nll.device), nll)
        per_request = per_request / (self.target_lengths.to(nll.device) * self.contexts)
        of_kl = _log_softmax(of_kl)
        kl = (of_kl.exp() * (of_kl - self.kl_base)).sum(-1)
        decay = (delta.norm(dim=-1) / self.norms**2).reshape(requests, -1).mean(1)
        return per_request + settings.kl_factor * kl + settings.weight_decay * decay.to(nll.device)


@gradients(False)
def cache_agrees(decoder: Decoder, layer: int, rows: Rows, branches: Sequence[Branch] = ()) -> bool | None:
    """Whether losses with a cached prefix are those of whole sequences, without any δ; says so if they are not.

    None if these rows cannot show it: only where their prefixes differ in length, so that padding lies between prefix
    and suffix, does it show whether the model takes positions as they are given.
    """
    if not decoder.takes("past_key_values"):
        return _has_no_cache(decoder)
    cached, whole = (TargetLoss(decoder, layer, [rows], use, branches) for use in (True, False))
    if cached.cache is None or len(set(cached.subject_last.tolist())) == 1:
        return decoder.prefix_cache
    plain = TargetSettings(steps=1, lr=0.0)
    mine, theirs = (loss.losses(torch.zeros_like(loss.z), plain) for loss in (cached, whole))
    tolerance = max(1e-4, torch.finfo(decoder.model.dtype).eps ** 0.5)
    apart = (cached.kl_base.exp() - whole.kl_base.exp()).abs().sum(-1).max() / 2
    agrees = ((mine - theirs).abs() <= tolerance * (1 + theirs.abs())).all() and apart <= tolerance
    if not agrees:
        name = type(decoder.model).__name__
        log.warning("%s reads a cached prefix otherwise than text: targets run whole sequences", name)
    return bool(agrees)


def _has_no_cache(decoder: Decoder) -> Literal[False]:
    log.warning("%s has no cache: targets run whole sequences", type(decoder.model).__name__)
    return False


def _common_heads(sequences: Sequence[Sequence[int]], starts: Sequence[int], width: int) -> list[int]:
    """For each row, how many of its first tokens the same context's rows of all requests share; 0 if only one request.

    Row i belongs to context i mod `width`; of each row the tokens before `starts` count.
    """
    if len(sequences) == width:
        return [0] * width
    heads = []
    for context in range(width):
        prefixes = [s[:start] for s, start in zip(sequences[context::width], starts[context::width], strict=True)]
        columns = zip(*prefixes, strict=False)
        heads.append(sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns)))
    return heads * (len(sequences) // width)


class _NegativeLogLikelihood(torch.autograd.Function):
    """−log p(token) of each row of logits, n × vocabulary, in float32 or better.

    The gradient (softmax, minus one at the token) is written in one pass: the vocabulary is wide, and the textbook's
    gather of a log-softmax passes over it four more times.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, token: Tensor) -> Tensor:  # type: ignore[override]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        total = logits.logsumexp(-1, keepdim=True)
        ctx.save_for_backward((logits - total).exp_(), token)
        return (total - logits.gather(1, token[:, None])).squeeze(1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        softmax, token = ctx.saved_tensors
        result = softmax * gradient[:, None]
        result[torch.arange(len(token), device=token.device), token] -= gradient
        return result, None


def _log_softmax(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def _window(model: nn.Module) -> float:
    """How far back a token sees if attention is local; infinite if it is not.

    The padding between prefix and suffix counts as distance, so a batch must fit into the window.
    """
    config: Any = model.config
    config = getattr(config, "get_text_config", lambda: config)()
    windows = [getattr(config, name, None) for name in ("sliding_window", "window_size", "attention_window_size")]
    return min((window for window in windows if isinstance(window, int)), default=float("inf"))


def _cut(cache: Any, drop: int, keep: int, rows: Tensor) -> Any:
    """The cache without its last `drop` tokens, or None if a layer then lacks some of the first `keep` tokens.

    For example, a sliding window that has begun to slide no longer holds them.
    """
    if not hasattr(cache, "crop") or not hasattr(cache, "batch_select_indices"):
        return None
    try:
        cache.crop(-drop)
    except (RuntimeError, ValueError):
        return None
    cache.batch_select_indices(rows)  # compact, so that copies are small
    lengths = {
        layer.keys.shape[-2] for layer in getattr(cache, "layers", []) if getattr(layer, "keys", None) is not None
    }
    return cache if lengths == {keep} else None
