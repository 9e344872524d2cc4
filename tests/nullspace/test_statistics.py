"""From a model to its covariances and null spaces, by way of the store."""

from __future__ import annotations

import functools

import pytest
import torch
from support.data_files import write_documents
from support.oracle import projection
from support.processes import results_of_two
from support.spaces import same_covariances
from support.tiny import tiny

from alphaedit_plugin.errors import AlphaEditError, CorpusError, NullSpaceError, StatisticsError, StoreError
from alphaedit_plugin.model import sampling
from alphaedit_plugin.model.decoder import Decoder
from alphaedit_plugin.model.fingerprint import model_name
from alphaedit_plugin.nullspace import corpus
from alphaedit_plugin.nullspace import statistics as prepare
from alphaedit_plugin.nullspace.covariance import collect
from alphaedit_plugin.nullspace.null_spaces import null_spaces_of
from alphaedit_plugin.nullspace.projection import Criterion, NullSpace
from alphaedit_plugin.nullspace.statistics import prepare_statistics
from alphaedit_plugin.storage.store import Store

HALF = Criterion(nullity=0.5)
SENTENCE = "The capital of France is Paris, and the river flows through the old town to the sea. "


@pytest.fixture
def model():
    return tiny("llama", vocab_size=512)


@pytest.fixture
def text(tmp_path):
    return write_documents(tmp_path / "corpus.jsonl", [f"{i} {SENTENCE}" for i in range(60)])


@pytest.fixture
def made(monkeypatch):
    """What has been computed, step by step: ("written", tokens), ("collected", layers) or ("projected", name)."""
    steps = []

    def watch(owner, name, what, of):
        original = getattr(owner, name)

        @functools.wraps(original)
        def watched(*args, **kwargs):
            steps.append((what, of(args, kwargs)))
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, watched)

    watch(sampling, "self_written", "written", lambda args, _: args[2])
    watch(prepare, "collect", "collected", lambda args, _: list(args[2]))
    watch(NullSpace, "of", "projected", lambda _, kwargs: kwargs["name"])
    return steps


@pytest.mark.parametrize("from_corpus", [True, False], ids=["corpus", "self-written"])
def test_a_second_call_computes_nothing_and_returns_the_same(model, tokenizer, store, text, made, from_corpus):
    settings = {"source": text if from_corpus else None, "store": store}
    first = prepare_statistics(model, tokenizer, [1, 3], **settings)
    spaces = null_spaces_of(first, HALF, store=store)
    assert [what for what, _ in made] == (["collected"] if from_corpus else ["written", "collected"]) + [
        "projected"
    ] * 2
    made.clear()
    second = prepare_statistics(tiny("llama", vocab_size=512), tokenizer, [3, 1], **settings)
    again = null_spaces_of(second, HALF, store=Store(store.root))
    assert made == []
    assert same_covariances(second.covariances, first.covariances)
    assert second.provenance == first.provenance
    assert again.provenance == spaces.provenance
    for layer in (1, 3):
        assert again[layer].side == spaces[layer].side
        assert torch.equal(again[layer].factor, spaces[layer].factor)
        assert torch.equal(again[layer].eigenvalues, spaces[layer].eigenvalues)


def test_more_layers_cost_only_the_new_ones(model, tokenizer, store, made):
    few = prepare_statistics(model, tokenizer, [1, 3], store=store)
    more = prepare_statistics(model, tokenizer, [0, 1, 2, 3], store=store)
    assert made == [("written", 240), ("collected", [1, 3]), ("collected", [0, 2])]
    assert list(more.covariances) == [0, 1, 2, 3]
    assert same_covariances({layer: more.covariances[layer] for layer in (1, 3)}, few.covariances)


def test_the_result_is_what_collecting_and_the_dense_projection_give(model, tokenizer, store, text):
    statistics = prepare_statistics(model, tokenizer, [2, 0], source=text, tokens=300, store=store)
    windows = corpus.windows(corpus.documents(text), tokenizer, 300)
    assert same_covariances(statistics.covariances, collect(model, windows, [0, 2]))
    assert statistics.provenance["text"]["tokens"] == 300
    spaces = null_spaces_of(statistics, HALF, store=store)
    for layer, space in spaces.items():
        boundary = float(torch.linalg.eigvalsh(statistics.covariances[layer].matrix)[11:13].mean())
        expected = projection(statistics.covariances[layer].matrix, boundary)
        torch.testing.assert_close(space.dense(), expected, rtol=0, atol=1e-6)


def test_some_layers_of_statistics_are_those_layers_alone(model, tokenizer, store, text, made):
    """Their null spaces come from the store that those of all layers went to."""
    statistics = prepare_statistics(model, tokenizer, [0, 1, 3], source=text, store=store)
    spaces = null_spaces_of(statistics, HALF, store=store)
    some = statistics.of_layers([3, 1])
    assert same_covariances(some.covariances, {layer: statistics.covariances[layer] for layer in (1, 3)})
    assert some.provenance == statistics.provenance
    made.clear()
    fewer = null_spaces_of(some, HALF, store=store)
    assert made == []
    assert fewer.layers == [1, 3]
    for layer in fewer:
        assert torch.equal(fewer[layer].factor, spaces[layer].factor)
    fewer.check(model)
    with pytest.raises(KeyError):
        statistics.of_layers([2])


def test_null_spaces_belong_to_the_model_they_were_prepared_for(model, tokenizer, store, tmp_path):
    model.config._name_or_path = "acme/base"
    spaces = null_spaces_of(prepare_statistics(model, tokenizer, [1, 3], store=store), HALF, store=store)
    spaces.check(tiny("llama", vocab_size=512))
    spaces.save(tmp_path / "p.safetensors")
    type(spaces).load(tmp_path / "p.safetensors").check(model)
    assert spaces.provenance["model"] == model_name(model) == "acme/base"
    assert spaces.provenance["criterion"] == str(HALF)
    Decoder(model).out_projection(1).matrix[0, 0] += 1.0
    with pytest.raises(NullSpaceError, match="acme/base"):
        spaces.check(model)


def test_ten_tokens_for_each_dimension_are_the_default(model, tokenizer, store, text):
    for source in (text, None):
        statistics = prepare_statistics(model, tokenizer, [1], source=source, store=store)
        counted = statistics.covariances[1].count
        assert counted == statistics.provenance["text"]["tokens"]
        assert 240 <= counted < 240 + sampling.SELF_WRITTEN_WINDOW


@pytest.mark.parametrize("tokens", [24, 1, 0, -5])
def test_fewer_tokens_than_dimensions_are_refused_saying_how_many_it_takes(model, tokenizer, store, tokens):
    with pytest.raises(StatisticsError, match="240"):
        prepare_statistics(model, tokenizer, [1], tokens=tokens, store=store)


def test_a_corpus_with_fewer_tokens_than_dimensions_is_refused_too(model, tokenizer, store, tmp_path):
    (tmp_path / "short.jsonl").write_text('{"text": "The capital of France is Paris."}\n')
    with pytest.raises(AlphaEditError, match="24"):
        prepare_statistics(model, tokenizer, [1], source=tmp_path / "short.jsonl", store=store)
    assert store.entries() == []


def test_a_missing_corpus_is_an_error_before_anything_is_computed(model, tokenizer, store, made):
    with pytest.raises(CorpusError, match=r"nowhere\.txt"):
        prepare_statistics(model, tokenizer, [1], source="nowhere.txt", store=store)
    assert made == []


def test_a_cache_that_cannot_be_written_is_an_error_that_names_it(model, tokenizer, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="file"):
        prepare_statistics(model, tokenizer, [1], store=Store(tmp_path / "file"))


# ------------------------------------------------------------------------- everything that determines a result


def test_an_edit_of_the_model_makes_other_statistics(model, tokenizer, store, text, made):
    prepare_statistics(model, tokenizer, [0, 2], source=text, store=store)
    Decoder(model).out_projection(1).matrix[:, 0] += 1.0
    edited = prepare_statistics(model, tokenizer, [0, 2], source=text, store=store)
    assert made == [("collected", [0, 2]), ("collected", [2])]
    fresh = prepare_statistics(model, tokenizer, [0, 2], source=text, store=Store(store.root / "fresh"))
    assert same_covariances(edited.covariances, fresh.covariances)


def test_other_text_makes_other_statistics_under_the_same_name(model, tokenizer, store, text, made):
    first = prepare_statistics(model, tokenizer, [1], source=text, store=store)
    text.write_text(text.read_text().replace("Paris", "Rome"))
    second = prepare_statistics(model, tokenizer, [1], source=text, store=store)
    assert made == [("collected", [1])] * 2
    assert first.provenance["text"]["digest"] != second.provenance["text"]["digest"]


def test_a_tokenizer_of_the_same_size_that_works_differently_gets_text_of_its_own(
    model, tokenizer, bos_tokenizer, store
):
    assert len(tokenizer) == len(bos_tokenizer)
    prepare_statistics(model, tokenizer, [1], store=store)
    shared = prepare_statistics(model, bos_tokenizer, [1], store=store)
    alone = prepare_statistics(model, bos_tokenizer, [1], store=Store(store.root / "fresh"))
    assert shared.provenance == alone.provenance
    assert same_covariances(shared.covariances, alone.covariances)


def test_an_explicit_template_shares_the_entries_of_the_same_modules(model, tokenizer, store, made):
    prepare_statistics(model, tokenizer, [1], store=store)
    made.clear()
    prepare_statistics(model, tokenizer, [1], template="model.layers.{}.mlp.down_proj", store=store)
    assert made == []
    prepare_statistics(model, tokenizer, [1], template="model.layers.{}.self_attn.o_proj", tokens=256, store=store)
    assert ("collected", [1]) in made


def test_criteria_that_differ_in_their_last_digit_only_are_not_confused(model, tokenizer, store):
    statistics = prepare_statistics(model, tokenizer, [1], store=store)
    eigenvalues = torch.linalg.eigvalsh(statistics.covariances[1].matrix)
    below, above = float(eigenvalues[12]) * (1 - 1e-8), float(eigenvalues[12]) * (1 + 1e-8)
    nullities = [null_spaces_of(statistics, Criterion(threshold=t), store=store)[1].nullity for t in (below, above)]
    assert nullities == [12, 13]


# ---------------------------------------------------------------------------------------------- interruptions


@pytest.fixture
def interrupted(model, tokenizer, store, text, monkeypatch):
    """The preparation of layers 1 and 3, stopped in the middle with a checkpoint left in the store."""
    monkeypatch.setattr(prepare, "collect", functools.partial(collect, partial_seconds=0))
    left = [3]

    def stop(*_):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    handle = Decoder(model).block(0).register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        prepare_statistics(model, tokenizer, [1, 3], source=text, store=store, batch_tokens=60)
    handle.remove()
    assert [entry.kind for entry in store.entries()] == ["partial"]


@pytest.mark.usefixtures("interrupted")
def test_an_interrupted_preparation_goes_on_where_it_stopped(model, tokenizer, store, text):
    calls = []
    handle = model.register_forward_pre_hook(lambda *_: calls.append(1))
    resumed = prepare_statistics(model, tokenizer, [1, 3], source=text, store=store, batch_tokens=60)
    ran = len(calls)
    calls.clear()
    elsewhere = Store(store.root / "fresh")
    whole = prepare_statistics(model, tokenizer, [1, 3], source=text, store=elsewhere, batch_tokens=60)
    handle.remove()
    assert ran == len(calls) - 2
    assert same_covariances(resumed.covariances, whole.covariances)
    assert {entry.kind for entry in store.entries()} == {"covariance"}


@pytest.mark.usefixtures("interrupted")
@pytest.mark.parametrize("edited_layer", [0, 1, 2, 3])
def test_an_interrupted_preparation_is_not_continued_with_an_edited_model(model, tokenizer, store, text, edited_layer):
    Decoder(model).out_projection(edited_layer).matrix[:, 0] += 1.0
    found = prepare_statistics(model, tokenizer, [1, 3], source=text, store=store, batch_tokens=60)
    elsewhere = Store(store.root / "fresh")
    whole = prepare_statistics(model, tokenizer, [1, 3], source=text, store=elsewhere, batch_tokens=60)
    assert same_covariances(found.covariances, whole.covariances)


# -------------------------------------------------------------------------------------------------- processes


def test_two_processes_that_share_a_store_prepare_together(model, tokenizer, store, tmp_path):
    """And do not wait for each other for ever."""

    def prepared() -> tuple:
        found = prepare_statistics(model, tokenizer, [1], store=Store(tmp_path / "shared")).covariances[1]
        return found.total.numpy(), found.count

    found = results_of_two(prepared, tmp_path, patience=8)
    assert not any(isinstance(each, RuntimeError) for each in found.values()), found
    alone = prepare_statistics(model, tokenizer, [1], store=store).covariances[1]
    assert {rank: count for rank, (_, count) in found.items()} == {0: alone.count, 1: alone.count}
    for total, _ in found.values():
        torch.testing.assert_close(torch.from_numpy(total), alone.total, rtol=1e-6, atol=1e-6)


@pytest.mark.user_cache
def test_the_demo_models_own_text_ships(demo, store, monkeypatch):
    """It is found by all that determines it; with other weights the model writes its own."""
    model, tokenizer = demo
    budget = prepare.TOKENS_PER_DIMENSION * Decoder(model).out_projection(0).d_in

    def writes(*_args, **_options):
        raise AssertionError("it is written again")

    monkeypatch.setattr(prepare.sampling, "self_written", writes)
    windows = prepare.self_written(Decoder(model), tokenizer, budget, store, progress=False)
    assert sum(map(len, windows)) == budget
    assert [window[0] for window in windows] == [start[-1] for start in sampling.openings(tokenizer, len(windows))]
    row = Decoder(model).head.weight.data[0]
    before = row.clone()
    row += 1
    try:
        with pytest.raises(AssertionError, match="written again"):
            prepare.self_written(Decoder(model), tokenizer, budget, store, progress=False)
    finally:
        row.copy_(before)
