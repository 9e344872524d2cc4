"""Where a flagged method gets its covariances and null spaces from."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ..editors.hyperparameters import as_number
from ..model.decoder import Decoder
from ..model.fingerprint import model_name
from ..model.trace import evaluating
from ..nullspace.covariance import Covariance
from ..nullspace.curvature import prepare_output_gradients
from ..nullspace.kronecker import FLAT, LowCurvature
from ..nullspace.null_spaces import NullSpaces, null_spaces_of
from ..nullspace.projection import PAPER, Criterion
from ..nullspace.statistics import Statistics
from .flag import Options

log = logging.getLogger(__name__)


class Prepared:
    """What edits of one model must preserve, prepared once: the covariances of its keys, and their null spaces.

    Invariant: the covariance of a layer is taken once, at the first call that edits the layer, and used as long as its
    source (corpus, tokens, file) stays the same. Another criterion gives another P from the same covariance. Likewise
    the covariance of the loss's gradients, and where the loss is flat. Every `decoder` argument must be of this model.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._statistics: dict[tuple[Any, ...], Statistics] = {}
        self._spaces: dict[tuple[Any, ...], NullSpaces] = {}
        self._gradients: dict[tuple[Any, ...], dict[int, Covariance]] = {}
        self._flat: dict[tuple[Any, ...], LowCurvature] = {}

    def copy(self) -> Prepared:
        """The same for an edited copy of the model; from now on each adds only to its own."""
        other = copy.copy(self)
        other._statistics, other._spaces = dict(self._statistics), dict(self._spaces)
        other._flat = dict(self._flat)
        other._gradients = {key: dict(of) for key, of in self._gradients.items()}
        return other

    def statistics(self, hparams: Any, options: Options, decoder: Decoder, layers: Sequence[int]) -> Statistics:
        """EasyEdit's own .npz if it has them for all layers, else the store's, else computed and stored.

        A corpus that the flag names takes precedence over the .npz.
        """
        key = (decoder.template, options.corpus, options.tokens)
        known = self._statistics.get(key)
        missing = [layer for layer in layers if known is None or layer not in known.covariances]
        if missing:
            with evaluating(decoder.model):
                found = options.preparation.statistics(
                    decoder, self._tokenizer, missing, found_in=_npz_folders(decoder.model, hparams)
                )
            if known is not None:
                prints = {**known.provenance["fingerprints"], **found.provenance["fingerprints"]}
                found = Statistics(
                    {**known.covariances, **found.covariances}, {**found.provenance, "fingerprints": prints}
                )
            self._statistics[key] = found
        return self._statistics[key].of_layers(layers)

    def null_spaces(self, hparams: Any, options: Options, decoder: Decoder, layers: Sequence[int]) -> NullSpaces:
        """P of every layer, from the file that the flag names or from statistics. Logs a description of them.

        Raises WrongModelError for a file of another model, NullSpaceError for one of other layers or modules.
        """
        criterion = None if options.path else criterion_of(hparams, options)
        key = (decoder.template, options.path, options.corpus, options.tokens, criterion, tuple(layers))
        if key not in self._spaces:
            if options.path is not None:
                found = self._from_file(options.path, decoder, layers)
            else:
                statistics = self.statistics(hparams, options, decoder, layers)
                found = null_spaces_of(statistics, criterion or PAPER, store=options.preparation.store)
            self._spaces[key] = found
            _describe(getattr(hparams, "alg_name", "the method"), decoder, found)
        return self._spaces[key]

    def low_curvature(self, hparams: Any, options: Options, decoder: Decoder, layers: Sequence[int]) -> LowCurvature:
        """Where the loss on the text is flat, in every layer; logs what it is."""
        criterion = options.criterion or FLAT
        key = (decoder.template, options.corpus, options.tokens, criterion, tuple(layers))
        if key not in self._flat:
            statistics, preparation = self.statistics(hparams, options, decoder, layers), options.preparation
            gradients = self._gradients.setdefault(key[:3], {})
            if missing := [layer for layer in layers if layer not in gradients]:
                with evaluating(decoder.model):
                    gradients |= prepare_output_gradients(
                        decoder,
                        self._tokenizer,
                        missing,
                        source=preparation.corpus,
                        tokens=preparation.tokens,
                        store=preparation.store,
                        progress=preparation.progress,
                    )
            self._flat[key] = found = LowCurvature.of(statistics, gradients, criterion)
            name, model = getattr(hparams, "alg_name", "the method"), model_name(decoder.model)
            log.info("%s on %s: every update of %s stays where the loss is flat", name, model, decoder.template)
            for layer, space in sorted(found.items()):
                size = space.d_out * space.d_in
                log.info("layer %d: %d of %d directions, leakage %.3f", layer, space.nullity, size, space.leakage)
        return self._flat[key]

    def _from_file(self, path: str, decoder: Decoder, layers: Sequence[int]) -> NullSpaces:
        spaces = NullSpaces.load(path)
        if not any(known[1] == path for known in self._spaces):  # it was checked before the first edit
            spaces.check(decoder)
        return spaces.attached(decoder, layers, path)


def criterion_of(hparams: Any, options: Options) -> Criterion:
    """The flag's, else the method's own threshold, else the paper's."""
    threshold = as_number(getattr(hparams, "nullspace_threshold", None))
    return options.criterion or (Criterion(threshold=threshold) if threshold is not None else PAPER)


def _npz_folders(model: nn.Module, hparams: Any) -> list[Path]:
    """Where the editions keep statistics of this model (HEAD: last part of the name; PyPI: "/" as "_")."""
    root, dataset = getattr(hparams, "stats_dir", None), getattr(hparams, "mom2_dataset", None)
    path = getattr(getattr(model, "config", None), "_name_or_path", "") or ""
    if root is None or dataset is None or not path:
        return []
    names = dict.fromkeys([path.rsplit("/")[-1], path.replace("/", "_")])
    folders = [Path(root) / name / f"{dataset}_stats" for name in names if name]
    return [folder for folder in folders if folder.is_dir()]


def _describe(name: str, decoder: Decoder, spaces: NullSpaces) -> None:
    made_from = spaces.provenance
    source = made_from.get("source", "not recorded")
    if isinstance(source, Mapping):
        source = " ".join(sorted({str(Path(path).parent) for path in source.values()}))
    log.info(
        "%s on %s: every update of %s is projected (%s; statistics: %s, %s tokens)",
        name,
        model_name(decoder.model),
        decoder.template,
        made_from.get("criterion", "criterion not recorded"),
        source,
        f"{made_from.get('text', {}).get('tokens', 0):,}",
    )
    for layer, space in sorted(spaces.items()):
        log.info("layer %d: nullity %d of %d, leakage of P %.3f", layer, space.nullity, space.d_in, space.leakage())
