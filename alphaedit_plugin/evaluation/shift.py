"""How far edits move the hidden states of facts that were not edited (AlphaEdit §4.4 and appendix C.3).

The paper takes 1,000 factual prompts, their hidden representations before and after editing, and t-SNE of both
together; it then gives four numbers. It specifies neither layer nor token, neither density nor confidence level. We
chose:

- States are a block's output at the prompt's last token: the last block that AlphaEdit or a compared method edits.
- The picture is one t-SNE of all states, before and after. Its axes are shifted and stretched so that the points before
  have mean 0 and variance 1 along each axis. Equal states are one point; a state whose distance to the mean before
  exceeds 100 times the spread (see H) is drawn at that distance.
- D1, D2: the overlap ∫ min(f, g) of the two marginal densities f (before) and g (after) along the first and the second
  axis of the picture; 1 if they are the same, 0 if they do not overlap. Gaussian kernels, Scott's bandwidth.
- P: the share of points after that lie in the smallest region that holds 95 % of the points before, by density in the
  picture. Without an edit it is 0.95 (with few points, the next possible share above). It is also 1 if all states
  collapse in the middle.
- H: the Hausdorff distance of the two sets (equation 35) — not in the picture, whose distances mean nothing, but in the
  space of hidden states, in units of their spread before: the root mean square distance from their mean. It has no
  interval: the bootstrap gives no valid one for a largest distance.

We add ‖h' − h‖ / ‖h‖, which needs no picture at all. t-SNE may show much although little moved: read this and H first.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..editors.reminder import unreminded
from ..editors.requests import encode
from ..errors import AlphaEditError, RequestError
from ..model.batches import batches
from ..model.decoder import Decoder, hidden_states
from ..model.gradients import gradients
from ..model.trace import evaluating, hooks, stop, stopping
from ..progress import progress_bar
from ..storage.records import mapping, text_of
from .datasets import load_facts, records_of
from .facts import Fact
from .formats import FORMATS
from .measure import SEED, Estimate, Measured, estimate, mean_of

log = logging.getLogger(__name__)

FEWEST = 5
PERPLEXITY = 30.0
FARTHEST = 100.0
INSIDE = 0.95

Points = NDArray[np.float64]


class Shift:
    """The shift, at the last edited `layer`, of `prompts` that no edit is about. A repeated prompt counts once.

    Before any edit it yields only the tensor `hidden`, n × d in float32, in the prompts' order. After edits it yields
    the estimates `shift` (mean of ‖h' − h‖ / ‖h‖), `shift_d1`, `shift_d2`, `shift_p`, `hausdorff`, and a record per
    prompt: `prompt`, `before` and `after` (its places in the picture, [x, y]) and its `shift`.

    If states of the edited model are not finite, there are no estimates, and `after` and `shift` are None in the
    records of these prompts.

    Raises RequestError for fewer than 5 different prompts or states, AlphaEditError if scikit-learn is missing.
    """

    name = "shift"

    def __init__(self, prompts: Sequence[str], layer: int) -> None:
        self.prompts = tuple(dict.fromkeys(prompts))
        self.layer = layer
        if len(self.prompts) < FEWEST:
            raise RequestError(
                f"the representation shift needs {FEWEST} different prompts or more (the paper takes 1,000), "
                f"not {len(self.prompts)}"
            )
        try:
            self._library = version("scikit-learn")
        except PackageNotFoundError as failure:
            raise AlphaEditError(
                "the representation shift needs scikit-learn: pip install 'alphaedit-plugin[evaluation]'"
            ) from failure

    def identity(self) -> Mapping[str, Any]:
        """Includes the version of scikit-learn, because the picture depends on it."""
        return {
            "layer": self.layer,
            "prompts": hashlib.sha256(json.dumps(self.prompts).encode()).hexdigest(),
            "count": len(self.prompts),
            "perplexity": PERPLEXITY,
            "farthest": FARTHEST,
            "inside": INSIDE,
            "intervals": "of all but H",
            "seed": SEED,
            "scikit-learn": self._library,
        }

    def __call__(
        self,
        model: nn.Module,
        tokenizer: Any,
        facts: Sequence[Fact],
        before: Measured | None,
        *,
        progress: bool = False,
    ) -> Measured:
        found = last_states(model, unreminded(tokenizer), self.prompts, self.layer, progress=progress)
        if before is None:
            if len(found.unique(dim=0)) < FEWEST:
                raise RequestError(
                    f"layer {self.layer} has fewer than {FEWEST} different states for {len(self.prompts)} prompts "
                    "before any edit: give prompts that end differently"
                )
            return Measured({}, tensors={"hidden": found})
        old, new = before.tensors["hidden"].double().numpy(), found.double().numpy()
        moved = relative_displacement(old, new)
        if not np.isfinite(moved).all():
            log.warning("hidden states at layer %d are not all finite: no shift can be measured", self.layer)
            return Measured({}, self._records(None, None, moved))
        at_old, at_new = picture(old, new)
        inside = in_region(at_old, at_new)
        estimates = {
            "shift": mean_of(moved.tolist()),
            "shift_d1": overlap(at_old[:, 0], at_new[:, 0]),
            "shift_d2": overlap(at_old[:, 1], at_new[:, 1]),
            "shift_p": mean_of(inside.astype(float).tolist()),
            "hausdorff": Estimate(hausdorff(old, new)),
        }
        known = {name: value for name, value in estimates.items() if value is not None}
        return Measured(known, self._records(at_old, at_new, moved))

    def _records(self, before: Points | None, after: Points | None, moved: Points) -> list[dict[str, Any]]:
        return [
            {
                "prompt": prompt,
                "before": None if before is None else before[row].tolist(),
                "after": None if after is None else after[row].tolist(),
                "shift": float(moved[row]) if np.isfinite(moved[row]) else None,
            }
            for row, prompt in enumerate(self.prompts)
        ]


def prompts_from(source: str | Path) -> list[str]:
    """The prompts of a data set that `load_dataset` knows; else the `prompt` of each record (ROME's known_1000).

    In the latter, "{}" stands for the record's subject. Raises RequestError naming file, record and field.
    """
    records = records_of(source)
    _, first = records[0]
    if any(format_.fits(first) for format_ in FORMATS):
        return [fact.request.text for fact in load_facts(source)]
    prompts = []
    for name, record in records:
        prompt = text_of(mapping(record, name), "prompt", name)
        prompts.append(prompt.replace("{}", text_of(record, "subject", name)) if "{}" in prompt else prompt)
    return prompts


def held_out(prompts: Sequence[str], facts: Sequence[Fact]) -> list[str]:
    """The prompts that name no subject of `facts`: editing these facts should not change them."""
    subjects = {request.subject for fact in facts for request in fact.requests}
    return [prompt for prompt in prompts if not any(subject in prompt for subject in subjects)]


@gradients(False)
def last_states(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[str],
    layer: int,
    *,
    batch_tokens: int = 2048,
    progress: bool = False,
) -> Tensor:
    """The output of block `layer` at the last token of each prompt: n × d, float32, on the CPU.

    Blocks above it are not run.
    """
    decoder = Decoder(model)
    block = decoder.block(layer)
    # Sorted, so that a prompt is in the same batch, and rounds the same way, in whatever order prompts are given.
    ordered = sorted(set(prompts))
    tokens = [encode(tokenizer, "{}", prompt).ids for prompt in ordered]
    states: dict[str, Tensor] = {}
    seen: list[Tensor] = []

    def read(_module: nn.Module, _args: Any, output: Any) -> None:
        seen.append(hidden_states(output))
        stop()

    bar = progress_bar(total=len(ordered), desc="hidden states", unit="prompt", shown=progress, leave=False)
    with evaluating(model), hooks((block, read)), bar:
        for batch in batches(tokens, batch_tokens, decoder.device):
            with stopping():
                model(**batch.model_inputs(), use_cache=False)
            hidden = seen.pop()
            last = (batch.lengths - 1).to(hidden.device)
            chosen = hidden[torch.arange(len(last), device=hidden.device), last].float().cpu()
            states.update(zip((ordered[row] for row in batch.rows), chosen, strict=True))
            bar.update(len(batch.rows))
    return torch.stack([states[prompt] for prompt in prompts])


def relative_displacement(before: Points, after: Points) -> Points:
    """‖h' − h‖ / ‖h‖ of each row."""
    return np.asarray(np.linalg.norm(after - before, axis=1) / np.linalg.norm(before, axis=1))


def hausdorff(before: Points, after: Points) -> float:
    """The largest distance from a point of one set to the nearest point of the other, in units of the spread before."""
    from scipy.spatial.distance import directed_hausdorff

    return float(max(directed_hausdorff(before, after)[0], directed_hausdorff(after, before)[0]) / _spread(before))


def picture(before: Points, after: Points) -> tuple[Points, Points]:
    """Both sets in one plane by t-SNE, n × 2 each; along each axis the points before have mean 0 and variance 1."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    states = (np.concatenate([before, after]) - before.mean(0)) / _spread(before)
    # Beside a huge state, rounding would make all others equal, so its distance is limited to FARTHEST.
    states /= np.maximum(1, np.linalg.norm(states, axis=1, keepdims=True) / FARTHEST)
    # t-SNE amplifies rounding, so the points are sorted, independent of the prompts' order, and one thread sums them.
    points, place = np.unique(states, axis=0, return_inverse=True)
    perplexity = min(PERPLEXITY, (len(points) - 1) / 3)
    with threadpool_limits(1):
        plane = TSNE(init="pca", perplexity=perplexity, random_state=SEED).fit_transform(points).astype(np.float64)
    at_before, at_after = np.split(plane[place.reshape(-1)], 2)
    centre, scale = at_before.mean(0), at_before.std(0)
    return (at_before - centre) / scale, (at_after - centre) / scale


def _spread(points: Points) -> float:
    """The root mean square distance from their mean."""
    return float(np.sqrt(((points - points.mean(0)) ** 2).sum(1).mean()))


def overlap(before: Points, after: Points) -> Estimate:
    """∫ min(f, g), as 1 − ½ ∫ |f − g|, for the densities of two sets on a line; the first has variance 1.

    The interval is over prompts: each is drawn with both of its points. Gaussian kernels as in `_density`.
    """
    n = len(before)
    width = n ** (-1 / 5)
    step = width / 20
    near = np.arange(-100, 101)  # beyond 5 widths a Gaussian holds less than 1e-6
    grid = step * np.unique(np.round(np.concatenate([before, after]) / step)[:, None] + near)
    apart = np.subtract(*(np.exp(-(((grid[:, None] - points) / width) ** 2) / 2) for points in (before, after))) / (
        width * np.sqrt(2 * np.pi)
    )

    def statistic(drawn: NDArray[np.int64]) -> Points:
        found = []
        for part in np.array_split(drawn, 1 + len(drawn) * len(grid) // 10**7):
            weights = np.stack([np.bincount(row, minlength=n) for row in part]) / n
            found.append(np.clip(1 - step * np.abs(apart @ weights.T).sum(0) / 2, 0, 1))
        return np.concatenate(found)

    return estimate(np.arange(n), statistic)


def in_region(before: Points, after: Points) -> NDArray[np.bool_]:
    """Which points after lie in the region of the densest 95 % of the points before (equal density or higher)."""
    density = _density(before)
    own = np.sort(density.score_samples(before))
    least = own[len(own) - ceil(INSIDE * len(own))]
    return np.asarray(density.score_samples(after) >= least)


def _density(points: Points) -> Any:
    """Gaussian kernels of bandwidth n^(−1/(d + 4)): Scott's rule, in units where the points before have variance 1.

    The points after get the same width, so that a collapsed set is smoothed in the same way.
    """
    from sklearn.neighbors import KernelDensity

    return KernelDensity(bandwidth="scott").fit(points)
