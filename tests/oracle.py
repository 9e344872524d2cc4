"""A slow textbook MEMIT (Meng et al., 2023) and AlphaEdit (Fang et al., 2025), to compare a library with.

One sequence per forward, no padding, no cache, dense float64 algebra, and no code shared with what it checks.
A `context` is a string with one "{}" that a whole prompt goes into; a request is
{"prompt": a text with one "{}", "subject": ..., "target_new": ...}. Models are expected in eval mode.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

Request = Mapping[str, str]


# ---------------------------------------------------------------------------------------------------- texts


def _encode(tokenizer: Any, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids of the text, special tokens included, and the characters that each token spans."""
    encoding = tokenizer(text, return_offsets_mapping=True)
    ids = [int(token) for token in encoding["input_ids"]]
    spans = [(int(start), int(stop)) for start, stop in encoding["offset_mapping"]]
    return ids, spans


def _put(template: str, filling: str) -> tuple[str, int]:
    """The template with its "{}" filled in, and where the filling begins."""
    before, hole, after = template.partition("{}")
    if not hole:
        raise ValueError(f"no {{}} in {template!r}")
    return before + filling + after, len(before)


def _text(request: Request, context: str) -> tuple[str, int]:
    """The request's prompt inside a context, and the character position where its subject ends."""
    prompt, subject_start = _put(request["prompt"], request["subject"])
    text, prompt_start = _put(context, prompt)
    return text, prompt_start + subject_start + len(request["subject"])


def subject_last(tokenizer: Any, text: str, end: int) -> int:
    """Index of the last token covering character end-1: where MEMIT reads k and z (eqs. 16, 19)."""
    found = -1
    _, spans = _encode(tokenizer, text)
    for index, (start, stop) in enumerate(spans):
        if start == stop:  # a special token, which stands for no character of the text
            continue
        if start <= end - 1 < stop:
            found = index
    if found < 0:
        raise ValueError(f"no token covers character {end - 1} of {text!r}")
    return found


def target_ids(tokenizer: Any, prompt: str, target: str) -> list[int]:
    """Ids of " "+target as they follow the prompt: o_i in MEMIT's eq. 16."""
    ids, spans = _encode(tokenizer, prompt + " " + target)
    chosen = []
    for token, (_, stop) in zip(ids, spans, strict=True):
        if stop > len(prompt):  # never a special token: its span is (0, 0)
            chosen.append(token)
    if not chosen:
        raise ValueError(f"no tokens for the target {target!r} after {prompt!r}")
    return chosen


# ------------------------------------------------------------------------------------------------- forwards


def _logits(model: nn.Module, ids: Sequence[int]) -> Tensor:
    """Logits (tokens x vocabulary) of one plain forward over one sequence."""
    device = next(model.parameters()).device
    tokens = torch.tensor([list(ids)], dtype=torch.long, device=device)
    return model(input_ids=tokens, use_cache=False).logits[0]


@contextmanager
def _hooked(handle: Any) -> Iterator[None]:
    """Remove a hook afterwards, whatever happens."""
    try:
        yield
    finally:
        handle.remove()


def _adding(module: nn.Module, delta: Tensor, position: int) -> Any:
    """Hook a block so that delta is added to its output at one token: h_i^L += δ_i in MEMIT's eq. 16."""

    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        changed = hidden.clone()
        changed[0, position] = changed[0, position] + delta
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    return module.register_forward_hook(hook)


def _block_output(model: nn.Module, ids: Sequence[int], module: nn.Module, position: int) -> Tensor:
    """What a decoder block puts out at one token: h^l in MEMIT's eq. 2."""
    seen: list[Tensor] = []

    def hook(_module: nn.Module, _args: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        seen.append(hidden[0, position].detach().clone())

    with torch.no_grad(), _hooked(module.register_forward_hook(hook)):
        _logits(model, ids)
    (value,) = seen
    return value


def _module_input(model: nn.Module, ids: Sequence[int], module: nn.Module, position: int) -> Tensor:
    """What goes into an out-projection at one token: the key k of MEMIT's eq. 19 for one prefix."""
    seen: list[Tensor] = []

    def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        rows = args[0].reshape(len(ids), args[0].shape[-1])  # the batch is one; some models have flattened it
        seen.append(rows[position].detach().clone())

    with torch.no_grad(), _hooked(module.register_forward_pre_hook(hook)):
        _logits(model, ids)
    (value,) = seen
    return value


def _negative_log_likelihood(logits: Tensor, prompt_length: int, target: Sequence[int]) -> Tensor:
    """Mean over the target tokens of -log p(token | all before it), for logits of prompt + target."""
    terms = []
    for offset, token in enumerate(target):
        log_p = torch.log_softmax(logits[prompt_length - 1 + offset], dim=-1)
        terms.append(-log_p[token])
    return torch.stack(terms).mean()


# -------------------------------------------------------------------------------------------- MEMIT, targets


def compute_target(
    model: nn.Module,
    tokenizer: Any,
    request: Request,
    contexts: Sequence[str],
    layer_module: nn.Module,
    *,
    steps: int,
    lr: float,
    weight_decay: float,
    kl_factor: float,
    clamp: float,
    stop_loss: float = 5e-2,
) -> tuple[Tensor, Tensor]:
    """(z*, δ) of MEMIT's eq. 16, with ROME's essence-drift KL term and the weight decay on δ.

    loss = mean over contexts of [mean over target tokens of -log p] + kl_factor * KL(p || p0), as in ROME's eq. 4
           + weight_decay * ||δ|| / ||z||^2
    """
    prompts: list[list[int]] = []
    targets: list[list[int]] = []
    positions: list[int] = []
    for context in contexts:
        text, end = _text(request, context)
        prompts.append(_encode(tokenizer, text)[0])
        targets.append(target_ids(tokenizer, text, request["target_new"]))
        positions.append(subject_last(tokenizer, text, end))

    essence, start = _put("{} is a", request["subject"])
    essence_ids = _encode(tokenizer, essence)[0]
    essence_position = subject_last(tokenizer, essence, start + len(request["subject"]))

    z = _block_output(model, prompts[0] + targets[0][:-1], layer_module, positions[0])
    with torch.no_grad():
        base_log_p = torch.log_softmax(_logits(model, essence_ids)[essence_position], dim=-1)

    delta = torch.zeros_like(z, requires_grad=True)

    def loss_at_delta() -> Tensor:
        likelihoods = []
        for prompt, target, position in zip(prompts, targets, positions, strict=True):
            with _hooked(_adding(layer_module, delta, position)):
                logits = _logits(model, prompt + target[:-1])
            likelihoods.append(_negative_log_likelihood(logits, len(prompt), target))
        with _hooked(_adding(layer_module, delta, essence_position)):
            log_p = torch.log_softmax(_logits(model, essence_ids)[essence_position], dim=-1)
        kl = (log_p.exp() * (log_p - base_log_p)).sum()
        decay = delta.norm() / z.norm() ** 2
        return torch.stack(likelihoods).mean() + kl_factor * kl + weight_decay * decay

    optimizer = torch.optim.Adam([delta], lr=lr)
    with torch.enable_grad():
        for step in range(steps):
            loss = loss_at_delta()
            if loss.item() < stop_loss or step == steps - 1:
                break
            optimizer.zero_grad()
            loss.backward(inputs=[delta])
            optimizer.step()
            with torch.no_grad():
                limit = clamp * z.norm()
                if delta.norm() > limit:
                    delta.mul_(limit / delta.norm())

    found = delta.detach().clone()
    return z + found, found


# ---------------------------------------------------------------------------------------- MEMIT, keys and z


def key(model: nn.Module, tokenizer: Any, request: Request, contexts: Sequence[str], module: nn.Module) -> Tensor:
    """k_i^l of MEMIT's eq. 19, the first context weighing as much as all the others together."""
    values = []
    for context in contexts:
        text, end = _text(request, context)
        ids = _encode(tokenizer, text)[0]
        values.append(_module_input(model, ids, module, subject_last(tokenizer, text, end)))
    if len(values) == 1:
        return values[0]
    return (values[0] + torch.stack(values[1:]).mean(dim=0)) / 2


def current_z(model: nn.Module, tokenizer: Any, request: Request, layer_module: nn.Module) -> Tensor:
    """h_i^L of MEMIT's eq. 20: the block's output at the subject's last token of the bare prompt."""
    text, end = _text(request, "{}")
    ids = _encode(tokenizer, text)[0]
    return _block_output(model, ids, layer_module, subject_last(tokenizer, text, end))


# ----------------------------------------------------------------------------------------------- the algebra


def memit_delta(K1: Tensor, R: Tensor, C: Tensor, lam: float) -> Tensor:
    """Δ = R K1ᵀ (λ C + K1 K1ᵀ)⁻¹: MEMIT's eqs. 14 and 15."""
    K1, R, C = K1.double(), R.double(), C.double()
    system = lam * C + K1 @ K1.T
    return torch.linalg.solve(system.T, (R @ K1.T).T).T  # X A = B, which is Aᵀ Xᵀ = Bᵀ


def projection(C: Tensor, threshold: float) -> Tensor:
    """P = Û Ûᵀ, Û the singular vectors of K0 K0ᵀ with values below the threshold: AlphaEdit's null space."""
    U, s, _ = torch.linalg.svd(C.double(), full_matrices=True)
    null = U[:, s < threshold]
    return null @ null.T


def alphaedit_delta(K1: Tensor, R: Tensor, Kp: Tensor, P: Tensor, lam: float) -> Tensor:
    """Δ = R K1ᵀ P (Kp Kpᵀ P + K1 K1ᵀ P + λ I)⁻¹: AlphaEdit's eq. 14. Kp may have no columns."""
    K1, R, Kp, P = K1.double(), R.double(), Kp.double(), P.double()
    identity = torch.eye(P.shape[0], dtype=P.dtype, device=P.device)
    system = Kp @ Kp.T @ P + K1 @ K1.T @ P + lam * identity
    return torch.linalg.solve(system.T, (R @ K1.T @ P).T).T


def _add_to_weight(module: nn.Module, delta: Tensor) -> None:
    """W += Δ, with Δ as d_out x d_in, whichever way round the module keeps its weight."""
    if isinstance(module, Conv1D):
        delta = delta.T
    elif not isinstance(module, nn.Linear):
        raise TypeError(f"neither nn.Linear nor Conv1D: {type(module).__name__}")
    weight: Tensor = module.weight
    if weight.shape != delta.shape:
        raise ValueError(f"weight {tuple(weight.shape)} and update {tuple(delta.shape)} differ")
    with torch.no_grad():
        weight.copy_(weight.double() + delta.to(weight.device))


# ------------------------------------------------------------------------------------------------ all of it


def memit(
    model: nn.Module,
    tokenizer: Any,
    requests: Sequence[Request],
    contexts: Sequence[str],
    layers: Sequence[int],
    blocks: Mapping[int, nn.Module] | nn.ModuleList,
    out_projections: Mapping[int, nn.Module],
    covariances: Mapping[int, Tensor],
    lam: float,
    projections: Mapping[int, Tensor] | None = None,
    *,
    steps: int,
    lr: float,
    weight_decay: float,
    kl_factor: float,
    clamp: float,
) -> dict[int, Tensor]:
    """MEMIT's Algorithm 1 on one batch, in place: eq. 16 once, then eqs. 19, 20 and 14 layer by layer.

    With `projections` every layer's Δ becomes Δ P before it is written. Returns layer -> Δ (d_out x d_in).
    """
    last = blocks[layers[-1]]
    wanted = []
    for request in requests:
        z_star, _ = compute_target(
            model,
            tokenizer,
            request,
            contexts,
            last,
            steps=steps,
            lr=lr,
            weight_decay=weight_decay,
            kl_factor=kl_factor,
            clamp=clamp,
        )
        wanted.append(z_star)

    deltas: dict[int, Tensor] = {}
    for i, layer in enumerate(layers):
        keys = []
        residuals = []
        for request, z_star in zip(requests, wanted, strict=True):
            keys.append(key(model, tokenizer, request, contexts, out_projections[layer]))
            now = current_z(model, tokenizer, request, last)
            residuals.append((z_star - now) / (len(layers) - i))
        K1 = torch.stack(keys, dim=1)
        R = torch.stack(residuals, dim=1)
        delta = memit_delta(K1, R, covariances[layer], lam)
        if projections is not None:
            delta = delta @ projections[layer].double()
        _add_to_weight(out_projections[layer], delta)
        deltas[layer] = delta
    return deltas


# ------------------------------------------------------------------------------------------------- measures


def success(model: nn.Module, tokenizer: Any, prompt: str, new: str, true: str) -> tuple[float, float]:
    """Mean log-probability per token of " "+new and of " "+true after the prompt (MEMIT's efficacy)."""
    prompt_ids = _encode(tokenizer, prompt)[0]

    def score(target: str) -> float:
        target_tokens = target_ids(tokenizer, prompt, target)
        with torch.no_grad():
            logits = _logits(model, prompt_ids + target_tokens)
        return -float(_negative_log_likelihood(logits, len(prompt_ids), target_tokens))

    return score(new), score(true)


def perplexity(model: nn.Module, sequences: Sequence[Sequence[int]]) -> float:
    """exp of the mean -log p per predicted token; the first token of each sequence is not scored."""
    total = 0.0
    count = 0
    for sequence in sequences:
        ids = [int(token) for token in sequence]
        with torch.no_grad():
            log_p = torch.log_softmax(_logits(model, ids), dim=-1)
        for place in range(1, len(ids)):
            total -= log_p[place - 1, ids[place]].item()
            count += 1
    return math.exp(total / count)
