"""Stream the keys of many layers into their covariances, in one pass over the text."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, distributed, nn

from ..errors import StatisticsError
from ..model.batches import PaddedBatch, Tokens, batches, digest
from ..model.decoder import Decoder
from ..model.gradients import gradients
from ..model.precision import float64_device
from ..model.trace import evaluating, inputs_of
from ..progress import progress_bar
from ..storage.files import atomic
from ..storage.tensors import read_tensors, write_tensors

log = logging.getLogger(__name__)

_STRIPES = 8


@dataclass
class Covariance:
    """The uncentred second moment C = Σ k kᵀ / N of one layer's keys (the field's "mom2").

    Invariant: `upper` holds Σ k kᵀ in float64 on and above its diagonal (entries below it are unspecified), and `count`
    is N. Sums are exact enough that batch size and order change nothing (1e-10 relative). They can be merged: the sums
    over two halves of a text add up to the sum over the whole.

    Every token counts, including the first one of each text. On many models that token is an attention sink with a
    giant key (SmolLM2 layer 11: one eigenvalue of 4e4 beside a median of 1e-2); every prompt has one, so an edit that
    disturbed it would disturb everything. Counting it costs the null space one dimension and protects it. ROME and
    EasyEdit count it too, so their files and ours mean the same.
    """

    upper: Tensor
    count: int = 0

    @classmethod
    def empty(cls, d_in: int, device: torch.device | str = "cpu") -> Covariance:
        return cls(torch.zeros(d_in, d_in, dtype=torch.float64, device=float64_device(device)))

    @property
    def d_in(self) -> int:
        return self.upper.shape[0]

    def add(self, keys: Tensor) -> None:
        """Add keys, tokens × d_in. Only the upper triangle is computed, in stripes: nearly half the work."""
        keys = keys.to(self.upper.device).to(torch.float64)
        step = -(-self.d_in // _STRIPES)
        for row in range(0, self.d_in, step):
            self.upper[row : row + step, row:].addmm_(keys[:, row : row + step].T, keys[:, row:])
        self.count += keys.shape[0]

    def merge(self, other: Covariance) -> Covariance:
        """The covariance over both texts. Raises StatisticsError if their dimensions differ."""
        if other.d_in != self.d_in:
            raise StatisticsError(f"covariances of {self.d_in} and {other.d_in} dimensions cannot be merged")
        return Covariance(self.upper + other.upper.to(self.upper.device), self.count + other.count)

    @property
    def total(self) -> Tensor:
        """Σ k kᵀ, d_in × d_in, float64, exactly symmetric."""
        upper = self.upper.triu()
        return upper + upper.triu(1).T

    @property
    def matrix(self) -> Tensor:
        """C, d_in × d_in, float64, exactly symmetric."""
        return self.total / self.count

    def check(self, name: str) -> None:
        """Raises StatisticsError if it was made from no tokens or is not finite."""
        if self.count <= 0:
            raise StatisticsError(f"the covariance of {name} was made from no tokens at all")
        if not torch.isfinite(self.upper.triu()).all():
            raise StatisticsError(
                f"the covariance of {name} is not finite: the model's activations overflow; load it in float32 or "
                "bfloat16"
            )

    def packed(self) -> dict[str, Tensor]:
        """The upper triangle, row by row: half the size of the square and just as exact."""
        d = self.d_in
        triangle = torch.empty(d * (d + 1) // 2, dtype=torch.float64)
        upper, start = self.upper.cpu(), 0
        for row in range(d):
            triangle[start : start + d - row] = upper[row, row:]
            start += d - row
        return {"triangle": triangle, "count": torch.tensor(self.count)}

    @classmethod
    def unpacked(cls, tensors: Mapping[str, Tensor]) -> Covariance:
        triangle = tensors["triangle"]
        d = round((np.sqrt(8 * triangle.numel() + 1) - 1) / 2)
        upper, start = torch.zeros(d, d, dtype=torch.float64), 0
        for row in range(d):
            upper[row, row:] = triangle[start : start + d - row]
            start += d - row
        return cls(upper, int(tensors["count"]))

    def save_npz(self, path: str | Path, sample_size: int | None = None) -> None:
        """Write the file that ROME, MEMIT and EasyEdit look for (float32, Σ k kᵀ and N).

        `sample_size` must be what their run asks for (`mom2_n_samples`), or they compute again.
        """
        arrays = {
            "mom2.constructor": np.array("util.runningstats.SecondMoment()"),
            "mom2.count": np.array(self.count),
            "mom2.mom2": self.total.cpu().numpy().astype(np.float32),
        }
        if sample_size is not None:
            arrays["sample_size"] = np.array(sample_size)
        with atomic(Path(path), StatisticsError) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    @classmethod
    def load_npz(cls, path: str | Path) -> Covariance:
        """Read a statistics file of ROME, MEMIT or EasyEdit.

        Raises StatisticsError, naming the file, if it is absent, cut short or holds something else.
        """
        path = Path(path)
        try:
            with np.load(path, allow_pickle=False) as file:
                total, count = file["mom2.mom2"].astype(np.float64), int(file["mom2.count"])
        except Exception as failure:  # numpy raises a different type for each kind of damage
            raise StatisticsError(
                f"cannot read second-moment statistics from {path} ({failure!r}). Is it a complete .npz of "
                "ROME/MEMIT/EasyEdit? Delete it to have it computed again"
            ) from failure
        if total.ndim != 2 or total.shape[0] != total.shape[1] or not total.size:
            raise StatisticsError(f"{path}: mom2 has shape {total.shape}, not d × d")
        sums = torch.from_numpy(total)
        cls(sums, count).check(str(path))
        if not torch.allclose(sums, sums.T, rtol=1e-3, atol=1e-5 * float(sums.abs().max())):
            raise StatisticsError(f"{path}: mom2 is not symmetric, so it is no second moment")
        return cls((sums + sums.T) / 2, count)


def packed_by_layer(covariances: Mapping[int, Covariance]) -> dict[str, Tensor]:
    """The covariances as tensors by name, as a file holds them."""
    return {
        f"{layer}.{name}": tensor
        for layer, covariance in covariances.items()
        for name, tensor in covariance.packed().items()
    }


def unpacked_by_layer(tensors: Mapping[str, Tensor]) -> dict[int, Covariance]:
    """What `packed_by_layer` packed. Raises ValueError or KeyError for anything else."""
    layers = sorted({int(name.partition(".")[0]) for name in tensors})
    return {
        layer: Covariance.unpacked({name: tensors[f"{layer}.{name}"] for name in ("triangle", "count")})
        for layer in layers
    }


def is_distributed() -> bool:
    """Whether several processes of torch.distributed may be working together."""
    return distributed.is_available() and distributed.is_initialized()


@gradients(False)
def collect(
    model: nn.Module | Decoder,
    windows: Sequence[Tokens],
    layers: Sequence[int],
    *,
    template: str | None = None,
    batch_tokens: int = 4096,
    progress: bool = False,
    partial: Path | None = None,
    partial_seconds: float = 300.0,
) -> dict[int, Covariance]:
    """Covariances of all `layers` from one pass over `windows`, each a list of token ids.

    The pass stops at the last of the layers. Padding is never counted. With `partial`, partial sums are saved to that
    file every `partial_seconds` seconds; a later call with the same windows continues from there and gives the same
    result, bit for bit. Under torch.distributed each process takes its share of the windows, and all get the sum.

    Raises StatisticsError if a covariance was made from no tokens or is not finite.
    """
    decoder = Decoder.of(model, template)
    projections = decoder.out_projections(layers)
    modules = {layer: projection.module for layer, projection in projections.items()}

    def keys(batch: PaddedBatch) -> dict[int, Tensor]:
        found = inputs_of(
            modules, lambda: decoder.model(**batch.model_inputs(), use_cache=False), last=max(projections)
        )
        return {layer: tokens_where(batch.mask, found[layer]) for layer in projections}

    return summed(
        decoder,
        windows,
        {layer: (projection.name, projection.d_in) for layer, projection in projections.items()},
        keys,
        batch_tokens=batch_tokens,
        progress=progress,
        partial=partial,
        partial_seconds=partial_seconds,
    )


def tokens_where(mask: Tensor, values: Tensor) -> Tensor:
    """The values, n × d, of the tokens where `mask`, batch × width, is not zero, whether or not they come flattened."""
    return values.reshape(-1, values.shape[-1])[mask.reshape(-1).to(values.device).bool()]


def summed(
    decoder: Decoder,
    windows: Sequence[Tokens],
    wanted: Mapping[int, tuple[str, int]],
    read: Callable[[PaddedBatch], Mapping[int, Tensor]],
    *,
    batch_tokens: int,
    progress: bool = False,
    partial: Path | None = None,
    partial_seconds: float = 300.0,
) -> dict[int, Covariance]:
    """layer → the covariance of what `read` finds in each batch (layer → n × d), with dropout off.

    `wanted` says of each layer what errors call it, and its d. All else is as in `collect`.
    """
    shared = is_distributed()
    if shared:
        rank, world = distributed.get_rank(), distributed.get_world_size()
        windows = windows[rank::world]
        partial = partial and partial.with_suffix(f".{rank}-{world}{partial.suffix}")

    sums: dict[int, Covariance] = {}
    done = 0
    if partial is not None and partial.exists():
        try:
            sums, done = _resume(partial, windows, list(wanted))
            log.info("resuming statistics after %d of %d windows", done, len(windows))
        except StatisticsError as failure:
            log.warning("starting the statistics anew: %s", failure)
    saved_at = time.monotonic()
    remaining = windows[done:]
    with (
        evaluating(decoder.model),
        progress_bar(
            total=sum(map(len, windows)),
            initial=sum(map(len, windows[:done])),
            desc="statistics",
            unit="token",
            unit_scale=True,
            shown=progress,
        ) as bar,
    ):
        for batch in batches(remaining, batch_tokens, decoder.device, sort=False):
            for layer, values in read(batch).items():
                if layer not in sums:
                    sums[layer] = Covariance.empty(values.shape[1], values.device)
                sums[layer].add(values)
            done += len(batch.rows)
            bar.update(int(batch.mask.sum()))
            if partial is not None and time.monotonic() - saved_at > partial_seconds:
                _save(partial, sums, windows[:done])
                saved_at = time.monotonic()
    for layer, (name, d) in wanted.items():
        sums.setdefault(layer, Covariance.empty(d, decoder.device))
        if shared:
            sums[layer] = _all_reduced(sums[layer])
        sums[layer].check(name)
    if partial is not None:
        partial.unlink(missing_ok=True)
    return {layer: sums[layer] for layer in wanted}


def _save(partial: Path, sums: Mapping[int, Covariance], done: Sequence[Tokens]) -> None:
    write_tensors(partial, packed_by_layer(sums), {"windows": len(done), "text": digest(done)}, StatisticsError)


def _resume(partial: Path, windows: Sequence[Tokens], layers: Sequence[int]) -> tuple[dict[int, Covariance], int]:
    """(sums, number of windows in them). Raises StatisticsError unless they are sums of these windows and layers."""
    tensors, metadata = read_tensors(partial, StatisticsError)
    done = metadata.get("windows", 0)
    named = {f"{layer}.{name}" for layer in layers for name in ("triangle", "count")}
    if set(tensors) != named or metadata.get("text") != digest(windows[:done]):
        raise StatisticsError(f"{partial} holds the sums of other text or other layers")
    sums = unpacked_by_layer(tensors)
    return {layer: sums[layer] for layer in layers}, done


def _all_reduced(mine: Covariance) -> Covariance:
    count = torch.tensor(mine.count, device=mine.upper.device)
    distributed.all_reduce(mine.upper)
    distributed.all_reduce(count)
    return Covariance(mine.upper, int(count))
