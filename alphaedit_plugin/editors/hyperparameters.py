"""Hyperparameters: EasyEdit-compatible YAML with a validated schema, or defaults derived from the model."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from ..errors import HyperparameterError, NullSpaceError
from ..model.decoder import Decoder
from ..nullspace.projection import PAPER_THRESHOLD, Criterion
from ..storage.shipped import shipped
from .registry import find_method, find_modifier, is_modifier, own_settings

log = logging.getLogger(__name__)

# What EasyEdit's files also say, and what we read off the model, the command line or the statistics instead.
_EASYEDIT_ONLY = frozenset(
    """
    alg_name model_name stats_dir device layer_selection fact_token v_loss_layer layer_module_tmp mlp_module_tmp
    attn_module_tmp ln_f_module lm_head_module mom2_dataset mom2_n_samples mom2_dtype model_parallel batch_size
    max_length fp16 bf16 P_loc
    """.split()  # noqa: SIM905
)


# Keys of EasyEdit of which one value is implemented: any other would silently be another method.
_IMPLEMENTED = {"fact_token": "subject_last", "layer_selection": "all"}


@dataclass(frozen=True)
class TargetSettings:
    """Names in brackets are EasyEdit's.

    `steps` (v_num_grad_steps) and `lr` (v_lr) of Adam; loss = NLL of the new object averaged over contexts +
    `kl_factor` · KL(after ‖ before) on "{subject} is a" + `weight_decay` (v_weight_decay) · ‖δ‖/‖z‖²; ‖δ‖ is kept
    within `clamp` (clamp_norm_factor) · ‖z‖. `reduced_precision` optimises δ on a bfloat16 copy of a float32 model
    where the hardware has bfloat16: several times faster, and no worse an edit (`benchmarks/targets.py`).
    """

    steps: int = 25
    lr: float = 0.5
    weight_decay: float = 0.5
    kl_factor: float = 0.0625
    clamp: float = 0.75
    reduced_precision: bool = False


@dataclass(frozen=True)
class Hyperparameters:
    """Settings of one method on one model; the names are EasyEdit's.

    `layers` are edited in ascending order. `rewrite_module_tmp` names the out-projection and is only needed where
    it cannot be found. `mom2_update_weight` is λ of MEMIT, `L2` that of AlphaEdit; `mom2_adjustment` says whether
    ROME measures keys by their covariance. `context_template_length_params` are pairs (tokens, number) of context
    templates. `null_space` says which directions count as null when updates are projected: a threshold on
    eigenvalues (EasyEdit's `nullspace_threshold`), an energy, or a nullity (see `Criterion`). `tokens` of text go into
    the covariances; None leaves it to what prepares them. `own` are the settings that only a method or modifier has
    for itself (see `registry`), as far as they were given, sorted by name.
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
    null_space: Criterion = field(default_factory=lambda: Criterion(threshold=PAPER_THRESHOLD))
    tokens: int | None = None
    own: tuple[tuple[str, Any], ...] = ()

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
        )

    def as_dict(self) -> dict[str, Any]:
        """In JSON's types; `from_mapping` reads it again."""
        values = {key: value for key, value in asdict(self).items() if value is not None}
        values["layers"] = list(self.layers)
        values["context_template_length_params"] = [list(pair) for pair in self.context_template_length_params]
        values["null_space"] = {k: v for k, v in values["null_space"].items() if v is not None}
        return {**values, **dict(values.pop("own"))}

    def setting(self, name: str) -> Any:
        """One of a method's own settings: as it was given, else its default."""
        own = dict(self.own)
        return own[name] if name in own else own_settings()[name]

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], name: str) -> Hyperparameters:
        """Raises HyperparameterError, naming `name` and the key, for a key that is unknown or ill-typed."""
        settings = cls._settings(values, name)
        if "layers" not in settings:
            raise HyperparameterError(f"{name}: 'layers' is missing: which layers are to be edited?")
        return cls(**settings)

    def changed(self, values: Mapping[str, Any], name: str) -> Hyperparameters:
        """With some settings changed; raises as `from_mapping` does."""
        settings = self._settings(values, name)
        if "own" in settings:
            settings["own"] = tuple(sorted({**dict(self.own), **dict(settings["own"])}.items()))
        return replace(self, **settings)

    @classmethod
    def _settings(cls, values: Mapping[str, Any], name: str) -> dict[str, Any]:
        known = {f.name for f in fields(cls)} - {"own"}
        settings: dict[str, Any] = {}
        own: dict[str, Any] = {}
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
            if key not in known and key in (defaults := own_settings()):
                own[key] = _like(defaults[key], key, value, name)
                continue
            if key not in known:
                candidates = known | _EASYEDIT_ONLY | {"nullspace_threshold"} | own_settings().keys()
                near = difflib.get_close_matches(str(key), candidates, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(sorted(known))}"
                raise HyperparameterError(f"{name}: unknown key {key!r}{hint}")
            settings[key] = _typed(key, value, name)
        return {**settings, "own": tuple(sorted(own.items()))} if own else settings

    @classmethod
    def from_yaml(cls, path: str | Path) -> Hyperparameters:
        """Read an EasyEdit file, or one of ours. Raises HyperparameterError naming the file and what is wrong."""
        return cls.from_mapping(yaml_mapping(path), str(path))

    @classmethod
    def for_model(cls, method: str, model: nn.Module, name: str) -> Hyperparameters:
        """The shipped file for a model of this name (`shipped_for`), else `derived` ones, which are logged."""
        if found := cls.shipped_for(method, name):
            return found
        derived = cls.derived(method, model)
        log.warning(
            "no hyperparameters of %s for %s are shipped: using layers %s, v_lr %g, clamp_norm_factor %g (derived, not "
            "tuned)",
            _folder(method) or method,
            name,
            list(derived.layers),
            derived.v_lr,
            derived.clamp_norm_factor,
        )
        return derived

    @classmethod
    def shipped_for(cls, method: str, name: str) -> Hyperparameters | None:
        """Those of the file that is called as the last part of `name`, or whose model_name ends so; None without."""
        short, folder = _short(name), _folder(method)
        for path in sorted(shipped(f"hparams/{folder}").glob("*.yaml")) if folder is not None else ():
            if path.stem == short or _short(str(yaml.safe_load(path.read_text("utf-8")).get("model_name"))) == short:
                return cls.from_yaml(path)
        return None

    @classmethod
    def derived(cls, method: str, model: nn.Module) -> Hyperparameters:
        """For a model without a file: the layers and defaults that the method declares for one of this depth."""
        declared = find_method((find_modifier(method).alone or "memit") if is_modifier(method) else method)
        return cls(layers=declared.layers(len(Decoder(model))), **declared.defaults)

    def with_layers(self, layers: tuple[int, ...] | None) -> Hyperparameters:
        return self if layers is None else replace(self, layers=layers)


def yaml_mapping(path: str | Path) -> Mapping[str, Any]:
    """The keys of a YAML file. Raises HyperparameterError, naming the file, where it holds none."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as failure:
        raise HyperparameterError(f"cannot read {path}: {failure}") from failure
    if not isinstance(values, Mapping):
        raise HyperparameterError(f"{path} holds no keys: it must be a YAML mapping such as 'layers: [4, 5, 6]'")
    return values


def _folder(method: str) -> str | None:
    """The folder of hparams/ that a method or modifier has its files in."""
    return find_modifier(method).folder if is_modifier(method) else find_method(method).folder


def _like(default: Any, key: str, value: Any, name: str) -> Any:
    """A setting of a method's own, in the type of its default. Raises HyperparameterError for one of another type."""
    if isinstance(default, bool | str):
        if not isinstance(value, type(default)):
            expected = "true or false" if isinstance(default, bool) else "text"
            raise HyperparameterError(f"{name}: {key} must be {expected}, not {value!r}")
        return value
    number = as_number(value)
    if number is None or number != number or (isinstance(default, int) and number != int(number)):
        expected = "a whole number" if isinstance(default, int) else "a number"
        raise HyperparameterError(f"{name}: {key} must be {expected}, not {value!r}")
    return int(number) if isinstance(default, int) else number


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


def parse_criterion(value: Any, name: str) -> Criterion:
    """Raises HyperparameterError, naming `name`, for what is no mapping of one of Criterion's fields to a number."""
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
    """A number, also one that YAML 1.1 read as text; None for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except ValueError:
        return None
