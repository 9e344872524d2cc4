"""Variants run side by side: shared work changes nothing, killed runs go on, several processes share a folder."""

from __future__ import annotations

import json
import math
import re
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.comparing import LONG, compared, facts_of, fresh, statistics_of, timeless
from support.editing import LAYERS
from support.mishaps import Interrupted, cut, flip
from support.spaces import random_covariance
from support.tiny import model_of
from support.tries import tries

from alphaedit_plugin.comparison.compare import compare
from alphaedit_plugin.comparison.course import checkpoints_of
from alphaedit_plugin.comparison.results import BEFORE, Comparison
from alphaedit_plugin.comparison.run_folder import RunFolder, identity_of, keep_spent, read_run, spent_in
from alphaedit_plugin.editors.hyperparameters import Hyperparameters
from alphaedit_plugin.editors.requests import Request
from alphaedit_plugin.editors.variant import Variant
from alphaedit_plugin.errors import AlphaEditError, CompareError, EditError, SessionError, WrongModelError
from alphaedit_plugin.evaluation.fact_scores import FactScores, score
from alphaedit_plugin.evaluation.facts import Fact
from alphaedit_plugin.evaluation.measure import Estimate, Measured
from alphaedit_plugin.evaluation.perplexity import Perplexity
from alphaedit_plugin.nullspace.projection import Criterion
from alphaedit_plugin.nullspace.statistics import Preparation
from alphaedit_plugin.session.folder import SessionFolder
from alphaedit_plugin.session.session import Session

pytestmark = pytest.mark.slow

VARIANTS = ["prune", "memit", "prune+P", "rome", "memit+P", "alphaedit", "alphaedit+prune", "rect", "rect+prune"]
VARIANTS += ["memit-seq+rect+P", "memit@layers=[0, 1]", "alphaedit@v_lr=5.0"]


@pytest.fixture(scope="module")
def together(tokenizer) -> Comparison:
    return compared(fresh(), tokenizer, VARIANTS, every=2)


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_run_together_give_the_rows_that_they_give_alone(name, together, tokenizer):
    """Whatever they share: the targets of the first batch, or all edits; and with checkpoints or without."""
    alone = compared(fresh(), tokenizer, [name])
    assert [(row.variant, row.edits) for row in alone.rows] == [(BEFORE, 0), (name, 3)]
    by_point = {(row.variant, row.edits): row for row in together.rows}
    for row in alone.rows:
        assert timeless(row) == timeless(by_point[row.variant, row.edits])
    assert alone.settings["hyperparameters"][name] == together.settings["hyperparameters"][name]


@pytest.mark.parametrize("name", ["memit", "prune+P", "rome", "alphaedit+prune"])
def test_a_checkpoint_is_the_end_of_a_shorter_run(name, together, tokenizer):
    """Before all facts are written, only those written so far are asked for."""
    shorter = compared(fresh(), tokenizer, [name], facts=2)
    _, at_two = shorter.rows
    (expected,) = (row for row in together.rows if (row.variant, row.edits) == (name, 2))
    assert timeless(at_two) == timeless(expected)
    assert len(at_two.measured["facts"].records) == 2


def test_rows_come_in_the_order_asked_for_and_differ(together):
    assert [row.variant for row in together.final] == [BEFORE, *VARIANTS] == [BEFORE, *together.variants]
    assert [row.edits for row in together.rows] == [0, *[2, 3] * len(VARIANTS)]
    assert len({row.metrics["perplexity"] for row in together.final}) == len(together.final)
    assert all(math.isfinite(row.metrics["perplexity"]) and row.drift for row in together.rows[1:])
    by_name = {row.variant: row for row in together.final}
    for name in VARIANTS:
        first, last = together.of(name)
        assert 0 < first.seconds < last.seconds
    for name in ("prune", "prune+P", "alphaedit+prune"):
        undamped = by_name[str(Variant.parse(name).trajectory)]
        assert by_name[name].mean_drift < undamped.mean_drift
        assert by_name[name].seconds >= undamped.seconds
    assert set(by_name["rome"].drift) == {1}
    for row in together.rows:  # the room that is left is known of those that keep keys
        keeps = row.variant.startswith(("alphaedit", "memit-seq"))
        assert set(row.capacity) == (set(row.drift) if keeps else set())


def test_the_rows_hold_what_is_measured_on_the_edited_model(together, tokenizer):
    """Against a session of its own."""
    model = fresh()
    session = Session(model, tokenizer, "memit", hyperparameters=LONG, covariances=statistics_of(model).covariances)
    requests = [fact.request for fact in facts_of(3)]
    before = score(model, tokenizer, facts_of(3))
    session.edit(requests[:2])
    session.edit(requests[2:])
    scores = score(model, tokenizer, facts_of(3))
    (row,) = (row for row in together.final if row.variant == "memit")
    for name, value in scores.means().items():
        assert row.metrics[name] == pytest.approx(value)
    assert row.drift == pytest.approx(session.report().drift)
    same = [
        [a == b for old, new in zip(olds, news, strict=True) for a, b in zip(old, new, strict=True)]
        for olds, news in zip(before.answers, scores.answers, strict=True)
    ]
    assert row.metrics["locality"] == pytest.approx(sum(sum(of) / len(of) for of in same) / len(same))


def test_the_settings_say_all_that_is_needed_to_repeat_a_run(together, tokenizer):
    """They survive JSON, and the hyperparameters in them give the same rows again."""
    settings_ = json.loads(json.dumps(together.settings))
    assert settings_["variants"] == VARIANTS
    assert (settings_["edits"], settings_["batch_size"], settings_["checkpoints"]) == (3, 2, [2, 3])
    assert set(settings_["null_spaces"]) == {name for name in VARIANTS if Variant.parse(name).projected}
    for described in settings_["null_spaces"].values():
        assert set(described["nullity"]) == set(described["leakage"]) <= set(settings_["spectra"])
    values = {
        name: Hyperparameters.from_mapping({k: v for k, v in written.items() if v is not None}, "x")
        for name, written in settings_["hyperparameters"].items()
    }
    again = compared(fresh(), tokenizer, ["prune", "memit"], hyperparameters=values)
    for row in again.final:
        (other,) = (row_ for row_ in together.final if row_.variant == row.variant)
        assert timeless(row) == timeless(other)


@pytest.mark.parametrize("names", [["memit", "prune"], ["prune", "memit", "rome", "alphaedit"]], ids=str)
def test_the_model_ends_as_it_began_and_every_row_is_told_of(names, tokenizer):
    model = fresh().train()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    told: list[Comparison] = []
    result = compared(model, tokenizer, names, on_row=told.append, every=2)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert all(module.training for module in model.modules())
    assert [len(comparison.rows) for comparison in told] == list(range(1, 2 * len(names) + 2))
    for comparison, longer in zip(told, [*told[1:], result], strict=True):
        assert comparison.rows[0].variant == BEFORE
        assert [row for row in longer.rows if row in comparison.rows] == comparison.rows
        assert comparison.settings["variants"] == names
    assert told[-1].rows == result.rows


@pytest.mark.parametrize("after", [1, 2])
def test_an_interrupted_comparison_leaves_the_model_as_it_was(after, tokenizer):
    """Between two variants that share their edits, too."""
    model = fresh()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}

    def interrupt(comparison: Comparison) -> None:
        if len(comparison.rows) == 1 + after:
            raise Interrupted

    with pytest.raises(Interrupted):
        compared(model, tokenizer, ["memit", "prune", "alphaedit"], on_row=interrupt)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


# ------------------------------------------------------------------------------------------------------ killed runs

RESUMED = ["memit", "prune", "rome+P", "alphaedit", "rect+P"]


@pytest.fixture(scope="module")
def uninterrupted(tokenizer) -> Comparison:
    return compared(fresh(), tokenizer, RESUMED, every=2)


@pytest.mark.parametrize("killed_at", [(1,), (2, 3), (3, 4, 5), (5, 7), (8,)], ids=str)
def test_a_run_that_was_killed_goes_on_and_repeats_nothing(killed_at, uninterrupted, tokenizer, tmp_path, monkeypatch):
    """Killed in the middle of an edit, once or several times."""
    calls, edit = [], Session.edit

    def counted(self, *args, **options):
        calls.append(self)
        if len(calls) in killed_at:
            raise Interrupted
        return edit(self, *args, **options)

    monkeypatch.setattr(Session, "edit", counted)
    for _ in killed_at:
        with pytest.raises(Interrupted):
            compared(fresh(), tokenizer, RESUMED, folder=tmp_path / "run", every=2)
    result = compared(fresh(), tokenizer, RESUMED, folder=tmp_path / "run", every=2)
    assert list(map(timeless, result.rows)) == list(map(timeless, uninterrupted.rows))
    assert len(calls) == 2 * 4 + len(killed_at)  # two batches for each of four trajectories
    assert not (tmp_path / "run" / "sessions").exists()


@pytest.mark.parametrize("killed_at", [1, 2, 3, 4, 7, 10, 15, 22])
def test_what_was_measured_before_a_kill_is_kept(killed_at, uninterrupted, tokenizer, tmp_path, monkeypatch):
    calls, edits = [], []
    for measure in (FactScores, Perplexity):

        def counted(self, *args, of=measure.__call__, **options):
            calls.append(self)
            if len(calls) == killed_at:
                raise Interrupted
            return of(self, *args, **options)

        monkeypatch.setattr(measure, "__call__", counted)
    edit = Session.edit
    monkeypatch.setattr(Session, "edit", lambda self, *a, **o: (edits.append(self), edit(self, *a, **o))[1])
    model = fresh()
    with pytest.raises(Interrupted):
        compared(model, tokenizer, RESUMED, folder=tmp_path / "run", every=2)
    result = compared(model, tokenizer, RESUMED, folder=tmp_path / "run", every=2)
    assert list(map(timeless, result.rows)) == list(map(timeless, uninterrupted.rows))
    assert len(calls) == 2 * (1 + 2 * len(RESUMED)) + 1
    assert len(edits) == 2 * 4


def test_a_folder_of_results_is_added_to_and_never_confused_with_other_settings(tokenizer, tmp_path, monkeypatch):
    model = fresh()
    first = compared(model, tokenizer, ["memit"], folder=tmp_path / "run")
    edits = []
    edit = Session.edit
    monkeypatch.setattr(
        Session, "edit", lambda self, *a, **o: (edits.append(self.variant.solver), edit(self, *a, **o))[1]
    )
    again = compared(model, tokenizer, ["memit"], folder=tmp_path / "run")
    assert again.rows == first.rows
    assert edits == []
    compared(model, tokenizer, ["alphaedit"], folder=tmp_path / "run")
    assert set(edits) == {"alphaedit"}
    (whole,) = read_run(tmp_path)
    assert [row.variant for row in whole.rows] == [BEFORE, "memit", "alphaedit"]
    other = replace(LONG, mom2_update_weight=7.0)
    changed = compared(model, tokenizer, ["memit"], folder=tmp_path / "run", hyperparameters=other)
    assert edits[-1] == "memit"
    assert changed.rows[-1].drift != first.rows[-1].drift
    (whole,) = read_run(tmp_path)
    assert [row for row in whole.rows if row.variant == "memit"] == changed.rows[1:]


def test_a_variant_is_the_same_whatever_is_compared_beside_it(tokenizer, tmp_path, monkeypatch):
    """Statistics of further layers, which another variant needs, make no edit anew."""
    model = fresh()
    few = statistics_of(model)
    few = replace(
        few.of_layers([1]), provenance={**few.provenance, "fingerprints": {"1": few.provenance["fingerprints"]["1"]}}
    )
    first = compared(model, tokenizer, ["rome"], folder=tmp_path / "run", statistics=few)
    monkeypatch.setattr(Session, "edit", lambda *_, **__: pytest.fail("edited again"))
    again = compared(model, tokenizer, ["rome"], folder=tmp_path / "run")
    assert again.rows == first.rows


def test_a_variant_is_the_same_however_model_and_text_are_called(tokenizer, tmp_path, monkeypatch):
    """./corpus or /home/me/corpus: what it says is what counts."""
    model = fresh()
    known = statistics_of(model)
    known = replace(known, provenance={**known.provenance, "text": {"tokens": 99, "digest": "d"}, "source": "./corpus"})
    first = compared(model, tokenizer, ["memit+P"], folder=tmp_path, statistics=known, settings={"data": "./facts"})
    elsewhere = {**known.provenance, "model": "/models/tiny", "source": "/home/me/corpus"}
    options = {"folder": tmp_path, "settings": {"data": "/home/me/facts"}}
    edits = []
    edit = Session.edit
    monkeypatch.setattr(Session, "edit", lambda *given, **o: edits.append(0) or edit(*given, **o))
    again = compared(model, tokenizer, ["memit+P"], statistics=replace(known, provenance=elsewhere), **options)
    assert again.rows == first.rows
    assert not edits
    other = {**elsewhere, "text": {"tokens": 99, "digest": "e"}}
    compared(model, tokenizer, ["memit+P"], statistics=replace(known, provenance=other), **options)
    assert edits


def test_one_folder_holds_one_order_of_facts_wherever_the_file_lies(tokenizer, tmp_path):
    model = fresh()
    compared(model, tokenizer, ["memit"], folder=tmp_path / "run", settings={"data": "./facts"})
    compared(model, tokenizer, ["rect"], folder=tmp_path / "run", settings={"data": "/home/me/facts"}, facts=4)
    (both,) = read_run(tmp_path)
    assert [(row.variant, row.edits) for row in both.rows] == [(BEFORE, 0), ("memit", 3), ("rect", 4)]
    # the same file, edited behind its first batch
    facts = facts_of(4)
    facts[3] = replace(facts[3], paraphrases=("They say that it is in",))
    compared(model, tokenizer, ["alphaedit"], folder=tmp_path / "run", facts=facts)
    (other,) = read_run(tmp_path)
    assert [(row.variant, row.edits) for row in other.rows] == [(BEFORE, 0), ("alphaedit", 4)]


def test_settings_that_several_processes_add_at_once_are_all_there(tmp_path):
    def add(number: int) -> None:
        name = f"memit@v_lr=0.{number + 1}"
        RunFolder(tmp_path).add_settings(
            {
                "cell": "c", "order": ["a"], "date": "today", "variants": [name], "trajectories": {name: "t"},
                "points": {BEFORE: {"0": "b"}, name: {"1": "p"}}, "measures": {}, "hyperparameters": {},
                "null_spaces": {}, "command": ["alphaedit", "compare", "--methods", name],
            }
        )  # fmt: skip

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, [*range(24), 0]))
    found = json.loads((tmp_path / "settings.json").read_text())
    assert len(found["variants"]) == 24
    assert sorted(command[-1] for command in found["commands"]) == sorted(found["variants"])


def test_covariances_of_unknown_text_are_known_by_their_numbers():
    model = fresh()
    one, again = statistics_of(model), statistics_of(model)
    other = replace(one, covariances={**one.covariances, 2: random_covariance(24, 99)})
    assert one.identity(LAYERS) == again.identity(LAYERS) != other.identity(LAYERS)
    assert one.identity([0, 1]) == other.identity([0, 1])


def test_other_measures_need_no_edits_where_the_sessions_were_kept(tokenizer, tmp_path, monkeypatch):
    model = fresh()
    first = compared(model, tokenizer, RESUMED, folder=tmp_path / "run", keep_sessions=True, measures=[FactScores()])
    monkeypatch.setattr(Session, "edit", lambda *_, **__: pytest.fail("edited again"))
    more = compared(model, tokenizer, RESUMED, folder=tmp_path / "run", keep_sessions=True, every=2)
    assert all(row.metrics.keys() >= {"perplexity", "efficacy"} for row in more.rows)
    for row in first.rows:
        (now,) = (each for each in more.rows if (each.variant, each.edits) == (row.variant, row.edits))
        assert now.measured["facts"] == row.measured["facts"]


def test_kept_sessions_go_on_to_more_facts_and_give_up_what_differs(tokenizer, tmp_path, monkeypatch):
    """Three facts in batches of two, then four: the second batch is another one."""
    model, edits = fresh(), []
    expected = compared(model, tokenizer, ["alphaedit", "rome"], facts=4)
    compared(model, tokenizer, ["alphaedit", "rome"], folder=tmp_path / "run", keep_sessions=True)
    edit = Session.edit
    monkeypatch.setattr(Session, "edit", lambda self, *a, **o: (edits.append(len(a[0])), edit(self, *a, **o))[1])
    longer = compared(model, tokenizer, ["alphaedit", "rome"], folder=tmp_path / "run", facts=4)
    assert edits == [2, 2]
    assert list(map(timeless, longer.rows)) == list(map(timeless, expected.rows))


def test_several_that_work_in_one_folder_share_the_work(uninterrupted, tokenizer, tmp_path, monkeypatch):
    """Each edit is made by one of them, and the one that waits returns everything."""
    edits, edit, failures = [], Session.edit, []
    monkeypatch.setattr(Session, "edit", lambda self, *a, **o: (edits.append(self), edit(self, *a, **o))[1])

    def work() -> None:
        try:
            compared(fresh(), tokenizer, RESUMED, folder=tmp_path / "run", every=2, wait=False)
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    result = compared(fresh(), tokenizer, RESUMED, folder=tmp_path / "run", every=2)
    for thread in threads:
        thread.join()
    assert failures == []
    assert list(map(timeless, result.rows)) == list(map(timeless, uninterrupted.rows))
    assert len(edits) == 2 * 4


FILES = [
    "settings.json",
    "before/0/facts.json",
    "before/0/facts.jsonl",
    "before/0/weights.json",
    "memit/2/perplexity.jsonl",
    "memit/3/facts.json",
    "memit/3/weights.json",
]


@pytest.fixture(scope="module")
def measured(tokenizer, tmp_path_factory) -> tuple[Path, Comparison]:
    """(a finished run, what it found)."""
    folder = tmp_path_factory.mktemp("measured")
    return folder, compared(fresh(), tokenizer, ["memit", "rome"], folder=folder / "run", every=2)


@pytest.fixture
def another(measured, tmp_path) -> Path:
    """A copy of the finished run, to be damaged."""
    return Path(shutil.copytree(measured[0], tmp_path / "copy"))


def swapped(path: Path) -> None:
    """Put the file of another variant in the place of this one."""
    path.write_bytes((path.parents[2] / "rome" / path.parent.name / path.name).read_bytes())


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", ["{", "[1, ", "\x00", "[" * 100_000, '{"identity": 3}', "[]"], ids=range(6))
def test_a_damaged_file_is_named_and_what_it_held_is_measured_again(
    name, content, measured, another, tokenizer, caplog
):
    (another / "run" / name).write_text(content)
    result = compared(fresh(), tokenizer, ["memit", "rome"], folder=another / "run", every=2)
    assert str(another / "run" / name) in caplog.text
    assert list(map(timeless, result.rows)) == list(map(timeless, measured[1].rows))
    caplog.clear()
    assert list(map(timeless, read_run(another)[0].rows)) == list(map(timeless, measured[1].rows))
    assert caplog.text == ""  # it is whole again


@pytest.mark.parametrize("name", FILES[1:])
def test_a_report_of_a_damaged_run_names_the_file_and_leaves_out_what_it_held(name, measured, another, caplog):
    cut(another / "run" / name)
    (found,) = read_run(another)
    assert str(another / "run" / name) in caplog.text
    variant, edits = name.split("/")[:2]
    for row in measured[1].rows:
        kept = [each for each in found.rows if (each.variant, each.edits) == (row.variant, row.edits)]
        if (row.variant, str(row.edits)) != (variant, edits):
            assert kept == [row]
        else:
            assert not kept if name.endswith("weights.json") else kept[0].measured.keys() < row.measured.keys()


def test_a_report_without_readable_settings_is_an_error_that_names_them(another):
    cut(another / "run" / "settings.json")
    with pytest.raises(CompareError, match=re.escape(str(another / "run" / "settings.json"))):
        read_run(another)


@pytest.mark.parametrize("name", ["memit/3/facts.json", "memit/3/facts.jsonl", "memit/3/weights.json"])
def test_a_file_of_another_variant_is_not_believed(name, measured, another):
    swapped(another / "run" / name)
    (found,) = read_run(another)
    whole = {(row.variant, row.edits): row for row in measured[1].rows}
    for row in found.rows:
        expected = whole[row.variant, row.edits]
        assert (row.seconds, row.drift, row.leakage) == (expected.seconds, expected.drift, expected.leakage)
        assert row.measured.items() <= expected.measured.items()
    assert found.rows != measured[1].rows


def test_no_flipped_bit_of_a_run_is_reported_as_measured(measured, another, caplog):
    """Every row that is still there is the row that was measured, and what is missing is named."""
    random, whole = Random(0), {(row.variant, row.edits): row for row in measured[1].rows}
    paths = [path for path in sorted((another / "run").rglob("*.json*")) if path.suffix in (".json", ".jsonl")]
    for path in random.choices(paths, k=300):
        content = path.read_bytes()
        flip(path, random.randrange(len(content)), 1 << random.randrange(8))
        caplog.clear()
        try:
            (found,) = read_run(another)
        except CompareError as error:
            named = path.name == "settings.json" and str(path) in str(error)
            assert named
        else:
            for row in found.rows:
                expected = whole[row.variant, row.edits]
                assert row.measured.items() <= expected.measured.items()
                assert replace(row, measured={}) == replace(expected, measured={})
            lost = len(found.rows) < len(whole) or any(len(row.measured) < 2 for row in found.rows)
            assert not lost or str(path) in caplog.text
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("memit/3/weights.json", "seconds", float("nan")),
        ("memit/3/weights.json", "seconds", -1.0),
        ("memit/3/weights.json", "drift", {"x": 0.1}),
        ("memit/3/weights.json", "leakage", {"1": "0.1"}),
        ("memit/3/weights.json", "identity", "no hexadecimal"),
        ("memit/3/facts.json", "estimates", {"efficacy": [1.0, 1.0]}),
        ("memit/3/facts.json", "estimates", {"efficacy": [None, 1.0, 1.0]}),
        ("memit/3/facts.json", "tensors", "yes"),
        ("memit/3/facts.json", "identity", None),
        ("settings.json", "points", {"memit": {"three": "a"}}),
        ("settings.json", "variants", "memit"),
    ],
)
def test_without_a_checksum_types_and_ranges_decide(name, key, value, measured, another, caplog, tokenizer):
    """As in folders of 0.1.0."""
    path = another / "run" / name
    values = json.loads(path.read_text(encoding="utf-8"))
    del values["sha256"]
    path.write_text(json.dumps(values), encoding="utf-8")
    assert read_run(another)[0].rows == measured[1].rows
    path.write_text(json.dumps({**values, key: value}), encoding="utf-8")
    result = compared(fresh(), tokenizer, ["memit", "rome"], folder=another / "run", every=2)
    assert str(path) in caplog.text
    assert list(map(timeless, result.rows)) == list(map(timeless, measured[1].rows))


@pytest.mark.parametrize("damage", [cut, flip, lambda path: path.write_text("{}")])
def test_damaged_seconds_of_a_session_count_as_unknown(damage, tmp_path):
    keep_spent(tmp_path, [1.5, 2.5])
    assert spent_in(tmp_path) == [1.5, 2.5]
    damage(tmp_path / "seconds.json")
    assert spent_in(tmp_path) in ([], [1.5, 2.5])
    (tmp_path / "seconds.json").write_text("[1.5, 3]")  # as 0.1.0 wrote them
    assert spent_in(tmp_path) == [1.5, 3.0]


def test_a_session_killed_after_its_last_measurement_leaves_nothing(tokenizer, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "finished", lambda *_: (_ for _ in ()).throw(Interrupted))
        with pytest.raises(Interrupted):
            compared(fresh(), tokenizer, ["memit"], folder=tmp_path / "run")
    assert list((tmp_path / "run" / "sessions").iterdir())
    compared(fresh(), tokenizer, ["memit"], folder=tmp_path / "run")
    assert not (tmp_path / "run" / "sessions").exists()


def test_a_session_that_was_to_be_kept_is_kept_whatever_runs_later(tokenizer, tmp_path):
    compared(fresh(), tokenizer, ["memit"], folder=tmp_path / "run", keep_sessions=True)
    (kept,) = (tmp_path / "run" / "sessions").iterdir()
    compared(fresh(), tokenizer, ["memit", "rome"], folder=tmp_path / "run")
    assert list((tmp_path / "run" / "sessions").iterdir()) == [kept]


def test_a_measured_run_leaves_the_session_of_a_longer_one_alone(tokenizer, tmp_path, monkeypatch):
    """Two facts are measured; four were begun and killed before their first measurement; then the two once more."""
    compared(fresh(), tokenizer, ["memit"], folder=tmp_path / "run", facts=2)
    with monkeypatch.context() as patch:
        patch.setattr(Session, "at", lambda *_, **__: (_ for _ in ()).throw(Interrupted))
        with pytest.raises(Interrupted):
            compared(fresh(), tokenizer, ["memit"], folder=tmp_path / "run", facts=4)
    compared(fresh(), tokenizer, ["memit"], folder=tmp_path / "run", facts=2)
    monkeypatch.setattr(Session, "edit", lambda *_, **__: pytest.fail("edited again"))
    compared(fresh(), tokenizer, ["memit"], folder=tmp_path / "run", facts=4)
    assert not (tmp_path / "run" / "sessions").exists()


@pytest.mark.parametrize("error", ["full", "damaged"])
def test_only_a_damaged_session_is_made_anew(error, tokenizer, tmp_path, monkeypatch, caplog):
    expected = compared(fresh(), tokenizer, ["memit"], folder=tmp_path / "run", facts=4, keep_sessions=True)
    (kept,) = (tmp_path / "run" / "sessions").iterdir()
    shutil.rmtree(tmp_path / "run" / "memit")
    before = (kept / "session.json").read_bytes()
    if error == "full":
        said = f"cannot write {kept}: No space left on device"
        monkeypatch.setattr(SessionFolder, "claim", lambda *_: (_ for _ in ()).throw(SessionError(said)))
        with pytest.raises(SessionError, match="No space left"):
            compared(fresh(), tokenizer, ["memit"], folder=tmp_path / "run", facts=4)
        assert (kept / "session.json").read_bytes() == before
        return
    (kept / "session.json").write_bytes(before[:-100])
    again = compared(fresh(), tokenizer, ["memit"], folder=tmp_path / "run", facts=4)
    assert "made anew" in caplog.text
    assert [timeless(row) for row in again.rows] == [timeless(row) for row in expected.rows]


def test_who_has_a_kept_session_open_costs_its_row_alone(tokenizer, tmp_path):
    compared(fresh(), tokenizer, ["memit", "rome"], folder=tmp_path / "run", facts=2, keep_sessions=True)
    open_ = next(path for path in (tmp_path / "run" / "sessions").iterdir() if path.name.startswith("memit"))
    with Session.resume(open_, fresh(), tokenizer):
        result = compared(fresh(), tokenizer, ["memit", "rome"], folder=tmp_path / "run", facts=4)
    assert "in use" in result.failed["memit"]
    assert {row.variant for row in result.final} == {BEFORE, "rome"}


def test_a_method_that_fails_is_said_to_have_failed_and_the_others_are_compared(tokenizer, tmp_path, monkeypatch):
    edit = Session.edit

    def failing(self, *args, **options):
        if str(self.variant) == "rome" and len(self.batches) == 1:
            raise EditError("a weight is not finite")
        return edit(self, *args, **options)

    monkeypatch.setattr(Session, "edit", failing)
    result = compared(fresh(), tokenizer, ["rome", "memit"], folder=tmp_path / "run", every=2)
    for each in (result, *read_run(tmp_path)):
        assert [(row.variant, row.edits) for row in each.final] == [(BEFORE, 0), ("memit", 3)]
        assert each.failed == {"rome": "a weight is not finite"}


def test_what_is_no_run_is_an_error_that_names_the_folder(tmp_path):
    with pytest.raises(CompareError, match=str(tmp_path)):
        read_run(tmp_path)


_numbers = st.floats(allow_nan=False, allow_infinity=True)


@tries(50)
@given(
    estimates=st.dictionaries(st.text(), st.builds(Estimate, _numbers, st.none() | _numbers, st.none() | _numbers)),
    records=st.lists(st.dictionaries(st.text(), st.none() | st.integers() | st.text() | st.booleans())),
    variant=st.text(min_size=1, max_size=30),
)
def test_what_was_measured_reads_back_as_it_was_saved(estimates, records, variant, tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    tensors = {"hidden": torch.arange(6.0).reshape(2, 3)}
    identity = identity_of("what decides it")
    RunFolder(path).save(variant, 7, "m", identity, Measured(estimates, records, tensors))
    found = RunFolder(path).load(variant, 7, "m", identity)
    assert found is not None
    assert (found.estimates, found.records) == (estimates, records)
    assert torch.equal(found.tensors["hidden"], tensors["hidden"])
    assert RunFolder(path).load(variant, 7, "m", "other") is None
    assert RunFolder(path).load(variant + "x", 7, "m", identity) is None


# ---------------------------------------------------------------------------------------------------------- the rest


@tries(200)
@given(count=st.integers(1, 60), batch=st.integers(1, 20), every=st.none() | st.integers(1, 70), data=st.data())
def test_checkpoints_are_ends_of_batches_and_the_last_is_the_end(count, batch, every, data):
    requests = [data.draw(st.integers(1, 3)) for _ in range(count)]
    facts = [Fact((Request("{} is", "a", "b"),) * number) for number in requests]
    found = checkpoints_of(facts, batch, every)
    assert found[-1].facts == count
    assert [at.facts for at in found] == sorted({at.facts for at in found})
    for at in found:
        assert at.facts == min(at.batches * batch, count)
        assert at.edits == sum(requests[: at.facts])
    for wanted in range(every or count, count, every or count):
        assert any(wanted <= at.facts < wanted + batch for at in found)


def test_a_variant_named_twice_is_run_once(tokenizer):
    result = compared(fresh(), tokenizer, ["memit+rect", "rect", "RECT"])
    assert [row.variant for row in result.rows] == [BEFORE, "rect"]


def test_hyperparameters_and_statistics_may_be_one_for_all_or_each_its_own(tokenizer):
    model = fresh()
    one = compared(model, tokenizer, ["memit", "alphaedit"], hyperparameters=LONG)
    each = compared(model, tokenizer, ["memit", "alphaedit"])
    assert list(map(timeless, one.rows)) == list(map(timeless, each.rows))
    other = replace(statistics_of(model), covariances={layer: random_covariance(24, layer + 9) for layer in LAYERS})
    mixed = compared(
        model, tokenizer, ["memit", "alphaedit"], statistics={"memit": statistics_of(model), "alphaedit": other}
    )
    assert timeless(mixed.rows[1]) == timeless(one.rows[1])
    assert mixed.rows[2].drift != one.rows[2].drift


def test_changes_in_a_variants_name_reach_its_run(tokenizer):
    names = ["memit", "memit@mom2_update_weight=1000", "memit@layers=[1, 2]"]
    result = compared(fresh(), tokenizer, names, hyperparameters=LONG)
    _, plain, careful, two = result.rows
    assert careful.mean_drift < plain.mean_drift
    assert set(plain.drift) == {0, 1, 2}
    assert set(two.drift) == {1, 2}


def test_statistics_of_another_model_are_refused_before_anything_is_edited(tokenizer):
    model = fresh()
    told: list[Comparison] = []
    with pytest.raises(WrongModelError):
        compared(
            model,
            tokenizer,
            ["memit", "memit+P"],
            statistics=statistics_of(model_of(dtype=torch.float32, seed=1)),
            on_row=told.append,
        )
    assert told == []
    with pytest.raises(AlphaEditError):
        Perplexity("", tokenizer)


def test_what_a_methods_own_name_says_goes_before_the_preparations_criterion(tokenizer):
    """`--threshold` is for all methods that say nothing themselves."""
    model = fresh()
    names = ["memit+P", "memit@null_space={nullity: 7}+P", "alphaedit@null_space={nullity: 8}"]
    options = {"batch_size": 3, "measures": [FactScores()], "hyperparameters": LONG, "statistics": statistics_of(model)}
    preparation = Preparation(criterion=Criterion(nullity=5))
    found = compare(model, tokenizer, facts_of(1), names, preparation=preparation, **options)
    nullities = [set(of["nullity"].values()) for of in found.settings["null_spaces"].values()]
    assert nullities == [{5}, {7}, {8}]
    for name, nullity in zip(found.settings["null_spaces"], (5, 7, 8), strict=True):
        assert found.settings["hyperparameters"][name]["null_space"] == {"nullity": nullity}


def test_hyperparameters_that_lack_a_contender_are_an_error_that_names_it(tokenizer):
    with pytest.raises(AlphaEditError, match="no hyperparameters of rome"):
        compared(fresh(), tokenizer, ["memit", "rome"], hyperparameters={"memit": LONG})
