"""What a run will take, counted before it begins: no weights are loaded and nothing is edited.

Operations are those of matrix products: 2 per token and weight forwards, as many again backwards to the hidden states
(weights have no gradient). Attention's own products (below 1 % for wide models) and the regressions of the edits are
left out. Counts of target optimisation are upper bounds: most facts stop before the last step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ..editors.chat import Chat
from ..editors.hyperparameters import Hyperparameters
from ..editors.requests import Request, encode
from ..editors.targets import most_looks
from ..editors.variant import Variant
from ..evaluation.fact_scores import FactScores, asked_of
from ..evaluation.facts import Fact
from ..evaluation.likelihood import encode_pair
from ..evaluation.perplexity import Perplexity
from ..model.decoder import Decoder, OutProjection, Projection
from ..model.likelihood import rows_of
from ..nullspace.statistics import budget_for
from .campaign import Campaign, Read
from .contender import Ground, Needs
from .course import Checkpoint, Course
from .ours import OurMethod
from .yours import YourEditor

_DOUBLE, _SINGLE = 8, 4
_DECOMPOSITION = 4  # × d³: C to tridiagonal form and the thinner half of its eigenvectors
_UPPER = 9 / 8  # × d² per token: the stripes of the upper triangle
_AT_A_TIME = {False: 512, True: 4096}  # tokens of target optimisation, without and with an accelerator
_KEPT = 1.5  # × what the matrices take in and put out: activations, norms and attention besides (measured: 1.34)
_PREDICTED = 1024  # tokens whose logits are held at a time while measuring, about three times
_LIBRARIES = 700_000_000  # Python, torch, and memory that is free but not given back
_RECORD = 700  # bytes per fact and measurement
_CONTEXT_EXTRA = 2  # tokens of a context template besides those that the model writes


@dataclass(frozen=True)
class Work:
    """One part of a run: `tokens` that go through the model, operations in the model's precision and in float64."""

    part: str
    tokens: int
    operations: float
    double: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.part, self.tokens + other.tokens, self.operations + other.operations, self.double + other.double
        )

    def hours(self, rate: float, rate_double: float) -> float:
        """At these operations per second."""
        return (self.operations / rate + self.double / rate_double) / 3600


@dataclass(frozen=True)
class Forecast:
    """What a campaign takes on one model. `shapes`: layer → (d_in, d_out). `memory` and `disk` are bytes by what
    takes them: memory of one worker at most; disk in the cache, and in the run folder when it is largest.

    `first` is done once, by one worker while others wait; `shared` is divided among the workers. `uncounted` names
    contenders and measures whose work is not known beforehand.
    """

    model: str
    dtype: str
    parameters: int
    blocks: int
    shapes: Mapping[int, tuple[int, int]]
    contenders: int
    trajectories: int
    facts: int
    batches: int
    measurements: int
    first: Sequence[Work]
    shared: Sequence[Work]
    memory: Mapping[str, int]
    disk: Mapping[str, int]
    uncounted: Sequence[str]

    def hours(self, rate: float, rate_double: float, workers: int = 1) -> float:
        """Of the whole run, if all trajectories take the same time: the one with the most of them is the last."""
        first, shared = (sum(work.hours(rate, rate_double) for work in each) for each in (self.first, self.shared))
        return first + shared * -(-self.trajectories // workers) / self.trajectories


def forecasts(
    campaign: Campaign, outline: Callable[[str], tuple[Any, Any]], *, workers: int = 1, accelerator: bool = False
) -> Iterator[Forecast]:
    """What the campaign takes on each of its models; `outline` returns (model on the meta device, tokenizer).

    `accelerator` says whether the workers compute on one. Raises AlphaEditError for what cannot be used.
    """
    read = campaign.read()
    for name in campaign.models:
        yield _Counting(campaign, read, name, *outline(name), workers, accelerator).forecast()


@dataclass(frozen=True)
class _Trajectory:
    """Edits that are made once: those of one method in one cell; `variant` is None for one that is not ours."""

    needs: Needs
    course: Course
    variant: Variant | None

    @property
    def covariances(self) -> bool:
        return self.variant is not None and self.variant.needs_covariances

    @property
    def null_spaces(self) -> bool:
        return self.variant is not None and self.variant.needs_null_spaces


@dataclass(frozen=True)
class _Counting:
    campaign: Campaign
    read: Read
    name: str
    model: Any
    tokenizer: Any
    workers: int
    accelerator: bool

    def forecast(self) -> Forecast:
        trajectories = list(self._trajectories())
        points = [(course, at) for course in self._courses for at in (self._before(course), *course.checkpoints)]
        variants = [1 if at.edits == 0 else len(self._needs) for _, at in points]
        first = [*self._statistics(), self._null_spaces()]
        shared = [
            *self._targets(trajectories),
            self._total(
                "keys",
                (
                    self._keys(each.needs.values, request)
                    for each in trajectories
                    if each.variant is not None
                    for request in self._requests(each.course)
                ),
            ),
            self._total(
                "facts asked",
                (
                    self._times(self._facts(course, at), times)
                    for (course, at), times in zip(points, variants, strict=True)
                ),
            ),
            self._times(self._text, sum(variants)),
        ]
        return Forecast(
            self.name,
            str(self.model.dtype).removeprefix("torch."),
            sum(weight.numel() for weight in self.model.parameters()),
            len(self.decoder),
            {layer: (each.d_in, each.d_out) for layer, each in self._projections.items()},
            len(self._needs),
            len(trajectories),
            sum(len(self._requests(each.course)) for each in trajectories),
            sum(len(each.course.batches) for each in trajectories),
            sum(variants),
            [work for work in first if work.operations + work.double],
            [work for work in shared if work.operations + work.double],
            self._memory(trajectories),
            self._disk(trajectories, points, variants),
            list(self._uncounted()),
        )  # fmt: skip

    # ------------------------------------------------------------------------------------------------- what there is

    @cached_property
    def decoder(self) -> Decoder:
        return Decoder(self.model, self._template)

    @property
    def _template(self) -> str | None:
        given = self.campaign.hyperparameters
        return given.rewrite_module_tmp if given is not None else None

    @cached_property
    def _ground(self) -> Ground:
        campaign = self.campaign
        asked = Chat.of(self.tokenizer) if campaign.chat else self.tokenizer
        return Ground(
            self.model, asked, self.name, campaign.preparation, campaign.layers, campaign.hyperparameters,
            baseline_hparams=campaign.baseline_hparams_of(self.read.chosen),
        )  # fmt: skip

    @cached_property
    def _chosen(self) -> list[Any]:
        return self.read.contenders_on(self.model, self.campaign.preparation.tokens or 0)

    @cached_property
    def _needs(self) -> dict[str, Needs]:
        return {each.name: each.needs(self._ground) for each in self._chosen}

    @cached_property
    def _prepared(self) -> list[Needs]:
        """Of contenders that need statistics; `in-context` needs none."""
        return [of for of in self._needs.values() if of.layers]

    @cached_property
    def _projections(self) -> dict[int, OutProjection]:
        layers = sorted({layer for of in self._needs.values() for layer in of.layers})
        return self.decoder.out_projections(layers) if layers else {}

    @property
    def _courses(self) -> list[Course]:
        return list(self.read.courses.values())

    def _trajectories(self) -> Iterator[_Trajectory]:
        """Methods that differ only at the end of a sequence share one."""
        seen: dict[Any, _Trajectory] = {}
        for each in self._chosen:
            needs, key, variant = self._needs[each.name], each.name, None
            if isinstance(each, OurMethod):
                variant = each.variant.trajectory
                values = variant.hyperparameters(self.model, self.name, needs.values)
                key = (str(variant), repr(values.as_dict()))
            seen.setdefault(key, _Trajectory(needs, self._courses[0], variant))
        for of in seen.values():
            for course in self._courses:
                yield replace(of, course=course)

    def _uncounted(self) -> Iterator[str]:
        yield from (f"the edits of {each.name}" for each in self._chosen if not isinstance(each, OurMethod))
        if any(isinstance(each, YourEditor) and each.restraint.flat is not None for each in self._chosen):
            yield "the loss's gradients on the text, for +crisp"
        facts = list(self._courses[0].facts)
        measures = self.read.measures.of(self.tokenizer, facts, next(iter(self.read.prompts.values())), [0])
        yield from (f"the measure {each.name}" for each in measures if not isinstance(each, FactScores | Perplexity))

    @staticmethod
    def _before(course: Course) -> Checkpoint:
        return Checkpoint(len(course.facts), 0, 0)

    @staticmethod
    def _requests(course: Course) -> list[Request]:
        return [request for batch in course.batches for request in batch]

    # ---------------------------------------------------------------------------------------------------- operations

    @cached_property
    def _block(self) -> float:
        """Weights in the matrices of a block: the mean over all."""
        held = [m.weight.numel() for block in self.decoder.blocks for m in block.modules() if isinstance(m, Projection)]
        return sum(held) / len(self.decoder)

    def _run(self, part: str, tokens: int, blocks: int, predicted: int = 0, passes: int = 1) -> Work:
        """`tokens` through so many `blocks`, of which `predicted` go through the head; two `passes`: backwards too."""
        head = self.decoder.head.weight.numel()
        return Work(part, tokens, 2.0 * passes * (tokens * blocks * self._block + predicted * head))

    @staticmethod
    def _total(part: str, works: Iterator[Work]) -> Work:
        return sum(works, Work(part, 0, 0.0))

    @staticmethod
    def _times(work: Work, count: int) -> Work:
        return Work(work.part, work.tokens * count, work.operations * count, work.double * count)

    def _statistics(self) -> Iterator[Work]:
        """Per number of tokens: text, if the model writes it itself, and one pass over it."""
        preparation = self.campaign.preparation
        if preparation.stats_dir is not None:
            return
        layers: dict[int | None, set[int]] = {}
        for of in self._prepared:
            layers.setdefault(of.values.tokens or preparation.tokens, set()).update(of.layers)
        for tokens, chosen in layers.items():
            projections = {layer: self._projections[layer] for layer in chosen}
            budget = budget_for(projections, tokens)
            if preparation.corpus is None:
                yield self._run("text that the model writes", budget, len(self.decoder), budget)
            work = self._run("covariances", budget, max(chosen) + 1)
            yield replace(work, double=sum(_UPPER * budget * each.d_in**2 for each in projections.values()))

    def _null_spaces(self) -> Work:
        decomposed = {
            (layer, of.values.tokens, str(of.values.null_space))
            for name, of in self._needs.items()
            for layer in of.layers
            if self._projects(name)
        }
        return Work(
            "null spaces", 0, 0.0, sum(_DECOMPOSITION * self._projections[k[0]].d_in ** 3.0 for k in decomposed)
        )

    def _projects(self, name: str) -> bool:
        each = next(each for each in self._chosen if each.name == name)
        return bool(each.variant.projected if isinstance(each, OurMethod) else getattr(each, "projected", False))

    def _targets(self, trajectories: Sequence[_Trajectory]) -> Iterator[Work]:
        """What stays the same at every step, once, and the steps. Found once for all, they are found by the first."""
        ours = [each for each in trajectories if each.variant is not None]
        if any(course.targets_once for course in self._courses):  # as the command says, or the study
            ours = list({(id(each.course), each.needs.values.target_settings): each for each in ours}.values())
        rows = [self._of_target(each.needs.values, request) for each in ours for request in self._requests(each.course)]
        for part, works in zip(("targets, prompts", "targets, steps"), zip(*rows, strict=True), strict=False):
            yield self._total(part, iter(works))

    def _of_target(self, values: Hyperparameters, request: Request) -> tuple[Work, Work]:
        prompt, kl = self._encoded[request]
        lengths = self._context_lengths(values)
        suffix = len(prompt.ids) + len(prompt.target) - 1 - prompt.subject_last
        whole = sum(length + prompt.subject_last + suffix for length in lengths) + len(kl.ids)
        above = len(self.decoder) - 1 - max(values.layers)
        first = self._run("", whole, len(self.decoder), 1)
        steps = self._total("", (
            self._times(
                self._run(
                    "", contexts * suffix + len(kl.ids) - kl.subject_last, above, contexts * len(prompt.target) + 1, 2
                ),
                looks,
            )
            for contexts, looks in most_looks(values.target_settings, len(lengths)).items()
        ))  # fmt: skip
        return first, steps

    @staticmethod
    def _context_lengths(values: Hyperparameters) -> list[int]:
        """The tokens before the prompt in each context: the bare one, and templates of five openings each."""
        pairs = values.context_template_length_params
        return [0, *(tokens + _CONTEXT_EXTRA for tokens, count in pairs for _ in range(count // 5 * 5))]

    @cached_property
    def _encoded(self) -> dict[Request, Any]:
        asked = self._ground.tokenizer
        return {
            request: (
                encode(asked, request.prompt, request.subject, request.target_new),
                encode(asked, "{} is a", request.subject),
            )
            for request in {request for course in self._courses for request in self._requests(course)}
        }

    def _keys(self, values: Hyperparameters, request: Request) -> Work:
        """Of one fact at all layers: a pass in all contexts, and what is left after each layer in the bare one."""
        length = self._encoded[request][0].subject_last + 1
        last = max(values.layers)
        everywhere = sum(before + length for before in self._context_lengths(values))
        again = sum(last - layer + 1 for layer in values.layers)
        whole = self._run("", everywhere, last + len(values.layers))
        return whole + replace(self._run("", length, again), tokens=0)

    def _facts(self, course: Course, at: Checkpoint) -> Work:
        whole = at.edits == 0 or at.facts == len(course.facts)
        numbers = {number for of in FactScores(self.read.measures.sample).chosen(at.facts, whole) for number in of}
        rows = [self._asked(course.facts[number]) for number in numbers]
        tokens, predicted = (sum(column) for column in zip(*rows, strict=True))
        return self._run("facts asked", tokens, len(self.decoder), predicted)

    def _asked(self, fact: Fact) -> tuple[int, int]:
        """(tokens, predicted tokens) of one fact's prompts."""
        if id(fact) not in self._asked_before:
            pairs = [encode_pair(self._ground.tokenizer, *pair) for pair in asked_of([fact])]
            _, rows = rows_of([(*ids, *answer[:-1]) for ids, answer in pairs])
            self._asked_before[id(fact)] = sum(map(len, rows)), sum(len(answer) for _, answer in pairs)
        return self._asked_before[id(fact)]

    @cached_property
    def _asked_before(self) -> dict[int, tuple[int, int]]:
        return {}

    @cached_property
    def _text(self) -> Work:
        windows = Perplexity(self.read.measures.text, self.tokenizer).windows
        tokens = sum(map(len, windows))
        return self._run("perplexity", tokens, len(self.decoder), tokens - len(windows))

    # --------------------------------------------------------------------------------------------------------- bytes

    def _squares(self, needs: Needs) -> int:
        return sum(self._projections[layer].d_in ** 2 for layer in needs.layers)

    def _projection_factor(self, needs: Needs) -> int:
        """P of all layers: the thinner of its two bases, and eigenvalues. Half of d_in at most where C decides it."""
        nullity, found = needs.values.null_space.nullity, 0
        for layer in needs.layers:
            d = self._projections[layer].d_in
            null = d // 2 if nullity is None else round(nullity * d) if nullity < 1 else int(nullity)
            found += d * min(null, d - null) * _SINGLE + d * _DOUBLE
        return found

    def _kept_of_facts(self, each: _Trajectory) -> int:
        """Keys and both factors of Δ of all facts of a trajectory, in float32."""
        shapes = [self._projections[layer] for layer in each.needs.layers]
        return len(self._requests(each.course)) * sum(2 * of.d_in + of.d_out for of in shapes) * _SINGLE

    def _memory(self, trajectories: Sequence[_Trajectory]) -> dict[str, int]:
        size = self.model.dtype.itemsize
        edited = sum(each.d_in * each.d_out for each in self._projections.values())
        widest = max((each.d_in for each in self._projections.values()), default=0)
        spaces = sum(self._projection_factor(of) for name, of in self._needs.items() if self._projects(name))
        sets = {of.values.tokens for of in self._prepared}
        factored = max((self._squares(each.needs) for each in trajectories if each.covariances), default=0)
        return {
            "weights": sum(weight.numel() * size for weight in self.model.parameters()),
            "weights before the edits": 2 * edited * size,
            "covariances": sum(of.d_in**2 for of in self._projections.values()) * _DOUBLE * len(sets),
            "P of all methods, at most": spaces,
            "Cholesky factors of C": factored * _DOUBLE,
            "keys and updates of a sequence": max(map(self._kept_of_facts, trajectories), default=0),
            "target optimisation": self._activations,
            "predictions, while measuring": 3 * _PREDICTED * _shape(self.decoder.head)[0] * _SINGLE,
            "Python and its libraries": _LIBRARIES,
            "a decomposition of C, while preparing": 3 * widest**2 * _DOUBLE if spaces else 0,
        }

    @property
    def _activations(self) -> int:
        """What the steps keep for the way back: inputs and outputs of the matrices above the lowest last layer."""
        if not self._prepared:
            return 0
        lowest = min(max(of.layers) for of in self._prepared)
        matrices = [
            module
            for block in list(self.decoder.blocks)[lowest + 1 :]
            for module in block.modules()
            if isinstance(module, Projection)
        ]
        tokens = _AT_A_TIME[self.accelerator]
        kept = sum(sum(_shape(matrix)) for matrix in matrices) * self.model.dtype.itemsize
        logits = 3 * _shape(self.decoder.head)[0] * _SINGLE // 4  # a token in four or so is predicted
        return round(tokens * (_KEPT * kept + logits))

    def _disk(
        self, trajectories: Sequence[_Trajectory], points: Sequence[tuple[Course, Checkpoint]], variants: Sequence[int]
    ) -> dict[str, int]:
        sets = {of.values.tokens for of in self._prepared}
        triangle = sum(of.d_in * (of.d_in + 1) // 2 for of in self._projections.values()) * _DOUBLE
        criteria = {
            (of.values.tokens, str(of.values.null_space)): self._projection_factor(of)
            for name, of in self._needs.items()
            if self._projects(name)
        }
        sessions = sorted((self._session(each) for each in trajectories if each.variant is not None), reverse=True)
        at_once = len(sessions) if self.campaign.keep_sessions else self.workers
        asked = sum(at.facts * times for (_, at), times in zip(points, variants, strict=True))
        return {
            "cache: covariances": triangle * len(sets) if self.campaign.preparation.stats_dir is None else 0,
            "cache: P, at most": sum(criteria.values()),
            "run folder: sessions under way" if not self.campaign.keep_sessions else "run folder: sessions kept": sum(
                sessions[:at_once]
            ),
            "run folder: measurements": asked * _RECORD,
        }

    def _session(self, each: _Trajectory) -> int:
        """What a session's folder holds: of what its method needs, and all that it wrote."""
        covariances = self._squares(each.needs) * _DOUBLE // 2 if each.covariances else 0
        return covariances + each.null_spaces * self._projection_factor(each.needs) + self._kept_of_facts(each)


def _shape(module: Any) -> tuple[int, int]:
    rows, columns = module.weight.shape
    return int(rows), int(columns)
