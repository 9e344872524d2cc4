"""Target optimisation: the hidden state z* that makes the model say the new object (MEMIT eq. 16, DESIGN §6).

z* = z + δ, with δ added to the hidden state at the subject's last token of one layer. Where blocks make something else
of their out-projection's output (`model/branch.py`), one layer cannot move the hidden state to any place: there each
edited layer has a δ of its own, added to that output, so that the weights can reach what the δs reach together.

The tokens before the subject's last one and the layers below cannot change, so both are computed once. Each step runs
only the tokens from the subject's last one on, only through the layers above, and the head only where a token is
predicted. Many requests share a batch, and leave it when they have converged. Stand-ins replace the blocks below, a
Hugging Face cache replaces the prefix, and everything else (masks, positions, scaled logits) is the model's own forward
pass: there is no per-model code.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import psutil
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..errors import EditError
from ..model.batches import pad
from ..model.branch import Branch
from ..model.decoder import Decoder, Projection, eager_attention, first_stream, hidden_states
from ..model.gradients import gradients
from ..model.precision import in_bfloat16
from ..model.standin import standing_in
from ..model.trace import hooks, logits_at
from ..model.wrappers import inner
from ..restoring import restoring
from .hyperparameters import TargetSettings
from .keys import in_context
from .preconditions import not_finite
from .requests import Encoded, Request, encode

log = logging.getLogger(__name__)

STOP_LOSS = 5e-2
_CPU_TOKENS, _ACCELERATOR_TOKENS = 512, 4096
_BETAS, _EPSILON = (0.9, 0.999), 1e-8


@dataclass(frozen=True)
class Targets:
    """For n requests: `z` before and `delta`, n × d, float32 or better; the last `losses`; Adam `steps` taken.

    With branches z and `delta` are of all their layers, n × layers × d, and `shift` is what each out-projection's
    output was moved by to move z by `delta`, shaped alike.
    """

    z: Tensor
    delta: Tensor
    losses: Tensor
    steps: Tensor
    shift: Tensor | None = None

    @property
    def z_star(self) -> Tensor:
        return self.z + self.delta


def optimise_targets(
    model: nn.Module | Decoder,
    tokenizer: Any,
    requests: Sequence[Request],
    contexts: Sequence[str],
    layer: int,
    settings: TargetSettings,
    *,
    norms: Tensor | None = None,
    branches: Sequence[Branch] = (),
    batch_tokens: int | None = None,
    use_prefix_cache: bool = True,
    progress: bool = False,
) -> Targets:
    """z* of every request, on the model as it is now, at the output of block `layer`.

    δ is kept small relative to `norms`, one per request; by default ‖z‖ (ROME: the norm of the out-projection's
    output). With `branches`, those of the edited layers at the requests' subjects in ascending order, there is a δ for
    each, added to the out-projection's output; it and `norms`, n × layers, are in the branch's units.

    The result does not depend on which requests share a batch. A batch holds up to `batch_tokens` tokens, by default as
    many as fit into memory and are fast, and fewer if memory runs out. Raises EditError if a loss is not finite.
    """
    encoded = [_Rows.of(tokenizer, request, contexts) for request in requests]
    order = sorted(range(len(requests)), key=lambda i: encoded[i].suffix, reverse=True)
    found: dict[int, tuple[Tensor, ...]] = {}
    decoder = Decoder.of(model)
    if settings.reduced_precision:
        decoder = Decoder(in_bfloat16(decoder.model))
    with (
        eager_attention(decoder.model),
        tqdm(total=len(requests), desc="targets", unit="fact", disable=not progress, leave=False) as bar,
    ):
        tokens = batch_tokens or _affordable_tokens(decoder, layer)
        while order:
            size = max(1, tokens // (encoded[order[0]].suffix * (len(contexts) + 1)))
            chunk = order[:size]
            try:
                there = [branch.of(chunk) for branch in branches]
                problem = _Problem(decoder, layer, [encoded[i] for i in chunk], use_prefix_cache, there)
                if norms is not None:
                    problem.norms = norms[chunk].to(problem.z)
                result = _minimise(problem, settings, [requests[i] for i in chunk], bar)
            except torch.OutOfMemoryError:
                if len(chunk) == 1:
                    raise
                tokens //= 2
                log.warning("out of memory with %d facts at a time: going on with fewer", len(chunk))
                continue
            order = order[size:]
            for row, i in enumerate(chunk):
                found[i] = tuple(column[row] for column in result)
    z, moved, delta, losses, steps = (
        torch.stack(column) for column in zip(*(found[i] for i in range(len(requests))), strict=True)
    )
    if not branches:
        return Targets(z, delta, losses, steps)
    unit = torch.stack([branch.unit for branch in branches], 1)
    return Targets(z, moved, losses, steps, delta * unit[..., None].to(delta))


def _affordable_tokens(decoder: Decoder, layer: int) -> int:
    """A power of two: the number of tokens that suits the device best, or fewer if main memory is short.

    More than about 500 tokens at a time outgrow a processor's caches and become slower again (`benchmarks/targets.py`).
    An accelerator raises an error itself if its memory is too small.
    """
    if decoder.device.type != "cpu":
        return _ACCELERATOR_TOKENS
    matrices = [m for block in list(decoder.blocks)[layer + 1 :] for m in block.modules() if isinstance(m, Projection)]
    kept = 2 * sum(sum(matrix.weight.shape) * matrix.weight.element_size() for matrix in matrices)  # for backward
    affordable = psutil.virtual_memory().available // 2 // max(1, kept)
    return min(_CPU_TOKENS, 1 << max(0, int(affordable).bit_length() - 1))


@dataclass(frozen=True)
class _Rows:
    """One request's token sequences: one per context, and "{subject} is a" for the KL term."""

    rewrites: list[Encoded]
    kl: Encoded

    @classmethod
    def of(cls, tokenizer: Any, request: Request, contexts: Sequence[str]) -> _Rows:
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


class _Problem:
    """The loss of a batch of requests as a function of their δ.

    Blocks up to `below` return what they are known to return; the others run. A row of a batch is
    [prefix, padded | suffix, padded]; the suffix begins at the subject's last token. Without a usable cache the prefix
    is empty and the suffix is the whole sequence.
    """

    def __init__(
        self,
        decoder: Decoder,
        layer: int,
        rows: Sequence[_Rows],
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
        if use_prefix_cache and decoder.prefix_cache is None and not decoder.takes("past_key_values"):
            decoder.prefix_cache = self._distrust("has no cache")
        cached = use_prefix_cache and decoder.prefix_cache is not False
        self._lay_out(sequences, starts if cached else [0] * len(starts))
        self._first_pass(cached and self.ids.shape[1] < _window(self.model))
        if self.prefix and not self._trusts_cache(rows):
            self._lay_out(sequences, [0] * len(starts))
            self._first_pass(False)

    def _trusts_cache(self, rows: Sequence[_Rows]) -> bool:
        """Whether losses with the cached prefix are those of whole sequences, without any δ.

        Tried once for each decoder, on rows whose prefixes differ in length: only with padding between prefix and
        suffix does it show whether the model takes positions as they are given.
        """
        if self.cache is not None and self.decoder.prefix_cache is None and len(set(self.subject_last.tolist())) > 1:
            whole = _Problem(self.decoder, self.layers[-1], rows, False, self.branches)
            agrees = self._equals(whole)
            self.decoder.prefix_cache = agrees or self._distrust("reads a cached prefix otherwise than text")
        if self.cache is None and self.decoder.prefix_cache is not False:
            log.info("%s: this cache cannot be cut: targets run whole sequences", type(self.model).__name__)
        return self.cache is not None and self.decoder.prefix_cache is not False

    def _distrust(self, why: str) -> Literal[False]:
        log.warning("%s %s: targets run whole sequences", type(self.model).__name__, why)
        return False

    @gradients(False)
    def _equals(self, other: _Problem) -> bool:
        plain = TargetSettings(steps=1, lr=0.0)
        mine, theirs = (problem.losses(torch.zeros_like(problem.z), plain) for problem in (self, other))
        tolerance = max(1e-4, torch.finfo(self.model.dtype).eps ** 0.5)
        apart = (self.kl_base.exp() - other.kl_base.exp()).abs().sum(-1).max() / 2
        return bool(((mine - theirs).abs() <= tolerance * (1 + theirs.abs())).all() and apart <= tolerance)

    def _lay_out(self, sequences: list[list[int]], starts: list[int]) -> None:
        self.prefix = max(starts)
        prefix_ids, prefix_mask = pad([[*s[:start]] for s, start in zip(sequences, starts, strict=True)])
        suffix_ids, suffix_mask = pad([s[start:] for s, start in zip(sequences, starts, strict=True)])
        begin = torch.tensor(starts)
        self.ids = torch.cat([prefix_ids, suffix_ids], 1).to(self.device)
        self.mask = torch.cat([prefix_mask, suffix_mask], 1).to(self.device)
        positions = torch.cat(
            [
                torch.arange(self.prefix).expand(len(starts), -1),
                begin[:, None] + torch.arange(suffix_ids.shape[1]),
            ],
            1,
        )
        self.positions = (positions * self.mask.cpu()).to(self.device)
        self.inject = self.subject_last - begin  # where in the suffix δ goes: 0 behind a cached prefix

    @gradients(False)
    def _first_pass(self, use_cache: bool) -> None:
        """Everything that no δ can change: the prefix's cache, the suffix's hidden states, the KL term's base."""
        self.hidden, self.output, self.cache = None, None, None
        kl_rows = torch.arange(self.contexts, len(self.ids), self.width)
        with (
            self._captured([*self.layers, max(self.below, 0)]) as captured,
            logits_at(self.decoder.head, kl_rows, self.prefix + self.inject[kl_rows]),
        ):
            output = self.model(
                input_ids=self.ids,
                attention_mask=self.mask,
                use_cache=use_cache and self.prefix > 0,
                **self._position_ids(self.positions),
            )
        self.output = captured[max(self.below, 0)]
        self.hidden = hidden_states(self.output)[:, self.prefix :].clone()
        self.kl_base = _log_softmax(output.logits[0])
        if use_cache and self.prefix:
            suffix = self.ids.shape[1] - self.prefix
            every_row = torch.arange(len(self.ids), device=self.device)
            given = getattr(output, "past_key_values", None)
            if given is None:
                self.decoder.prefix_cache = self._distrust("has no cache")
            self.cache = _cut(given, suffix, self.prefix, every_row)
        at_layers = [self._at_bare(hidden_states(captured[layer])[:, self.prefix :]) for layer in self.layers]
        self.z = at_layers[0] if self.unit is None else torch.stack([z.to(self.device) for z in at_layers], 1)
        self.norms = self.z.norm(dim=-1)

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

    def select(self, keep: Tensor) -> None:
        """Continue with some of the requests only."""
        rows = (keep[:, None] * self.width + torch.arange(self.width)).flatten()
        on = rows.to(self.device)
        self.ids, self.mask, self.positions = self.ids[on], self.mask[on], self.positions[on]
        assert self.hidden is not None
        self.hidden = self.hidden[rows.to(self.hidden.device)]
        self.inject = self.inject[rows]
        self.kl_base = self.kl_base[keep.to(self.kl_base.device)]
        self.norms = self.norms[keep.to(self.norms.device)]
        self.z = self.z[keep.to(self.z.device)]
        if self.unit is not None:
            self.unit = self.unit[keep.to(self.unit.device)]
        self.target_lengths = self.target_lengths[keep]
        if self.cache is not None:
            self.cache.batch_select_indices(on)
        renumbered = torch.full((int(keep.max()) + 1,), -1)
        renumbered[keep] = torch.arange(len(keep))
        wanted = self.wanted[torch.isin(self.wanted[:, 0], keep)]
        wanted[:, 0] = renumbered[wanted[:, 0]]
        self.wanted = wanted

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
        """The loss of each request, n, for δ shaped like `z`. With branches, `moved` is then what z has moved by."""
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
        nll = _NegativeLogLikelihood.apply(of_targets, token.to(logits.device))
        of_kl = _log_softmax(of_kl)
        per_request = nll.new_zeros(requests).index_add(0, request.to(nll.device), nll)
        per_request = per_request / (self.target_lengths.to(nll.device) * self.contexts)
        kl = (of_kl.exp() * (of_kl - self.kl_base)).sum(-1)
        decay = (delta.norm(dim=-1) / self.norms**2).reshape(requests, -1).mean(1)
        return per_request + settings.kl_factor * kl + settings.weight_decay * decay.to(nll.device)


def _minimise(problem: _Problem, settings: TargetSettings, requests: Sequence[Request], bar: Any) -> tuple[Tensor, ...]:
    """Adam on every δ at once: the optimiser works entry by entry, so requests do not influence each other.

    Returns z, what it moved by, δ, the losses and the steps, for each request.
    """
    z, norms = problem.z, problem.norms
    reached = torch.zeros_like(z)
    delta, mean, square = torch.zeros_like(z), torch.zeros_like(z), torch.zeros_like(z)
    losses = z.new_zeros(len(z))
    steps = torch.zeros(len(z), dtype=torch.long)
    active = torch.arange(len(z))  # the requests that `problem` holds, in its order
    running = torch.ones(len(z), dtype=torch.bool)
    for step in range(settings.steps):
        variable = delta[active].requires_grad_()
        with gradients(True):
            loss = problem.losses(variable, settings)
            (gradient,) = torch.autograd.grad(loss.sum(), [variable])
        loss = loss.detach().to(losses.device)
        if not torch.isfinite(loss).all():
            culprit = requests[int(active[int((~torch.isfinite(loss)).nonzero()[0, 0])])]
            damaged = not_finite(problem.model)
            remedy = (
                f"{damaged} holds values that are not finite, so load the checkpoint again"
                if damaged is not None
                else "lower v_lr or clamp_norm_factor, or load the model in float32 or bfloat16"
            )
            raise EditError(f"the target loss of {culprit.text!r} → {culprit.target_new!r} is not finite: {remedy}")
        going = running[active]
        losses[active[going]] = loss[going]
        reached[active[going]] = (variable.detach() if problem.unit is None else problem.moved)[going]
        finished = going & (loss < STOP_LOSS).cpu()
        running[active[finished]] = False
        bar.update(int(finished.sum()))
        moving = running[active]
        if step == settings.steps - 1 or not moving.any():
            break
        index, g = active[moving], gradient[moving]
        steps[index] += 1
        mean[index] = _BETAS[0] * mean[index] + (1 - _BETAS[0]) * g
        square[index] = _BETAS[1] * square[index] + (1 - _BETAS[1]) * g * g
        unbiased = mean[index] / (1 - _BETAS[0] ** (step + 1))
        scale = (square[index] / (1 - _BETAS[1] ** (step + 1))).sqrt() + _EPSILON
        moved = delta[index] - settings.lr * unbiased / scale
        longest = settings.clamp * norms[index, ..., None]
        delta[index] = moved * (longest / moved.norm(dim=-1, keepdim=True)).clamp_max(1.0)
        if moving.float().mean() <= 0.8:
            problem.select(moving.nonzero().squeeze(1))
            active = index
    bar.update(int(running.sum()))
    return z, reached, delta, losses, steps


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
