"""The representation shift: hidden states against Hugging Face's own, the numbers against their definitions."""

from __future__ import annotations

import itertools
import json
import math
import random
from dataclasses import replace
from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.data_files import write_records
from support.paths import SHARED
from support.tiny import ARCHITECTURES, NAMES, tiny
from support.tries import tries

from alphaedit_plugin.editors.requests import Request
from alphaedit_plugin.errors import AlphaEditError, ModelStructureError, RequestError
from alphaedit_plugin.evaluation import shift
from alphaedit_plugin.evaluation.facts import Fact
from alphaedit_plugin.evaluation.measure import Measured
from alphaedit_plugin.evaluation.shift import (
    Shift,
    hausdorff,
    held_out,
    in_region,
    last_states,
    overlap,
    picture,
    prompts_from,
    relative_displacement,
)
from alphaedit_plugin.model.decoder import Decoder

KNOWN = SHARED / "known" / "known_1000.json"
COUNTERFACT = KNOWN.parents[1] / "counterfact" / "counterfact_500.json"

PROMPTS = (
    "The Eiffel Tower is located in the city of",
    "The capital of France is",
    "Marie Curie worked in the field of",
    "Marie Curie was born in",
    "The mother tongue of Danielle Darrieux is",
    "The language of Leonardo da Vinci is",
    "Michael Jordan plays the sport of",
    "Lionel Messi plays the sport of",
    "Apple was founded by",
    "Microsoft",
    "The river flows through the old town to the",
    "When the king came home from the war, the people of the village had already forgotten his",
)
METRICS = {"shift", "shift_d1", "shift_d2", "shift_p", "hausdorff"}
LAYER = 2


def disturb(model, size: float, layer: int = LAYER) -> None:
    """A stand-in for an edit."""
    weight = Decoder(model).out_projection(layer).matrix
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1), dtype=weight.dtype)
    weight += size * noise


# ------------------------------------------------------------------------------------------------------- the states


@pytest.mark.parametrize("name", NAMES)
def test_states_are_those_that_hugging_face_reports_for_one_prompt_at_a_time(name, bos_tokenizer):
    model = tiny(name, dtype=torch.float64, vocab_size=512)
    last = len(Decoder(model)) - 1
    final_norm = model.get_submodule(ARCHITECTURES[name][3])
    inner, outer = (last_states(model, bos_tokenizer, PROMPTS, layer, batch_tokens=40) for layer in (1, last))
    assert inner.dtype == outer.dtype == torch.float32
    for row, prompt in enumerate(PROMPTS):
        ids = torch.tensor([bos_tokenizer(prompt)["input_ids"]])
        reported = [states[0, -1] for states in model(ids, output_hidden_states=True).hidden_states]
        assert torch.allclose(inner[row].double(), reported[2], rtol=1e-5, atol=1e-5)
        # What Hugging Face reports for the last block has been through the final norm.
        assert torch.allclose(final_norm(outer[row].double()), reported[-1], rtol=1e-4, atol=1e-4)
        assert not torch.allclose(inner[row], outer[row], rtol=1e-2)


@pytest.mark.parametrize("batch_tokens", [1, 25, 10_000])
def test_states_do_not_depend_on_batches_order_or_repetition(batch_tokens, tokenizer):
    model = tiny("llama", dtype=torch.float64, vocab_size=512)
    expected = last_states(model, tokenizer, PROMPTS, LAYER)
    order = [3, 0, 3, 11, *range(12)]
    found = last_states(model, tokenizer, [PROMPTS[i] for i in order], LAYER, batch_tokens=batch_tokens)
    assert torch.allclose(found, expected[order], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch_tokens", [25, 40, 60])
def test_states_are_rounded_alike_in_whatever_order_the_prompts_come(batch_tokens, tokenizer):
    model = tiny("llama", vocab_size=512)
    one, other = (last_states(model, tokenizer, p, LAYER, batch_tokens=batch_tokens) for p in (PROMPTS, PROMPTS[::-1]))
    assert torch.equal(one, other.flip(0))


def test_nothing_above_the_layer_is_computed_and_the_model_stays_as_it_was(tokenizer):
    model = tiny("gpt2", vocab_size=512, resid_pdrop=0.5).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    seen = []
    handles = [
        block.register_forward_hook(lambda *_, i=i: seen.append(i)) for i, block in enumerate(Decoder(model).blocks)
    ]
    first = last_states(model, tokenizer, PROMPTS, LAYER)
    for handle in handles:
        handle.remove()
    assert set(seen) == {0, 1, 2}
    assert torch.equal(first, last_states(model, tokenizer, PROMPTS, LAYER)), "dropout was on"
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_layer_that_does_not_exist_is_named(tokenizer):
    with pytest.raises(ModelStructureError, match="layer 4 does not exist"):
        Shift(PROMPTS, 4)(tiny("llama", vocab_size=512), tokenizer, [], None)


# ------------------------------------------------------------------------------------------------------ the numbers


def _gaussians(points: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The density at `at` (m × d) of Gaussian kernels on `points` (n × d), term by term."""
    n, d = points.shape
    width = n ** (-1 / (d + 4))
    total = np.zeros(len(at))
    for point in points:
        total += np.exp(-((at - point) ** 2).sum(1) / (2 * width**2))
    return total / (n * (2 * math.pi * width**2) ** (d / 2))


def _standard(points: np.ndarray) -> np.ndarray:
    return (points - points.mean(0)) / points.std(0)


SETS = st.tuples(st.integers(0, 10_000), st.integers(5, 40), st.floats(0, 4), st.floats(0.05, 3))


@given(SETS)
@tries(20)
def test_overlap_is_the_area_under_both_curves(drawn):
    seed, n, apart, width = drawn
    random_ = np.random.default_rng(seed)
    before, after = _standard(random_.normal(size=n)), apart + width * random_.normal(size=n)
    grid = np.linspace(-20, 20, 4001)[:, None]
    smaller = np.minimum(_gaussians(before[:, None], grid), _gaussians(after[:, None], grid))
    assert overlap(before, after).value == pytest.approx(smaller.sum() * 40 / 4000, abs=1e-3)


def test_overlap_goes_from_all_to_nothing_as_one_set_moves_away():
    before = _standard(np.random.default_rng(0).normal(size=50))
    found = [overlap(before, before + far).value for far in (0, 0.1, 0.5, 1, 3, 5, 1000)]
    assert found[0] == 1
    assert found[-1] == pytest.approx(0, abs=1e-6)
    assert all(nearer > farther for nearer, farther in itertools.pairwise(found))
    assert overlap(before, np.full(50, before.mean())).value < 0.9, "a set that collapsed is another one"


@pytest.mark.slow
def test_the_overlaps_interval_is_that_of_prompts_drawn_again():
    random_ = np.random.default_rng(3)
    before = _standard(random_.normal(size=30))
    after = before + 0.8 + 0.3 * random_.normal(size=30)
    grid = np.linspace(-20, 20, 2001)[:, None]
    slow = []
    for _ in range(300):
        rows = random_.integers(0, 30, 30)
        slow.append(np.minimum(*(_gaussians(each[rows][:, None], grid) for each in (before, after))).sum() * 40 / 2000)
    found = overlap(before, after)
    assert found.low < found.value < found.high
    assert (found.low, found.high) == pytest.approx(np.quantile(slow, [0.025, 0.975]), abs=0.05)
    still = overlap(before, before)
    assert (still.low, still.value, still.high) == (1, 1, 1)


@given(SETS)
@tries(20)
def test_the_region_holds_95_percent_of_the_points_before_and_is_where_they_are_densest(drawn):
    seed, n, apart, width = drawn
    random_ = np.random.default_rng(seed)
    before, after = _standard(random_.normal(size=(n, 2))), apart + width * random_.normal(size=(n, 2))
    own, others = _gaussians(before, before), _gaussians(before, after)
    inside, arrived = in_region(before, before), in_region(before, after)
    assert inside.sum() == next(count for count in range(n + 1) if 100 * count >= 95 * n)
    edge = own[inside].min()
    assert (own[~inside] < edge).all()
    assert (arrived == (others >= edge))[abs(others / edge - 1) > 1e-9].all()


@given(SETS)
@tries(20)
def test_hausdorff_is_the_farthest_nearest_neighbour_in_units_of_the_spread(drawn):
    seed, n, apart, width = drawn
    random_ = np.random.default_rng(seed)
    before = random_.normal(size=(n, 3)) * 7 + 2
    after = before + apart + width * random_.normal(size=(n, 3))

    def farthest(these: np.ndarray, those: np.ndarray) -> float:
        return max(min(math.dist(this, that) for that in those) for this in these)

    middle = [sum(column) / n for column in before.T]
    spread = math.sqrt(sum(math.dist(point, middle) ** 2 for point in before) / n)
    expected = max(farthest(before, after), farthest(after, before)) / spread
    assert hausdorff(before, after) == pytest.approx(expected)
    assert hausdorff(before, before) == 0
    assert hausdorff(before, after) <= max(map(math.dist, before, after)) / spread * (1 + 1e-9)
    assert hausdorff(100 * before - 9, 100 * after - 9) == pytest.approx(expected), "a model's own scale shows"


def test_relative_displacement_is_row_by_row():
    before, after = np.array([[3.0, 4.0], [0.0, 2.0]]), np.array([[3.0, 4.0], [0.0, -2.0]])
    assert relative_displacement(before, after).tolist() == [0, 2]


# ------------------------------------------------------------------------------------------------------ the picture


def test_the_picture_puts_equal_states_in_one_place_and_scales_by_those_before():
    before = np.random.default_rng(0).normal(size=(20, 8)) * 50 + 10
    after = before.copy()
    after[:4] += 300
    old, new = picture(before, after)
    assert old.shape == new.shape == (20, 2)
    assert np.allclose(old.mean(0), 0)
    assert np.allclose(old.std(0), 1)
    assert (old[4:] == new[4:]).all()
    assert (np.linalg.norm(new[:4] - old[:4], axis=1) > 0.1).all()


def test_the_picture_follows_the_prompts_wherever_they_stand():
    random_ = np.random.default_rng(0)
    before = random_.normal(size=(30, 8))
    after = before + 0.5 * random_.normal(size=(30, 8))
    order = random_.permutation(30)
    for here, there in zip(picture(before, after), picture(before[order], after[order]), strict=True):
        assert np.allclose(here[order], there, atol=1e-6)


@pytest.mark.parametrize("after", ["blown up", "one blown up", "fallen together"])
def test_a_model_in_ruins_still_has_a_picture(after):
    before = np.random.default_rng(0).normal(size=(12, 8))
    ruins = {
        "blown up": before * 1e38,
        "one blown up": np.vstack([before[:-1], before[-1:] * 1e30]),
        "fallen together": np.tile(before[:1], (12, 1)),
    }
    old, new = picture(before, ruins[after])
    assert np.isfinite(old).all()
    assert np.isfinite(new).all()
    assert 0 <= overlap(old[:, 0], new[:, 0]).value < 1


# ------------------------------------------------------------------------------------------------------ the measure


def test_without_an_edit_nothing_has_moved(tokenizer):
    model = tiny("llama", vocab_size=512)
    measure = Shift(PROMPTS, LAYER)
    before = measure(model, tokenizer, [], None)
    assert before.estimates == {}
    assert before.records == []
    assert before.tensors["hidden"].shape == (12, 16)
    found = measure(model, tokenizer, [], before)
    values = {name: estimate.value for name, estimate in found.estimates.items()}
    share = values.pop("shift_p")
    assert values == {"shift": 0, "shift_d1": 1, "shift_d2": 1, "hausdorff": 0}
    assert share == 1, "of 12 points, 11 would be less than 95 %"
    assert [record["prompt"] for record in found.records] == list(PROMPTS)
    assert all(record["before"] == record["after"] and record["shift"] == 0 for record in found.records)


def test_more_noise_moves_the_states_farther(tokenizer):
    measure = Shift(PROMPTS, LAYER)
    before = measure(tiny("llama", vocab_size=512), tokenizer, [], None)
    moved, far = [], []
    for size in (0.001, 0.03, 1.0):
        model = tiny("llama", vocab_size=512)
        disturb(model, size)
        found = measure(model, tokenizer, [], before)
        assert set(found.estimates) == METRICS
        own = [
            float((new - old).norm() / old.norm())
            for old, new in zip(
                before.tensors["hidden"].double(), last_states(model, tokenizer, PROMPTS, LAYER).double(), strict=True
            )
        ]
        assert [record["shift"] for record in found.records] == pytest.approx(own)
        assert found.estimates["shift"].value == pytest.approx(sum(own) / len(own))
        assert found.estimates["shift"].low < found.estimates["shift"].value < found.estimates["shift"].high
        at_before, at_after = (np.array([record[key] for record in found.records]) for key in ("before", "after"))
        assert found.estimates["shift_d1"] == overlap(at_before[:, 0], at_after[:, 0])
        assert found.estimates["shift_d2"] == overlap(at_before[:, 1], at_after[:, 1])
        moved.append(found.estimates["shift"].value)
        far.append(found.estimates["hausdorff"].value)
        json.dumps(found.records, allow_nan=False)
    assert moved == sorted(moved)
    assert far == sorted(far)
    assert found.estimates["shift_d1"].value < 1


def test_an_edit_above_the_layer_does_not_show(tokenizer):
    model = tiny("llama", vocab_size=512)
    measure = Shift(PROMPTS, LAYER)
    before = measure(model, tokenizer, [], None)
    disturb(model, 1.0, LAYER + 1)
    assert measure(model, tokenizer, [], before).estimates["shift"].value == 0


def test_other_orders_of_the_prompts_give_the_same_records_in_that_order(tokenizer):
    clean, edited = tiny("llama", vocab_size=512), tiny("llama", vocab_size=512)
    disturb(edited, 0.3)

    def measured(prompts) -> Measured:
        measure = Shift(prompts, LAYER)
        return measure(edited, tokenizer, [], measure(clean, tokenizer, [], None))

    here, there = measured(PROMPTS), measured((*PROMPTS[::-1], PROMPTS[3]))
    assert len(there.records) == len(PROMPTS), "a prompt counts once"
    for one, other in zip(here.records, there.records[::-1], strict=True):
        assert one["prompt"] == other["prompt"]
        assert one["shift"] == other["shift"]
        assert one["before"] + one["after"] == pytest.approx(other["before"] + other["after"], abs=1e-5)


def test_measuring_is_repeatable_and_draws_from_nobodys_random_numbers(tokenizer):
    model = tiny("qwen2", vocab_size=512)
    measure = Shift(PROMPTS, LAYER)
    before = measure(model, tokenizer, [], None)
    disturb(model, 0.3)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    threads = torch.get_num_threads()
    first = measure(model, tokenizer, [], before)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert (states[2] == np.random.get_state()[1]).all()  # noqa: NPY002
    assert torch.get_num_threads() == threads
    assert measure(model, tokenizer, [], before) == first


def test_states_that_are_not_finite_are_said_to_be_so(tokenizer, caplog):
    model = tiny("llama", vocab_size=512)
    measure = Shift(PROMPTS, LAYER)
    before = measure(model, tokenizer, [], None)
    disturb(model, float("nan"))
    found = measure(model, tokenizer, [], before)
    assert found.estimates == {}
    assert "not all finite" in caplog.text
    assert [record["prompt"] for record in found.records] == list(PROMPTS)
    assert all(record["after"] is None and record["shift"] is None for record in found.records)


def test_too_few_prompts_or_states_are_an_error(tokenizer):
    with pytest.raises(RequestError, match=r"5 different prompts or more.*not 4"):
        Shift([*PROMPTS[:4], *PROMPTS[:4]], LAYER)
    model = tiny("llama", vocab_size=512)
    measure = Shift(PROMPTS, LAYER)
    with torch.no_grad():
        model.get_input_embeddings().weight.zero_()
    with pytest.raises(RequestError, match="layer 2 has fewer than 5 different states"):
        measure(model, tokenizer, [], None)


def test_a_missing_library_names_the_extra(monkeypatch):
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(shift, "version", missing)
    with pytest.raises(AlphaEditError, match=r"alphaedit-plugin\[evaluation\]"):
        Shift(PROMPTS, LAYER)


def test_identity_tells_layers_and_prompts_apart():
    one = Shift(PROMPTS, LAYER).identity()
    assert one == Shift(list(PROMPTS), LAYER).identity()
    assert one == json.loads(json.dumps(one))
    others = [Shift(PROMPTS, 1), Shift(PROMPTS[1:], LAYER), Shift(PROMPTS[::-1], LAYER)]
    assert all(one != other.identity() for other in others)
    # Where one prompt ends and the next begins counts too.
    assert Shift(["a", "bc", "d", "e", "f"], 0).identity() != Shift(["ab", "c", "d", "e", "f"], 0).identity()


# ------------------------------------------------------------------------------------------------------ the prompts


def test_prompts_are_read_from_a_list_of_records(tmp_path):
    records = [
        {"known_id": 0, "subject": "Vinson Massif", "prompt": "Vinson Massif is located in the continent of "},
        {"subject": " Beats Music ", "prompt": "{} is owned by"},
    ]
    expected = ["Vinson Massif is located in the continent of", "Beats Music is owned by"]
    assert prompts_from(write_records(tmp_path / "known.json", records)) == expected
    assert prompts_from(write_records(tmp_path / "known.jsonl", records)) == expected


def test_prompts_are_read_from_a_data_set_with_the_subject_in_its_place(tmp_path):
    record = {
        "requested_rewrite": {
            "prompt": "The capital of {} is",
            "subject": "France",
            "target_new": {"str": "Rome"},
            "target_true": {"str": "Paris"},
        },
        "paraphrase_prompts": ["France has the capital"],
        "neighborhood_prompts": ["The Louvre is in"],
    }
    assert prompts_from(write_records(tmp_path / "facts.json", [record])) == ["The capital of France is"]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"subject": "x"}, "record 1: prompt must be text, not None"),
        ({"prompt": " "}, "record 1: prompt must be text, not ' '"),
        ({"prompt": "{} is"}, "record 1: subject must be text"),
        ("text", "record 1 is a str, not a mapping"),
    ],
)
def test_what_is_wrong_with_a_record_is_named(record, message, tmp_path):
    path = write_records(tmp_path / "known.json", [{"prompt": "The capital of France is"}, record])
    with pytest.raises(RequestError, match=message) as caught:
        prompts_from(path)
    assert str(path) in str(caught.value)


def test_a_line_that_is_not_json_is_named(tmp_path):
    path = tmp_path / "known.jsonl"
    path.write_text('{"prompt": "The capital of France is"}\n{"prompt": "Pa', encoding="utf-8")
    with pytest.raises(RequestError, match="record 1 is not JSON") as caught:
        prompts_from(path)
    assert str(path) in str(caught.value)


def test_a_missing_or_empty_file_is_named(tmp_path):
    with pytest.raises(RequestError, match=r"nowhere\.json"):
        prompts_from(tmp_path / "nowhere.json")
    with pytest.raises(RequestError, match=r"known\.json"):
        prompts_from(write_records(tmp_path / "known.json", []))


def test_prompts_about_edited_subjects_are_not_held_out():
    fact = Fact((Request("{} was born in", "Marie Curie", "Rome"), Request("{} is a", "Apple", "pear")))
    kept = held_out(PROMPTS, [fact, replace(fact, requests=(Request("{} is", "nobody", "here"),))])
    assert kept == [prompt for prompt in PROMPTS if not prompt.startswith(("Marie Curie", "Apple"))]
    assert held_out(PROMPTS, []) == list(PROMPTS)


def test_the_published_files_are_read():
    if not KNOWN.exists() or not COUNTERFACT.exists():
        pytest.skip(f"{KNOWN.parents[1]} is not here")
    known, facts = prompts_from(KNOWN), prompts_from(COUNTERFACT)
    assert known == [record["prompt"].rstrip() for record in json.loads(KNOWN.read_text(encoding="utf-8"))]
    assert len(facts) == 500
    assert not any("{}" in prompt for prompt in facts)
