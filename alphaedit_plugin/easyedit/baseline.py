"""EasyEdit's own methods as variants of a comparison: `easyedit:MEMIT`, `easyedit:GRACE`, `easyedit:MEMIT+P`.

What runs is EasyEdit's editing function, called batch after batch. Ours is only what surrounds it: hyperparameters for
any model, the comparison's statistics in the place of Wikipedia's, and a model that is afterwards what it was.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import importlib
import importlib.metadata
import inspect
import io
import json
import logging
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from ..errors import AlphaEditError, CompareError, EditError, HyperparameterError
from ..hparams import Hyperparameters
from ..modules import Decoder
from ..nullspace import NullSpaces
from ..prepare import Statistics
from ..requests import Request
from . import MISSING, PACKAGE, install
from .methods import COVERED, check_covered, templates

log = logging.getLogger(__name__)

PREFIX = "easyedit:"

_UNFIT = {
    "IKE": "it edits the prompt and not the model",
    "ICE": "it edits the prompt and not the model",
    "FT-Api": "its model is behind an API",
    "DeepEdit-Api": "its model is behind an API",
    "SERAC": "a second model with tokens of its own answers for the edited one, so positions are not those scored here",
    "MELO": "it finds its adapters by a row's last token, which in its training is the target's and here the prompt's",
    "WISE": "it trains on unrelated prompts of its own data sets (loc_prompt), which facts here do not have",
    "KN": "it needs the old object of every fact, which an edit request does not carry",
    "DINM": "it edits the answers to questions about safety, not facts",
    "DEFER": "its wrapper around the model looks at one prompt at a time",
    "DPO": "it trains on pairs of answers (target_neg), which facts here do not have",
    "QLoRA": "it quantises the model that is to be compared",
    "SimIE": "it wraps a method of another file: name that method",
}
"""Methods that EasyEdit has and a comparison cannot, with the reason."""

# What EasyEdit's modules remember between calls, whoever calls, and what that is before the first one.
_FRESH: dict[str, Any] = {
    "CONTEXT_TEMPLATES_CACHE": None,
    "COV_CACHE": {},
    "inv_mom2_cache": {},
    "P_loaded": False,
    "cache_c_new": False,
}
_MADE = ("P", "cache_c")  # not there before the first call

_OUR_KEYS = ("null_space", "reduced_precision")  # in the files that we ship, and unknown to EasyEdit


# ------------------------------------------------------------------------------------------------------------- names


@dataclass(frozen=True)
class Named:
    """`easyedit:METHOD`, with `+P` if what it writes is `projected`."""

    method: str
    projected: bool = False

    def __str__(self) -> str:
        return f"{PREFIX}{self.method}{'+P' if self.projected else ''}"


def is_baseline(variant: str) -> bool:
    return variant.strip().lower().startswith(PREFIX)


def parse_baseline(variant: str) -> Named:
    """Raises HyperparameterError for a method that EasyEdit lacks or a comparison cannot run, or that +P cannot cover.

    Where EasyEdit is not installed any name will do: `baseline` will say so.
    """
    method, *marks = (part.strip() for part in variant.strip()[len(PREFIX) :].split("+"))
    if not is_baseline(variant) or [mark.lower() for mark in marks] not in ([], ["p"]):
        raise HyperparameterError(f"there is no method {variant!r}: write {PREFIX}METHOD or {PREFIX}METHOD+P")
    try:
        known = list(_functions())
    except CompareError:
        known = [*COVERED, method]
    method = next((name for name in known if name.lower() == method.lower()), method)
    if method in _UNFIT:
        raise HyperparameterError(f"{variant!r} cannot be compared: {_UNFIT[method]}")
    if method not in known:
        able = ", ".join(name for name in known if name not in _UNFIT)
        raise HyperparameterError(f"there is no method {variant!r}: this EasyEdit has {able}")
    if marks:
        try:
            check_covered(SimpleNamespace(alg_name=method))
        except HyperparameterError as failure:
            raise HyperparameterError(f"{variant!r}: +P means the flag null_space, and {failure}") from failure
    return Named(method, bool(marks))


def _functions() -> dict[str, Callable[..., Any]]:
    """EasyEdit's table without what the plug-in adds to it. Raises CompareError where there is no EasyEdit."""
    install()
    home = os.environ.get("EASYEDIT_HOME")
    places = [home] if home and PACKAGE not in sys.modules else []
    sys.path[:0] = places
    try:
        with _hushed():
            importlib.import_module(PACKAGE)
            table = importlib.import_module(f"{PACKAGE}.util.alg_dict").ALG_DICT
    except ImportError as failure:
        if getattr(failure, "name", None) == PACKAGE:
            raise CompareError(f"{PREFIX} needs EasyEdit. {MISSING}, or a checkout that EASYEDIT_HOME names") from None
        raise CompareError(
            f"EasyEdit cannot be imported: {failure}. It imports all that its requirements.txt lists: install that"
        ) from failure
    finally:
        for place in places:
            sys.path.remove(place)
    return {name: function for name, function in table.items() if function.__module__.startswith(f"{PACKAGE}.")}


# --------------------------------------------------------------------------------------------------- hyperparameters


def hyperparameters(named: Named, model: Any, given: Mapping[str, Any] | str | Path | None = None) -> Any:
    """EasyEdit's hyperparameter object: what is `given` (values, or a YAML of EasyEdit's or ours), the rest derived.

    Names of modules come from the model, the settings of MEMIT, ROME, AlphaEdit and their kin from
    `Hyperparameters.for_model`. FT and GRACE get what EasyEdit's files say for Llama, at the same relative depth. The
    device is always the model's.

    Raises HyperparameterError for keys that the method does not know, and for those that it needs and nobody gave.
    """
    values, source = _read(given)
    if values.get("alg_name", named.method) != named.method:
        raise HyperparameterError(f"{source} is for {values['alg_name']}, not for {named.method}")
    cls = inspect.signature(_functions()[named.method]).parameters["hparams"].annotation
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init and field.name not in _OUR_KEYS}
    values = {key: value for key, value in values.items() if key not in _OUR_KEYS}
    if unknown := sorted(values.keys() - fields.keys()):
        raise HyperparameterError(f"{source}: {named.method} knows no {', '.join(unknown)}, only {', '.join(fields)}")
    needed = [name for name, field in fields.items() if field.default is field.default_factory is dataclasses.MISSING]
    values["device"] = _device(model)
    if set(needed) - values.keys():
        values = {key: value for key, value in _derived(named.method, model).items() if key in fields} | values
    if missing := [name for name in needed if name not in values]:
        raise HyperparameterError(
            f"{named} needs {', '.join(missing)}: give EasyEdit's file for it (a checkout has them in hparams/)"
        )
    if values.get("replacement", "replace_last") != "replace_last":
        raise HyperparameterError(f"{source}: {named.method} is measured with replacement replace_last only")
    if "archive" in values:
        values["archive"] = _archive(values["archive"], named)
    return cls(**values)


def layers_of(settings: Any) -> list[int]:
    """The layers whose out-projections the method writes, and of which it is lent statistics; else none."""
    return list(settings.layers) if settings.alg_name in COVERED else []


def _read(given: Mapping[str, Any] | str | Path | None) -> tuple[dict[str, Any], str]:
    if given is None or isinstance(given, Mapping):
        return dict(given or {}), "the hyperparameters"
    try:
        values = yaml.safe_load(Path(given).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as failure:
        raise HyperparameterError(f"cannot read {given}: {failure}") from failure
    if not isinstance(values, Mapping):
        raise HyperparameterError(f"{given} holds no keys: it must be a YAML mapping such as 'layers: [4, 5, 6]'")
    numbers = importlib.import_module(f"{PACKAGE}.util.hparams").HyperParams.construct_float_from_scientific_notation
    return dict(numbers(dict(values))), str(given)


def _derived(method: str, model: Any) -> dict[str, Any]:
    decoder = Decoder(model)
    depth = len(decoder)
    blocks = decoder.blocks_name
    projection = decoder.out_projection(0).name.removeprefix(f"{decoder.block_name(0)}.")
    name = getattr(model.config, "_name_or_path", "") or type(model).__name__
    attention = next(
        (n for n, m in decoder.block(0).named_children() if "att" in type(m).__name__.lower()), "self_attn"
    )
    values: dict[str, Any] = {
        "alg_name": method,
        # AlphaEdit tells by the model's name how its matrices are stored: it gets a name that says so.
        "model_name": f"{name} ({'gpt2-xl' if decoder.out_projection(0).transposed else 'llama'})",
        "rewrite_module_tmp": f"{blocks}.{{}}.{projection}",
        "layer_module_tmp": f"{blocks}.{{}}",
        "mlp_module_tmp": f"{blocks}.{{}}.{projection}".rpartition(".")[0],
        "attn_module_tmp": f"{blocks}.{{}}.{attention}",
        "ln_f_module": _name_of(model, decoder.final_norm),
        # As named_parameters calls it: of a tied pair that is the embedding.
        "lm_head_module": next(
            (n.removesuffix(".weight") for n, p in model.named_parameters() if p is decoder.head.weight), "lm_head"
        ),
        "v_loss_layer": depth - 1,
        "fact_token": "subject_last",
        "layer_selection": "all",
        "mom2_dataset": "wikipedia",
        "mom2_n_samples": 100000,
        "mom2_dtype": "float32",
        "stats_dir": "data/stats",
        "P_loc": "",
        "nullspace_threshold": 2e-2,
        "model_parallel": False,
    }
    if method == "FT":
        return values | {
            "rewrite_module_tmp": values["rewrite_module_tmp"] + ".weight",
            "layers": [round(21 / 32 * depth)],
            "num_steps": 25,
            "lr": 5e-4,
            "weight_decay": 0,
            "kl_factor": 0,
            "norm_constraint": False,
            "objective_optimization": "prompt_last",
            "batch_size": 1,
        }
    if method == "GRACE":
        return values | {
            "inner_params": [f"{blocks}[{round(27 / 32 * depth)}].{projection}.weight"],
            "edit_lr": 1.0,
            "n_iter": 50,
            "eps": 1.0,
            "dist_fn": "euc",
            "val_init": "cold",
            "val_train": "sgd",
            "val_reg": None,
            "reg": "early_stop",
            "replacement": "replace_last",
            "eps_expand": "coverage",
            "num_pert": 8,
            "dropout": 0.0,
        }
    if method in COVERED:
        theirs = {"ROME": "rome", "R-ROME": "rome", "AlphaEdit": "alphaedit", "SPHERE": "alphaedit"}
        ours = Hyperparameters.for_model(theirs.get(method, "memit"), model, name)
        threshold = {} if ours.null_space.threshold is None else {"nullspace_threshold": ours.null_space.threshold}
        return values | ours.as_dict() | threshold
    return {key: values[key] for key in ("alg_name", "model_name", "model_parallel")}


def _name_of(model: nn.Module, module: nn.Module | None) -> str:
    return next((name for name, each in model.named_modules() if each is module), "")


def _device(model: Any) -> int | str:
    """As EasyEdit writes it: the number of a GPU."""
    device = Decoder(model).device
    return device.index or 0 if device.type == "cuda" else str(device)


def _archive(path: Any, named: Named) -> str:
    if not path or not Path(path).is_file():
        raise HyperparameterError(
            f"{named} needs what EasyEdit's trainer has learned for this model: train it (EasyEdit's EditTrainer), and "
            f"set 'archive' in its hyperparameters to that file; {path or 'nothing'!r} is none"
        )
    return str(Path(path).resolve())


# ----------------------------------------------------------------------------------------------------------- editing


@contextmanager
def baseline(
    variant: str | Named,
    model: Any,
    tokenizer: Any,
    *,
    hparams: Mapping[str, Any] | str | Path | None = None,
    statistics: Statistics | None = None,
    null_spaces: NullSpaces | None = None,
) -> Iterator[Baseline]:
    """One of EasyEdit's methods, editing `model` for as long as the block lasts; then the model is bit for bit what it
    was, and so are EasyEdit's own memories, the tokenizer, the random states and the working directory.

    A method that writes feed-forward out-projections edits the model in place, any other a copy of it (in memory,
    the model once more). `hparams` as in `hyperparameters`. `statistics` (of `layers_of`) are what the method finds in
    its `stats_dir`; `null_spaces`, of the same layers, are needed for +P only.

    Raises CompareError where EasyEdit, statistics or null spaces are missing, HyperparameterError as
    `hyperparameters` does.
    """
    functions = _functions()
    named = variant if isinstance(variant, Named) else parse_baseline(variant)
    settings = hyperparameters(named, model, hparams)
    needed = layers_of(settings)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="alphaedit-easyedit-")))
        if hasattr(settings, "stats_dir"):
            _lend_statistics(settings, model, statistics, named, folder)
        if named.projected:
            settings.null_space = {"path": _lend_null_spaces(null_spaces, needed, named, folder), "progress": False}
        if hasattr(settings, "P_loc"):  # not there yet: P is to be of this model, and of these statistics
            settings.P_loc = str(folder / "null_space_project.pt")
        if named.method in COVERED:
            stack.enter_context(_put_back(model, settings))
            subject = model
        else:
            subject = copy.deepcopy(model).requires_grad_(True)  # as a model that EasyEdit has loaded
        yield Baseline(named, settings, functions[named.method], subject, copy.deepcopy(tokenizer), folder)


class Baseline:
    """A method of EasyEdit on one model.

    Invariant: what EasyEdit remembers between calls (templates, covariances, P, keys) belongs to this object: other
    users of EasyEdit in the process see nothing of it.
    """

    def __init__(
        self, named: Named, settings: Any, function: Callable[..., Any], model: Any, tokenizer: Any, folder: Path
    ) -> None:
        self.named, self.settings = named, settings
        self.identity: Mapping[str, Any] = identity(named, settings)
        executor = getattr(function, "__self__", None)  # MEND's keeps the first model that it meets
        self._apply = function if executor is None else type(executor)().apply_to_model
        self._model, self._kind, self._tokenizer, self._folder = model, type(model), tokenizer, folder
        self._memory = _Memory()
        self._written = 0
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        if tokenizer.unk_token is None:  # FT of the edition of PyPI masks it in its loss
            tokenizer.unk_token = tokenizer.eos_token
        tokenizer.padding_side = "right" if named.method in COVERED else "left"  # as EasyEdit's editors set it
        batchable = importlib.import_module(f"{PACKAGE}.editors.batch_editor").BatchEditor.is_batchable_method
        self._in_batches = bool(batchable(named.method))

    def edit(self, requests: Sequence[Request]) -> nn.Module:
        """Write a batch on top of what was written, and return the model to measure.

        A method that takes one fact at a time gets them in order. What is drawn at random depends on the number of
        facts written before. Raises EditError if EasyEdit fails or leaves weights that are not finite.
        """
        records = [
            {"prompt": request.text, "subject": request.subject, "target_new": request.target_new, "case_id": number}
            for number, request in enumerate(requests, self._written)
        ]
        for batch in [records] if self._in_batches else [[record] for record in records]:
            try:
                self._call(batch)
            except AlphaEditError:
                raise
            except Exception as failure:  # another person's code: anything may come
                raise EditError(
                    f"EasyEdit's {self.named.method} failed on {batch[0]['prompt']!r}"
                    f"{_hint(failure)}: {type(failure).__name__}: {failure}"
                ) from failure
            self._written += len(batch)
        if not all(torch.isfinite(parameter).all() for parameter in self._model.parameters()):
            raise EditError(f"EasyEdit's {self.named.method} left weights that are not finite")
        return self._model

    def _call(self, batch: list[dict[str, Any]]) -> None:
        with ExitStack() as stack:
            for context in (_hushed(), _seeded(self._written), self._memory.in_place(), _working_in(self._folder)):
                stack.enter_context(context)
            stack.enter_context(torch.enable_grad())
            adapters = _codebooks(self._model)
            for adapter in adapters:
                adapter.__dict__.pop("forward", None)
            edited, _ = self._apply(
                self._model,
                self._tokenizer,
                batch,
                self.settings,
                copy=False,
                return_orig_weights=True,
                keep_original_weight=False,
            )
        while not isinstance(edited, self._kind):  # a wrapper, whose adapters live in the model inside
            edited = edited.get_base_model() if hasattr(edited, "get_base_model") else edited.model
        for adapter in _codebooks(edited):
            adapter.forward = partial(_look_up, adapter)
        self._model = edited


def _codebooks(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if type(module).__name__ == "GRACEAdapter"]


def _look_up(adapter: Any, keys: Tensor, *_: Any) -> Tensor:
    """What GRACE's adapter answers, asked at every token (… × tokens × d_in) instead of at one.

    GRACE replaces a layer's output where the query, the key of the prompt's last token, is within ε of a key in its
    codebook. EasyEdit's adapter looks at one position for a whole batch, that of the last edit's prompt or the last of
    the row, padding or not; in a batch of prompts of different lengths, or with a target after the prompt, that is
    another token's. For the prompt's last token the answer is the same.
    """
    output: Tensor = adapter.layer(keys)
    if "keys" not in vars(adapter):
        return output
    codebook, values, radii = adapter.keys.float(), adapter.values, adapter.epsilons.view(-1)
    distance, nearest = torch.cdist(keys.float(), codebook.expand(*keys.shape[:-2], -1, -1)).min(-1)
    return torch.where((distance <= radii[nearest])[..., None], values[nearest].to(output.dtype), output)


def _lend_statistics(settings: Any, model: Any, statistics: Statistics | None, named: Named, folder: Path) -> None:
    """The comparison's covariances, as the .npz that EasyEdit looks for: it computes none, and loads no Wikipedia."""
    found = statistics.covariances if statistics is not None else {}
    if missing := sorted(set(layers_of(settings)) - set(found)):
        raise CompareError(f"{named} needs the statistics of layers {missing}, which were not prepared")
    name = getattr(model.config, "_name_or_path", "") or ""
    size = settings.mom2_n_samples
    for place in {name.rsplit("/")[-1], name.replace("/", "_")}:  # HEAD's, PyPI's
        for template in templates(settings):
            for layer, projection in Decoder(model, template).out_projections(settings.layers).items():
                file = f"{projection.name}_{settings.mom2_dtype}_mom2_{size}.npz"
                found[layer].save_npz(folder / "stats" / place / f"{settings.mom2_dataset}_stats" / file, size)
    settings.stats_dir = str(folder / "stats")


def _lend_null_spaces(null_spaces: NullSpaces | None, layers: list[int], named: Named, folder: Path) -> str:
    if null_spaces is None or set(layers) - set(null_spaces):
        raise CompareError(f"{named} needs the null spaces of layers {layers}, which were not prepared")
    path = folder / "null-spaces.safetensors"
    null_spaces.save(path)
    return str(path)


def identity(named: Named, settings: Any) -> dict[str, Any]:
    """What decides the result beside model, statistics and facts, in JSON's types: EasyEdit's source, its settings."""
    values = dataclasses.asdict(settings)
    for name in ("device", "stats_dir", "P_loc", "null_space", "model_name"):  # of this machine, or ours
        values.pop(name, None)
    module = sys.modules[_functions()[named.method].__module__]
    sources = sorted(Path(str(module.__file__)).parent.glob("*.py"))
    return {
        "easyedit": _edition(),
        "source": hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest(),
        "method": named.method,
        "projected": named.projected,
        "hyperparameters": json.loads(json.dumps(values, default=str)),
    }


def _edition() -> str:
    try:
        installed = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return "a checkout"
    here = Path(str(sys.modules[PACKAGE].__file__)).parent
    return installed.version if Path(str(installed.locate_file(PACKAGE))).resolve() == here.resolve() else "a checkout"


def _hint(failure: Exception) -> str:
    if "CUDA" in str(failure) or "cuda" in str(failure):
        return " (EasyEdit's edition of PyPI knows only CUDA: use a checkout of the current one, or a GPU)"
    return ""


# ---------------------------------------------------------------------------------------------- leaving things as found


@contextmanager
def _put_back(model: Any, settings: Any) -> Iterator[None]:
    """Weights that the method writes, gradients and flags as they were, when the block ends."""
    written = [template.format(layer) for template in templates(settings) for layer in settings.layers]
    parameters = dict(model.named_parameters())
    before = {
        name: parameter.detach().clone()
        for name, parameter in parameters.items()
        if any(name.startswith(f"{module}.") for module in written)
    }
    gradients = {name: (parameter.requires_grad, parameter.grad) for name, parameter in parameters.items()}
    training = [(module, module.training) for module in model.modules()]
    attributes = set(vars(model))
    try:
        yield
    finally:
        for name, (requires, gradient) in gradients.items():
            parameters[name].requires_grad_(requires)
            parameters[name].grad = gradient
        with torch.no_grad():
            for name, weight in before.items():
                parameters[name].copy_(weight)
        for module, flag in training:
            module.training = flag
        for ours in set(vars(model)) - attributes:  # the flag keeps its state with the model
            delattr(model, ours)


class _Memory:
    """What EasyEdit's modules remember, exchanged for ours while ours is in place."""

    def __init__(self) -> None:
        self._ours: dict[tuple[str, str], Any] = {}

    @contextmanager
    def in_place(self) -> Iterator[None]:
        theirs = self._current()
        for (module, name), _ in theirs.items():
            if name in _MADE:
                delattr(sys.modules[module], name)
            else:
                setattr(sys.modules[module], name, copy.copy(_FRESH[name]))
        self._install(self._ours)
        try:
            yield
        finally:
            self._ours = self._current()
            for module, name in self._ours:
                if name in _MADE:
                    delattr(sys.modules[module], name)
            self._install(theirs)

    @staticmethod
    def _current() -> dict[tuple[str, str], Any]:
        return {
            (module, name): vars(sys.modules[module])[name]
            for module in list(sys.modules)
            if module.startswith(f"{PACKAGE}.models.")
            for name in (*_FRESH, *_MADE)
            if name in vars(sys.modules[module])
        }

    @staticmethod
    def _install(values: Mapping[tuple[str, str], Any]) -> None:
        for (module, name), value in values.items():
            setattr(sys.modules[module], name, value)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The three random states at a known place, and back where they were afterwards."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 (EasyEdit draws from it)
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


@contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    """AlphaEdit saves its P in the working directory, whatever its P_loc says."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextmanager
def _hushed() -> Iterator[None]:
    """What EasyEdit prints goes to the log, at debug level; its `logging.basicConfig` is the caller's to decide."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    with redirect_stdout(_Lines()), redirect_stderr(_Lines()):
        try:
            yield
        finally:
            root.handlers[:] = handlers
            root.setLevel(level)


class _Lines(io.TextIOBase):
    def write(self, text: str) -> int:
        if text.strip():
            log.debug("%s", text.rstrip())
        return len(text)
