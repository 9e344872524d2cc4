"""Hyperparameters: EasyEdit-compatible YAML with a validated schema, or defaults derived from the model."""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from ..errors import HyperparameterError, NullSpaceError
from ..model.decoder import Decoder
from ..nullspace.projection import PAPER_THRESHOLD, Criterion
from ..storage.shipped import shipped
from ..storage.yaml_file import yaml_mapping
from .registry import Method, Modifier, find, find_method, listed, reserve

log = logging.getLogger(__name__)

# Keys of EasyEdit's files that we ignore: the model, the command line or the statistics say this instead.
_EASYEDIT_ONLY = frozenset(
    """
    alg_name model_name stats_dir device layer_selection fact_token v_loss_layer layer_module_tmp mlp_module_tmp
    attn_module_tmp ln_f_module lm_head_module mom2_dataset mom2_n_samples mom2_dtype model_parallel batch_size
    max_length fp16 bf16 P_loc
    """.split()  # noqa: SIM905
)


NORMALISED, ADAM = "normalised", "adam"
"""The names of the optimisers of targets (`optimisers.py`)."""

# Keys of EasyEdit with a single implemented value: any other value would silently be another method.
_IMPLEMENTED = {"fact_token": "subject_last", "layer_selection": "all"}


@dataclass(frozen=True)
class TargetSettings:
    """Names in brackets are EasyEdit's.

    At most `steps` (v_num_grad_steps) of `optimiser` (ours: target_optimiser, see `optimisers.py`), of which Adam has
    the step size `lr` (v_lr); loss = NLL of the new object averaged over contexts + `kl_factor` ·
    KL(after ‖ before) on "{subject} is a" + `weight_decay` (v_weight_decay) · ‖δ‖/‖z‖²; ‖δ‖ is kept
    within `clamp` (clamp_norm_factor) · ‖z‖. `reduced_precision` optimises δ on a bfloat16 copy of a float32 model
    where the hardware has bfloat16: several times faster, and edits are no worse (`benchmarks/targets.py`).
    `most_probable` (ours, `encore.py`) stops as soon as the model says the new object in every context.
    """

    steps: int = 25
    lr: float = 0.5
    weight_decay: float = 0.5
    kl_factor: float = 0.0625
    clamp: float = 0.75
    reduced_precision: bool = False
    optimiser: str = ADAM
    most_probable: bool = False


@dataclass(frozen=True)
class Hyperparameters:
    """Settings of one method on one model; the names are EasyEdit's.

    `layers` are edited in ascending order. `rewrite_module_tmp` names the out-projection and is only needed if it
    cannot be found. `mom2_update_weight` is MEMIT's λ, `L2` is AlphaEdit's λ; `mom2_adjustment` says whether ROME
    measures keys by their covariance. `context_template_length_params` are pairs (tokens, number) of context templates.
    `null_space` says which directions count as null when updates are projected: a threshold on eigenvalues (EasyEdit's
    `nullspace_threshold`), an energy, or a nullity (see `Criterion`). `tokens` is how many tokens of text the
    covariances are made from; None leaves it to the preparation. `own` holds settings that only one method or modifier
    knows, if they differ from its defaults.
    """

    layers: tuple[int, ...]
    v_num_grad_steps: int = 25
    v_lr: float = 0.5
    v_weight_decay: float = 0.5
    clamp_norm_factor: float = 0.75
    kl_factor: float = 0.0625
    mom2_update_weight: float = 15000.0
    mom2_adjustment: bool = True
    L2: float = 10.0
    context_template_length_params: tuple[tuple[int, int], ...] = ((10, 5),)
    rewrite_module_tmp: str | None = None
    reduced_precision: bool = False
    target_optimiser: str = NORMALISED
    null_space: Criterion = field(default_factory=lambda: Criterion(threshold=PAPER_THRESHOLD))
    tokens: int | None = None
    own: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for each in fields(self):  # 1000 and 1000.0 are the same setting, also as text
            if each.type == "float":
                object.__setattr__(self, each.name, float(getattr(self, each.name)))

    @property
    def target_settings(self) -> TargetSettings:
        return TargetSettings(
            steps=self.v_num_grad_steps,
            lr=self.v_lr,
            weight_decay=self.v_weight_decay,
            kl_factor=self.kl_factor,
            clamp=self.clamp_norm_factor,
            reduced_precision=self.reduced_precision,
            optimiser=self.target_optimiser,
        )

    def as_dict(self) -> dict[str, Any]:
        """In JSON's types; `from_saved` reads it again."""
        values = {key: value for key, value in asdict(self).items() if value is not None}
        values["layers"] = list(self.layers)
        values["context_template_length_params"] = [list(pair) for pair in self.context_template_length_params]
        values["null_space"] = {k: v for k, v in values["null_space"].items() if v is not None}
        if not self.own:
            del values["own"]  # so that settings saved before `own` existed stay equal
        if self.target_optimiser == ADAM:
            del values["target_optimiser"]  # likewise: there was no other (`from_saved`)
        return values

    @classmethod
    def from_saved(cls, values: Mapping[str, Any], name: str) -> Hyperparameters:
        """Settings from `as_dict`. Raises HyperparameterError as `from_mapping` does."""
        return cls.from_mapping({"target_optimiser": ADAM, **values}, name)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], name: str) -> Hyperparameters:
        """Settings from a mapping.

        Raises HyperparameterError, naming `name` and the key, if a key is unknown, ill-typed or missing.
        """
        own = values.get("own", {})
        if not isinstance(own, Mapping) or not all(isinstance(key, str) for key in own):
            raise HyperparameterError(f"{name}: own must be a mapping of a method's own settings, not {own!r}")
        known = {key for each in listed() for key in each.settings} if own else set()
        for key in own.keys() - known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(sorted(known))}"
            raise HyperparameterError(f"{name}: no method has a setting {key!r} of its own{hint}")
        settings = cls._settings({key: value for key, value in values.items() if key != "own"}, name)
        if "layers" not in settings:
            raise HyperparameterError(f"{name}: 'layers' is missing: which layers are to be edited?")
        return cls(**settings, own=dict(own))

    def changed(self, values: Mapping[str, Any], name: str, own: Mapping[str, Any] | None = None) -> Hyperparameters:
        """A copy with some settings changed. Raises HyperparameterError as `from_mapping` does.

        `own` holds the method's own settings with their defaults. Besides the common settings only these may be
        changed; other entries of `self.own` are dropped. Who changes v_lr, Adam's step size, asks for Adam.
        """
        known = own or {}
        mine = {key: value for key, value in {**self.own, **values}.items() if key in known}
        others = {key: value for key, value in values.items() if key not in known}
        typed = {key: _typed_like(known[key], key, value, name) for key, value in mine.items()}
        if "v_lr" in others:
            others = {"target_optimiser": ADAM, **others}
        changed = replace(self, **self._settings(others, name, known), own=typed)
        if "v_lr" in others and changed.target_optimiser != ADAM:
            raise HyperparameterError(f"{name}: v_lr is Adam's step size, and target_optimiser is another")
        return changed

    @classmethod
    def _settings(cls, values: Mapping[str, Any], name: str, own: Iterable[str] = ()) -> dict[str, Any]:
        known = known_keys()
        settings: dict[str, Any] = {}
        for key, value in values.items():
            if key in _IMPLEMENTED and value != _IMPLEMENTED[key]:
                raise HyperparameterError(f"{name}: {key} {value!r} is not implemented, only {_IMPLEMENTED[key]!r}")
            if key in _EASYEDIT_ONLY:
                continue
            if key == "nullspace_threshold":
                if "null_space" in values:
                    raise HyperparameterError(f"{name}: give nullspace_threshold or null_space, not both")
                number = as_number(value)
                if number is None or not 0 < number < float("inf"):
                    raise HyperparameterError(f"{name}: nullspace_threshold must be a positive number, not {value!r}")
                settings["null_space"] = Criterion(threshold=number)
                continue
            if key not in known:
                near = difflib.get_close_matches(str(key), {*known, *own, *_EASYEDIT_ONLY, "nullspace_threshold"}, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(sorted({*known, *own}))}"
                raise HyperparameterError(f"{name}: unknown key {key!r}{hint}")
            settings[key] = _typed(key, value, name)
        return settings

    @classmethod
    def from_yaml(cls, path: str | Path) -> Hyperparameters:
        """Read an EasyEdit file or one of ours. Raises HyperparameterError naming the file and what is wrong."""
        return cls.from_mapping(yaml_mapping(path), str(path))

    @classmethod
    def for_model(cls, method: str, model: nn.Module, name: str) -> Hyperparameters:
        """The shipped file for a model of this name (`shipped_for`), else `derived` ones, which are logged.

        `method` is the name of a method, or of a modifier that has files of its own.
        """
        if found := cls.shipped_for(method, name):
            return found
        derived, regularised_by = cls.derived(method, model), _solver(method).editor.regularised_by
        log.warning(
            "no hyperparameters of %s for %s are shipped: using layers %s, clamp_norm_factor %g"
            "%s (derived, not tuned; `alphaedit tune` finds better ones)",
            find(method).folder or method,
            name,
            list(derived.layers),
            derived.clamp_norm_factor,
            f", {regularised_by} {getattr(derived, regularised_by):g}" if regularised_by else "",
        )
        return derived

    @classmethod
    def shipped_for(cls, method: str, name: str) -> Hyperparameters | None:
        """Settings of the shipped file whose name or model_name has the same last part as `name`; None without one."""
        folder, short = find(method).folder, _short(name)
        if folder is None:
            return None
        for path in sorted((shipped("hparams") / folder).glob("*.yaml")):
            if path.stem == short or _short(str(yaml.safe_load(path.read_text("utf-8")).get("model_name"))) == short:
                return cls.from_yaml(path)
        return None

    @classmethod
    def derived(cls, method: str, model: nn.Module) -> Hyperparameters:
        """The settings that the method's editor derives from the model's depth and width (`Editor.derived`).

        Raises ModelStructureError if an out-projection cannot be found.
        """
        derived: Hyperparameters = _solver(method).editor.derived(Decoder(model))
        return derived

    def with_layers(self, layers: tuple[int, ...] | None) -> Hyperparameters:
        return self if layers is None else replace(self, layers=layers)


def known_keys() -> set[str]:
    """The settings that every method has."""
    return {each.name for each in fields(Hyperparameters)} - {"own"}


reserve(known_keys())


def _solver(name: str) -> Method:
    """The method of this name, or the one that the modifier of this name modifies by itself."""
    found = find(name)
    return find_method(found.alone or name) if isinstance(found, Modifier) else found


def _short(name: str) -> str:
    """The last part of a model's name or path, in small letters."""
    return name.rstrip("/").rsplit("/", 1)[-1].lower()


def _typed(key: str, value: Any, name: str) -> Any:
    """The value in its field's type. YAML 1.1 reads 2e-2 as text: numbers written so are understood."""

    def wrong(expected: str) -> HyperparameterError:
        return HyperparameterError(f"{name}: {key} must be {expected}, not {value!r}")

    if key == "layers":
        if not isinstance(value, list | tuple) or not value or not all(type(layer) is int for layer in value):
            raise wrong("a list of layer numbers")
        if min(value) < 0 or len(set(value)) != len(value):
            raise wrong("a list of different layer numbers from 0")
        return tuple(sorted(value))
    if key == "target_optimiser":
        if value not in (NORMALISED, ADAM):
            raise wrong(f"{NORMALISED!r} or {ADAM!r}")
        return value
    if key == "rewrite_module_tmp":
        if not isinstance(value, str) or value.count("{}") != 1:
            raise wrong("a module name with '{}' in the place of the layer")
        return value
    if key == "context_template_length_params":
        pairs = value if isinstance(value, list | tuple) else []
        if not pairs or not all(
            isinstance(pair, list | tuple) and len(pair) == 2 and all(type(n) is int and n > 0 for n in pair)
            for pair in pairs
        ):
            raise wrong("a list of pairs [tokens, number of templates]")
        return tuple((int(tokens), int(number)) for tokens, number in pairs)
    if key in ("reduced_precision", "mom2_adjustment"):
        if not isinstance(value, bool):
            raise wrong("true or false")
        return value
    if key == "null_space":
        return parse_criterion(value, name)
    number = as_number(value)
    if number is None or number < 0 or number != number or number == float("inf"):
        raise wrong("a number that is not negative")
    if key in ("v_num_grad_steps", "tokens"):
        if number != int(number) or number < 1:
            raise wrong("a whole number from 1")
        return int(number)
    return number


def _typed_like(default: Any, key: str, value: Any, name: str) -> Any:
    """A method's own setting, in the type of its default."""
    if isinstance(default, bool | str):
        if isinstance(value, type(default)):
            return value
        expected = "true or false" if isinstance(default, bool) else "a text"
        raise HyperparameterError(f"{name}: {key} must be {expected}, not {value!r}")
    number = as_number(value)
    if number is None or not math.isfinite(number) or (isinstance(default, int) and number != int(number)):
        expected = "a whole number" if isinstance(default, int) else "a number"
        raise HyperparameterError(f"{name}: {key} must be {expected}, not {value!r}")
    return type(default)(number)


def parse_criterion(value: Any, name: str) -> Criterion:
    """A Criterion from {field: number}. Raises HyperparameterError, naming `name`, for anything else."""
    if not isinstance(value, Mapping):
        raise HyperparameterError(f"{name}: null_space must be a mapping such as {{threshold: 2e-2}}, not {value!r}")
    known = [f.name for f in fields(Criterion)]
    for key in value:
        if key not in known:
            raise HyperparameterError(f"{name}: null_space knows {', '.join(known)}, not {key!r}")
    numbers = {key: as_number(number) for key, number in value.items()}
    for key, number in numbers.items():
        if number is None:
            raise HyperparameterError(f"{name}: null_space.{key} must be a number, not {value[key]!r}")
    try:
        return Criterion(**numbers)
    except NullSpaceError as failure:
        raise HyperparameterError(f"{name}: null_space: {failure}") from failure


def as_number(value: Any) -> float | None:
    """The value as a number, also if YAML 1.1 read it as text; None if it is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None
