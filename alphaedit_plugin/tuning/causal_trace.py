"""Causal tracing (ROME, Meng et al. 2022, "Locating and Editing Factual Associations in GPT", §2): where facts are.

Three runs of each prompt. The clean one says the object. In the corrupted one the embeddings of the subject's tokens
carry noise. In the restored one a state is put back to what it was in the clean run: either the hidden state that one
block returns, or the outputs of the out-projections of a window of blocks. Its indirect effect is by how much this
raises the object's probability.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..editors.requests import Encoded, Request, encode
from ..errors import TuningError
from ..model.decoder import Decoder, eager_attention, hidden_states
from ..model.gradients import gradients
from ..model.standin import standing_in
from ..model.trace import evaluating, hooks, logits_at
from ..progress import progress_bar
from ..restoring import restoring

SEED, NOISE, SAMPLES = 0, 3.0, 10
CLASSES = (
    "first subject token",
    "middle subject tokens",
    "last subject token",
    "first subsequent token",
    "further tokens",
    "last token",
)
"""Kinds of positions, as in ROME's figures. A subject of one token has only a last one, and so has what follows it."""
LAST_SUBJECT = CLASSES.index("last subject token")
_BATCH_TOKENS = 2048


@dataclass(frozen=True)
class CausalTrace:
    """Average indirect effects over `facts` prompts: probabilities, nan where no prompt has such a position.

    `hidden` and `mlp` are classes of positions (`CLASSES`) × layers; `mlp` restores the out-projections of `window`
    blocks around the layer. `clean` and `corrupted` are the object's mean probabilities. `said` holds each traced
    prompt with the object, the token that the model says next.
    """

    hidden: Tensor
    mlp: Tensor
    clean: float
    corrupted: float
    window: int
    said: tuple[tuple[str, str], ...]

    @property
    def facts(self) -> int:
        return len(self.said)

    @property
    def depth(self) -> int:
        return self.mlp.shape[1]

    @property
    def recall(self) -> Tensor:
        """The effect of the feed-forward parts at the subject's last token, by layer: where facts are recalled."""
        return self.mlp[LAST_SUBJECT]

    def best_layers(self, count: int) -> tuple[int, ...]:
        """The `count` consecutive layers with the largest sum of `recall`; all if there are not that many."""
        count = min(count, self.depth)
        sums = self.recall.unfold(0, count, 1).sum(1)
        first = int(sums.argmax())
        return tuple(range(first, first + count))


def causal_trace(
    model: nn.Module | Decoder,
    tokenizer: Any,
    requests: Sequence[Request],
    *,
    every_position: bool = True,
    window: int | None = None,
    noise: float = NOISE,
    samples: int = SAMPLES,
    seed: int = SEED,
    template: str | None = None,
    progress: bool = False,
) -> CausalTrace:
    """Trace what the model says now after the prompts of `requests`; their targets do not matter.

    `noise` is relative to the standard deviation of the embeddings of all these subjects, and `samples` of it are drawn
    for each prompt, from `seed`. `window` defaults to a fifth of the depth, as in ROME. Without `every_position` only
    `recall` is traced, for a small part of the cost. Prompts whose object noise makes no less probable are left out:
    they do not depend on the subject. Raises TuningError if none is left.
    """
    decoder = Decoder.of(model, template)
    depth = len(decoder)
    window = max(1, round(depth / 5)) if window is None else window
    prompts = [encode(tokenizer, request.prompt, request.subject) for request in requests]
    found: list[tuple[Tensor, Tensor]] = []
    probabilities, said = [], []
    with (
        gradients(False),
        evaluating(decoder.model),
        eager_attention(decoder.model),
        progress_bar(total=len(prompts), desc="causal trace", unit="fact", shown=progress, leave=False) as bar,
    ):
        scale = noise * _deviation(decoder, prompts)
        for number, (request, prompt) in enumerate(zip(requests, prompts, strict=True)):
            generator = torch.Generator().manual_seed(seed + number)
            fact = _Fact(decoder, prompt, window, scale, samples, generator)
            if fact.clean > fact.corrupted:
                found.append(fact.effects(every_position))
                probabilities.append((fact.clean, fact.corrupted))
                said.append((request.text, tokenizer.decode([fact.object]).strip()))
            bar.update()
    if not found:
        raise TuningError(
            f"there is nothing to trace: what {type(decoder.model).__name__} says after these {len(prompts)} prompts "
            "does not depend on their subjects; give --facts that it knows"
        )
    hidden, mlp = (torch.stack(column).nanmean(0) for column in zip(*found, strict=True))
    clean, corrupted = torch.tensor(probabilities, dtype=torch.float64).mean(0).tolist()
    return CausalTrace(hidden, mlp, clean, corrupted, window, tuple(said))


def classes_of(prompt: Encoded) -> dict[int, int]:
    """position → index in CLASSES, from the subject's first token on: nothing before it can be corrupted."""
    first, last, end = prompt.subject_first, prompt.subject_last, len(prompt.ids) - 1
    found = {position: 1 if position < last else 4 for position in range(first, end + 1)}
    found |= {first: 0, min(last + 1, end): 3}  # what comes later goes before it
    return found | ({end: 5} if end > last else {}) | {last: 2}


def _deviation(decoder: Decoder, prompts: Sequence[Encoded]) -> float:
    """The standard deviation of the embeddings of the prompts' subjects, as the model embeds them."""
    embeddings = decoder.model.get_input_embeddings()
    tokens = [token for prompt in prompts for token in prompt.ids[prompt.subject_first : prompt.subject_last + 1]]
    return float(embeddings(torch.tensor([tokens], device=decoder.device)).float().std())


class _Fact:
    """One prompt: its clean and corrupted runs, and what restoring a state does to the object's probability.

    A restored run repeats the corrupted one below the restored block, so stand-ins return what is known there.
    """

    def __init__(
        self,
        decoder: Decoder,
        prompt: Encoded,
        window: int,
        scale: float,
        samples: int,
        generator: torch.Generator,
    ) -> None:
        self.decoder, self.prompt, self.window, self.samples = decoder, prompt, window, samples
        self.depth = len(decoder)
        self.projections = list(decoder.out_projections(range(self.depth)).values())
        clean, self.clean_hidden, self.clean_mlp, _ = self._watched(1, None)
        self.object = int(clean[0].argmax())
        self.clean = float(clean[0, self.object])
        subject = decoder.model.get_input_embeddings()(
            torch.tensor(prompt.ids[prompt.subject_first : prompt.subject_last + 1], device=decoder.device)
        )
        drawn = torch.randn(samples, *subject.shape, generator=generator, dtype=torch.float64)
        self.noise = (scale * drawn).to(subject)
        corrupted, self.hidden, _, self.outputs = self._watched(samples, self.noise)
        self.corrupted = float(corrupted[:, self.object].mean())

    def effects(self, every_position: bool) -> tuple[Tensor, Tensor]:
        """(hidden, mlp), classes × layers, float64, each the mean over the prompt's positions of a class."""
        classes = classes_of(self.prompt)
        positions = sorted(classes) if every_position else [self.prompt.subject_last]
        index = torch.tensor([classes[position] for position in positions])
        tables = [] if every_position else [torch.full((len(CLASSES), self.depth), torch.nan, dtype=torch.float64)]
        for restored in (self._hidden_restored, self._mlp_restored) if every_position else (self._mlp_restored,):
            gains = torch.stack([restored(layer, positions) for layer in range(self.depth)], 1) - self.corrupted
            sums = torch.zeros(len(CLASSES), self.depth, dtype=torch.float64).index_add(0, index, gains)
            tables.append(sums / torch.bincount(index, minlength=len(CLASSES))[:, None])  # 0 / 0 is nan: none of these
        return tables[0], tables[1]

    def _hidden_restored(self, layer: int, positions: Sequence[int]) -> Tensor:
        """The object's probability where block `layer` returns the clean state at a position, one per position."""
        found = []
        for chunk in self._chunks(positions):
            states = self.hidden[layer].repeat(len(chunk), 1, 1)
            rows = torch.arange(len(states), device=states.device)
            at = torch.tensor(chunk, device=states.device).repeat_interleave(self.samples)
            states[rows, at] = self.clean_hidden[layer][0, at]
            with standing_in(self.decoder, layer, states, self.outputs[layer]):
                found.append(self._probability(len(chunk)))
        return torch.cat(found)

    def _mlp_restored(self, layer: int, positions: Sequence[int]) -> Tensor:
        """The same where the out-projections of the window around `layer` return their clean outputs."""
        first = max(0, layer - self.window // 2)
        last = min(self.depth, layer - self.window // 2 + self.window) - 1
        found = []
        for chunk in self._chunks(positions):
            at = torch.tensor(chunk).repeat_interleave(self.samples)
            below = self.hidden[first - 1].repeat(len(chunk), 1, 1) if first else None
            like = self.outputs[first - 1] if first else None
            restored = [
                (self.projections[each].module, self._putting_back(each, at)) for each in range(first, last + 1)
            ]
            with hooks(*restored), standing_in(self.decoder, first - 1, below, like):
                found.append(self._probability(len(chunk)))
        return torch.cat(found)

    def _putting_back(self, layer: int, at: Tensor) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
            rows = output.reshape(len(at), -1, output.shape[-1]).clone()  # OPT flattens batch and tokens
            where = at.to(rows.device)
            rows[torch.arange(len(at), device=rows.device), where] = self.clean_mlp[layer][0, where]
            return rows.reshape(output.shape)

        return hook

    def _chunks(self, positions: Sequence[int]) -> Iterator[list[int]]:
        size = max(1, _BATCH_TOKENS // (self.samples * len(self.prompt.ids)))
        for start in range(0, len(positions), size):
            yield list(positions[start : start + size])

    def _probability(self, positions: int) -> Tensor:
        """The object's probability, the mean over samples, one per position; on the CPU in float64."""
        found = self._run(positions * self.samples, self.noise.repeat(positions, 1, 1))
        return found[:, self.object].view(positions, self.samples).mean(1)

    def _watched(self, rows: int, noise: Tensor | None) -> tuple[Tensor, list[Tensor], list[Tensor], list[Any]]:
        """(probabilities, hidden states and out-projections' outputs, rows × tokens × d by layer, blocks' outputs)."""
        outputs: dict[int, Any] = {}
        hidden: dict[int, Tensor] = {}
        mlp: dict[int, Tensor] = {}

        def keep_block(layer: int) -> Any:
            def hook(_module: nn.Module, _args: Any, output: Any) -> None:
                outputs[layer], hidden[layer] = output, hidden_states(output).clone()

            return hook

        def keep_mlp(layer: int) -> Any:
            def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
                # Copied, because some blocks (Falcon's) go on to add to it in place.
                mlp[layer] = output.reshape(rows, -1, output.shape[-1]).clone()

            return hook

        keeping = [(block, keep_block(layer)) for layer, block in enumerate(self.decoder.blocks)]
        keeping += [(each.module, keep_mlp(each.layer)) for each in self.projections]
        with hooks(*keeping):
            probabilities = self._run(rows, noise)
        hiddens, mlps, wholes = ([kept[layer] for layer in range(self.depth)] for kept in (hidden, mlp, outputs))
        return probabilities, hiddens, mlps, wholes

    def _run(self, rows: int, noise: Tensor | None) -> Tensor:
        """Next-token probabilities after the prompt, rows × vocabulary, on the CPU in float64."""
        ids = torch.tensor([self.prompt.ids] * rows, device=self.decoder.device)
        ends = torch.full((rows,), len(self.prompt.ids) - 1)
        with self._corrupted(noise), logits_at(self.decoder.head, torch.arange(rows), ends):
            logits = self.decoder.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0]
        return logits.cpu().double().softmax(-1)

    @restoring
    def _corrupted(self, noise: Tensor | None) -> Iterator[None]:
        """Inside, the embeddings of the subject's tokens carry `noise`, rows × tokens of the subject × d."""
        subject = slice(self.prompt.subject_first, self.prompt.subject_last + 1)

        def corrupt(_module: nn.Module, _args: Any, embedded: Tensor) -> Tensor:
            if noise is None:
                return embedded
            embedded = embedded.clone()
            embedded[:, subject] += noise
            return embedded

        with hooks((self.decoder.model.get_input_embeddings(), corrupt)):
            yield
