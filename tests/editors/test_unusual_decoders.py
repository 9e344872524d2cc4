"""Decoders without a cache that can be cut, with ALiBi, gates, side paths or several streams: edited as they should."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
from support import oracle
from support.editing import HYPERPARAMETERS, RECORDS, REQUESTS, session
from support.spaces import random_covariance
from support.tiny import model_of
from support.unusual import PREFIXES_RUN_AGAIN, UNUSUAL, unusual
from support.wrapping import WRAPPERS

from alphaedit_plugin.editors.hyperparameters import TargetSettings
from alphaedit_plugin.editors.keys import Sweep, context_templates
from alphaedit_plugin.editors.requests import Request
from alphaedit_plugin.editors.targets import optimise_targets
from alphaedit_plugin.model.decoder import Decoder

CONTEXTS = ("{}", "The river flows. {}", "I said that they would come again. {}")
SETTINGS = TargetSettings(steps=6, lr=0.2)
LAYER = 1
BRANCH_DEPENDS_ON_MORE = {"openai-gpt", "gemma4_text"}
"""Where what the block makes of its out-projection's output depends on the rest of the block: on a sum before a norm,
or on per-layer inputs. There MEMIT only comes near what it wants; ROME asks for a change of that output itself."""


def textbook(model, tokenizer, request: Request):
    record = {"prompt": request.prompt, "subject": request.subject, "target_new": request.target_new}
    block = Decoder(model).block(LAYER)
    terms = {"steps": SETTINGS.steps, "lr": SETTINGS.lr, "weight_decay": SETTINGS.weight_decay}
    return oracle.compute_target(
        model, tokenizer, record, CONTEXTS, block, kl_factor=SETTINGS.kl_factor, clamp=SETTINGS.clamp, **terms
    )[1]


def assert_agrees(found, expected):
    for delta, wanted in zip(found.delta, expected, strict=True):
        assert float(wanted.norm()) > 0
        assert float((delta.double() - wanted).norm() / wanted.norm()) <= 1e-6


@pytest.mark.parametrize("name", PREFIXES_RUN_AGAIN)
def test_targets_agree_with_the_textbook_where_the_prefix_has_to_run_again(name, tokenizer, exact, caplog):
    model = unusual(name)
    expected = [textbook(model, tokenizer, request) for request in REQUESTS]
    decoder = Decoder(model)
    with caplog.at_level(logging.INFO):
        assert_agrees(optimise_targets(decoder, tokenizer, REQUESTS, CONTEXTS, LAYER, SETTINGS), expected)
        assert_agrees(optimise_targets(decoder, tokenizer, REQUESTS, CONTEXTS, LAYER, SETTINGS), expected)
    assert decoder.prefix_cache is False
    assert sum("targets run whole sequences" in record.getMessage() for record in caplog.records) == 1


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_wrapper_changes_no_target_and_leaves_the_cache_in_use(wrap, tokenizer, exact):
    expected = [textbook(model_of("llama"), tokenizer, request) for request in REQUESTS]
    decoder = Decoder(wrap(model_of("llama")))
    assert_agrees(optimise_targets(decoder, tokenizer, REQUESTS, CONTEXTS, LAYER, SETTINGS), expected)
    assert decoder.prefix_cache is True


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_rounding_is_no_reason_to_distrust_a_cache(name, dtype, tokenizer):
    decoder = Decoder(model_of(name, dtype))
    optimise_targets(decoder, tokenizer, REQUESTS, CONTEXTS, LAYER, replace(SETTINGS, steps=1))
    assert decoder.prefix_cache is True


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_positions_that_are_not_taken_as_given_are_noticed_in_every_precision(dtype, tokenizer):
    decoder = Decoder(unusual("mpt", dtype=dtype))
    optimise_targets(decoder, tokenizer, REQUESTS, CONTEXTS, LAYER, replace(SETTINGS, steps=1))
    assert decoder.prefix_cache is False


def test_prefixes_that_are_equally_long_prove_nothing_about_a_cache(tokenizer):
    """Without padding between prefix and suffix wrong positions do not show."""
    decoder = Decoder(unusual("mpt"))
    even = Request("{} plays the sport of", "A", "chess")
    optimise_targets(decoder, tokenizer, [even], ["{}"], LAYER, replace(SETTINGS, steps=1))
    assert decoder.prefix_cache is None
    optimise_targets(decoder, tokenizer, REQUESTS, CONTEXTS, LAYER, replace(SETTINGS, steps=1))
    assert decoder.prefix_cache is False


def begin(model, tokenizer, method):
    """A session on one layer and one context, with λ → 0: the key of a single fact is met exactly."""
    settings = {"mom2_update_weight": 1e-12, "v_num_grad_steps": 4, "clamp_norm_factor": 0.2}
    return session(
        model,
        tokenizer,
        method,
        hyperparameters=replace(HYPERPARAMETERS, layers=(LAYER,), **settings),
        covariances={LAYER: random_covariance(Decoder(model).out_projection(LAYER).d_in)},
        contexts=("{}",),
    )


@pytest.mark.parametrize("name", sorted(UNUSUAL.keys() - BRANCH_DEPENDS_ON_MORE))
def test_one_layer_moves_the_hidden_state_as_wanted_and_undo_restores_it(name, tokenizer):
    model = unusual(name)
    begun = begin(model, tokenizer, "memit")

    def hidden():
        return Sweep(model, tokenizer, REQUESTS[:1], ("{}",)).hidden(LAYER)[0]

    started, targets = hidden(), begun.editor.targets(REQUESTS[:1])
    wanted = targets.delta.reshape(-1).double()
    begun.edit(RECORDS[:1], targets)
    moved = hidden() - started
    assert float(torch.cosine_similarity(moved, wanted, dim=0)) >= 0.99
    assert float(moved.norm() / wanted.norm()) == pytest.approx(1, abs=0.05)
    begun.undo()
    assert torch.equal(hidden(), started)


@pytest.mark.parametrize("name", UNUSUAL)
def test_rome_moves_the_out_projections_output_as_wanted_and_undo_restores_it(name, tokenizer):
    model = unusual(name)
    begun, projection = begin(model, tokenizer, "rome"), Decoder(model).out_projection(LAYER)
    before = projection.matrix.clone()
    (key,) = Sweep(model, tokenizer, REQUESTS[:1], ("{}",)).keys(projection)[0]
    begun.edit(RECORDS[:1])
    (update,) = begun.batches[0].written.updates
    assert float(update.left.norm()) > 0
    moved = (projection.matrix.double() - before.double()) @ key
    torch.testing.assert_close(moved, update.left[:, 0].double(), rtol=1e-6, atol=1e-9)
    begun.undo()
    assert torch.equal(projection.matrix, before)


@pytest.mark.parametrize("name", UNUSUAL)
def test_contexts_are_written_with_or_without_a_cache(name, tokenizer):
    assert len(context_templates(unusual(name, dtype=torch.float32), tokenizer, [(4, 5)])) == 6
