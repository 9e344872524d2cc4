"""A sequence of edits on one model."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from rich.console import RenderableType
from torch import Tensor, nn

from ..editors.chat import Chat, chat_identity, plain
from ..editors.editor import Editor
from ..editors.first_token import first_tokens, refuse
from ..editors.hyperparameters import Hyperparameters
from ..editors.layered import LayeredEditor
from ..editors.preconditions import check_editable, check_mode
from ..editors.preserved import Preserved
from ..editors.registry import Modifier
from ..editors.requests import Request, parse_requests
from ..editors.targets import Targets
from ..editors.update import Site, ended
from ..editors.variant import Variant
from ..editors.verdict import Answer, Circumstances, Verdict, Verdicts, answers, unusual
from ..errors import EditError, ModelStructureError, SessionDamagedError, SessionError, WrongModelError
from ..model.decoder import Decoder, OutProjection
from ..model.fingerprint import fingerprints, model_name
from ..model.gguf import gguf_of
from ..model.loading import save_model
from ..model.origin import Origin
from ..model.snapshot import copy_into, put_back
from ..nullspace.covariance import Covariance
from ..nullspace.null_spaces import NullSpaces, null_spaces_of
from ..nullspace.statistics import Preparation
from ..progress import progress_bar
from ..restoring import restoring
from ..shown import Shown
from ..storage.tensors import tensor_digest
from .asking import TOKENS, Replies, ask
from .batch import Asked, Batch, stacked
from .budget import Budget, Excess, Gauge, OverBudget, Reused, parts_that_fit
from .card import CARD, Card
from .change import Change, drift, same_change, sketch
from .folder import Saved, SessionFolder
from .gguf import Exported, write_gguf
from .ledger import Ledger
from .lora import Adapter, save_lora
from .manifest import Listed, is_session, read_manifest
from .patch import write_patch
from .report import Report

log = logging.getLogger(__name__)

OnFailure = Literal["report", "raise", "allow", "ignore"]


class Session(Shown):
    """Edits one model in place, batch after batch, and can undo, save, resume and export the edits.

    Invariants. A call to `edit`, `undo`, `remove`, `merge` or `finish` does all of its work or none: after any
    interruption (an error, a value that is not finite, a full disk, Ctrl-C), weights, history and folder are as before
    the call, bit for bit; or as after it, if Ctrl-C came when all was done but the folder's manifest. Writing the
    updates of `batches` into `base`, in order, gives the weights.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        method: str | Variant,
        null_spaces: NullSpaces | None = None,
        *,
        hyperparameters: Hyperparameters | None = None,
        covariances: Mapping[int, Covariance] | None = None,
        contexts: Sequence[str] | None = None,
        autosave: str | Path | None = None,
        check_model: bool = True,
        preparation: Preparation | None = None,
        chat: bool = False,
        progress: bool = False,
    ) -> None:
        """`method` is a variant such as "alphaedit", "memit+P" or "rome" (`registry.GRAMMAR`).

        Hyperparameters default to those that ship for the model, or else are derived from it. If the method needs
        `covariances` or `null_spaces` that are not given, they come from `preparation`; its default does what
        `alphaedit prepare` does. With `autosave` every batch is saved to that folder as soon as it is written, and the
        folder is this session's until `close`, or until the session or its process ends. With
        `chat` every prompt is the turn of a user in the model's chat template, and `tokenizer` becomes a `Chat`, which
        measures ask in the same way.

        Raises WrongModelError for null spaces of another model (`check_model=False` accepts them), EditError for null
        spaces of another module, if a method that needs null spaces gets only `covariances`, or for a model that cannot
        be edited (`preconditions.check_editable`, which may also raise ModelStructureError), ChatError for a tokenizer
        without a chat template, and SessionError if `autosave` holds a session already or cannot be written.
        """
        self.variant = method if isinstance(method, Variant) else Variant.parse(method)
        self.model, self.tokenizer = model, Chat.of(tokenizer) if chat else tokenizer
        preparation = preparation or Preparation(progress=progress)
        if preparation.criterion is not None:  # what the method's own name says goes before it
            base = hyperparameters or Hyperparameters.for_model(self.variant.method, model, model_name(model))
            hyperparameters = replace(base, null_space=preparation.criterion)
        self.hyperparameters = self.variant.hyperparameters(model, model_name(model), hyperparameters)
        layers, template = self.hyperparameters.layers, self.hyperparameters.rewrite_module_tmp
        decoder = Decoder(model, template)
        out_projections = decoder.out_projections(layers)
        check_editable(decoder, tokenizer, out_projections)
        if self.variant.projected and null_spaces is None and covariances is not None:
            raise EditError(f"{self.variant} projects: give null_spaces too (see NullSpaces.prepare)")
        if (self.variant.needs_covariances and covariances is None) or (self.variant.projected and null_spaces is None):
            tokens = self.hyperparameters.tokens
            statistics = preparation.statistics(model, tokenizer, layers, tokens=tokens, template=template)
            covariances = covariances or statistics.covariances
            if self.variant.projected and null_spaces is None:
                null_spaces = null_spaces_of(statistics, self.hyperparameters.null_space, store=preparation.store)
        self.covariances = {layer: c for layer, c in (covariances or {}).items() if layer in layers}
        self.null_spaces = _fitting(null_spaces, self) if null_spaces is not None and self.variant.projected else None
        self._reported = {layer: space for layer, space in (null_spaces or {}).items() if layer in layers}
        if self.null_spaces is not None and check_model:
            self.null_spaces.check(model)
        self.base = {layer: projection.matrix.clone() for layer, projection in out_projections.items()}
        self.editor = self._editor(model, contexts, progress)
        self.editor.checked = True
        self.at_end = self.variant.at_end(self.hyperparameters)
        self.batches: list[Batch] = []
        self.autosave = Path(autosave).resolve() if autosave is not None else None
        self._before_end: dict[int, Tensor] | None = None
        self._fingerprints: dict[int, str] | None = None
        self._identified: str | None = None
        self._folders: dict[Path, SessionFolder] = {}
        if self.autosave is not None:
            if is_session(self.autosave):
                raise SessionError(f"{self.autosave} holds a session already: resume it, or choose another folder")
            self._folder(self.autosave).claim()

    @property
    def projections(self) -> dict[int, OutProjection]:
        """layer → the out-projection that is edited."""
        return self.editor.projections

    @property
    def facts(self) -> list[Request]:
        """Every fact that was written and not undone, in order."""
        return [request for batch in self.batches for request in batch.requests]

    @property
    def in_force(self) -> list[Request]:
        """The facts that no later one has superseded: of those with the same prompt and subject, the last."""
        return list({fact.text: fact for fact in self.facts}.values())

    @property
    def finished(self) -> bool:
        """Whether `finish` made the current weights."""
        return self._before_end is not None

    def edit(
        self,
        records: Sequence[Mapping[str, Any] | Request],
        targets: Targets | None = None,
        *,
        on_failure: OnFailure = "report",
        budget: Mapping[str, float] | Budget | None = None,
    ) -> Verdicts:
        """Write these facts, all or none; returns them as parsed, a list that also holds a verdict on each.

        Pass `targets` that were computed on the current model to save their cost. A finished sequence continues from
        its undamped weights.

        `on_failure` says what happens if the model does not say a fact afterwards: "report" logs a warning, "raise"
        takes the whole batch back, also where a weight drifts above the usual. Both refuse at once a subject that has
        the attention sink's key and cannot be learned (`check`). "allow" tries such facts too, and logs nothing.
        "ignore" does not ask the model at all: there are no verdicts, and they cost nothing.

        With a `budget`, such as {"drift": 0.2, "kl": 0.01}, the weights stay within these bounds (`budget.py`), counted
        from the unedited model, also once `finish` is called. Facts that do not fit together are tried by halves, down
        to one; each part that fits is a batch of its own, for `undo`. What does not fit is not written:
        it is in the result's `left_out` with the reason, its verdict says so, and it is logged as a warning, whatever
        `on_failure` says; but "raise" takes all back. Where nothing fits, all stays as it was. `targets` serve as long
        as nothing is written (`fixed` ones throughout); only then are others found.

        Raises RequestError for a record that is malformed or refused, or for two that contradict each other, before
        anything is touched; EditError for a budget that is none, if the result (or, with a budget, what is tried) would
        not be finite or, with "raise", is not what was asked for.
        """
        if on_failure not in get_args(OnFailure):
            raise EditError(f"on_failure must be one of {', '.join(get_args(OnFailure))}, not {on_failure!r}")
        check_mode()
        requests, bounds = parse_requests(records), Budget.of(budget)
        if bounds is not None:
            gauge = Gauge(bounds, self.editor.decoder, self.tokenizer, self.projections, self.base, self.covariances)
            return self._edit_what_fits(requests, targets, on_failure, gauge)
        if on_failure == "ignore":
            with self.transaction():
                self._unfinish()
                self.batches.append(Batch(tuple(requests), self.editor.edit(requests, targets)))
                self._keep()
            return Verdicts(requests)
        first = self._checked(requests, on_failure)
        with self.transaction():
            self._unfinish()
            before = self._answers(requests)
            written = self.editor.edit(requests, targets)
            _check_finite(self.projections)
            after = self._answers(requests)
            self.batches.append(Batch(tuple(requests), written, Asked(tuple(before), tuple(after), first)))
            found = self._judged([(len(self.batches) - 1, row) for row in range(len(requests))], after)
            if on_failure == "raise":
                _check_written(found, unusual(self._drift(), ()))
            self._keep()
        if on_failure == "report" and (found.failed or found.warnings):
            found.log(log, str(self.variant))
        return found

    def _edit_what_fits(
        self, requests: Sequence[Request], targets: Targets | None, on_failure: OnFailure, gauge: Gauge
    ) -> Verdicts:
        """`edit` with a budget."""
        asks = on_failure != "ignore"
        first: tuple[int, ...] = ()
        if asks:
            first = self._checked(requests, on_failure)
        else:
            self.editor.check(requests)

        def find(rows: Sequence[int]) -> Targets | None:
            part = [requests[row] for row in rows]
            return self.editor.targets(part) if isinstance(self.editor, LayeredEditor) else None

        reused = Reused(len(requests), targets, find)
        place_of: dict[int, tuple[int, int]] = {}  # row → (batch, row in the batch) of what was written
        heard: dict[int, Answer] = {}  # from the model as it is

        def attempt(rows: Sequence[int]) -> str:
            part = [requests[row] for row in rows]
            asked = None
            if asks and not heard.keys() >= {*rows}:
                heard.update(zip(rows, self._answers(part), strict=True))
            try:
                with self.transaction(part=True):
                    written = self.editor.edit(part, reused.of(rows))
                    _check_finite(self.projections)
                    if (excess := self._excess(gauge)) is not None:
                        raise OverBudget(excess.said("would be"))
                    if asks:
                        before, after = tuple(heard[row] for row in rows), tuple(self._answers(part))
                        asked = Asked(before, after, tuple(at for at, row in enumerate(rows) if row in first))
                    self.batches.append(Batch(tuple(part), written, asked))
            except OverBudget as failure:
                return str(failure)
            place_of.update({row: (len(self.batches) - 1, at) for at, row in enumerate(rows)})
            heard.clear()
            reused.forget()
            return ""

        before: list[Answer] = []
        try:
            with self.transaction():
                self._unfinish()
                if asks:
                    before = self._answers(requests)
                    heard.update(enumerate(before))
                excess = self._excess(gauge)
                left_out = (
                    parts_that_fit(len(requests), attempt)
                    if excess is None
                    else dict.fromkeys(range(len(requests)), excess.said("already is"))
                )
                if not place_of:
                    raise OverBudget
                found = self._of_parts(requests, place_of, left_out, before if asks else None)
                if on_failure == "raise":
                    _check_written(found, unusual(self._drift(), ()))
                self._keep()
        except OverBudget:  # finished weights are finished again
            found = self._of_parts(requests, {}, left_out, before if asks else None)
            if on_failure == "raise":
                _check_written(found, ())
        found.log_left_out(log)
        if on_failure == "report" and (found.failed or found.warnings):
            found.log(log, str(self.variant))
        return found

    def _excess(self, gauge: Gauge) -> Excess | None:
        """What is above the budget now, or would be once the sequence is finished."""
        excess = gauge.excess()
        if excess is not None or not self.at_end:
            return excess
        with put_back(self.projections):
            try:
                self._end(self.at_end)
                excess = gauge.excess()
            finally:
                self._before_end = None
        return None if excess is None else replace(excess, what=f"{excess.what}, once finished,")

    def _of_parts(
        self,
        requests: Sequence[Request],
        place_of: Mapping[int, tuple[int, int]],
        left_out: Mapping[int, str],
        before: Sequence[Answer] | None,
    ) -> Verdicts:
        """Verdicts on these facts, of which some are at these (batch, row) and the others were left out; none if it was
        not asked what was said `before`.
        """
        named = [(requests[row], why) for row, why in sorted(left_out.items())]
        if before is None:
            return Verdicts(requests, left_out=named)
        whole = len({number for number, _ in place_of.values()}) == 1 and not left_out
        asked = self.batches[-1].asked if whole else None
        now = self._answers(requests) if asked is None else asked.after
        rows = sorted(place_of)
        judged = self._judged([place_of[row] for row in rows], [now[row] for row in rows])
        verdicts = dict(zip(rows, judged.verdicts, strict=True))
        for row, why in left_out.items():
            verdicts[row] = Verdict.of(requests[row], before[row], now[row], Circumstances(left_out=why))
        return Verdicts(requests, [verdicts[row] for row in range(len(requests))], judged.warnings, named)

    def to_do(self, requests: Sequence[Request]) -> list[int]:
        """Which facts of a list, by position, must still be written for the session to hold what the list says.

        If the session ends with the beginning of the list, as after a kill, the rest of the list is left. Of this, a
        fact is written unless it is in force at that place: the last one written with its prompt and subject.
        """
        written = self.facts
        begun = next(
            n for n in range(min(len(written), len(requests)), -1, -1) if written[len(written) - n :] == requests[:n]
        )
        in_force = {request.text: request for request in written}
        left = []
        for position, request in enumerate(requests[begun:], begun):
            if in_force.get(request.text) != request:
                left.append(position)
                in_force[request.text] = request
        return left

    def check(self, records: Sequence[Mapping[str, Any] | Request]) -> list[Request]:
        """The facts as parsed, if they can be written. Costs a small forward pass, if any.

        Raises RequestError, naming the record and the remedy, for a malformed record, and for a subject that has the
        attention sink's key (`editors/first_token.py`).
        """
        requests = parse_requests(records)
        self.editor.check(requests)
        refuse(requests, self._first_tokens(requests))
        return requests

    def verdicts(
        self, records: Sequence[Mapping[str, Any] | Request] | None = None, *, left_out: Sequence[Verdict] = ()
    ) -> Verdicts:
        """What has become of `records`, by default of every fact of the session, on the model as it is now.

        What a fact's prompt was answered with before is what was heard before its own batch. Facts that a budget left
        out are no facts of the session; verdicts on them, `left_out`, are brought up to date and come last. Raises
        EditError for a fact that the session does not hold.
        """
        place_of = {}  # of a fact that was written twice, the later one
        places = [(number, row) for number, batch in enumerate(self.batches) for row in range(len(batch.requests))]
        for place, request in zip(places, self.facts, strict=True):
            place_of[request] = place
        if records is not None:
            places = [place_of[request] for request in self._held(records)]
        asked = [self.batches[number].requests[row] for number, row in places]
        now = self._answers([*asked, *(verdict.request for verdict in left_out)])
        found = self._judged(places, now[: len(places)])
        again = [
            Verdict.of(verdict.request, verdict.before, answer, Circumstances(left_out=verdict.left_out))
            for verdict, answer in zip(left_out, now[len(places) :], strict=True)
        ]
        requests = [*found, *(verdict.request for verdict in again)]
        named = [(verdict.request, verdict.left_out) for verdict in again]
        return Verdicts(requests, [*found.verdicts, *again], found.warnings, named)

    def ask(self, prompts: str | Sequence[str], *, tokens: int = TOKENS, chat: bool = False) -> Replies:
        """What the model writes after each prompt without the session's edits and with them: greedily, `tokens` tokens.

        If a prompt is about facts that are in force (`asking.about`), the reply also has the probability of their old
        and new objects. A session with `chat` asks in the chat template, and with `chat=True` any other does so too.
        The edits are taken out of the one model for a moment; model and random states stay as they were. Raises
        RequestError for a prompt that is empty or too long, ChatError for a tokenizer without a chat template.
        """
        return ask(
            self.model,
            Chat.of(self.tokenizer) if chat else self.tokenizer,
            [prompts] if isinstance(prompts, str) else list(prompts),
            self.in_force,
            lambda: self.at(0),
            taught_with=self.tokenizer,
            tokens=tokens,
            progress=self.editor.progress,
        )

    def ledger(self, *, asking: bool = True) -> Ledger:
        """Every fact, with its number, its time, whether a later one supersedes it, and its verdict on the model as it
        is now; without `asking` none, and at no cost.
        """
        verdicts = self.verdicts().verdicts if asking and self.facts else ()
        batches = [(batch.requests, batch.time) for batch in self.batches]
        return Ledger.of(Listed(str(self.variant), model_name(self.model), batches), verdicts)

    def __rich__(self) -> RenderableType:
        return self.ledger(asking=False)

    def undo(self, batches: int = 1) -> list[Request]:
        """Take back the last `batches` calls to `edit` (of one with a budget, its last parts), exactly; returns their
        facts.

        Raises EditError if there are not that many.
        """
        if isinstance(batches, bool) or not isinstance(batches, int) or not 1 <= batches <= len(self.batches):
            raise EditError(f"cannot undo {batches!r} batches: the session holds {len(self.batches)}")
        with self.transaction():
            undone = self._take_back(batches)
            self._keep()
        return [request for batch in undone for request in batch.requests]

    def remove(self, facts: Sequence[Mapping[str, Any] | Request | int]) -> list[Request]:
        """Take back any facts, wherever in the sequence they were written; returns them, in that order.

        A fact is named by its number in the `ledger`, or as a record: then it goes wherever it was written. The batches
        from the first of them on are solved again without them, for the targets that were found when they were written:
        no target is optimised anew (but BLUE's second, and those of a session that an earlier version saved). The
        result is the session that never held them, had it had these targets: bit for bit where it writes the same
        batches. A fact that one of them had superseded is in force again.

        A fact that the model said before and no longer says is logged as a warning. Raises EditError for a fact that
        the session does not hold.
        """
        held, gone = self.facts, self._positions(facts)
        if not gone:
            return []
        failed = self.verdicts().failed
        positions = itertools.count()
        parts = [
            (batch, [row for row in range(len(batch.requests)) if next(positions) not in gone])
            for batch in self.batches
        ]
        first = next(number for number, (batch, rows) in enumerate(parts) if len(rows) < len(batch.requests))
        with self.transaction():
            self._take_back(len(parts) - first)
            self._write(parts[first:])
            lost = self._lost(failed)
            self._keep()
        _log_lost(lost)
        return [held[position] for position in sorted(gone)]

    def merge(self, path: str | Path) -> list[Request]:
        """Write what is in force in the session in a folder, and not here; returns these facts, in order.

        Both must have begun with the same weights. If they are of one method on the same modules, facts are written for
        the targets that were found there; otherwise targets are found anew. Another fact of the same prompt and subject
        is superseded. Facts that fail, or are lost by it, are logged as warnings. Raises WrongModelError for a session
        of another model, and SessionError if the folder holds no complete session, or one in which prompts are asked
        otherwise (`chat`).
        """
        batches = self._mergeable(Path(path))
        here = {fact.text: fact for fact in self.facts}
        last = {
            request.text: (number, row)
            for number, batch in enumerate(batches)
            for row, request in enumerate(batch.requests)
        }
        new = [
            (number, row)
            for number, row in sorted(last.values())
            if here.get((fact := batches[number].requests[row]).text) != fact
        ]
        if not new:
            return []
        count, failed = len(self.facts), self.verdicts().failed
        with self.transaction():
            self._unfinish()
            self._write([(batches[number], [row for _, row in rows]) for number, rows in groupby(new, itemgetter(0))])
            lost = self._lost(failed)
            self._keep()
        _log_lost(lost)
        return self.facts[count:]

    def finish(self) -> None:
        """Do what the method does at the end of a sequence (PRUNE damps), then project. Most methods do nothing.

        It can be repeated; the next `edit`, `undo`, `remove` or `merge` reverts it first. Raises EditError if the
        result would not be finite.
        """
        if not self.at_end or self.finished or not self.batches:
            return
        with self.transaction():
            self._end(self.at_end)
            self._keep()

    @restoring
    def at(self, batches: int, *, end: Sequence[Modifier] = ()) -> Iterator[float]:
        """Inside the block the weights are those after the first `batches` calls to `edit`, then after `end`.

        `end` are modifiers that act at the end, of this method or of another with the same trajectory
        (`Variant.at_end`). Yields the seconds that they took. For measuring only: nothing is saved, and afterwards the
        session is as before.
        """
        before = (self.batches, self._before_end)
        with put_back(self.projections):
            try:
                self.batches, self._before_end = self.batches[:batches], None
                self._write_again()
                started = time.perf_counter()
                if end:
                    self._end(end)
                yield time.perf_counter() - started
            finally:
                self.batches, self._before_end = before

    def on_copy(self, model: nn.Module) -> Session:
        """The same session on `model`, a copy of its current model. Both continue independently; only the original
        autosaves.
        """
        twin = copy.copy(self)
        twin.model, twin.batches, twin.autosave, twin._folders = model, list(self.batches), None, {}
        twin.editor = self._editor(model, self.editor._contexts, self.editor.progress)
        twin.editor.memory, twin.editor.owed = self.editor.memory, self.editor.owed
        return twin

    def report(self) -> Report:
        """How far the weights have moved, and how much of this affects preserved keys. Logs its warnings."""
        now = {layer: projection.matrix for layer, projection in self.projections.items()}
        change = Change.between(self.base, now, self.covariances, self._reported)
        warnings = unusual(change.drift, self._missed())
        for warning in warnings:
            log.warning("%s", warning)
        return Report(
            str(self.variant),
            len(self.facts),
            len(self.batches),
            change.drift,
            change.leakage,
            change.outside,
            warnings,
        )

    # -------------------------------------------------------------------------------------------------- on disk

    def save(self, path: str | Path) -> None:
        """Write the session to a folder: what it needs to continue, its tokenizer, and one file per batch.

        The folder does not hold the model. Batches saved before are not written again; a crash at any moment leaves the
        folder as before or after the call, never between. Raises SessionError if it cannot be written, if the folder
        holds another session or another Session has saved there since, and SessionInUseError if one owns it.
        """
        folder = self._folder(path)
        values = {
            **self._description(),
            "finished": self.finished,
            "weights": self._digests(),
            "moved": self._moved(),
            "identity": self._identity(),
        }
        needed = self.covariances if self.variant.needs_covariances else {}
        folder.save(self.batches, values, self.tokenizer, needed, self.null_spaces)

    def close(self) -> None:
        """Give the folder of `autosave` back, so that another Session can go on with it.

        A closed session can still be used. It owns its folder only while it saves, and no longer saves there as soon as
        somebody else has.
        """
        for folder in self._folders.values():
            folder.release()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @classmethod
    def resume(
        cls,
        path: str | Path,
        model: nn.Module,
        tokenizer: Any = None,
        *,
        check_model: bool = True,
        read_only: bool = False,
        progress: bool = False,
    ) -> Session:
        """The session that was saved to `path`. Its edits are written into `model` again; it goes on autosaving there.

        `model` must be the one that the session began with, unedited. The tokenizer is read from the folder unless
        given. With `read_only` the folder may belong to another Session, and is left alone: what is edited further is
        not saved.

        Raises SessionError if the folder holds no complete session, or if what it holds does not lead to the weights
        that it knows; SessionInUseError, saying who, if it belongs to another Session; WrongModelError for another
        model.
        """
        check_mode()
        read_manifest(Path(path))  # otherwise a folder without a session would be claimed
        folder = SessionFolder(path)
        if not read_only:
            folder.claim()
        try:
            return cls._resumed(folder, model, tokenizer, check_model, read_only, progress)
        except BaseException:
            folder.release()
            raise

    @classmethod
    def _resumed(
        cls, folder: SessionFolder, model: nn.Module, tokenizer: Any, check_model: bool, read_only: bool, progress: bool
    ) -> Session:
        saved = folder.load()
        if tokenizer is None:
            tokenizer = folder.load_tokenizer()
        tokenizer = Chat(plain(tokenizer), saved.chat) if saved.chat is not None else plain(tokenizer)
        same = _is_model(model, saved.fingerprints, folder.path, saved.model, check_model)
        session = cls(
            model,
            tokenizer,
            saved.variant,
            saved.null_spaces,
            hyperparameters=saved.hyperparameters,
            covariances=saved.covariances,
            contexts=saved.contexts,
            check_model=False,
            progress=progress,
        )
        with put_back(session.projections, only_on_error=True):
            session.batches = saved.batches
            session.editor.owed = session._write_again()
            for batch in saved.batches:
                session.editor.remember(batch.written)
            if saved.finished:
                session.finish()
            _check_finite(session.projections)
            session._fingerprints = saved.fingerprints
            session._check_as_saved(saved, folder.path, same)
        if not read_only:
            session.autosave = folder.path
            session._folders[folder.path.resolve()] = folder
        return session

    def _check_as_saved(self, saved: Saved, path: Path, same_model: bool) -> None:
        """Raises SessionError unless this session is the one that was saved; warns about rounding."""
        if same_model and self._identity() != saved.identity:
            raise SessionDamagedError(
                f"{path} is damaged: its settings, statistics or null spaces are not those that the session began "
                "with. Take a copy of the session, or begin anew"
            )
        if self._digests() == saved.weights:
            return
        if same_model and saved.moved is not None:
            for layer, projection in self.projections.items():
                base, now = self.base[layer], projection.matrix
                if not same_change(sketch(base, now), saved.moved.get(str(layer), ()), base, now):
                    raise SessionDamagedError(
                        f"{path} does not lead to the weights of layer {layer} that were saved: its batches are not "
                        "those of this session. Take a copy of the session, or begin anew"
                    )
        log.warning("%s: the weights differ from those saved in their last bits (another machine?)", path)

    def to_patch(self, path: str | Path) -> None:
        """Write the edit as one small safetensors file, for `patch.apply_patch` and `revert_patch`, bit for bit.

        It holds the factors of ΔW if the method has any (RECT has none, nor PRUNE after its end). Raises PatchError if
        the file cannot be written.
        """
        factors: Mapping[int, tuple[Tensor, Tensor] | None] = {}
        if self.editor.write.in_factors and not self.finished:
            factors = stacked(self.batches)
        write_patch(
            path,
            self.model,
            self.base,
            {layer: factors.get(layer) for layer in self.projections},
            {**self._description(), "facts": [vars(fact) for fact in self.facts]},
            template=self.hyperparameters.rewrite_module_tmp,
        )

    def to_lora(
        self,
        folder: str | Path,
        *,
        energy: float | None = None,
        rank: int | None = None,
        base_model: str | None = None,
    ) -> Adapter:
        """Write the edit as a PEFT LoRA adapter with a model card; returns layer → rank, with what is `kept` of ‖ΔW‖².

        The ranks are the smallest that leave out only rounding noise or, with `energy`, that hold this share of ‖ΔW‖²;
        with `rank` every layer gets the best approximation of this rank. The card, and the result's `verdicts`, say
        what the model says with the adapter in place of the edit; `lost` are facts that it no longer says by that.
        `base_model` is the name by which others find the unedited model, by default the one it was loaded by. Raises
        PatchError as `Adapter.of` does, or if the folder cannot be written.
        """
        template, folder = self.hyperparameters.rewrite_module_tmp, Path(folder)
        adapter = Adapter.of(self.model, self.base, template=template, energy=energy, rank=rank)
        whole = None if adapter.exact else self.verdicts(self.in_force)
        with put_back(self.projections):
            adapter.merge(self.projections, self.base)
            adapter.judge(self.verdicts(self.in_force), whole)
        origin = Origin.named(base_model) if base_model else Origin.of(self.model)
        card = self._card(origin, adapter.verdicts, adapter).text(folder / CARD)
        save_lora(
            folder, adapter, self.model, template=template, base_model=origin.name or None, card=card, chosen=rank
        )
        return adapter

    def to_model(self, folder: str | Path) -> None:
        """Write the edited model as an ordinary model folder, with a model card if it holds any facts.

        A model folder that is there is replaced. Raises StoreError as `save_model` does.
        """
        folder, card = Path(folder), ""
        if self.facts:
            card = self._card(Origin.of(self.model), self.verdicts(self.in_force)).text(folder / CARD)
        save_model(self.model, self.tokenizer, folder, card=card)

    def _card(self, origin: Origin, verdicts: Verdicts, adapter: Adapter | None = None) -> Card:
        return Card(origin, str(self.variant), self._drift(), verdicts, isinstance(self.tokenizer, Chat), adapter)

    def to_gguf(self, path: str | Path, *, kind: str | None = None) -> Exported:
        """Write the GGUF file that the model comes from again, with the edited tensors in place of the old ones.

        All else stays byte for byte. `kind` is the type of what is replaced, such as "Q8_0"; by default each tensor
        has its own type or, where facts would be lost by that, the smallest of Q8_0, F16 and F32 that keeps all
        (`gguf.py`). Raises ModelStructureError for a model that does not come from a GGUF file or is not as in it, or
        a type that cannot be written; StoreError if the file cannot be.
        """
        with gguf_of(model_name(self.model)) as source:
            return write_gguf(Path(path), source, self.projections, self.base, self._said, kind)

    # ------------------------------------------------------------------------------------------------ internals

    @restoring
    def transaction(self, *, part: bool = False) -> Iterator[None]:
        """Keep (and autosave) the block's weights, history and memory, or restore them all if it fails. Can be nested.

        A `part` of another transaction is not saved: that is left to the whole. Raises EditError if a weight is not
        finite, SessionError if it cannot be saved.
        """
        before = (self.batches, self._before_end, self.editor.memory, self.editor.owed)
        self.batches = list(self.batches)
        try:
            with put_back(self.projections, only_on_error=True):
                yield
                _check_finite(self.projections)
                if self.autosave is not None and not part:
                    self.save(self.autosave)  # Ctrl-C waits: folder and memory are both as after the block
        except BaseException:
            self.batches, self._before_end, self.editor.memory, self.editor.owed = before
            raise

    def _take_back(self, batches: int) -> list[Batch]:
        """Undo the last `batches` batches, which are returned; inside a transaction."""
        self._before_end = None
        undone, self.batches = self.batches[-batches:], self.batches[:-batches]
        self.editor.forget(sum(len(batch.requests) for batch in undone))
        self.editor.owed = self._write_again()
        return undone

    def _write(self, parts: Sequence[tuple[Batch, Sequence[int]]]) -> None:
        """Write these rows of batches that were written already, for the same targets; inside a transaction."""
        wanted = [(batch, rows) for batch, rows in parts if rows]
        for batch, rows in progress_bar(wanted, desc="batches", unit="batch", shown=self.editor.progress, leave=False):
            requests = tuple(batch.requests[row] for row in rows)
            written = self.editor.edit(requests, batch.targets(rows))
            _check_finite(self.projections)
            asked = batch.asked and batch.asked.of(rows, self._answers(requests))
            self.batches.append(replace(batch, requests=requests, written=written, asked=asked))

    def _lost(self, before: Sequence[Verdict]) -> list[Verdict]:
        """The facts in force that the model does not say now, but for those that had failed before."""
        known = {verdict.request for verdict in before}
        return [verdict for verdict in self.verdicts(self.in_force).failed if verdict.request not in known]

    def _positions(self, facts: Sequence[Mapping[str, Any] | Request | int]) -> set[int]:
        """Where in `self.facts` these are. Raises EditError for one that the session does not hold."""
        held = self.facts
        numbers = [fact for fact in facts if isinstance(fact, int)]
        for number in numbers:
            if not 1 <= number <= len(held):
                raise EditError(f"there is no fact {number}: the session holds {len(held)}")
        wanted = {*self._held([fact for fact in facts if not isinstance(fact, int)])}
        named = {position for position, request in enumerate(held) if request in wanted}
        return named | {number - 1 for number in numbers}

    def _held(self, records: Sequence[Mapping[str, Any] | Request]) -> list[Request]:
        """These facts as parsed. Raises EditError for one that the session does not hold."""
        wanted, held = [Request.parse(record, f"request {i}") for i, record in enumerate(records)], {*self.facts}
        absent = next((request for request in wanted if request not in held), None)
        if absent is not None:
            raise EditError(f"the session holds no fact {absent.text!r} → {absent.target_new!r}: edit it first")
        return wanted

    def _mergeable(self, path: Path) -> list[Batch]:
        """The batches of the session in a folder, with targets if they are of use here. Raises as `merge` does."""
        read_manifest(path)
        saved = SessionFolder(path).load()
        with put_back(self.projections):
            copy_into(self.base, self.projections)
            _is_model(self.model, saved.fingerprints, path, saved.model, required=True)
        if (saved.chat is not None) != isinstance(self.tokenizer, Chat):
            raise SessionError(f"{path} and this session differ in whether prompts are turns of a chat (chat=True)")
        if _same_targets(saved.variant, saved.hyperparameters, self.variant, self.hyperparameters):
            return saved.batches
        return [replace(batch, written=replace(batch.written, z_star=None)) for batch in saved.batches]

    def _keep(self) -> None:
        """Write what takes longest of a save, as the last act of a transaction, while Ctrl-C may still end it."""
        _check_finite(self.projections)
        if self.autosave is not None:
            self._folder(self.autosave).stage(self.batches)

    def _checked(self, requests: Sequence[Request], on_failure: OnFailure) -> tuple[int, ...]:
        """Those of the facts, by row, that have the attention sink's key, which only "allow" allows. Raises as
        `check`.
        """
        self.editor.check(requests)
        first = self._first_tokens(requests)
        if on_failure != "allow":
            refuse(requests, first)
        return first

    def _first_tokens(self, requests: Sequence[Request]) -> tuple[int, ...]:
        return first_tokens(self.model, self.tokenizer, requests, self.projections[max(self.projections)])

    def _answers(self, requests: Sequence[Request]) -> list[Answer]:
        return answers(self.model, self.tokenizer, requests)

    def _judged(self, places: Sequence[tuple[int, int]], now: Sequence[Answer]) -> Verdicts:
        """Verdicts on the facts at these (batch, row), which the model now answers so."""
        drift, last = self._drift(), {request.text: request for request in self.facts}
        verdicts = []
        for (number, row), answer in zip(places, now, strict=True):
            batch = self.batches[number]
            request, written, asked = batch.requests[row], batch.written, batch.asked
            later = last[request.text]
            circumstances = Circumstances(
                first_token=asked is not None and row in asked.first_tokens,
                later=later if later.target_new != request.target_new else None,
                said=asked is not None and asked.after[row].agrees and number + 1 < len(self.batches),
                missed=None if written.missed is None else float(written.missed[row]),
                loss=None if written.losses is None else float(written.losses[row]),
                drift=drift,
            )
            before = None if asked is None else asked.before[row]
            verdicts.append(Verdict.of(request, before, answer, circumstances))
        return Verdicts((verdict.request for verdict in verdicts), verdicts, unusual(drift, self._missed()))

    def _said(self) -> list[Request]:
        """The facts that the model says as it is now."""
        return [verdict.request for verdict in self.verdicts(self.in_force).verdicts if verdict.now.agrees]

    def _drift(self) -> dict[int, float]:
        return {layer: drift(self.base[layer], projection.matrix) for layer, projection in self.projections.items()}

    def _missed(self) -> list[float]:
        """How much of the way to z* was left, for every fact of which it is known."""
        known = [batch.written.missed for batch in self.batches if batch.written.missed is not None]
        return [value for missed in known for value in missed.tolist()]

    def _unfinish(self) -> None:
        if self._before_end is not None:
            copy_into(self._before_end, self.projections)
            self._before_end = None

    def _editor(self, model: nn.Module, contexts: Sequence[str] | None, progress: bool) -> Editor:
        return self.variant.editor(
            model,
            self.tokenizer,
            self.hyperparameters,
            Preserved(self.covariances, self.null_spaces or {}),
            base=self.base,
            contexts=contexts,
            progress=progress,
        )

    def _end(self, modifiers: Sequence[Modifier]) -> None:
        self._before_end = {layer: projection.matrix.clone() for layer, projection in self.projections.items()}
        for layer, projection in self.projections.items():
            before, weight = self.base[layer].to(torch.float64), projection.matrix
            accumulated = weight.to(torch.float64) - before
            space = self.null_spaces[layer] if self.null_spaces is not None else None
            change = ended(accumulated, Site(layer, weight, self.base[layer], space), modifiers)
            if change is accumulated:
                continue  # the weights stay as they are, bit for bit
            if space is not None:
                change = space.project(change)
            weight.copy_((before + change.to(before.device)).to(weight.dtype))

    def _write_again(self) -> dict[int, Tensor]:
        """Set the weights to what `batches` leave, starting from the base; returns what they owe (`Editor.owed`)."""
        copy_into(self.base, self.projections)
        again, owed = self.editor.write.again, dict[int, Tensor]()
        for batch in self.batches:
            for update in batch.written.updates:
                again(self.projections[update.layer], update, owed)
        return owed

    def _description(self) -> dict[str, Any]:
        """A description of the session, in JSON's types."""
        if self._fingerprints is None:
            with put_back(self.projections):
                copy_into(self.base, self.projections)
                self._fingerprints = fingerprints(self.model, list(self.projections))
        return {
            "method": str(self.variant),
            "model": model_name(self.model),
            "dtype": str(self.editor.decoder.model.dtype).removeprefix("torch."),
            "fingerprints": {str(layer): print_ for layer, print_ in self._fingerprints.items()},
            "hyperparameters": self.hyperparameters.as_dict(),
            "contexts": list(self.editor.contexts),
            "null_spaces": self.null_spaces is not None,
            **chat_identity(self.tokenizer),
        }

    def _digests(self) -> dict[str, str]:
        return {str(layer): tensor_digest(projection.matrix) for layer, projection in self.projections.items()}

    def _moved(self) -> dict[str, list[float]]:
        return {str(layer): sketch(self.base[layer], each.matrix) for layer, each in self.projections.items()}

    def _folder(self, path: str | Path) -> SessionFolder:
        return self._folders.setdefault(Path(path).resolve(), SessionFolder(path))

    def _identity(self) -> str:
        """A hash of all that never changes during the session; a folder continues a session only if they agree."""
        if self._identified is None:
            self._identified = self._hash()
        return self._identified

    def _hash(self) -> str:
        tensors = [self.covariances[layer].upper.triu() for layer in self.covariances if self.variant.needs_covariances]
        tensors += [space.factor for space in (self.null_spaces or {}).values()]
        description = {key: value for key, value in self._description().items() if key != "model"}
        lines = [json.dumps(description, sort_keys=True), *map(tensor_digest, tensors)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _log_lost(lost: Sequence[Verdict]) -> None:
    for verdict in lost:
        log.warning("✗ %s", verdict)


def _same_targets(one: Variant, theirs: Hyperparameters, other: Variant, ours: Hyperparameters) -> bool:
    """Whether two variants find their targets in the same places."""

    def places(variant: Variant, values: Hyperparameters) -> tuple[Any, ...]:
        return variant.solver, sorted(values.layers), values.rewrite_module_tmp, bool(values.own.get("blue"))

    return places(one, theirs) == places(other, ours)


def _check_written(found: Verdicts, drifted: Sequence[str]) -> None:
    """Raises EditError, naming the facts and why, for a batch that is to be taken back."""
    reasons = [*map(str, found.failed), *drifted]
    if reasons:
        raise EditError(f"{found.summary}, and the batch is taken back: {'; '.join(reasons)}")


def _is_model(model: nn.Module, expected: Mapping[int, str], folder: Path, name: str, required: bool) -> bool:
    """Whether the model is the one that the session in `folder` began with; if that is `required`, WrongModelError."""
    try:
        found = fingerprints(model, list(expected))
        wrong = [layer for layer in expected if found[layer] != expected[layer]]
        why = f"layer {wrong[0]} differs" if wrong else ""
    except ModelStructureError as failure:
        why = str(failure)
    if not why:
        return True
    if required:
        raise WrongModelError(
            f"the session in {folder} began with {name}, not with the given {model_name(model)} ({why}): give the "
            "unedited model it began with, or check_model=False"
        )
    log.warning("the session in %s began with %s, not with the given %s (%s)", folder, name, model_name(model), why)
    return False


def _fitting(null_spaces: NullSpaces, session: Session) -> NullSpaces:
    """The null spaces of the layers to be edited. Raises EditError if one is missing or belongs to another module."""
    hyperparameters = session.hyperparameters
    missing = sorted(set(hyperparameters.layers) - set(null_spaces))
    if missing:
        raise EditError(f"there is no null space of layers {missing}, which {session.variant} is to edit")
    ours_in = Decoder(session.model, hyperparameters.rewrite_module_tmp)
    theirs_in = Decoder(session.model, null_spaces.provenance.get("template"))
    for layer in hyperparameters.layers:
        theirs, ours = theirs_in.out_projection(layer).name, ours_in.out_projection(layer).name
        if theirs != ours:
            raise EditError(
                f"the null space of layer {layer} is that of {theirs}, but {session.variant} is to edit {ours}"
            )
    return NullSpaces({layer: null_spaces[layer] for layer in hyperparameters.layers}, null_spaces.provenance)


def _check_finite(projections: Mapping[int, OutProjection]) -> None:
    for projection in projections.values():
        if not torch.isfinite(projection.matrix).all():
            raise EditError(f"the edit would leave {projection.name}.weight not finite; nothing was changed")
