"""One of EasyEdit's own methods in a comparison: measured at each checkpoint, and begun anew if it was killed."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..baselines.baseline import baseline, identity
from ..baselines.hyperparameters import hyperparameters, layers_of
from ..baselines.names import Named
from ..editors.chat import Chat
from ..editors.hyperparameters import Hyperparameters
from ..editors.requests import Request
from ..editors.variant import Variant
from ..errors import CompareError
from ..model.decoder import Decoder
from ..nullspace.null_spaces import NullSpaces
from ..nullspace.statistics import Statistics
from ..visible import visible
from .contender import Contender, Entry, Ground, Needs, Stop, Workplace
from .course import Course

log = logging.getLogger(__name__)

_LIKE = {"rome": "rome", "alphaedit": "alphaedit"}
"""EasyEdit's methods that get the layers and statistics of our method of that name; all others get memit's."""


class EasyEditMethod(Contender):
    """`easyedit:METHOD` or `easyedit:METHOD+P`."""

    def __init__(self, named: Named) -> None:
        self.named, self.name = named, str(named)

    def needs(self, ground: Ground) -> Needs:
        self.check_chat(isinstance(ground.tokenizer, Chat))
        like = Variant.parse(_LIKE.get(self.named.method.lower(), "memit"))
        values = ground.hyperparameters_of(self.name, like)
        written = layers_of(self._settings(ground))
        return Needs(values, tuple(written) or values.layers)

    def check_chat(self, chat: bool) -> None:
        """Raises CompareError for a comparison in a chat."""
        if chat:
            raise CompareError(
                f"{self.name} cannot take part in a chat: EasyEdit puts a space before what the model is to say, and "
                "after a chat template there is none. Leave it out, or leave out chat (--chat)"
            )

    def enter(self, ground: Ground, needs: Needs, statistics: Statistics) -> Entry:
        settings = self._settings(ground)
        layers = tuple(layers_of(settings))
        spaces = ground.null_spaces(needs.values, layers, statistics) if self.named.projected else None
        return _EasyEditEntry(ground, self.named, settings, needs.values, statistics, layers, spaces)

    def _settings(self, ground: Ground) -> Any:
        return hyperparameters(self.named, ground.model, ground.baseline_hparams.get(self.name))


@dataclass
class _EasyEditEntry(Entry):
    ground: Ground
    named: Named
    hyperparameters: Any
    like: Hyperparameters
    statistics: Statistics
    layers: tuple[int, ...]
    null_spaces: NullSpaces | None

    def __post_init__(self) -> None:
        self.name, self.watched = str(self.named), self.like.layers
        self._identity = identity(self.named, self.hyperparameters)  # which hashes all of EasyEdit's source

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"baseline": self._identity, "criterion": str(self.like.null_space)}

    @property
    def settings(self) -> Mapping[str, Any]:
        return self._identity

    def run(self, course: Course, together: Sequence[Any], place: Workplace) -> Generator[Stop, None, None]:
        ground, statistics = self.ground, self.statistics.of_layers(self.layers)
        self._tell_of_other_borders([request for batch in course.batches for request in batch])
        with (
            baseline(
                self.named,
                ground.model,
                ground.tokenizer,
                hparams=ground.baseline_hparams.get(self.name),
                statistics=statistics if self.layers else None,
                null_spaces=self.null_spaces,
            ) as editor,
        ):
            place.bar.set_description(visible(self.name))
            base = {layer: weight.clone() for layer, weight in self._weights(ground.model).items()}
            seconds = 0.0
            for index, batch in enumerate(course.batches, 1):
                started = time.perf_counter()
                model = editor.edit(batch)
                seconds += time.perf_counter() - started
                place.bar.update(len(batch))
                if index in course.by_batch:
                    now = self._weights(model)
                    for entry in together:
                        yield Stop(entry.name, course.by_batch[index], model, seconds, base, now)

    def _tell_of_other_borders(self, requests: Sequence[Request]) -> None:
        """EasyEdit puts a space before every target that has none."""
        other = [each for each in requests if each.completion != f" {each.target_new.removeprefix(' ')}"]
        if other:
            log.warning(
                "%s is taught another text than is measured for %d facts: EasyEdit puts a space after %r",
                self.name,
                len(other),
                other[0].text,
            )

    def _weights(self, model: Any) -> dict[int, Any]:
        """The weights that the method writes; empty if it writes no out-projections."""
        if not self.layers:
            return {}
        decoder = Decoder(model, self.statistics.provenance.get("template"))
        return {layer: of.matrix for layer, of in decoder.out_projections(self.layers).items()}
