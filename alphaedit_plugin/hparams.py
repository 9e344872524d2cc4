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

from .errors import HyperparameterError, NullSpaceError
from .modules import Decoder
from .nullspace import PAPER_THRESHOLD, Criterion
from .shipped import shipped

log = logging.getLogger(__name__)

# What EasyEdit's files also say, and what we read off the model, the command line or the statistics instead.
_EASYEDIT_ONLY = frozenset(
    """
    alg_name model_name stats_dir device layer_selection fact_token v_loss_layer mom2_adjustment layer_module_tmp
    mlp_module_tmp attn_module_tmp ln_f_module lm_head_module mom2_dataset mom2_n_samples mom2_dtype model_parallel
    batch_size max_length fp16 bf16 context_template_length_params P_loc
    """.split()  # noqa: SIM905
)


# Keys of EasyEdit of which one value is implemented: any other would silently be another method.
_IMPLEMENTED = {"fact_token": "subject_last", "layer_selection": "all", "mom2_adjustment": True}


@dataclass(frozen=True)
class TargetSettings:
    """Names in brackets are EasyEdit's.

    `steps` (v_num_grad_steps) and `lr` (v_lr) of Adam; loss = NLL of the new object averaged over contexts +
    `kl_factor` · KL(after ‖ before) on "{subject} is a" + `weight_decay` (v_weight_decay) · ‖δ‖/‖z‖²; ‖δ‖ is kept
    within `clamp` (clamp_norm_factor) · ‖z‖. `reduced_precision` lets float32 matrix products run in bfloat16
    where the hardware has it: about twice as fast, δ then agrees to some 1e-2.
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
    it cannot be found. `mom2_update_weight` is λ of MEMIT. `null_space` says which directions count as null when
    updates are projected: a threshold on eigenvalues, an energy, or a nullity (see `Criterion`).
    """

    layers: tuple[int, ...]
    v_num_grad_steps: int = 25
    v_lr: float = 0.5
    v_weight_decay: float = 0.5
    clamp_norm_factor: float = 0.75
    kl_factor: float = 0.0625
    mom2_update_weight: float = 15000.0
    rewrite_module_tmp: str | None = None
    reduced_precision: bool = False
    null_space: Criterion = field(default_factory=lambda: Criterion(threshold=PAPER_THRESHOLD))

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
        """In JSON's types."""
        values = asdict(self)
        values["layers"] = list(self.layers)
        values["null_space"] = {k: v for k, v in values["null_space"].items() if v is not None}
        return values

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], name: str) -> Hyperparameters:
        """Raises HyperparameterError, naming `name` and the key, for a key that is unknown or ill-typed."""
        known = {f.name for f in fields(cls)}
        settings: dict[str, Any] = {}
        for key, value in values.items():
            if key in _IMPLEMENTED and value != _IMPLEMENTED[key]:
                raise HyperparameterError(f"{name}: {key} {value!r} is not implemented, only {_IMPLEMENTED[key]!r}")
            if key in _EASYEDIT_ONLY:
                continue
            if key not in known:
                near = difflib.get_close_matches(str(key), known | _EASYEDIT_ONLY, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(sorted(known))}"
                raise HyperparameterError(f"{name}: unknown key {key!r}{hint}")
            settings[key] = _typed(key, value, name)
        if "layers" not in settings:
            raise HyperparameterError(f"{name}: 'layers' is missing: which layers are to be edited?")
        return cls(**settings)

    @classmethod
    def from_yaml(cls, path: str | Path) -> Hyperparameters:
        """Read an EasyEdit file, or one of ours. Raises HyperparameterError naming the file and what is wrong."""
        try:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as failure:
            raise HyperparameterError(f"cannot read {path}: {failure}") from failure
        if not isinstance(values, Mapping):
            raise HyperparameterError(f"{path} holds no keys: it must be a YAML mapping such as 'layers: [4, 5, 6]'")
        return cls.from_mapping(values, str(path))

    @classmethod
    def for_model(cls, method: str, model: nn.Module, name: str) -> Hyperparameters:
        """The shipped file for a model of this name, else defaults derived from the model, which are logged.

        Derived: five consecutive layers from one seventh of the way up, where the paper's models are edited.
        """
        short = name.rstrip("/").rsplit("/", 1)[-1].lower()
        path = shipped(f"hparams/{method.upper()}/{short}.yaml")
        if path.is_file():
            return cls.from_yaml(path)
        depth = len(Decoder(model))
        first = max(0, min(depth // 7, depth - 5))
        derived = cls(layers=tuple(range(first, min(first + 5, depth))))
        log.info("no hyperparameters for %s: layers %s and MEMIT's defaults", name, list(derived.layers))
        return derived

    def with_layers(self, layers: tuple[int, ...] | None) -> Hyperparameters:
        return self if layers is None else replace(self, layers=layers)


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
    if key == "reduced_precision":
        if not isinstance(value, bool):
            raise wrong("true or false")
        return value
    if key == "null_space":
        return _criterion(value, name)
    number = _number(value)
    if number is None or number < 0 or number != number or number == float("inf"):
        raise wrong("a number that is not negative")
    if key == "v_num_grad_steps":
        if number != int(number) or number < 1:
            raise wrong("a whole number from 1")
        return int(number)
    return number


def _criterion(value: Any, name: str) -> Criterion:
    if not isinstance(value, Mapping):
        raise HyperparameterError(f"{name}: null_space must be a mapping such as {{threshold: 2e-2}}, not {value!r}")
    known = [f.name for f in fields(Criterion)]
    for key in value:
        if key not in known:
            raise HyperparameterError(f"{name}: null_space knows {', '.join(known)}, not {key!r}")
    numbers = {key: _number(number) for key, number in value.items()}
    for key, number in numbers.items():
        if number is None:
            raise HyperparameterError(f"{name}: null_space.{key} must be a number, not {value[key]!r}")
    try:
        return Criterion(**numbers)
    except NullSpaceError as failure:
        raise HyperparameterError(f"{name}: null_space: {failure}") from failure


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except ValueError:
        return None
