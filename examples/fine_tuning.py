"""Fine-tuning as an editor, and what holds it: the null space, W's leading directions, or where the loss is flat.

    alphaedit compare --methods alphaedit fine_tuning.py:edit fine_tuning.py:edit+P fine_tuning.py:edit+revive \
        fine_tuning.py:edit+crisp --batch 20

The loop knows nothing of any of them: behind its name stands what the guard makes of every step. From Python it is

    with guard(model, LowCurvature.prepare(model, tokenizer, layers=[4, 5, 6, 7, 8])):
        edit(model, tokenizer, requests)
"""

import torch


def edit(model, tokenizer, requests, *, layers=(4, 5, 6, 7, 8), epochs=30, size=10, learning_rate=1e-3, enough=0.05):
    """AdamW on the out-projections of `layers`, `size` facts a step, until an epoch's mean loss is below `enough`."""
    weights = [model.get_submodule(f"model.layers.{layer}.mlp.down_proj").weight for layer in layers]
    model.requires_grad_(False)
    for weight in weights:
        weight.requires_grad_(True)
    optimiser = torch.optim.AdamW(weights, lr=learning_rate, weight_decay=0.0)
    for _ in range(epochs):
        losses = []
        for start in range(0, len(requests), size):
            loss = mean_loss(model, tokenizer, requests[start : start + size])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        if sum(losses) / len(losses) < enough:
            break


def mean_loss(model, tokenizer, requests):
    """−log p of the new objects' tokens, averaged over all of them."""
    texts = []
    for request in requests:
        prompt = tokenizer(request.text).input_ids
        target = tokenizer(request.completion, add_special_tokens=False).input_ids
        texts.append((prompt + target, [-100] * len(prompt) + target))
    longest = max(len(ids) for ids, _ in texts)
    ids, labels, mask = (
        torch.tensor([row + [fill] * (longest - len(row)) for row in rows], device=model.device)
        for rows, fill in (
            ([ids for ids, _ in texts], 0),
            ([labels for _, labels in texts], -100),
            ([[1] * len(ids) for ids, _ in texts], 0),
        )
    )
    return model(ids, attention_mask=mask, labels=labels).loss
