"""Slow textbook editors, to compare a library with: ROME (Meng et al., 2022), MEMIT (Meng et al., 2023), RECT (Gu et
al., 2024), PRUNE (Ma et al., 2024) and AlphaEdit (Fang et al., 2025).

One sequence per forward, no padding, no cache, dense float64 algebra, and no code shared with what it checks.
A `context` is a string with one "{}" that a whole prompt goes into; a request is
{"prompt": a text with one "{}", "subject": ..., "target_new": ...}. Models are expected in eval mode.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
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
def _hooked(*handles: Any) -> Iterator[None]:
    """Remove hooks afterwards, whatever happens."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _adding(module: nn.Module, delta: Tensor, position: int) -> Any:
    """Hook a block so that delta is added to its output at one token: h_i^L += δ_i in MEMIT's eq. 16."""

    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple | list) else output
        changed = hidden.clone()
        changed[0, position] = changed[0, position] + delta
        return (changed, *output[1:]) if isinstance(output, tuple | list) else changed

    return module.register_forward_hook(hook)


def _block_output(model: nn.Module, ids: Sequence[int], module: nn.Module, position: int) -> Tensor:
    """What a decoder block puts out at one token: h^l in MEMIT's eq. 2."""
    seen: list[Tensor] = []

    def hook(_module: nn.Module, _args: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple | list) else output
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


def _module_output(model: nn.Module, ids: Sequence[int], module: nn.Module, position: int) -> Tensor:
    """What comes out of an out-projection at one token, its bias included: the value v of ROME (sec. 3.1)."""
    seen: list[Tensor] = []

    def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
        rows = output.reshape(len(ids), output.shape[-1])  # as in _module_input
        seen.append(rows[position].detach().clone())

    with torch.no_grad(), _hooked(module.register_forward_hook(hook)):
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
    reference_norm: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(z*, δ) of MEMIT's eq. 16, with ROME's essence-drift KL term and the weight decay on δ.

    loss = mean over contexts of [mean over target tokens of -log p] + kl_factor * KL(p || p0), as in ROME's eq. 4
           + weight_decay * ||δ|| / ||z||^2
    and ||δ|| is kept to clamp * ||z||. A `reference_norm` takes the place of ||z|| in both.
    """
    text, end = _text(request, contexts[0])
    ids = _encode(tokenizer, text)[0] + target_ids(tokenizer, text, request["target_new"])[:-1]
    z = _block_output(model, ids, layer_module, subject_last(tokenizer, text, end))
    norm = z.norm() if reference_norm is None else reference_norm
    (found,) = compute_shifts(
        model,
        tokenizer,
        request,
        contexts,
        [(layer_module, 1.0, norm)],
        steps=steps,
        lr=lr,
        weight_decay=weight_decay,
        kl_factor=kl_factor,
        clamp=clamp,
        stop_loss=stop_loss,
    )
    return z + found, found


def compute_shifts(
    model: nn.Module,
    tokenizer: Any,
    request: Request,
    contexts: Sequence[str],
    sites: Sequence[tuple[nn.Module, float | Tensor, float | Tensor]],
    *,
    steps: int,
    lr: float,
    weight_decay: float,
    kl_factor: float,
    clamp: float,
    stop_loss: float = 5e-2,
) -> list[Tensor]:
    """What is added to the output of each site's module, (module, unit, norm): unit * δ, with Adam on all δ at once.

    loss = mean over contexts of [mean over target tokens of -log p] + kl_factor * KL(p || p0), as in ROME's eq. 4
           + weight_decay * mean over sites of ||δ|| / norm^2
    and ||δ|| is kept to clamp * norm.
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
    with torch.no_grad():
        base_log_p = torch.log_softmax(_logits(model, essence_ids)[essence_position], dim=-1)

    deltas = [
        torch.zeros_like(_block_output(model, prompts[0], module, positions[0]), requires_grad=True)
        for module, _, _ in sites
    ]

    def adding(position: int) -> list[Any]:
        return [_adding(module, unit * delta, position) for (module, unit, _), delta in zip(sites, deltas, strict=True)]

    def loss_at_deltas() -> Tensor:
        likelihoods = []
        for prompt, target, position in zip(prompts, targets, positions, strict=True):
            with _hooked(*adding(position)):
                logits = _logits(model, prompt + target[:-1])
            likelihoods.append(_negative_log_likelihood(logits, len(prompt), target))
        with _hooked(*adding(essence_position)):
            log_p = torch.log_softmax(_logits(model, essence_ids)[essence_position], dim=-1)
        kl = (log_p.exp() * (log_p - base_log_p)).sum()
        decays = [delta.norm() / norm**2 for (_, _, norm), delta in zip(sites, deltas, strict=True)]
        return torch.stack(likelihoods).mean() + kl_factor * kl + weight_decay * torch.stack(decays).mean()

    optimizer = torch.optim.Adam(deltas, lr=lr)
    with torch.enable_grad():
        for step in range(steps):
            loss = loss_at_deltas()
            if loss.item() < stop_loss or step == steps - 1:
                break
            optimizer.zero_grad()
            loss.backward(inputs=deltas)
            optimizer.step()
            with torch.no_grad():
                for (_, _, norm), delta in zip(sites, deltas, strict=True):
                    limit = clamp * norm
                    if delta.norm() > limit:
                        delta.mul_(limit / delta.norm())
    return [(unit * delta).detach().clone() for (_, unit, _), delta in zip(sites, deltas, strict=True)]


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


def memit_seq_delta(K1: Tensor, R: Tensor, Kp: Tensor, C: Tensor, lam: float) -> Tensor:
    """Δ = R K1ᵀ (λ C + Kp Kpᵀ + K1 K1ᵀ)⁻¹: MEMIT's eq. 14 that also protects the keys of earlier edits, which is
    the objective of AlphaEdit (Fang et al., 2025) without its projection. Kp may have no columns."""
    K1, R, Kp, C = K1.double(), R.double(), Kp.double(), C.double()
    system = lam * C + Kp @ Kp.T + K1 @ K1.T
    return torch.linalg.solve(system.T, (R @ K1.T).T).T


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


def rome_delta(u_key: Tensor, bare_key: Tensor, v_star: Tensor, v: Tensor, C: Tensor | None) -> Tensor:
    """Δ = (v* - v) uᵀ / (k_bareᵀ u), u = C⁻¹ k̄: ROME's eq. 2 (Meng et al., 2022) as its released code has it, so that
    (W + Δ) k_bare = v* when W k_bare = v. Without C, u = k̄."""
    u_key, bare_key, v_star, v = u_key.double(), bare_key.double(), v_star.double(), v.double()
    u = u_key if C is None else torch.linalg.solve(C.double(), u_key)
    return torch.outer(v_star - v, u) / torch.dot(bare_key, u)


def rect(delta: Tensor, weight: Tensor, keep: float = 0.4) -> Tensor:
    """RECT (Gu et al., 2024): the round(keep * numel) entries of Δ with the largest |Δ / W|; the others become zero.

    An entry that changes a weight of zero ranks before all that do not; of equal ratios the first ones are kept.
    """
    delta, weight = delta.double(), weight.double()
    if delta.shape != weight.shape:
        raise ValueError(f"weight {tuple(weight.shape)} and update {tuple(delta.shape)} differ")
    ratio = delta.abs() / weight.abs()
    ratio[delta == 0] = 0.0  # 0 / 0 too
    order = torch.argsort(ratio.flatten(), descending=True, stable=True)
    chosen = order[: round(keep * delta.numel())]
    kept = torch.zeros_like(delta).flatten()
    kept[chosen] = delta.flatten()[chosen]
    return kept.reshape(delta.shape)


def prune(weight0: Tensor, delta: Tensor) -> Tensor:
    """PRUNE (Ma et al., 2024): the accumulated ΔW = Σ σ u vᵀ with every σ above the largest singular value σ_max of the
    unedited weight replaced by log σ - log σ_max + σ_max (natural logarithms)."""
    largest = torch.linalg.svdvals(weight0.double()).max()
    U, s, Vh = torch.linalg.svd(delta.double(), full_matrices=False)
    damped = s.clone()
    for i, value in enumerate(s):
        if value > largest:
            damped[i] = value.log() - largest.log() + largest
    return U @ torch.diag(damped) @ Vh


def _weight(module: nn.Module) -> Tensor:
    """A float64 copy of W as d_out x d_in, whichever way round the module keeps it."""
    if isinstance(module, Conv1D):
        return module.weight.detach().double().T.clone()
    if isinstance(module, nn.Linear):
        return module.weight.detach().double().clone()
    raise TypeError(f"neither nn.Linear nor Conv1D: {type(module).__name__}")


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


Solver = Callable[[int, Tensor, Tensor, Tensor], Tensor]  # (layer, K1, R, Kp) -> Δ
Post = Callable[[int, Tensor, Tensor], Tensor]  # (layer, Δ, W before this Δ) -> Δ


def _keys(
    model: nn.Module, tokenizer: Any, requests: Sequence[Request], contexts: Sequence[str], module: nn.Module
) -> Tensor:
    """K1 of MEMIT's eq. 14 (d_in x requests), of the model as it is."""
    return torch.stack([key(model, tokenizer, request, contexts, module) for request in requests], dim=1)


def _batch(
    model: nn.Module,
    tokenizer: Any,
    requests: Sequence[Request],
    contexts: Sequence[str],
    layers: Sequence[int],
    blocks: Mapping[int, nn.Module] | nn.ModuleList,
    out_projections: Mapping[int, nn.Module],
    previous: Mapping[int, Tensor],
    solver: Solver,
    post: Post | None,
    settings: Mapping[str, float],
) -> dict[int, Tensor]:
    """MEMIT's Algorithm 1 on one batch, in place, with the solver in place of its eq. 14. Returns layer -> Δ."""
    last = blocks[layers[-1]]
    wanted = []
    for request in requests:
        z_star, _ = compute_target(model, tokenizer, request, contexts, last, **settings)
        wanted.append(z_star)

    deltas: dict[int, Tensor] = {}
    for i, layer in enumerate(layers):
        module = out_projections[layer]
        K1 = _keys(model, tokenizer, requests, contexts, module)
        residuals = []
        for request, z_star in zip(requests, wanted, strict=True):
            now = current_z(model, tokenizer, request, last)
            residuals.append((z_star - now) / (len(layers) - i))
        R = torch.stack(residuals, dim=1)
        delta = solver(layer, K1, R, previous[layer])
        if post is not None:
            delta = post(layer, delta, _weight(module))
        _add_to_weight(module, delta)
        deltas[layer] = delta
    return deltas


def sequence(
    model: nn.Module,
    tokenizer: Any,
    batches: Sequence[Sequence[Request]],
    contexts: Sequence[str],
    layers: Sequence[int],
    blocks: Mapping[int, nn.Module] | nn.ModuleList,
    out_projections: Mapping[int, nn.Module],
    *,
    solver: Solver,
    post: Post | None = None,
    steps: int,
    lr: float,
    weight_decay: float,
    kl_factor: float,
    clamp: float,
) -> dict[int, Tensor]:
    """Sequential editing as in AlphaEdit (Fang et al., 2025), in place: MEMIT's Algorithm 1 on one batch after another.

    `solver` gets each layer's Kp (d_in x earlier requests), which starts without columns. After all layers of a batch
    are written its keys are measured again, on the edited model, and join Kp: AlphaEdit's released code does so.
    Returns layer -> the sum of its Δ (d_out x d_in).
    """
    layers = sorted(layers)
    settings = {"steps": steps, "lr": lr, "weight_decay": weight_decay, "kl_factor": kl_factor, "clamp": clamp}
    previous: dict[int, Tensor] = {}
    total: dict[int, Tensor] = {}
    for layer in layers:
        weight = _weight(out_projections[layer])
        previous[layer] = weight.new_zeros(weight.shape[1], 0)
        total[layer] = torch.zeros_like(weight)

    for requests in batches:
        deltas = _batch(
            model,
            tokenizer,
            requests,
            contexts,
            layers,
            blocks,
            out_projections,
            previous,
            solver,
            post,
            settings,
        )
        for layer in layers:
            total[layer] = total[layer] + deltas[layer]
            again = _keys(model, tokenizer, requests, contexts, out_projections[layer])
            previous[layer] = torch.cat([previous[layer], again.double()], dim=1)
    return total


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

    def solver(layer: int, K1: Tensor, R: Tensor, _Kp: Tensor) -> Tensor:
        delta = memit_delta(K1, R, covariances[layer], lam)
        return delta if projections is None else delta @ projections[layer].double()

    settings = {"steps": steps, "lr": lr, "weight_decay": weight_decay, "kl_factor": kl_factor, "clamp": clamp}
    none = {layer: torch.empty(0, 0) for layer in layers}  # the solver does not look at earlier keys
    return _batch(model, tokenizer, requests, contexts, layers, blocks, out_projections, none, solver, None, settings)


def rome(
    model: nn.Module,
    tokenizer: Any,
    requests: Sequence[Request],
    contexts: Sequence[str],
    layer: int,
    block: nn.Module,
    out_projection: nn.Module,
    covariance: Tensor | None = None,
    projection: Tensor | None = None,
    *,
    steps: int,
    lr: float,
    weight_decay: float,
    kl_factor: float,
    clamp: float,
    norms_follow: bool = False,
) -> list[Tensor]:
    """ROME (Meng et al., 2022) on one request after another, in place, each on the model that the last one left.

    v* = v + δ, with v the out-projection's output for the bare prompt, and δ that of `compute_target` at the block,
    measured against the norm of the out-projection's output for the first context. With `norms_follow` the block norms
    that output, so δ is added to it before, in units of its root mean square. With `projection` every Δ becomes
    Δ P before it is written. Returns the Δ (d_out x d_in). `layer`, the number of the block, decides nothing.
    """
    del layer
    deltas: list[Tensor] = []
    for request in requests:
        keys = []
        for context in contexts:
            text, end = _text(request, context)
            ids = _encode(tokenizer, text)[0]
            keys.append(_module_input(model, ids, out_projection, subject_last(tokenizer, text, end)))
        mean_key = torch.stack(keys).mean(dim=0)

        text, end = _text(request, contexts[0])
        ids = _encode(tokenizer, text)[0]
        reference = _module_output(model, ids, out_projection, subject_last(tokenizer, text, end))

        text, end = _text(request, "{}")
        ids = _encode(tokenizer, text)[0]
        position = subject_last(tokenizer, text, end)
        bare_key = _module_input(model, ids, out_projection, position)
        v = _module_output(model, ids, out_projection, position)

        settings = {"steps": steps, "lr": lr, "weight_decay": weight_decay, "kl_factor": kl_factor, "clamp": clamp}
        if norms_follow:
            unit, size = v.norm() / len(v) ** 0.5, torch.tensor(len(v) ** 0.5)
            (found,) = compute_shifts(model, tokenizer, request, contexts, [(out_projection, unit, size)], **settings)
        else:
            _, found = compute_target(
                model, tokenizer, request, contexts, block, reference_norm=reference.norm(), **settings
            )
        delta = rome_delta(mean_key, bare_key, v.double() + found.double(), v, covariance)
        if projection is not None:
            delta = delta @ projection.double()
        _add_to_weight(out_projection, delta)
        deltas.append(delta)
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
