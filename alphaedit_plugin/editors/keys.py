"""Keys and hidden states at the subject's last token, over context templates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..batches import Tokens, batches
from ..corpus import SEED, sample, unsayable
from ..modules import Decoder, hidden_states
from ..requests import Encoded, Request, encode
from ..trace import hooks, stop, stopping

_OPENINGS = ("The", "Therefore", "Because", "I", "You")
_CONTEXT_TOKENS = 10
_TOP_K = 5


def context_templates(model: nn.Module, tokenizer: Any, seed: int = SEED) -> tuple[str, ...]:
    """ "{}" and five short openings that the model writes itself, each followed by the prompt in its "{}".

    A key averaged over them is the subject's in general, not the subject's at the beginning of a text (MEMIT §4.3).
    """
    templates = ["{}"]
    for opening in _OPENINGS:
        ids = list(tokenizer(opening, add_special_tokens=True)["input_ids"])
        while ids and ids[-1] in tokenizer.all_special_ids:
            ids.pop()
        length = len(ids) + _CONTEXT_TOKENS
        (written,) = sample(model, [ids], length, seed=seed, banned=unsayable(model, tokenizer), top_k=_TOP_K)
        text = " ".join(tokenizer.decode(written, skip_special_tokens=True).replace("{", " ").replace("}", " ").split())
        templates.append(f"{text}. {{}}")
    return tuple(templates)


def in_context(context: str, request: Request) -> str:
    """The prompt, its subject still "{}", inside a context template."""
    return context.replace("{}", request.prompt, 1)


def subject_prompts(tokenizer: Any, requests: Sequence[Request], contexts: Sequence[str]) -> list[Encoded]:
    """One for each request and context, request by request."""
    return [
        encode(tokenizer, in_context(context, request), request.subject) for request in requests for context in contexts
    ]


def mean_over_contexts(values: Tensor, contexts: int) -> Tensor:
    """n·contexts × d → n × d. As in MEMIT the bare prompt weighs as much as all other contexts together."""
    grouped = values.view(-1, contexts, values.shape[-1])
    if contexts == 1:
        return grouped[:, 0]
    return (grouped[:, 0] + grouped[:, 1:].mean(1)) / 2


def subject_keys(
    model: nn.Module, tokenizer: Any, module: nn.Module, requests: Sequence[Request], contexts: Sequence[str]
) -> Tensor:
    """K1ᵀ, n × d_in, float64: the input of one out-projection at the subject's last token, averaged over contexts."""
    prompts = subject_prompts(tokenizer, requests, contexts)
    return mean_over_contexts(_at_subject(model, module, prompts, inputs=True), len(contexts))


def subject_hidden(model: nn.Module, tokenizer: Any, block: nn.Module, requests: Sequence[Request]) -> Tensor:
    """n × d, float64: what one block returns at the subject's last token of the bare prompt."""
    return _at_subject(model, block, subject_prompts(tokenizer, requests, ["{}"]), inputs=False)


@torch.no_grad()
def _at_subject(
    model: nn.Module, module: nn.Module, prompts: Sequence[Encoded], *, inputs: bool, batch_tokens: int = 4096
) -> Tensor:
    """The input or output of `module` at each subject's last token. What follows that token is not even run."""
    decoder = Decoder(model)
    sequences: list[Tokens] = [prompt.ids[: prompt.subject_last + 1] for prompt in prompts]
    found: list[Tensor] = []

    def keep(value: Tensor) -> None:
        found.append(value.detach())
        stop()

    handle = (
        module.register_forward_pre_hook(lambda _m, args: keep(args[0]))
        if inputs
        else module.register_forward_hook(lambda _m, _args, output: keep(hidden_states(output)))
    )
    result: Tensor | None = None
    with hooks(handle):
        for batch in batches(sequences, batch_tokens, decoder.device):
            with stopping():
                model(**batch.model_inputs(), use_cache=False)
            states = found.pop()
            states = states.reshape(len(batch.rows), -1, states.shape[-1])  # some models (OPT) flatten batch and tokens
            last = (batch.lengths - 1).to(states.device)
            chosen = states[torch.arange(len(batch.rows), device=states.device), last].double()
            if result is None:
                result = chosen.new_empty(len(sequences), chosen.shape[-1])
            result[torch.tensor(batch.rows, device=chosen.device)] = chosen
    assert result is not None
    return result
