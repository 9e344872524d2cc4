"""Find the parts of any Hugging Face decoder that editing needs, by structure and not by model name."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..errors import ModelStructureError
from ..restoring import restoring
from .wrappers import inner, unwrapped
from .writable import check_kept, check_numbers, dimensions

Projection = (nn.Linear, Conv1D)
_STREAMED = 4


@dataclass(frozen=True)
class OutProjection:
    """The second matrix of one block's feed-forward part.

    In formulas W is d_out × d_in whatever the storage; `transposed` says that the module stores Wᵀ
    (Conv1D). Orientation comes from the module's type, never from shapes: a square matrix has two that fit.

    `name` is that of the base model. Where an adapter such as LoRA is put around the matrix, `module` is the layer
    inside it: the adapter adds to what that layer puts out.
    """

    layer: int
    name: str
    module: Any

    @property
    def transposed(self) -> bool:
        return isinstance(self.module, Conv1D)

    @property
    def d_in(self) -> int:
        return dimensions(self.module, self.transposed)[1]

    @property
    def d_out(self) -> int:
        return dimensions(self.module, self.transposed)[0]

    @property
    def stored(self) -> Tensor:
        """The tensor that holds the weight between forward passes, in the module's own orientation.

        That is the Parameter, unless accelerate keeps it offloaded: then it is the entry of its weights map.

        Raises ModelStructureError for weights that cannot be written in place (on disk, quantised, distributed, or
        computed from other tensors).
        """
        check_kept(self.module, self.name)
        weight = self.module.weight
        if weight.device.type == "meta":
            weights_map = getattr(getattr(self.module, "_hf_hook", None), "weights_map", None)
            if weights_map is None:
                raise ModelStructureError(f"{self.name}.weight is on the meta device: load the model's weights")
            first, again = weights_map["weight"], weights_map["weight"]
            if first.data_ptr() != again.data_ptr():
                raise ModelStructureError(
                    f"{self.name}.weight is offloaded to disk and cannot be edited in place: "
                    "offload to the CPU instead (device_map without 'disk')"
                )
            weight = first
        check_numbers(weight, self.name)
        return weight

    @property
    def matrix(self) -> Tensor:
        """W as d_out × d_in: a view of `stored`, detached, so that writing to it writes the weight."""
        weight = self.stored.detach()
        return weight.T if self.transposed else weight


class Decoder:
    """A Hugging Face decoder seen as blocks, out-projections, final norm and head.

    Everything is found from the module tree, so new architectures need no code here. `template`, such as
    `model.layers.{}.mlp.down_proj`, overrides the search for the out-projection. Raises ModelStructureError if the
    model is not such a decoder.

    `model` is the Hugging Face model itself, without what PEFT, torch.compile or data parallelism put around it
    (`given`); all names are relative to it. `prefix_cache` says whether its cache gives what whole sequences give; None
    until somebody has tried.
    """

    def __init__(self, model: nn.Module, template: str | None = None) -> None:
        self.given = model
        self.model: Any = unwrapped(model)
        self.prefix_cache: bool | None = None
        self.template = template
        if template is not None and template.count("{}") != 1:
            raise ModelStructureError(
                f"the out-projection template {template!r} must hold '{{}}' exactly once, in the place of the "
                "layer number (for example model.layers.{}.mlp.down_proj)"
            )
        self.blocks_name, self.blocks = _find_blocks(self.model)
        _check_causal(self.model, self.blocks)

    @classmethod
    def of(cls, model: nn.Module | Decoder, template: str | None = None) -> Decoder:
        """The Decoder of `model`, or `model` itself if it is one already and no other `template` is asked for."""
        if not isinstance(model, Decoder):
            return cls(model, template)
        return model if template in (None, model.template) else cls(model.given, template)

    def __len__(self) -> int:
        return len(self.blocks)

    @cached_property
    def parent(self) -> nn.Module:
        """The module that holds the list of blocks."""
        return self.model.get_submodule(self.blocks_name.rpartition(".")[0])

    @cached_property
    def head(self) -> Any:
        """The module that turns final hidden states into logits. Raises ModelStructureError if there is none."""
        head = getattr(self.model, "get_output_embeddings", lambda: None)()
        if head is None:
            raise ModelStructureError(
                f"{type(self.model).__name__} has no language-model head: load it with AutoModelForCausalLM"
            )
        return head

    @cached_property
    def final_norm(self) -> nn.Module | None:
        """The norm between the last block and the head; None where the model has none."""
        norms = [
            child
            for child in self.parent.children()
            if child is not self.blocks and "norm" in type(child).__name__.lower()
        ]
        return norms[-1] if norms else None

    @cached_property
    def hidden_size(self) -> int:
        config = self.model.config
        return int(getattr(config, "get_text_config", lambda: config)().hidden_size)

    def takes(self, argument: str) -> bool:
        """Whether the model's own forward knows this argument. (A wrapper's says nothing about it.)"""
        return argument in inspect.signature(self.model.forward).parameters

    def block_name(self, layer: int) -> str:
        return f"{self.blocks_name}.{layer}"

    def block(self, layer: int) -> nn.Module:
        """The block of this number. Raises ModelStructureError if it does not exist."""
        if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < len(self.blocks):
            raise ModelStructureError(
                f"layer {layer!r} does not exist: {type(self.model).__name__} has layers 0 to {len(self.blocks) - 1}"
            )
        return self.blocks[layer]

    def out_projection(self, layer: int) -> OutProjection:
        """The out-projection of one block.

        Raises ModelStructureError if the block has none or several (mixture of experts), shares it with other blocks,
        or does not exist.
        """
        found = self._found(layer)
        self._check_shared({layer: found}, together=False)
        return found

    def _found(self, layer: int) -> OutProjection:
        block = self.block(layer)
        if self.template is not None:
            name = self.template.replace("{}", str(layer))
            try:
                module = inner(self.model.get_submodule(name))
            except AttributeError as error:
                raise ModelStructureError(f"the template {self.template!r} names no module {name!r}") from error
            if not isinstance(module, Projection):
                raise ModelStructureError(
                    f"{name} is a {type(module).__name__}, not a Linear or Conv1D: it is no out-projection"
                )
        else:
            local_name, module = _find_out_projection(block, self.hidden_size, self.block_name(layer))
            name = f"{self.block_name(layer)}.{local_name}"
        return OutProjection(layer, name, module)

    def _check_shared(self, found: Mapping[int, OutProjection], *, together: bool) -> None:
        for projection in found.values():
            own = set(projection.module._parameters.values()) - {None}
            sharing = [other for other, held in enumerate(self._held) if not held.isdisjoint(own)]
            if together and all(
                other in found and own == set(found[other].module._parameters.values()) - {None} for other in sharing
            ):
                continue
            if sharing[1:]:
                raise ModelStructureError(
                    f"{projection.name} is shared by layers {', '.join(map(str, sharing))}: an edit of one would "
                    "change all of them, so it cannot be edited layer by layer; choose layers that have their own"
                )

    @cached_property
    def _held(self) -> list[set[nn.Parameter]]:
        """The parameters of each block."""
        return [set(block.parameters()) for block in self.blocks]

    def out_projections(self, layers: Sequence[int], *, together: bool = False) -> dict[int, OutProjection]:
        """The out-projections of `layers`, in ascending order of layer.

        Raises ModelStructureError for no layers, a layer named twice, one that does not exist, or one that shares its
        out-projection: with any other layer, or (`together`) with one that is not among `layers`.
        """
        if not layers:
            raise ModelStructureError("no layers were given: name at least one")
        if len(set(layers)) != len(layers):
            raise ModelStructureError(f"a layer is named twice in {list(layers)}")
        found = {layer: self._found(layer) for layer in sorted(layers)}
        self._check_shared(found, together=together)
        return found

    @property
    def device(self) -> torch.device:
        """Where inputs go: the device on which the model runs its embeddings."""
        embeddings = self.model.get_input_embeddings()
        hook = getattr(embeddings, "_hf_hook", None)
        device = getattr(hook, "execution_device", None)
        return torch.device(device) if device is not None else embeddings.weight.device


def hidden_states(output: Any) -> Tensor:
    """The hidden states in what a block returned: a tensor, or a tuple that begins with one.

    Several streams of them (AltUp: streams × batch × tokens × d) come side by side, batch × tokens × (streams · d).
    """
    found: Tensor = output if isinstance(output, Tensor) else output[0]
    return found.permute(1, 2, 0, 3).flatten(2) if found.dim() == _STREAMED else found


def first_stream(hidden: Tensor, size: int) -> Tensor:
    """The stream that the block computes with, of those that `hidden_states` found: the first, of width `size`."""
    return hidden[..., :size]


def with_hidden_states(output: Any, hidden: Tensor) -> Any:
    """The same kind of block output, with other hidden states."""
    like = output if isinstance(output, Tensor) else output[0]
    if like.dim() == _STREAMED and hidden.dim() != _STREAMED:
        hidden = hidden.unflatten(2, (len(like), -1)).permute(2, 0, 1, 3)
    return hidden if isinstance(output, Tensor) else (hidden, *output[1:])


@restoring
def eager_attention(model: Any) -> Iterator[None]:
    """Use plain matrix attention inside the block, and restore the model's own choice afterwards.

    For a row that may attend to nothing (a padded prefix), fused kernels give results that differ between kernels and
    versions, sometimes NaN; plain matrix attention always stays finite. For a few tokens against a cache both cost
    about the same (`benchmarks/attention.py`).
    """
    before = getattr(model.config, "_attn_implementation", None)
    settable = getattr(model, "_can_set_attn_implementation", lambda: hasattr(model, "set_attn_implementation"))
    if before in (None, "eager") or not settable():
        yield
        return
    try:
        model.set_attn_implementation("eager")
        yield
    finally:
        model.set_attn_implementation(before)


def _find_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The outermost ModuleList that holds the most parameters: a decoder is mostly its blocks."""
    lists: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        nested = any(name.startswith(f"{outer}.") for outer in lists)
        if isinstance(module, nn.ModuleList) and len(module) and not nested:
            lists[name] = module
    if not lists:
        raise ModelStructureError(f"{type(model).__name__} has no list of blocks: it is not a Hugging Face decoder")
    return max(lists.items(), key=lambda item: sum(p.numel() for p in item[1].parameters()))


def _mixes_tokens(module: nn.Module) -> bool:
    """Whether this is attention or a state-space mixer: its out-projection is not the feed-forward part's."""
    kind = type(inner(module)).__name__.lower()
    convolves = any(isinstance(child, nn.modules.conv._ConvNd) for child in inner(module).children())
    return "attention" in kind or "attn" in kind or convolves


def _walk(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module, nn.Module]]:
    """(name, module, parent) of every module in a block that treats each token separately, without adapters."""
    module = inner(module)
    for name, child in module.named_children():
        if _mixes_tokens(child):
            continue
        path = f"{prefix}{name}"
        yield path, inner(child), module
        yield from _walk(child, f"{path}.")


def _shape(module: Any) -> tuple[int, int]:
    """(d_out, d_in) of a Linear or Conv1D."""
    return dimensions(module, isinstance(module, Conv1D))


def _find_out_projection(block: nn.Module, hidden: int, name: str) -> tuple[str, nn.Module]:
    """The only matrix d → hidden that has a matrix hidden → d (or → 2d: gate and up fused) beside it.

    Side paths through fewer dimensions than the hidden state has, each of a width of its own (per-layer inputs,
    low-rank residuals), are no feed-forward part; several equal ones are experts. Raises ModelStructureError if there
    is none or several, or if weights are stacked over experts.
    """
    remedy = "name it with a template such as model.layers.{}.mlp.down_proj, if it has one"
    stacked = [
        parameter_name
        for path, module, _ in _walk(block)
        for parameter_name, parameter in module.named_parameters(path, recurse=False)
        if parameter.dim() == 3 and min(parameter.shape) > 1
    ]
    if stacked:
        raise ModelStructureError(
            f"{name} has no single out-projection: {stacked[0]} is stacked over experts (mixture of experts), "
            "which is not supported yet"
        )
    siblings: dict[nn.Module, list[tuple[str, nn.Module]]] = {}
    for path, module, parent in _walk(block):
        if isinstance(module, Projection):
            siblings.setdefault(parent, []).append((path, module))
    found = []
    for group in siblings.values():
        shapes = [_shape(module) for _, module in group]
        candidates = [
            member
            for i, (member, (d_out, d_in)) in enumerate(zip(group, shapes, strict=True))
            if d_out == hidden and {(d_in, hidden), (2 * d_in, hidden)} & set(shapes[:i] + shapes[i + 1 :])
        ]
        # Where d equals the hidden size the in-projections fit too; the out-projection is registered last.
        found += candidates[-1:]
    widths = [_shape(module)[1] for _, module in found]
    if len(set(widths)) == len(widths):
        found = [each for each, width in zip(found, widths, strict=True) if width >= hidden] or found
    if not found:
        raise ModelStructureError(
            f"{name} ({type(inner(block)).__name__}) has no feed-forward out-projection that can be recognised"
            f"{_unlike_matrices(block)}: {remedy}"
        )
    if len(found) > 1:
        raise ModelStructureError(
            f"{name} has no single out-projection but {len(found)} candidates ({found[0][0]}, {found[1][0]}, …), "
            f"as in a mixture of experts, which is not supported yet; {remedy}"
        )
    return found[0]


def _unlike_matrices(block: nn.Module) -> str:
    """A remark on modules that are used like a Linear but are none, as in quantised models."""
    kinds = {
        type(module).__name__
        for _, module, _ in _walk(block)
        if hasattr(module, "in_features") and not isinstance(module, Projection)
    }
    return f" (its matrices are {', '.join(sorted(kinds))}; if they are quantised, load it in bfloat16)" * bool(kinds)


def _check_causal(model: Any, blocks: nn.ModuleList) -> None:
    """Raises ModelStructureError for an encoder-decoder, and for a model whose tokens see those that come after."""
    kind, remedy = type(model).__name__, "only decoders such as GPT-2, Llama or Qwen can be edited"
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise ModelStructureError(f"{kind} is an encoder-decoder, not a decoder: {remedy}")
    if {module.is_causal for module in blocks.modules() if isinstance(getattr(module, "is_causal", None), bool)} == {
        False
    }:
        raise ModelStructureError(
            f"{kind} is no decoder: its tokens see those that come after, as in a masked language model; {remedy}"
        )
