"""Where a flagged run has its covariances and null spaces from."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import NullSpaceError, StatisticsError
from ..hparams import as_number
from ..modules import Decoder
from ..nullspace import PAPER, Criterion, NullSpaces
from ..prepare import Statistics, model_name, null_spaces_of, prepare_statistics, statistics_from_npz
from ..statistics import Covariance
from ..store import Store
from .flag import Options

log = logging.getLogger(__name__)


def statistics_of(
    model: nn.Module, tokenizer: Any, hparams: Any, options: Options, template: str, layers: Sequence[int]
) -> Statistics:
    """EasyEdit's own .npz if it has them for all layers, else the store's, else computed and stored.

    A corpus that the flag names goes before the .npz.
    """
    if options.corpus is None and options.tokens is None:
        for folder in _npz_folders(model, hparams):
            try:
                found = statistics_from_npz(model, layers, folder, template=template)
            except StatisticsError as failure:
                log.info("the statistics below %s are not used: %s", folder, failure)
            else:
                log.info("using the statistics that EasyEdit has in %s: nothing is computed", folder)
                return found
    return prepare_statistics(
        model,
        tokenizer,
        layers,
        source=options.corpus,
        tokens=options.tokens,
        template=template,
        store=Store(options.cache_dir),
        progress=options.progress,
    )


def null_spaces_for(
    model: nn.Module, tokenizer: Any, hparams: Any, options: Options, template: str, layers: Sequence[int]
) -> tuple[NullSpaces, dict[int, Covariance]]:
    """P of every layer, and what it was made from. Says in the log what they are.

    A file that the flag names holds no covariances: then there are none.

    Raises WrongModelError for a file of another model, NullSpaceError for one of other layers or other modules.
    """
    name = getattr(hparams, "alg_name", "the method")
    covariances: dict[int, Covariance] = {}
    if options.path is not None:
        spaces = NullSpaces.load(options.path)
        missing = sorted(set(layers) - set(spaces))
        if missing:
            raise NullSpaceError(f"{options.path} has no null space of layers {missing}, which {name} edits")
        spaces.check(model)
        theirs, ours = (
            Decoder(model, t).out_projection(layers[0]).name for t in (spaces.provenance["template"], template)
        )
        if theirs != ours:
            raise NullSpaceError(f"{options.path} holds null spaces of {theirs}, but {name} edits {ours}")
        spaces = NullSpaces({layer: spaces[layer] for layer in layers}, {**spaces.provenance, "template": template})
    else:
        statistics = statistics_of(model, tokenizer, hparams, options, template, layers)
        covariances = statistics.covariances
        spaces = null_spaces_of(statistics, criterion_of(hparams, options), store=Store(options.cache_dir))
    _describe(name, model, template, spaces)
    return spaces, covariances


def criterion_of(hparams: Any, options: Options) -> Criterion:
    """The flag's, else the method's own threshold, else the paper's."""
    threshold = as_number(getattr(hparams, "nullspace_threshold", None))
    return options.criterion or (Criterion(threshold=threshold) if threshold is not None else PAPER)


def _npz_folders(model: nn.Module, hparams: Any) -> list[Path]:
    """Where either edition keeps statistics of this model (HEAD: last part of the name; PyPI: "/" as "_")."""
    root, dataset = getattr(hparams, "stats_dir", None), getattr(hparams, "mom2_dataset", None)
    path = getattr(getattr(model, "config", None), "_name_or_path", "") or ""
    if root is None or dataset is None or not path:
        return []
    names = dict.fromkeys([path.rsplit("/")[-1], path.replace("/", "_")])
    folders = [Path(root) / name / f"{dataset}_stats" for name in names if name]
    return [folder for folder in folders if folder.is_dir()]


def _describe(name: str, model: nn.Module, template: str, spaces: NullSpaces) -> None:
    made_from = spaces.provenance
    source = made_from.get("source", "not recorded")
    if isinstance(source, Mapping):
        source = " ".join(sorted({str(Path(path).parent) for path in source.values()}))
    log.info(
        "%s on %s: every update of %s is projected (%s; statistics: %s, %s tokens)",
        name,
        model_name(model),
        template,
        made_from.get("criterion", "criterion not recorded"),
        source,
        f"{made_from.get('text', {}).get('tokens', 0):,}",
    )
    for layer, space in sorted(spaces.items()):
        energy = space.eigenvalues.clamp_min(0)
        leakage = float(energy[: space.nullity].sum() / energy.sum())
        log.info("layer %d: nullity %d of %d, leakage of P %.3f", layer, space.nullity, space.d_in, leakage)
