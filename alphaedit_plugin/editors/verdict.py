"""What became of a requested fact: what the model said before, what it says now, and why not the new object."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from torch import nn

from ..model.continuation import continuations, positions
from ..model.decoder import Decoder
from ..model.likelihood import score_tokens
from ..shown import Shown, one_line, percent
from .requests import Request, encode

USUAL_DRIFT = 0.5
"""‖ΔW‖/‖W‖ of a layer: edits that leave a model usable stay well below it."""
USUAL_MISS = 0.5
"""Share of the way to z* that may be left."""
_USUAL_LOSS = math.log(2)
"""A target with a higher loss made its object less likely than all others together."""


class Reason(StrEnum):
    """Why a model does not say a fact's new object."""

    BUDGET = "over budget"
    FIRST_TOKEN = "first token"
    OVERWRITTEN = "overwritten by a later fact"
    NOT_REACHED = "not reached"
    DRIFT = "drift"
    RANK = "lost by the adapter's rank"


@dataclass(frozen=True)
class Answer:
    """What a model makes of a fact's prompt.

    `probability` is that of the whole new object: the product over its tokens, each after the prompt and the object's
    tokens before it. `words` are what the model writes itself, greedily, as many tokens as the object has; `agrees`
    says whether these are the object's.
    """

    probability: float
    words: str
    agrees: bool


def answers(model: nn.Module | Decoder, tokenizer: Any, requests: Sequence[Request]) -> list[Answer]:
    """One answer per request, from one padded forward pass; only words that it leaves open take further ones.

    Model and random states stay as they are.
    """
    if not requests:
        return []
    decoder = Decoder.of(model)
    encoded = [encode(tokenizer, request.prompt, request.subject, request.target_new) for request in requests]
    scored = score_tokens(decoder, [(one.ids, one.target) for one in encoded])
    # Greedy writing follows the object as far as they agree, and one token further: so much is known already.
    known = [
        predicted[: agreement(predicted, one.target) + 1]
        for predicted, one in zip(scored.predicted, encoded, strict=True)
    ]
    room = positions(decoder.model)
    open_ = [
        i for i, one in enumerate(encoded) if len(known[i]) < len(one.target) and len(one.ids) + len(known[i]) <= room
    ]
    missing = [len(encoded[i].target) - len(known[i]) for i in open_]
    for i, more in zip(open_, continuations(decoder, [encoded[i].ids + known[i] for i in open_], missing), strict=True):
        known[i] = known[i] + more
    log_probabilities = scored.mean_log_probability.tolist()
    return [
        Answer(
            math.exp(mean * len(one.target)),
            tokenizer.decode(written, skip_special_tokens=True).strip(),
            written == one.target,
        )
        for mean, one, written in zip(log_probabilities, encoded, known, strict=True)
    ]


def agreement(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


@dataclass(frozen=True)
class Circumstances:
    """What is known of how a fact was written; by default nothing.

    `first_token`: its key is the attention sink's. `later`: a later fact with the same prompt and subject. `said`:
    whether the model said it after its own batch. `missed`: share of the way to z* that was left. `loss`: the target's
    last. `drift`: ‖ΔW‖/‖W‖ by layer, now. `left_out`: which bound of a budget kept it from being written.
    """

    first_token: bool = False
    later: Request | None = None
    said: bool = False
    missed: float | None = None
    loss: float | None = None
    drift: Mapping[int, float] | None = None
    left_out: str = ""


@dataclass(frozen=True)
class Verdict:
    """What became of one fact. `before` is None where it was not asked; `reason` and `detail` are those of a failure.
    `left_out` says which bound of a budget kept it from being written, if one did.

    Invariant: there is a reason if and only if the model does not say the new object `now`.
    """

    request: Request
    before: Answer | None
    now: Answer
    reason: Reason | None = None
    detail: str = ""
    left_out: str = ""

    @property
    def written(self) -> bool:
        """Whether the model says the new object, and not by itself: a fact that was left out is not written."""
        return self.now.agrees and not self.left_out

    @property
    def why(self) -> str:
        """Reason and detail, also of a fact that was left out and is said anyway; nothing for one that is written."""
        if self.reason is None and self.left_out:
            return f"{Reason.BUDGET}, and said anyway: {self.left_out}"
        return ": ".join(filter(None, (self.reason, self.detail)))

    @classmethod
    def of(
        cls, request: Request, before: Answer | None, now: Answer, circumstances: Circumstances = Circumstances()
    ) -> Verdict:
        """Of a fact that is not said, the reason: the first that the circumstances know; else the edit was too weak."""
        reason, detail = (None, "") if now.agrees else _why_not(circumstances)
        return cls(request, before, now, reason, detail, circumstances.left_out)

    def cells(self) -> tuple[str, ...]:
        """What a table says of it, in rich's markup: ✓ or ✗, the fact with the reason, said before, says now, odds."""
        before, now, request = self.before, self.now, self.request
        mark = "[green]✓[/green]" if self.written else "[red]✗[/red]"
        why = f"\n[red]{escape(self.why)}[/red]" if self.why else ""
        return (
            mark,
            f"{escape(request.text)} [dim]→[/dim] {escape(request.target_new)}{why}",
            "" if before is None else escape(one_line(before.words)),
            escape(one_line(now.words)),
            f"{'?' if before is None else percent(before.probability)} → {percent(now.probability)}",
        )

    def __str__(self) -> str:
        before = "" if self.before is None else f"{self.before.probability:.2g} → "
        said = f"{self.request.text!r}: {self.now.words!r}"
        if self.reason is None:
            return f"{said} ({before}{self.now.probability:.2g})" + (f": {self.why}" if self.why else "")
        return f"{said} instead of {self.request.target_new!r} ({before}{self.now.probability:.2g}): {self.why}"


def _why_not(known: Circumstances) -> tuple[Reason, str]:
    if known.left_out:
        return Reason.BUDGET, known.left_out
    if known.first_token:
        return Reason.FIRST_TOKEN, "the attention sink has the subject's place: put words before the subject"
    if known.later is not None:
        return Reason.OVERWRITTEN, f"{known.later.target_new!r} was written later"
    if known.said:
        return Reason.OVERWRITTEN, "it was said after its own batch"
    if known.loss is not None and known.loss > _USUAL_LOSS:
        return Reason.NOT_REACHED, f"no target was found, the loss stayed at {known.loss:.2g}"
    if known.missed is not None and known.missed > USUAL_MISS:
        return Reason.NOT_REACHED, f"{known.missed:.0%} of the way to z* was left"
    worst = max((known.drift or {}).values(), default=0.0)
    if worst > USUAL_DRIFT:
        return Reason.DRIFT, f"‖ΔW‖/‖W‖ is {worst:.2g}"
    return Reason.NOT_REACHED, ""


_LONG = 50
"""With more facts than these, only those that failed get a row."""


class Verdicts(Shown, list[Request]):
    """The facts, as a list, with `verdicts`, one each; none where the model was not asked.

    `warnings` say what is unusual about the weights and targets as a whole, in a sentence each. `left_out` are those of
    the facts that a budget kept from being written, whether or not the model says them, each with the bound that did.
    """

    def __init__(
        self,
        requests: Iterable[Request],
        verdicts: Sequence[Verdict] = (),
        warnings: Sequence[str] = (),
        left_out: Iterable[tuple[Request, str]] = (),
    ) -> None:
        super().__init__(requests)
        self.verdicts, self.warnings, self.left_out = tuple(verdicts), tuple(warnings), tuple(left_out)

    @property
    def failed(self) -> list[Verdict]:
        """Those of the facts that the model does not say, or that were left out."""
        return [verdict for verdict in self.verdicts if not verdict.written]

    @property
    def summary(self) -> str:
        written = f"{len(self.verdicts) - len(self.failed)} of {len(self.verdicts)} facts written"
        return f"{written}, {len(self.left_out)} left out" if self.left_out else written

    def __rich__(self) -> RenderableType:
        """A row per fact, in order, with the reason below one that failed; of a long list those that failed only. A
        summary counts all.
        """
        if not self.verdicts:
            return f"{len(self)} facts, of which the model was not asked" if self else "no facts"
        table = Table(
            caption=self.summary, caption_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
        )
        for title in ("", "fact", "said before", "says now"):
            table.add_column(title, overflow="fold")
        table.add_column("probability", justify="right", no_wrap=True)
        for verdict in self.verdicts if len(self) <= _LONG else self.failed:
            table.add_row(*verdict.cells())
        return table

    def log(self, log: logging.Logger, name: str) -> None:
        """One line that sums up, one per failed fact and per warning: a warning unless all is well. `log_left_out` has
        those of facts that were left out.
        """
        level = logging.WARNING if self.failed else logging.INFO
        log.log(level, "%s: %s", name, self.summary)
        for verdict in self.failed:
            if not verdict.left_out:
                log.warning("✗ %s", verdict)
        for warning in self.warnings:
            log.warning("%s", warning)

    def log_left_out(self, log: logging.Logger) -> None:
        """A warning for each fact that was left out."""
        for request, why in self.left_out:
            log.warning("✗ left out: %r → %r: %s", request.text, request.target_new, why)


def unusual(drift: Mapping[int, float], missed: Sequence[float]) -> tuple[str, ...]:
    """What is unusual about ‖ΔW‖/‖W‖ by layer, and about the shares of the way to z* that were left, one per fact."""
    found = []
    high = {layer: value for layer, value in drift.items() if not value <= USUAL_DRIFT}
    if high:
        layers = ", ".join(f"{value:.2g} on layer {layer}" for layer, value in high.items())
        found.append(
            f"‖ΔW‖/‖W‖ is {layers}; above {USUAL_DRIFT} the model has usually lost more than the facts: undo, and try "
            "a larger λ, a smaller clamp_norm_factor or other layers"
        )
    far = [value for value in missed if not value <= USUAL_MISS]
    if far:
        found.append(
            f"z* was missed by more than half for {len(far)} of {len(missed)} facts ({max(far):.0%} of the way left at "
            "worst): try a smaller λ, a less strict null space or other layers"
        )
    return tuple(found)
