"""What must hold before an edit begins: each failure is one error that names the fact or the weight, and the remedy.

Nothing here changes the model. `check_editable` is for once per editor, `check_requests` for every batch.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ..errors import EditError, ModelStructureError, RequestError
from ..model.decoder import Decoder, OutProjection
from ..model.gradients import gradients
from ..model.trace import evaluating, hooks, stop, stopping
from .keys import in_context
from .requests import Request, encode

_PROBE_TOKENS = 4
_AT_MOST_SHOWN = 60
_OFFSET = 2  # OPT's table of positions begins with two rows that are none


def check_mode() -> None:
    """Raises EditError where no gradient can be computed: under torch.inference_mode()."""
    if torch.is_inference_mode_enabled():
        raise EditError(
            "torch.inference_mode() is active, and an edit needs gradients: edit outside of it (no_grad() is fine)"
        )


def check_editable(decoder: Decoder, tokenizer: Any, projections: Mapping[int, OutProjection]) -> None:
    """Whether this model can be edited at these out-projections, with this tokenizer.

    Reads every weight once and runs a few tokens up to the last of the layers. Raises EditError or ModelStructureError
    naming the weight.
    """
    check_mode()
    for projection in projections.values():
        if projection.stored.is_inference():
            raise EditError(
                f"{projection.name}.weight was made under torch.inference_mode() and cannot be written: load the model "
                "outside of it"
            )
    _check_vocabulary(decoder, tokenizer)
    if (name := not_finite(decoder.model)) is not None:
        raise EditError(f"{name} holds values that are not finite: the checkpoint is damaged, load it again")
    _check_pass(decoder, projections)


def check_requests(
    decoder: Decoder, tokenizer: Any, requests: Sequence[Request], contexts: Sequence[str] = ("{}",)
) -> None:
    """Whether the model can read every request in every context. Raises RequestError naming the first it cannot."""
    known, positions = _vocabulary(decoder), position_limit(decoder.model)
    for index, request in enumerate(requests):
        shown = textwrap.shorten(f"{request.text} {request.target_new}", _AT_MOST_SHOWN, placeholder=" …")
        for context in contexts:
            encoded = encode(tokenizer, in_context(context, request), request.subject, request.target_new)
            ids = [*encoded.ids, *encoded.target]
            if positions is not None and len(ids) > positions:
                where = "" if context == "{}" else f" in the context {textwrap.shorten(context, _AT_MOST_SHOWN)!r}"
                raise RequestError(
                    f"request {index} ({shown!r}) has {len(ids)} tokens{where}, but "
                    f"{type(decoder.model).__name__} has {positions} positions: shorten its prompt"
                )
            if max(ids) >= known:
                token = tokenizer.convert_ids_to_tokens(max(ids))
                raise RequestError(
                    f"request {index} ({shown!r}) holds the token {token!r} (id {max(ids)}), but the model has only "
                    f"{known} embeddings: {_RESIZE}"
                )


_RESIZE = (
    "load the tokenizer that belongs to it, or model.resize_token_embeddings(len(tokenizer)) and train the new ones"
)


def _vocabulary(decoder: Decoder) -> int:
    return int(decoder.model.get_input_embeddings().weight.shape[0])


def _check_vocabulary(decoder: Decoder, tokenizer: Any) -> None:
    """Raises ModelStructureError if the tokenizer knows words that the model has no embedding of.

    Special tokens may lie beyond: those of images in a model of text alone, for instance, never occur in a text.
    """
    known = _vocabulary(decoder)
    added = getattr(tokenizer, "added_tokens_decoder", {})
    beyond = [token for token in range(known, len(tokenizer)) if token not in added]
    if beyond:
        raise ModelStructureError(
            f"the tokenizer has {len(tokenizer)} tokens, but {type(decoder.model).__name__} only {known} embeddings: "
            f"{_RESIZE}"
        )


def position_limit(model: Any) -> int | None:
    """How many tokens the model can read at once; None if it computes positions for as many as there are.

    A model that cannot has a table of them: an embedding, or a buffer (sinusoids, a causal mask). `max_seq_len` in a
    configuration is a limit without one (MPT).
    """
    config = getattr(model.config, "get_text_config", lambda: model.config)()
    limit = getattr(config, "max_position_embeddings", getattr(config, "n_positions", None))
    words = model.get_input_embeddings()
    tables = [*model.buffers(), *(m.weight for m in model.modules() if isinstance(m, nn.Embedding) and m is not words)]
    if isinstance(limit, int) and any(0 <= size - limit <= _OFFSET for table in tables for size in table.shape):
        return limit
    longest = getattr(config, "max_seq_len", None)
    return longest if isinstance(longest, int) else None


def not_finite(model: nn.Module) -> str | None:
    """The name of the first parameter with a NaN or an infinity; None if there is none."""
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.device.type != "meta":
            work = torch.promote_types(parameter.dtype, torch.float32)
            if not torch.isfinite(parameter.detach().sum(dtype=work)):
                return name
    return None


@gradients(False)
def _check_pass(decoder: Decoder, projections: Mapping[int, OutProjection]) -> None:
    """Runs two texts that differ in the last token only, and looks whether the model does what edits rely on."""
    model, kind = decoder.model, type(decoder.model).__name__
    ids = torch.linspace(0, _vocabulary(decoder) - 1, _PROBE_TOKENS, device=decoder.device).long().repeat(2, 1)
    ids[1, -1] = ids[1, 0]
    calls: dict[int, list[tuple[Tensor, Tensor]]] = {layer: [] for layer in projections}

    def note(layer: int) -> Callable[..., None]:
        # Copies: falcon adds to them in place.
        return lambda _module, args, output: calls[layer].append((args[0].clone(), output.clone()))

    noting = [(each.module, note(layer)) for layer, each in projections.items()]
    last = decoder.block(max(projections))
    with evaluating(model), hooks(*noting, (last, lambda *_: stop())), stopping():
        model(input_ids=ids, use_cache=False)
    for layer, projection in projections.items():
        if len(calls[layer]) != 1:
            raise ModelStructureError(
                f"{projection.name} runs {len(calls[layer])} times in a forward pass of {kind}, not once: choose other "
                "layers, or name the out-projection with a template (rewrite_module_tmp)"
            )
        ((key, value),) = calls[layer]
        by_text = key.reshape(len(ids), -1, key.shape[-1])[:, :-1]
        if not _close(by_text[0], by_text[1]):
            raise ModelStructureError(
                f"{kind} is no decoder: what it makes of a token depends on those that come after. Only decoders such "
                "as GPT-2, Llama or Qwen can be edited"
            )
        bias = projection.module.bias
        if not _close(linear(key, projection.matrix.to(key), bias if bias is None else bias.to(key)), value):
            raise ModelStructureError(
                f"{projection.name} ({type(projection.module).__name__}) does not multiply with its weight alone, so "
                "it cannot be edited: load the model in float32, bfloat16 or float16, without quantisation"
            )
        _check_adapter(decoder, projection, key)
    if _adds_to(decoder.given, model):
        _check_wrapper(decoder, ids)


def _check_wrapper(decoder: Decoder, ids: Tensor) -> None:
    """Raises ModelStructureError if what is put around the model, with weights of its own, says something else."""
    kind = type(decoder.model).__name__
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with evaluating(decoder.given):
        given, plain = decoder.given(**inputs), decoder.model(**inputs).logits
    given = given.logits if hasattr(given, "logits") else given[0]
    if given.shape != plain.shape or not _close(given, plain):
        raise ModelStructureError(
            f"the {type(decoder.given).__name__} around {kind} changes what it reads or says (prompt tuning?), which "
            "an edit cannot see: edit the model inside before it is wrapped, or disable the adapter"
        )


def _check_adapter(decoder: Decoder, projection: OutProjection, key: Tensor) -> None:
    """Raises ModelStructureError if an adapter around the matrix changes what an edit of it adds to the output.

    LoRA adds its own part and leaves that of the matrix alone; DoRA scales it by a norm of the weight.
    """
    adapter: Any = decoder.model.get_submodule(projection.name)
    if adapter is projection.module:
        return
    shift = torch.linspace(-1, 1, projection.d_out).to(projection.matrix)[:, None] / projection.d_in**0.5
    moved = projection.matrix + shift * projection.matrix.norm(dim=0).to(shift)
    name = next(name for name, module in adapter.named_modules() if module is projection.module)
    stored = moved.T if projection.transposed else moved
    with evaluating(adapter):
        before, after = adapter(key), torch.func.functional_call(adapter, {f"{name}.weight": stored}, (key,))
    wanted = linear(key, moved - projection.matrix)
    if not _close(after - before, wanted, like=after):
        raise ModelStructureError(
            f"the adapter around {projection.name} ({type(adapter).__name__}) changes what an edit of the weight "
            "inside adds to its output: merge it first (PEFT: merge_and_unload)"
        )


def _adds_to(wrapper: nn.Module, model: nn.Module) -> bool:
    """Whether a wrapper has weights that the model inside does not."""
    inside = set(model.parameters())
    return any(parameter not in inside for parameter in wrapper.parameters())


def _close(one: Tensor, other: Tensor, like: Tensor | None = None) -> bool:
    """Equal up to rounding in their precision, relative to their size (or that of `like`)."""
    size = (other if like is None else like).double().norm()
    tolerance = max(1e-4, 16 * torch.finfo(other.dtype).eps)
    return bool((one.double() - other.double()).norm() <= tolerance * size)
