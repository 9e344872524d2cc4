"""Contenders side by side, from Python: same start, same facts, same order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..editors.chat import Chat
from ..editors.hyperparameters import Hyperparameters
from ..evaluation.fact_scores import FactScores
from ..evaluation.facts import Fact
from ..evaluation.measure import Measure
from ..evaluation.perplexity import Perplexity
from ..model.fingerprint import model_name
from ..nullspace.statistics import Preparation, Statistics
from ..storage.shipped import shipped
from .cell import Cell
from .contender import Ground
from .contenders import Given, contenders, prepared
from .course import Course
from .results import Comparison
from .run_folder import RunFolder


def compare(
    model: Any,
    tokenizer: Any,
    facts: Sequence[Fact],
    methods: Sequence[Given] | Mapping[str, Given],
    *,
    batch_size: int = 10,
    every: int | None = None,
    targets_once: bool = False,
    measures: Sequence[Measure] | None = None,
    hyperparameters: Hyperparameters | Mapping[str, Hyperparameters] | None = None,
    layers: Sequence[int] | None = None,
    preparation: Preparation | None = None,
    statistics: Statistics | Mapping[str, Statistics] | None = None,
    baseline_hparams: Mapping[str, Any] | None = None,
    folder: str | Path | None = None,
    keep_sessions: bool = False,
    chat: bool = False,
    wait: bool = True,
    on_row: Callable[[Comparison], None] = lambda comparison: None,
    progress: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> Comparison:
    """Edit `facts` in sequential batches with each of `methods` and measure; the model ends as it began.

    `methods` are names as on the command line ("memit+P", "easyedit:FT", "my_editor.py:edit@steps=10+P"), or functions
    `(model, tokenizer, requests, **settings)` (see `yours`). In a mapping, the key is the function's name, and +P
    (+revive, +crisp) at its end holds the function's edits to a subspace. A batch holds `batch_size` facts (for MQuAKE:
    cases, of several requests each). `measures` (by default the metrics of the facts, and perplexity of the text that
    ships) are taken at the end and also after every `every` facts, on the facts written until then.

    By default, layers and hyperparameters are each method's own for this model; give one for all, or a mapping by the
    contender's name. `preparation` says where statistics come from, unless `statistics` are given in one of the same
    two forms. `baseline_hparams` are those of EasyEdit's methods, by name. What contenders have in common is computed
    once, and its time is counted for each: the targets of the first batch, and all edits if only the end differs. With
    `targets_once` all targets are found on the unedited model and shared (of `blue`, those of its first layer): a
    further variant then costs little more than its solves, but what a damaged model does to its own next targets is not
    seen.
    With `chat` every prompt that is taught or asked is the turn of a user in the model's chat template.
    `on_row` gets the comparison so far after each row; `settings` go into the results.

    With `folder` everything is written there as soon as it is known. A run that was killed continues after the last
    batch or measurement that it wrote (EasyEdit's methods and functions begin anew), and the result is that of a run
    without interruption. Several processes may run the same comparison in one folder and share the work; a process that
    does not `wait` ends when others work on all that is left. `keep_sessions` leaves the edits in the folder, so that
    other measures need no new edits later.

    Raises HyperparameterError for a method that does not exist, WrongModelError for statistics of another model,
    CompareError for a folder that cannot be used, ChatError for a tokenizer without a chat template, RequestError for
    two facts of one batch that contradict each other. If a method fails while editing, only its row is lost, with a
    warning.
    """
    if measures is None:
        held_out = shipped("examples/heldout.txt").read_text(encoding="utf-8")
        measures = [FactScores(), Perplexity(held_out, tokenizer)]
    course = Course(tuple(facts), batch_size, every, targets_once)
    ground = Ground(
        model,
        Chat.of(tokenizer) if chat else tokenizer,
        model_name(model),
        preparation or Preparation(progress=progress),
        tuple(layers) if layers is not None else None,
        hyperparameters,
        statistics,
        baseline_hparams or {},
    )
    cell = Cell(
        ground,
        prepared(contenders(methods), ground),
        course,
        list(measures),
        RunFolder(Path(folder) if folder is not None else None),
        keep_sessions,
        on_row,
        progress,
        settings or {},
    )
    return cell.run(wait)
