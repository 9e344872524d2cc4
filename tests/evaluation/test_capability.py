"""General capability against direct counting, and lm-evaluation-harness on a live model."""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import oracle
from support.data_files import write_records
from support.paths import SHARED
from support.tiny import tiny
from support.tries import tries

from alphaedit_plugin.errors import AlphaEditError, RequestError
from alphaedit_plugin.evaluation import capability
from alphaedit_plugin.evaluation.capability import Capability, weighted_f1
from alphaedit_plugin.evaluation.harness import Harness, HarnessError
from alphaedit_plugin.evaluation.metrics import METRICS
from alphaedit_plugin.evaluation.tasks import TASKS, balanced, load_examples

GLUE = SHARED / "glue"
ONE = {"sentence": "the river {flows} to the sea .", "label": 1, "idx": 7}
TWO = {"sentence1": "The king came home.", "sentence2": "The king is home.", "label": 0, "idx": 7}
RECORDS = {
    "sst2": ONE,
    "mrpc": TWO,
    "cola": ONE,
    "rte": TWO,
    "mmlu": {"question": "Where is the sea?", "subject": "x", "choices": ["here", "there", "no", "so"], "answer": 2},
    "nli": {**TWO, "label": "not_entailment"},
}
NAMES = ("sst", "mrpc", "cola", "rte", "mmlu", "nli")


def _folder(tmp_path: Path, *, each: int = 6) -> Path:
    """Every task with `each` records, their labels in turn."""
    for stem, record in RECORDS.items():
        field, names = ("answer", range(4)) if stem == "mmlu" else ("label", range(2))
        names = ("entailment", "not_entailment") if stem == "nli" else names
        text = "question" if stem == "mmlu" else "sentence" if "sentence" in record else "sentence1"
        records = [
            {**record, field: names[i % len(names)], text: f"{record[text]} And {i} ships."} for i in range(each)
        ]
        write_records(tmp_path / f"{stem}.json", records)
    return tmp_path


def _one_file(tmp_path: Path, stem: str, *records: object) -> Path:
    return write_records(tmp_path / f"{stem}.json", records)


# ----------------------------------------------------------------------------------------------------------- F1


def _slow_f1(pairs: list[tuple[int, int]]) -> float:
    """Precision and recall of each right label, counted one by one."""
    total = 0.0
    for label in {gold for gold, _ in pairs}:
        right = sum(gold == said == label for gold, said in pairs)
        gold_count = sum(gold == label for gold, _ in pairs)
        said_count = sum(said == label for _, said in pairs)
        precision = right / said_count if said_count else 0.0
        recall = right / gold_count
        f1 = 2 * precision * recall / (precision + recall) if right else 0.0
        total += f1 * gold_count / len(pairs)
    return total


answers = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30)


@tries(50)
@given(answers)
def test_f1_is_that_of_direct_counting(pairs):
    assert float(weighted_f1(np.array(pairs))) == pytest.approx(_slow_f1(pairs))


@tries(25)
@given(answers)
def test_f1_is_scikit_learns(pairs):
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    gold, said = zip(*pairs, strict=True)
    expected = metrics.f1_score(gold, said, average="weighted", zero_division=0)
    assert float(weighted_f1(np.array(pairs))) == pytest.approx(expected)


@tries(25)
@given(answers, st.integers(0, 1000))
def test_f1_of_many_samples_is_that_of_each(pairs, seed):
    items = np.array(pairs)
    chosen = np.random.default_rng(seed).integers(0, len(items), (5, len(items)))
    expected = [_slow_f1([tuple(pair) for pair in sample]) for sample in items[chosen].tolist()]
    assert weighted_f1(items[chosen]) == pytest.approx(expected)


# -------------------------------------------------------------------------------------------------------- tasks


def test_the_tasks_are_those_that_metrics_name():
    assert tuple(task.name for task in TASKS) == NAMES
    assert set(NAMES) == {metric.name for metric in METRICS.values() if metric.group == "capability"}


@pytest.mark.parametrize("stem", RECORDS)
def test_a_record_becomes_a_prompt_that_holds_its_texts(tmp_path, stem):
    task, (example,) = load_examples(_one_file(tmp_path, stem, RECORDS[stem]), None)
    assert stem.startswith(task.name)
    for field in ("sentence", "sentence1", "sentence2", "question"):
        assert RECORDS[stem].get(field, "") in example.prompt
    assert all(choice in example.prompt for choice in RECORDS[stem].get("choices", ()))
    assert example.prompt == example.prompt.strip()
    assert example.index == 0
    said = {"sst2": "positive", "mrpc": "No", "cola": "Yes", "rte": "Yes", "mmlu": "C", "nli": "No"}
    assert example.answers[example.gold] == said[stem]


@pytest.mark.parametrize(
    ("stem", "field", "value"),
    [
        ("sst2", "sentence", None),
        ("sst2", "sentence", " "),
        ("sst2", "label", 2),
        ("sst2", "label", -1),
        ("cola", "label", True),
        ("cola", "label", "1"),
        ("cola", "label", 1.0),
        ("mrpc", "sentence2", ["a"]),
        ("rte", "label", None),
        ("nli", "label", "neutral"),
        ("mmlu", "choices", "abcd"),
        ("mmlu", "choices", ["one"]),
        ("mmlu", "choices", ["one", 2]),
        ("mmlu", "answer", 4),
        ("mmlu", "question", ""),
    ],
)
def test_a_bad_field_is_reported_with_file_record_and_field(tmp_path, stem, field, value):
    path = _one_file(tmp_path, stem, RECORDS[stem], {**RECORDS[stem], field: value})
    with pytest.raises(RequestError) as caught:
        Capability.from_files([path], limit=1)
    for part in (str(path), "record 1", field):
        assert part in str(caught.value)


@pytest.mark.parametrize("content", ["", "{", "{}", "[]", '"text"', "[3]"])
def test_a_file_without_examples_is_reported_by_name(tmp_path, content):
    (tmp_path / "rte.json").write_text(content, encoding="utf-8")
    with pytest.raises(RequestError, match=r"rte\.json"):
        Capability.from_folder(tmp_path)


def test_files_that_fit_no_task_or_two_fit_one_are_reported(tmp_path):
    with pytest.raises(RequestError, match=r"rte\*\.json"):
        Capability.from_folder(tmp_path)
    with pytest.raises(RequestError, match="qnli"):
        Capability.from_files([_one_file(tmp_path, "qnli", TWO)])
    twice = [_one_file(tmp_path, "rte", TWO), _one_file(tmp_path, "rte_dev", TWO)]
    with pytest.raises(RequestError, match="rte_dev"):
        Capability.from_files(twice)
    with pytest.raises(RequestError, match="at least one"):
        Capability.from_files(twice[:1], limit=0)


def test_lines_of_json_are_read_as_a_list_is(tmp_path):
    write_records(tmp_path / "rte.jsonl", [TWO, TWO])
    assert [example.index for example in Capability.from_folder(tmp_path).examples["rte"]] == [0, 1]


def test_a_line_that_is_not_json_is_named_and_a_byte_order_mark_is_none_of_the_text(tmp_path):
    path = tmp_path / "rte.jsonl"
    path.write_text(f"{json.dumps(TWO)}\n{json.dumps(TWO)}", encoding="utf-8-sig")
    assert len(Capability.from_folder(tmp_path).examples["rte"]) == 2
    path.write_text(f"{json.dumps(TWO)}\n{json.dumps(TWO)[:-1]}", encoding="utf-8")
    with pytest.raises(RequestError, match=r"rte\.jsonl, record 1 is not JSON"):
        Capability.from_folder(tmp_path)


@tries(50)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.integers(1, 20))
def test_chosen_examples_are_the_first_of_each_label_and_even(labels, limit):
    examples = [SimpleNamespace(gold=label, index=index) for index, label in enumerate(labels)]
    chosen = balanced(examples, limit)
    assert [each.index for each in chosen] == sorted(each.index for each in chosen)
    counts, available = Counter(each.gold for each in chosen), Counter(labels)
    assert sum(counts.values()) <= limit
    for label, count in available.items():
        first = [index for index, other in enumerate(labels) if other == label][: counts[label]]
        assert [each.index for each in chosen if each.gold == label] == first
        assert counts[label] == count or counts[label] >= max(counts.values()) - 1
    if min(available.values()) * len(available) >= limit + len(available):
        assert sum(counts.values()) == limit
    assert balanced(examples, None) == examples


# ------------------------------------------------------------------------------------------------------ measure


@pytest.fixture
def measure(tmp_path) -> Capability:
    return Capability.from_folder(_folder(tmp_path))


def test_the_model_says_the_answer_that_it_finds_likelier(measure, tokenizer):
    model = tiny("llama", vocab_size=512, dtype=torch.float64)
    measured = measure(model, tokenizer)
    assert set(measured.estimates) == set(NAMES)
    records = iter(measured.records)
    for task, examples in measure.examples.items():
        pairs = []
        for example in examples:
            likelihood = [oracle.success(model, tokenizer, example.prompt, a, a)[0] for a in example.answers]
            best = max(range(len(likelihood)), key=likelihood.__getitem__)
            assert next(records) == {
                "task": task,
                "index": example.index,
                "gold": example.answers[example.gold],
                "said": example.answers[best],
                "right": best == example.gold,
            }
            pairs.append((example.gold, best))
        estimate = measured.estimates[task]
        assert estimate.value == pytest.approx(_slow_f1(pairs))
        assert 0 <= estimate.low <= estimate.value + 1e-9
        assert estimate.high <= 1
    assert next(records, None) is None
    assert json.loads(json.dumps(measured.records)) == measured.records


def test_examples_keep_their_answers_whatever_their_order(measure, tokenizer):
    model = tiny("llama", vocab_size=512, dtype=torch.float64)
    turned = Capability({task: examples[::-1] for task, examples in reversed(measure.examples.items())})
    one, other = measure(model, tokenizer), turned(model, tokenizer)
    assert one.records == sorted(other.records, key=lambda r: (list(measure.examples).index(r["task"]), r["index"]))
    for task in NAMES:
        assert one.estimates[task].value == pytest.approx(other.estimates[task].value)
        alone = Capability({task: measure.examples[task]})(model, tokenizer)
        assert alone.estimates[task] == one.estimates[task]
    assert measure.identity() != turned.identity()


def test_a_model_that_always_says_the_same_has_the_f1_of_chance(tmp_path, monkeypatch):
    """One of two labels: F1 2/3 of that and 0 of the other; one of four: 2/5 and 0."""
    monkeypatch.setattr(
        capability,
        "score_pairs",
        lambda _model, _tokenizer, pairs, **_: SimpleNamespace(
            mean_log_probability=torch.tensor([float(answer in ("positive", "Yes", "B")) for _, answer in pairs])
        ),
    )
    measured = Capability.from_folder(_folder(tmp_path, each=8))(None, None)
    for task in NAMES:
        assert measured.estimates[task].value == pytest.approx(0.1 if task == "mmlu" else 1 / 3)


def test_measuring_leaves_model_and_random_states_as_they_were(measure, tokenizer):
    model = tiny("llama", vocab_size=512).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    states = random.getstate(), torch.get_rng_state()
    assert measure(model, tokenizer) == measure(model, tokenizer)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])


def test_the_identity_changes_with_what_is_asked(measure, tmp_path):
    assert Capability.from_folder(tmp_path).identity() == measure.identity()
    assert Capability.from_folder(tmp_path, limit=2).identity() != measure.identity()
    example = measure.examples["sst"][0]
    changed = {**measure.examples, "sst": [replace(example, gold=1 - example.gold), *measure.examples["sst"][1:]]}
    assert Capability(changed).identity() != measure.identity()


@pytest.mark.skipif(not GLUE.is_dir(), reason="../shared/data/glue is not there")
def test_the_papers_files_give_a_hundred_examples_of_each_task():
    examples = Capability.from_folder(GLUE).examples
    assert tuple(examples) == NAMES
    for task, chosen in examples.items():
        counts = Counter(example.gold for example in chosen)
        assert counts == dict.fromkeys(range(4), 25) if task == "mmlu" else dict.fromkeys(range(2), 50)


# ------------------------------------------------------------------------------------------------------ harness


def _own_task(folder: Path) -> Path:
    rivers = [{"q": f"The river {i} flows to the", "c": ["sea", "old town", "king"], "a": i % 3} for i in range(9)]
    (folder / "data.json").write_text(json.dumps(rivers), encoding="utf-8")
    settings = {
        "task": "own_rivers",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "data.json")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}",
        "doc_to_choice": "c",
        "doc_to_target": "a",
        "metric_list": [{"metric": "acc"}],
    }
    (folder / "own.yaml").write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML
    return folder


def test_the_real_harness_measures_a_live_model_and_leaves_it_as_it_was(tmp_path, tokenizer, monkeypatch):
    pytest.importorskip("lm_eval", reason="lm_eval (alphaedit-plugin[harness]) is not installed")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    model = tiny("llama", vocab_size=512).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    measure = Harness(["own_rivers"], include_path=_own_task(tmp_path))
    measured = measure(model, tokenizer)
    expected = []
    for record in json.loads((tmp_path / "data.json").read_text()):
        # lm_eval compares the answers' summed log-probabilities
        sums = [
            oracle.success(model.eval(), tokenizer, record["q"], choice, choice)[0]
            * len(oracle.target_ids(tokenizer, record["q"], choice))
            for choice in record["c"]
        ]
        expected.append(float(sums.index(max(sums)) == record["a"]))
    estimate = measured.estimates["lm_eval:own_rivers"]
    assert [record["value"] for record in measured.records] == expected
    assert estimate.value == pytest.approx(sum(expected) / len(expected))
    error = np.std(expected, ddof=1) / len(expected) ** 0.5
    assert (estimate.low, estimate.high) == pytest.approx(
        (estimate.value - 1.96 * error, estimate.value + 1.96 * error)
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])
    with pytest.raises(HarnessError, match="own_rivers"):
        Harness(["own_river"], include_path=tmp_path)


def _stand_in(monkeypatch, results, samples=None) -> list[dict]:
    """What Harness uses of lm_eval, giving `results`; returns the arguments of its calls."""
    calls: list[dict] = []

    def simple_evaluate(**arguments):
        calls.append(arguments)
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        torch.manual_seed(0)
        if isinstance(results, Exception):
            raise results
        return {"results": results, "samples": samples or {}}

    module, models, tasks = ModuleType("lm_eval"), ModuleType("lm_eval.models"), ModuleType("lm_eval.tasks")
    huggingface = ModuleType("lm_eval.models.huggingface")
    huggingface.HFLM = lambda **arguments: SimpleNamespace(**arguments)
    tasks.TaskManager = lambda include_path: SimpleNamespace(all_tasks=["rivers", "seas"])
    module.__version__, module.simple_evaluate = "0", simple_evaluate
    module.tasks, module.models, models.huggingface = tasks, models, huggingface
    for each in (module, models, tasks, huggingface):
        monkeypatch.setitem(sys.modules, each.__name__, each)
    return calls


@pytest.mark.parametrize(
    ("metrics", "value", "half"),
    [
        ({"acc,none": 0.5, "acc_stderr,none": 0.1, "acc_norm,none": 0.6, "acc_norm_stderr,none": 0.2}, 0.6, 0.392),
        ({"acc,none": 0.5, "acc_stderr,none": "N/A", "f1,none": 0.9}, 0.5, None),
        ({"exact_match,strict": 0.25, "exact_match_stderr,strict": 0.05, "exact_match,flexible": 0.9}, 0.25, 0.098),
        ({"acc,none": float("nan"), "f1,none": 0.75}, 0.75, None),
    ],
)
def test_a_tasks_main_metric_is_taken_with_its_error(monkeypatch, metrics, value, half):
    calls = _stand_in(monkeypatch, {"rivers": metrics})
    measured = Harness(["rivers"], limit=3)(tiny("llama"), SimpleNamespace())
    (estimate,) = measured.estimates.values()
    assert estimate.value == value
    bounds = (None, None) if half is None else (pytest.approx(value - half), pytest.approx(value + half))
    assert (estimate.low, estimate.high) == bounds
    assert calls[0]["limit"] == 3


def test_a_group_without_a_number_has_those_of_its_members(monkeypatch):
    samples = {"a": [{"doc_id": 4, "acc": 1.0, "filter": "none"}], "b": [{"doc_id": 0, "acc": 0.0, "filter": "none"}]}
    _stand_in(monkeypatch, {"seas": {"acc,none": " "}, "a": {"acc,none": 1.0}, "b": {"acc,none": 0.0}}, samples)
    measured = Harness(["seas"])(tiny("llama"), SimpleNamespace())
    assert {name: each.value for name, each in measured.estimates.items()} == {"lm_eval:a": 1.0, "lm_eval:b": 0.0}
    assert measured.records[0] == {"task": "lm_eval:a", "index": 4, "value": 1.0}


def test_a_group_with_a_number_has_its_members_examples(monkeypatch):
    samples = {"a": [{"doc_id": 4, "acc": 1.0, "filter": "none"}], "b": [{"doc_id": 4, "acc": 0.0, "filter": "none"}]}
    _stand_in(monkeypatch, {"seas": {"acc,none": 0.5}, "a": {"acc,none": 1.0}, "b": {"acc,none": 0.0}}, samples)
    measured = Harness(["seas"])(tiny("llama"), SimpleNamespace())
    assert {name: each.value for name, each in measured.estimates.items()} == {"lm_eval:seas": 0.5}
    assert [tuple(record.values()) for record in measured.records] == [("lm_eval:a", 4, 1.0), ("lm_eval:b", 4, 0.0)]


def test_random_states_are_put_back_even_after_a_failure(monkeypatch):
    _stand_in(monkeypatch, ConnectionError("offline"))
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    with pytest.raises(HarnessError, match=r"rivers.*offline"):
        Harness(["rivers"])(tiny("llama"), SimpleNamespace())
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])


def test_unknown_tasks_unknown_metrics_and_a_missing_library_are_named(monkeypatch):
    _stand_in(monkeypatch, {"rivers": {"word_perplexity,none": 12.0}})
    with pytest.raises(HarnessError, match="did you mean rivers"):
        Harness(["river"])
    with pytest.raises(HarnessError, match=r"'rivers' has none of .*word_perplexity"):
        Harness(["rivers"])(tiny("llama"), SimpleNamespace())
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(AlphaEditError, match=r"alphaedit-plugin\[harness\]"):
        Harness(["rivers"])


def test_own_task_files_are_part_of_the_identity(monkeypatch, tmp_path):
    _stand_in(monkeypatch, {})
    identity = Harness(["rivers"], include_path=_own_task(tmp_path)).identity()
    assert json.loads(json.dumps(identity)) == identity == Harness(["rivers"], include_path=tmp_path).identity()
    for name in ("own.yaml", "utils.py", "data.json"):
        before = Harness(["rivers"], include_path=tmp_path).identity()
        (tmp_path / name).write_text("task: other", encoding="utf-8")
        assert Harness(["rivers"], include_path=tmp_path).identity() != before
