"""Causal tracing against a plain loop, and on a model that keeps its facts in one layer."""

from __future__ import annotations

import pytest
import torch
from support.tiny import NAMES, model_of

from alphaedit_plugin.editors.requests import Encoded, Request, encode
from alphaedit_plugin.errors import TuningError
from alphaedit_plugin.model.decoder import Decoder, hidden_states
from alphaedit_plugin.model.trace import hooks
from alphaedit_plugin.tuning.causal_trace import CLASSES, LAST_SUBJECT, SEED, causal_trace, classes_of

REQUESTS = [
    Request("{} is located in the city of", "The Eiffel Tower", "Rome"),
    Request("The mother tongue of {} is", "Danielle Darrieux", "English"),
    Request("{} plays the sport of", "Michael Jordan", "chess"),
]
SHORT = [Request("The capital of {} is", subject, "Rome") for subject in ("France", "Paris", "Warsaw", "America")]
"""Of one token each: nothing else carries what the model knows of the subject."""
SAMPLES, WINDOW = 2, 3


@torch.no_grad()
def probability(decoder, prompt, token, noise=None, restored=(), clean=None):
    """One whole forward pass of one row: `restored` are (module, position), put back to the outputs in `clean`."""

    def corrupt(_module, _args, output):
        output[0, prompt.subject_first : prompt.subject_last + 1] += noise
        return output

    def put_back(module, position):
        def hook(_module, _args, output):
            states = hidden_states(output).view(1, len(prompt.ids), -1)
            states[0, position] = clean[module][position]

        return module, hook

    changes = [put_back(module, position) for module, position in restored]
    if noise is not None:
        changes.append((decoder.model.get_input_embeddings(), corrupt))
    with hooks(*changes):
        logits = decoder.model(torch.tensor([prompt.ids])).logits[0, -1]
    found = logits.double().softmax(-1)
    return int(found.argmax()) if token is None else float(found[token])


@torch.no_grad()
def outputs_of(decoder, modules, ids):
    found = {}

    def keep(module, _args, output):
        found[module] = hidden_states(output).reshape(len(ids), -1).clone()

    with hooks(*((module, keep) for module in modules)):
        decoder.model(torch.tensor([ids]))
    return found


def by_the_plain_loop(model, tokenizer, requests, level):
    """(hidden, mlp, clean, corrupted) as ROME defines them, by one whole pass of one row for each number."""
    decoder = Decoder(model)
    blocks = list(decoder.blocks)
    projections = [decoder.out_projection(layer).module for layer in range(len(blocks))]
    prompts = [encode(tokenizer, request.prompt, request.subject) for request in requests]
    embed = model.get_input_embeddings()
    tokens = [t for p in prompts for t in p.ids[p.subject_first : p.subject_last + 1]]
    scale = level * float(embed(torch.tensor([tokens])).float().std())
    effects, probabilities = [], []
    for number, prompt in enumerate(prompts):
        generator = torch.Generator().manual_seed(SEED + number)
        length = prompt.subject_last + 1 - prompt.subject_first
        noises = scale * torch.randn(
            SAMPLES, length, embed.weight.shape[1], generator=generator, dtype=torch.float64
        ).to(embed.weight.dtype)
        said = probability(decoder, prompt, None)
        clean = outputs_of(decoder, [*blocks, *projections], prompt.ids)
        corrupted = sum(probability(decoder, prompt, said, noise) for noise in noises) / SAMPLES
        tables = [[[[] for _ in blocks] for _ in CLASSES] for _ in range(2)]
        for position, kind in classes_of(prompt).items():
            for layer in range(len(blocks)):
                first = layer - WINDOW // 2
                around = range(max(0, first), min(len(blocks), first + WINDOW))
                for table, modules in zip(
                    tables, ([blocks[layer]], [projections[each] for each in around]), strict=True
                ):
                    restored = [(module, position) for module in modules]
                    runs = [probability(decoder, prompt, said, noise, restored, clean) for noise in noises]
                    table[kind][layer].append(sum(runs) / SAMPLES - corrupted)
        effects.append(torch.tensor([[[sum(x) / len(x) if x else torch.nan for x in r] for r in t] for t in tables]))
        probabilities.append((probability(decoder, prompt, said), corrupted))
    return effects, probabilities


@pytest.mark.parametrize("architecture", NAMES)
def test_effects_are_those_of_a_plain_loop(architecture, bos_tokenizer):
    model, requests = model_of(architecture), REQUESTS[1:]
    effects, probabilities = by_the_plain_loop(model, bos_tokenizer, requests, 1.0)
    depends = [clean > corrupted for clean, corrupted in probabilities]
    wanted = torch.stack([effect for effect, kept in zip(effects, depends, strict=True) if kept]).nanmean(0)
    found = causal_trace(model, bos_tokenizer, requests, noise=1.0, samples=SAMPLES, window=WINDOW)
    assert found.facts == sum(depends)
    torch.testing.assert_close(
        torch.stack([found.hidden, found.mlp]), wanted.double(), atol=1e-6, rtol=0, equal_nan=True
    )  # the oracle's tables are float32


@pytest.mark.parametrize("samples", [1, 7])
def test_recall_alone_is_the_same_as_with_all_the_rest(samples, tokenizer):
    model = model_of("llama")
    whole = causal_trace(model, tokenizer, REQUESTS, samples=samples)
    alone = causal_trace(model, tokenizer, REQUESTS, samples=samples, every_position=False)
    torch.testing.assert_close(alone.recall, whole.recall, atol=1e-12, rtol=0)
    others = [row for row in range(len(CLASSES)) if row != LAST_SUBJECT]
    assert alone.hidden.isnan().all()
    assert alone.mlp[others].isnan().all()


def test_restoring_the_last_token_in_the_last_layer_restores_everything(tokenizer):
    trace = causal_trace(model_of("gpt2"), tokenizer, REQUESTS)
    assert float(trace.hidden[CLASSES.index("last token"), -1]) == pytest.approx(trace.clean - trace.corrupted)


def with_facts_in(layer):
    """A Llama whose other blocks compute nothing, and whose embeddings hardly matter beside what this layer recalls."""
    model = model_of("llama", num_hidden_layers=6)
    with torch.no_grad():
        for number, block in enumerate(Decoder(model).blocks):
            block.self_attn.o_proj.weight.mul_(50.0 if number == 5 else 0.0)
            block.mlp.down_proj.weight.mul_(50.0 if number == layer else 0.0)
    return model


@pytest.mark.parametrize("layer", [0, 2, 4])
def test_the_layer_that_holds_the_facts_is_found(layer, tokenizer):
    """Attention, in the last block only, carries what that layer recalls to the end of the prompt."""
    trace = causal_trace(with_facts_in(layer), tokenizer, SHORT, window=1)
    assert trace.best_layers(1) == (layer,)
    others = torch.tensor([float(trace.recall[each]) for each in range(6) if each != layer])
    assert float(trace.recall[layer]) > 0.3 * (trace.clean - trace.corrupted)
    torch.testing.assert_close(others, torch.zeros(5), atol=1e-9, rtol=0)


def test_a_trace_is_the_same_each_time_and_leaves_no_trace(tokenizer):
    model = model_of("llama").train()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    state = torch.get_rng_state()
    first, second = (causal_trace(model, tokenizer, REQUESTS[:1]) for _ in range(2))
    assert torch.equal(first.mlp.nan_to_num(), second.mlp.nan_to_num())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_what_does_not_depend_on_the_subject_cannot_be_traced(tokenizer):
    model = model_of("llama")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    with pytest.raises(TuningError, match="--facts"):
        causal_trace(model, tokenizer, REQUESTS)


@pytest.mark.parametrize(
    ("first", "last", "length", "classes"),
    [
        (1, 3, 8, {1: 0, 2: 1, 3: 2, 4: 3, 5: 4, 6: 4, 7: 5}),
        (0, 0, 3, {0: 2, 1: 3, 2: 5}),
        (0, 1, 2, {0: 0, 1: 2}),
        (2, 3, 5, {2: 0, 3: 2, 4: 5}),
        (0, 0, 1, {0: 2}),
    ],
)
def test_positions_are_of_romes_kinds(first, last, length, classes):
    assert classes_of(Encoded([7] * length, last, [], first)) == classes
