"""The command line, on a tiny model in a folder: what it writes is right, what goes wrong is one line."""

from __future__ import annotations

import copy
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from support.command_line import FACTS, SMALL, assert_one_line
from support.judging import judging
from support.sessions import assert_same_session
from support.tiny import tiny
from support.weights import assert_same, differ, everything
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import enable_progress_bar

from alphaedit_plugin.cli.loading import whole_name
from alphaedit_plugin.comparison.studies import REGULARISATIONS, SHARES
from alphaedit_plugin.editors.hyperparameters import Hyperparameters
from alphaedit_plugin.editors.requests import parse_requests
from alphaedit_plugin.editors.update import Write
from alphaedit_plugin.model import DEMO_MODEL
from alphaedit_plugin.nullspace.covariance import Covariance
from alphaedit_plugin.nullspace.null_spaces import NullSpaces
from alphaedit_plugin.session.folder import SessionFolder
from alphaedit_plugin.session.patch import apply_patch
from alphaedit_plugin.session.session import Session

pytestmark = pytest.mark.slow

# ------------------------------------------------------------------------------------------------------ commands


def test_prepare_writes_null_spaces_that_belong_to_the_model_and_statistics_that_easyedit_finds(
    run, checkpoint, tmp_path
):
    out, npz = tmp_path / "deep" / "spaces.safetensors", tmp_path / "npz"
    code, output, errors = run("prepare", checkpoint, *SMALL, "--out", out, "--npz", npz)
    assert (code, errors) == (0, "")
    spaces = NullSpaces.load(out)
    assert spaces.layers == [1, 2]
    assert [spaces[layer].nullity for layer in spaces.layers] == [12, 12]
    model = tiny("llama", vocab_size=512)
    spaces.check(model)
    files = sorted(npz.iterdir())
    assert [file.name.split("_float32")[0] for file in files] == [f"model.layers.{n}.mlp.down_proj" for n in (1, 2)]
    covariance = Covariance.load_npz(files[0])
    assert covariance.count >= 300
    assert f"{spaces[1].leakage(covariance):.3f}" in output


def test_a_second_run_finds_everything_in_the_cache(run, checkpoint, monkeypatch):
    run("prepare", checkpoint, *SMALL)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("this was cached")

    monkeypatch.setattr("alphaedit_plugin.nullspace.statistics.collect", never)
    monkeypatch.setattr("alphaedit_plugin.model.sampling.self_written", never)
    code, output, _ = run("prepare", checkpoint, *SMALL)
    assert code == 0
    assert "layer" in output


def test_prepare_takes_text_from_a_corpus(run, checkpoint, text):
    code, output, _ = run("prepare", checkpoint, *SMALL, "--corpus", text)
    assert code == 0
    assert text in output.replace("\n", "")


def test_inspect_draws_a_real_picture_and_marks_what_was_chosen(run, checkpoint, tmp_path):
    from PIL import Image

    picture = tmp_path / "pictures" / "spectrum.png"
    code, output, _ = run("inspect", checkpoint, *SMALL, "--plot", picture)
    assert code == 0
    with Image.open(picture) as image:
        assert image.format == "PNG"
        image.load()
        assert len(image.convert("L").histogram()) == 256
        assert image.convert("RGB").getcolors(maxcolors=2) is None, "the picture is empty"
    assert "nullity 12" in output
    chosen = [line for line in output.splitlines() if "│" in line and " 24 " in line]
    assert len(chosen) == 2, "one row a layer"
    assert all(line.split("│")[-2].strip() == "12" for line in chosen), "the last column is the chosen one"


def test_compare_writes_a_table_and_everything_needed_to_repeat_it(run, checkpoint, facts, text, tmp_path):
    out = tmp_path / "results"
    yaml = tmp_path / "h.yaml"
    yaml.write_text("layers: [0, 1]\nv_num_grad_steps: 3\nmom2_update_weight: 0.1\n")
    code, output, errors = run(
        "compare", checkpoint, "--facts", facts, "--edits", 3, "--batch", 2, "--held-out", text,
        "--hparams", yaml, *SMALL, "--out", out,
    )  # fmt: skip
    assert (code, errors) == (0, "")
    (written,) = json.loads((out / "summary.json").read_text())["comparisons"]
    settings, rows = written["settings"], written["rows"]
    assert [row["variant"] for row in rows] == ["before", "memit", "memit+P", "alphaedit"]
    (cell,) = (path.parent for path in out.glob("*/settings.json"))
    for row in rows:
        assert row["variant"] in output
        records = [json.loads(line) for line in (cell / row["variant"] / str(row["edits"]) / "facts.jsonl").open()]
        assert len(records) == 3
        for metric in ("efficacy", "generalization", "specificity"):
            assert row["estimates"][metric]["value"] == pytest.approx(sum(record[metric] for record in records) / 3)
        assert row["estimates"]["perplexity"]["value"] > 1
        assert (set(row["drift"]) == {"1", "2"}) == (row["variant"] != "before")
    assert rows[2]["mean_leakage"] < rows[1]["mean_leakage"]
    assert rows[3]["mean_leakage"] < rows[1]["mean_leakage"]
    assert settings["command"][:2] == ["alphaedit", "compare"]
    assert (settings["model"], settings["data"], settings["held_out"]) == (checkpoint, facts, text)
    assert (settings["edits"], settings["batch_size"], settings["dtype"]) == (3, 2, "torch.float32")
    assert set(settings["hyperparameters"]) == {"memit", "memit+P", "alphaedit"}
    for values in settings["hyperparameters"].values():
        used = Hyperparameters.from_mapping({k: v for k, v in values.items() if v is not None}, "x")
        assert used.layers == (1, 2)
        assert (used.v_num_grad_steps, used.mom2_update_weight, used.null_space.nullity) == (3, 0.1, 12)
    assert set(settings["null_spaces"]) == {"memit+P", "alphaedit"}
    for described in settings["null_spaces"].values():
        assert set(described["leakage"]) == {"1", "2"}
    assert settings["statistics"]["text"]["tokens"] >= 300
    assert settings["environment"]["torch"] == torch.__version__
    page = (out / "report.html").read_text()
    assert all(name in page for name in ("memit+P", "alphaedit"))
    assert {"summary.csv", "summary.md", "summary.tex"} <= {path.name for path in out.iterdir()}
    before = {path: path.read_bytes() for path in out.iterdir() if path.suffix in (".csv", ".md", ".tex")}
    for path in before:
        path.unlink()
    code, again, errors = run("report", out)
    assert (code, errors) == (0, "")
    assert {path: path.read_bytes() for path in before} == before
    assert all(line in again for line in output.splitlines() if line.startswith("memit"))


def _rows(out: Path) -> list[dict]:
    (written,) = json.loads((out / "summary.json").read_text())["comparisons"]
    return [{**row, "seconds": 0} for row in written["rows"]]


def test_everything_that_can_be_measured_is_measured_and_reported(run, checkpoint, facts, text, tmp_path):
    """Checkpoints, texts, capability and shift, by one command."""
    (tmp_path / "tasks").mkdir()
    sentences = [{"sentence": f"a {'good' if i % 2 else 'bad'} film number {i}", "label": i % 2} for i in range(30)]
    (tmp_path / "tasks" / "sst2.json").write_text(json.dumps(sentences))
    prompts = [{"prompt": f"The mother tongue of {name} is"} for name in ("Curie", "Jordan", "Gates", "Jobs", "Messi")]
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    code, _, errors = run(
        "compare", checkpoint, "--data", facts, "--edits", 3, "--batch", 1, "--every", 2, "--held-out", text,
        "--methods", "memit+P", "--texts", 2, "--answers", 2, "--tasks", tmp_path / "tasks", "--task-limit", 10,
        "--shift", tmp_path / "prompts.json", *SMALL, "--out", tmp_path / "run",
    )  # fmt: skip
    assert (code, errors) == (0, "")
    before, two, three = _rows(tmp_path / "run")
    assert (before["edits"], two["edits"], three["edits"]) == (0, 2, 3)
    for row in (two, three):
        measured = {"efficacy", "locality", "perplexity", "gap_efficacy", "fluency", "sst", "hausdorff"}
        assert measured <= row["estimates"].keys()
    assert "hausdorff" not in before["estimates"]
    (settings,) = (
        each["settings"] for each in json.loads((tmp_path / "run" / "summary.json").read_text())["comparisons"]
    )
    page = (tmp_path / "run" / "report.html").read_text()
    for internal in (*settings["trajectories"].values(), *settings["order"], settings["cell"]):
        assert internal not in page


def test_a_judge_marks_the_answers_and_its_key_is_written_nowhere(run, checkpoint, facts, text, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hidden")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with judging() as judge:
        code, output, errors = run(
            "compare", checkpoint, "--data", facts, "--edits", 1, "--held-out", text, "--methods", "memit",
            "--answers", 1, "--judge", judge.address, "--judge-model", "mark", *SMALL, "--out", tmp_path / "run",
        )  # fmt: skip
    assert (code, errors) == (0, "")
    assert judge.keys
    assert set(judge.keys) == {"Bearer sk-hidden"}
    assert [row["estimates"]["judged_efficacy"]["value"] for row in _rows(tmp_path / "run")] == [1.0, 1.0]
    assert judge.address in (tmp_path / "run" / "run.yaml").read_text()
    assert "sk-hidden" not in output
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"sk-hidden" in path.read_bytes()]


def test_prompts_that_are_all_about_edited_subjects_are_refused_before_any_model_is_loaded(run, facts, tmp_path):
    subjects = [fact["requested_rewrite"]["subject"] for fact in json.loads(Path(facts).read_text())]
    about = [{"prompt": f"The mother tongue of {subjects[0]}, number {i}, is"} for i in range(9)]
    (tmp_path / "prompts.json").write_text(json.dumps([*about, {"prompt": "The Louvre is in"}]))
    assert_one_line(
        run("compare", "no-such-model", "--data", facts, "--edits", 1, "--shift", tmp_path / "prompts.json"),
        "--shift", "only 1 of the prompts",
    )  # fmt: skip
    assert_one_line(
        run("compare", "no-such-model", "--data", facts, "--shift", tmp_path / "prompts.json", "--shift-limit", 2),
        "--shift-limit must be at least 5",
    )


def test_prompts_about_facts_that_are_not_edited_are_held_out(run, checkpoint, facts, text, tmp_path):
    subjects = [fact["requested_rewrite"]["subject"] for fact in json.loads(Path(facts).read_text())]
    prompts = [{"prompt": f"The mother tongue of {subjects[1]}, number {i}, is"} for i in range(9)]
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    code, _, errors = run(
        "compare", checkpoint, "--data", facts, "--edits", 1, "--held-out", text, "--methods", "rome",
        "--shift", tmp_path / "prompts.json", "--shift-limit", 6, *SMALL, "--out", tmp_path / "run",
    )  # fmt: skip
    assert (code, errors) == (0, "")
    assert "shift" in _rows(tmp_path / "run")[-1]["estimates"]
    (records,) = (tmp_path / "run").glob("*/rome/1/shift.jsonl")
    told = [json.loads(line)["prompt"] for line in records.read_text().splitlines()]
    assert told == [prompt["prompt"] for prompt in prompts[:6]]


def test_shift_is_measured_once_whichever_methods_come_later(run, checkpoint, facts, text, tmp_path):
    """ROME's layer comes before AlphaEdit's last one; its rows are measured at that all the same."""
    prompts = [{"prompt": f"The mother tongue of {name} is"} for name in ("Curie", "Jordan", "Gates", "Jobs", "Messi")]
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    arguments = [
        "compare", checkpoint, "--data", facts, "--edits", 1, "--held-out", text, "--shift", tmp_path / "prompts.json",
        "--tokens", 400, "--nullity", 10, "--quiet", "--out", tmp_path / "run", "--seeds", 0,
    ]  # fmt: skip
    for further in (["--methods", "rome"], ["--methods", "alphaedit"], ["--methods", "rome", "--seeds", 1]):
        assert run(*arguments, *further)[0] == 0
    written = json.loads((tmp_path / "run" / "summary.json").read_text())["comparisons"]
    rows = [row for each in written for row in each["rows"] if row["variant"] != "before"]
    assert [row["variant"] for row in rows] == ["rome", "alphaedit", "rome"]
    assert all("shift" in row["estimates"] for row in rows)
    settings = [each["settings"] for each in written]
    assert len({each["measures"]["shift"]["layer"] for each in settings}) == 1
    assert settings[0]["hyperparameters"]["rome"]["layers"][0] < settings[0]["measures"]["shift"]["layer"]


def test_models_data_sets_and_seeds_are_crossed(run, checkpoint, stranger, facts, text, tmp_path):
    other = tmp_path / "other.json"
    other.write_text(json.dumps(json.loads(Path(facts).read_text())[::-1]))
    code, _, errors = run(
        "compare", "--models", checkpoint, stranger, "--data", facts, other, "--seeds", 0, 1,
        "--edits", 2, "--batch", 2, "--held-out", text, "--methods", "memit", *SMALL, "--out", tmp_path / "run",
    )  # fmt: skip
    assert (code, errors) == (0, "")
    written = json.loads((tmp_path / "run" / "summary.json").read_text())["comparisons"]
    cells = [tuple(each["settings"][key] for key in ("model", "data", "seed")) for each in written]
    assert sorted(cells) == sorted(itertools.product((checkpoint, stranger), (facts, str(other)), (0, 1)))
    subjects = {}
    for path in (tmp_path / "run").glob("*/memit/2/facts.jsonl"):
        seed = json.loads((path.parents[2] / "settings.json").read_text())["seed"]
        subjects.setdefault(seed, set()).add(tuple(json.loads(line)["case_id"] for line in path.open()))
    assert subjects[0] != subjects[1]


def test_jobs_give_the_same_rows_as_one_process(run, checkpoint, facts, text, tmp_path):
    for jobs in (1, 2):
        code, _, errors = run(
            "compare", checkpoint, "--facts", facts, "--edits", 2, "--batch", 1, "--held-out", text, "--jobs", jobs,
            "--methods", "memit+P", "memit", "alphaedit", *SMALL, "--out", tmp_path / str(jobs),
        )  # fmt: skip
        assert (code, errors) == (0, "")
        (written,) = json.loads((tmp_path / str(jobs) / "summary.json").read_text())["comparisons"]
        assert "--worker" not in written["settings"]["command"], "people repeat what they asked for"
        assert written["settings"]["command"].count("--out") == 1
    assert _rows(tmp_path / "1") == _rows(tmp_path / "2")


@pytest.mark.parametrize(
    ("study", "expected"),
    [
        ("L2", {f"alphaedit@L2={value}" for value in REGULARISATIONS}),
        ("corpus-size", {f"alphaedit@tokens={round(share * 300)}" for share in SHARES}),
    ],
)
def test_a_study_spreads_a_method_over_its_values(study, expected, run, checkpoint, facts, text, tmp_path):
    code, _, errors = run(
        "compare", checkpoint, "--facts", facts, "--edits", 1, "--held-out", text, "--study", study,
        *SMALL, "--out", tmp_path / "run",
    )  # fmt: skip
    assert (code, errors) == (0, "")
    rows = _rows(tmp_path / "run")
    assert {row["variant"] for row in rows[1:]} == expected
    assert len({json.dumps(row["drift"]) for row in rows[1:]}) > 1


def test_methods_may_be_separated_by_spaces_and_a_bad_record_left_out(run, checkpoint, tmp_path, text):
    path = tmp_path / "zsre.json"
    record = {"subject": "Microsoft", "src": "Who founded Microsoft?", "rephrase": "Microsoft was founded by whom?"}
    record |= {"answers": ["Steve Jobs"], "alt": "Curie", "loc": "nq question: who sang", "loc_ans": "Madonna"}
    path.write_text(json.dumps([record, {**record, "answers": []}]))
    command = ("compare", checkpoint, "--data", path, "--held-out", text, *SMALL, "--out", tmp_path / "run")
    code, _, errors = run(*command, "--methods", "memit+P", "alphaedit@L2=5,memit")
    assert code == 1
    assert "record 1" in errors
    assert "answers" in errors
    code, output, _ = run(*command, "--skip-bad", "--methods", "memit+P", "alphaedit@L2=5,memit")
    assert code == 0
    (written,) = json.loads((tmp_path / "run" / "summary.json").read_text())["comparisons"]
    assert [row["variant"] for row in written["rows"]] == ["before", "memit+P", "alphaedit@L2=5", "memit"]
    assert written["settings"]["format"] == "ZsRE"
    assert len(written["settings"]["left_out"]) == 1
    for row in written["rows"]:
        assert "portability" not in row["estimates"]
        assert row["estimates"]["efficacy"].keys() == {"value", "low", "high"}
    assert "port. " not in output


def test_compare_repeats_itself_to_the_last_digit(run, checkpoint, facts, text, tmp_path):
    rows = []
    for name in ("first", "second"):
        run(
            "compare", checkpoint, "--facts", facts, "--edits", 2, "--batch", 1, "--held-out", text,
            "--methods", "memit+P", *SMALL, "--out", tmp_path / name,
        )  # fmt: skip
        rows.append(_rows(tmp_path / name))
    assert rows[0] == rows[1]


def test_cache_lists_what_prepare_stored_and_clears_it(run, checkpoint, tmp_path):
    run("prepare", checkpoint, *SMALL)
    store = tmp_path / "alphaedit-cache"
    files = list(store.glob("*/*.safetensors"))
    _, output, _ = run("cache")
    for kind in ("text", "covariance", "null-space"):
        assert kind in output
    assert f"{len(files)} files" in output
    for file in files:
        with safe_open(file, "pt") as opened:
            assert opened.metadata()
    assert run("cache", "--clear", "--kind", "null-space")[0] == 0
    assert not list(store.glob("null-space/*.safetensors"))
    assert list(store.glob("covariance/*.safetensors"))
    assert run("cache", "--clear")[0] == 0
    assert not list(store.glob("*/*.safetensors"))


def test_quiet_shows_no_progress_bars(run, checkpoint):
    enable_progress_bar()
    assert run("prepare", checkpoint, *SMALL)[2] == ""


def test_the_cache_option_wins_over_the_environment(run, checkpoint, tmp_path):
    run("prepare", checkpoint, *SMALL, "--cache", tmp_path / "other")
    assert list((tmp_path / "other").glob("covariance/*.safetensors"))
    assert not list((tmp_path / "alphaedit-cache").glob("*/*.safetensors"))


# ---------------------------------------------------------------------------------------- edit, undo and apply

QUICK = "layers: [1, 2]\nv_num_grad_steps: 3\nmom2_update_weight: 0.5\nL2: 0.5\n"
COMMANDED = ("alphaedit", "memit+P", "memit", "prune+P", "rect+P", "rome")


@pytest.fixture
def some(tmp_path):
    """The path of a file with the first `count` facts, one to a line or in a list."""

    def write(count: int, kind: str = "json") -> Path:
        path = tmp_path / f"{count}.{kind}"
        records = FACTS[:count]
        path.write_text("\n".join(map(json.dumps, records)) if kind == "jsonl" else json.dumps(records))
        return path

    return write


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A cache that the tests of editing share."""
    return tmp_path_factory.mktemp("prepared")


@pytest.fixture
def edit(run, checkpoint, prepared, tmp_path):
    """Run `alphaedit edit` on the checkpoint, a fact at a time. A random model learns nothing: only where `judged` does
    that decide the exit code.
    """
    (tmp_path / "quick.yaml").write_text(QUICK)

    def call(
        facts: Path, out: object, *arguments: object, model: str = checkpoint, judged: bool = False
    ) -> tuple[int, str, str]:
        return run(
            "edit", model, facts, "--out", out, "--hparams", tmp_path / "quick.yaml", *SMALL, "--cache", prepared,
            "--batch", 1, *([] if judged else ["--allow-failures"]), *arguments,
        )  # fmt: skip

    return call


def loaded(folder: object):
    return AutoModelForCausalLM.from_pretrained(str(folder), dtype="auto")


def weights_in(folder: object) -> dict[str, torch.Tensor]:
    return everything(loaded(folder))


def assert_done(result: tuple[int, str, str]) -> str:
    code, output, errors = result
    assert (code, errors) == (0, "")
    return output


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("method", COMMANDED)
def test_edit_writes_a_checkpoint_a_patch_and_a_session_that_say_the_same(
    method, run, edit, some, checkpoint, tokenizer, tmp_path
):
    base = weights_in(checkpoint)
    output = assert_done(edit(some(2), tmp_path / "out", "--method", method))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["model", "patch.safetensors", "session"]
    assert f"{method}: 2 facts in 2 batches" in output
    for name in ("model", "patch.safetensors", "session"):
        assert str(tmp_path / "out" / name) in output.replace("\n", "")
    edited = weights_in(tmp_path / "out" / "model")
    assert differ(edited, base)
    session = Session.resume(tmp_path / "out" / "session", loaded(checkpoint))
    assert_same(everything(session.model), edited)
    assert [fact.case_id for fact in session.facts] == [0, 1]
    read = AutoTokenizer.from_pretrained(tmp_path / "out" / "model")
    assert read("The Eiffel Tower")["input_ids"] == tokenizer("The Eiffel Tower")["input_ids"]

    patch = tmp_path / "out" / "patch.safetensors"
    output = assert_done(run("apply", checkpoint, patch, "--out", tmp_path / "applied"))
    assert "2 facts" in output
    assert method in output
    assert_same(weights_in(tmp_path / "applied"), edited)
    assert_done(run("apply", tmp_path / "out" / "model", patch, "--revert", "--out", tmp_path / "reverted"))
    assert_same(weights_in(tmp_path / "reverted"), base)
    assert AutoTokenizer.from_pretrained(tmp_path / "reverted")("The")["input_ids"] == tokenizer("The")["input_ids"]


@pytest.fixture
def chatty(checkpoint, tokenizer, tmp_path) -> str:
    """The checkpoint with a chat template."""
    folder = shutil.copytree(checkpoint, tmp_path / "chatty")
    talking = copy.deepcopy(tokenizer)
    talking.chat_template = "{% for m in messages %}you: {{ m.content }}\nme: {% endfor %}"
    talking.save_pretrained(folder)
    return str(folder)


def test_edit_in_a_chat_says_so_in_the_session_and_goes_on_only_so(edit, some, chatty, tmp_path):
    assert_done(edit(some(1), tmp_path / "chat", "--chat", model=chatty))
    assert_done(edit(some(1), tmp_path / "plain", model=chatty))
    assert differ(weights_in(tmp_path / "chat" / "model"), weights_in(tmp_path / "plain" / "model"))
    session = Session.resume(tmp_path / "chat" / "session", loaded(chatty), read_only=True)
    assert session.tokenizer.template.closing == "\nme: "
    assert_done(edit(some(2), tmp_path / "chat", "--chat", model=chatty))
    before = snapshot(tmp_path / "chat")
    assert_one_line(edit(some(3), tmp_path / "chat", model=chatty), "holds a session with --chat")
    assert_one_line(edit(some(3), tmp_path / "plain", "--chat", model=chatty), "holds a session without --chat")
    assert snapshot(tmp_path / "chat") == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--nullity", "0.3"), "other hyperparameters (null_space)"),
        (("--hparams", "other.yaml"), "other hyperparameters (clamp_norm_factor)"),
        (("--hparams", "absent.yaml"), "absent.yaml"),
        (("--dtype", "bfloat16"), "a session in float32"),
    ],
)
def test_a_session_does_not_go_on_in_another_way(edit, some, tmp_path, monkeypatch, options, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.yaml").write_text(f"{QUICK}\nclamp_norm_factor: 0.5\n")
    assert_done(edit(some(1), tmp_path / "out"))
    before = snapshot(tmp_path / "out")
    monkeypatch.setattr(Session, "resume", lambda *_, **__: pytest.fail("the model was loaded for nothing"))
    assert_one_line(edit(some(2), tmp_path / "out", *options), said)
    assert snapshot(tmp_path / "out") == before


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--dtype", "float32"),
        ("--method", "alphaedit@nullspace_threshold=1e-1", "--nullity", "0.4"),
        ("--method", "alphaedit@layers=[2]"),
        ("--method", "memit@blue=true"),
    ],
)
def test_the_same_command_goes_on(edit, some, tmp_path, options):
    assert_done(edit(some(1), tmp_path / "out", *options))
    output = assert_done(edit(some(2), tmp_path / "out", *options))
    assert "1 of 2 facts are in the session already" in output
    assert "keeps its first statistics" in output


def test_other_layers_are_another_session(edit, run, some, checkpoint, tmp_path):
    assert_done(edit(some(1), tmp_path / "out"))
    result = run("edit", checkpoint, some(2), "--out", tmp_path / "out", "--layers", "1")
    assert_one_line(result, "other hyperparameters (layers)")


def test_another_null_space_is_nothing_to_a_method_without_one(edit, some, tmp_path):
    assert_done(edit(some(1), tmp_path / "out", "--method", "memit"))
    assert_done(edit(some(2), tmp_path / "out", "--method", "memit", "--nullity", "0.4"))


def test_a_model_without_a_chat_template_is_one_line_and_writes_nothing(edit, run, some, checkpoint, tmp_path):
    assert_one_line(edit(some(1), tmp_path / "out", "--chat"), "has no chat template", "--chat")
    result = run(
        "compare", checkpoint, "--chat", "--methods", "memit", "--data", some(1), *SMALL, "--out", tmp_path / "run"
    )
    assert_one_line(result, "has no chat template", "--chat")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("method", "kind"), [("alphaedit", "json"), ("prune+P", "jsonl"), ("memit", "json")])
def test_editing_again_goes_on_with_the_facts_that_are_new(method, kind, edit, some, checkpoint, tmp_path):
    assert "already" not in assert_done(edit(some(2, kind), tmp_path / "twice", "--method", method))
    output = assert_done(edit(some(3, kind), tmp_path / "twice", "--method", method))
    assert "2 of 3 facts are in the session already" in output
    assert f"{method}: 3 facts in 3 batches" in output
    assert_done(edit(some(3, kind), tmp_path / "once", "--method", method))
    assert_same(weights_in(tmp_path / "twice" / "model"), weights_in(tmp_path / "once" / "model"))
    model = loaded(checkpoint)
    apply_patch(model, tmp_path / "twice" / "patch.safetensors")
    assert_same(everything(model), weights_in(tmp_path / "once" / "model"))
    twice, once = (Session.resume(tmp_path / name / "session", loaded(checkpoint)) for name in ("twice", "once"))
    assert_same_session(twice, once)


def test_editing_again_with_nothing_new_edits_nothing(edit, some, tmp_path):
    assert_done(edit(some(2), tmp_path / "out"))
    before = weights_in(tmp_path / "out" / "model")
    output = assert_done(edit(some(2), tmp_path / "out"))
    assert "2 of 2 facts" in output
    assert "2 facts in 2 batches" in output
    assert_same(weights_in(tmp_path / "out" / "model"), before)


@pytest.mark.parametrize("batch", [2, 50])
def test_facts_are_written_in_batches(batch, edit, some, checkpoint, tmp_path):
    assert_done(edit(some(3), tmp_path / "out", "--batch", batch))
    session = Session.resume(tmp_path / "out" / "session", loaded(checkpoint))
    assert [len(each.requests) for each in session.batches] == ([2, 1] if batch == 2 else [3])


def test_a_fact_that_is_not_learned_has_a_row_and_ends_with_code_3_and_everything_is_written(edit, some, tmp_path):
    code, output, errors = edit(some(2), tmp_path / "out", judged=True)
    assert (code, errors) == (3, "")
    assert "0 of 2 facts written" in output
    rows = [line for line in output.splitlines() if "✗" in line]
    assert len(rows) == 2
    for row, subject in zip(rows, ("The Eiffel Tower", "The old village"), strict=True):
        assert f"{subject} is located in the city of → Rome" in row
    assert output.count("not reached") == 2
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["model", "patch.safetensors", "session"]
    assert edit(some(2), tmp_path / "out", judged=True)[0] == 3, "facts that are there already are judged again"
    output = assert_done(edit(some(2), tmp_path / "out"))
    assert "0 of 2 facts written" in output


FACT = ("{} is located in the city of", "The Eiffel Tower", "Rome")
"""The first of FACTS."""


def test_a_fact_needs_no_file_and_goes_with_one(run, checkpoint, tmp_path):
    (tmp_path / "quick.yaml").write_text(QUICK)
    (tmp_path / "facts.csv").write_text('prompt,subject,target_new\n{} is in,"Paris, Texas",Rome\n')
    given = ("--hparams", tmp_path / "quick.yaml", *SMALL, "--allow-failures")
    other = ("{} speaks", "The old village", "two -5s")
    for file in ([], [tmp_path / "facts.csv"]):
        out = tmp_path / f"with {len(file)}"
        assert_done(run("edit", checkpoint, *file, "--fact", *FACT, "--fact", *other, "--out", out, *given))
        with Session.resume(out / "session", loaded(checkpoint), read_only=True) as session:
            written = [(fact.prompt, fact.subject, fact.target_new) for fact in session.facts]
        assert written == [*[("{} is in", "Paris, Texas", "Rome")] * len(file), FACT, other]


def test_no_fact_and_what_is_wrong_with_a_fact_is_one_line(run, tmp_path):
    begin, end = ("edit", "no-such-model"), ("--out", tmp_path / "out")
    assert_one_line(run(*begin, *end), "there are no facts", "--fact PROMPT SUBJECT TARGET")
    assert_one_line(run(*begin, "--fact", "{} is in", "Paris", *end), "--fact")
    assert_one_line(run(*begin, "--fact", *FACT, "--fact", "It is in", "Paris", "Rome", *end), "--fact 2", "'{}'")
    assert_one_line(run(*begin, "--fact", *FACT, "--fact", *FACT[:2], "Lyon", *end), "--fact 1 and --fact 2 contradict")
    (tmp_path / "facts.tsv").write_text("prompt\tsubject\tobject\n{} is in\tParis\tRome\n")
    assert_one_line(run(*begin, tmp_path / "facts.tsv", *end), "facts.tsv, row 2", "target_new", "object")
    (tmp_path / "facts.xlsx").write_bytes(b"PK\x03\x04\xff")
    assert_one_line(run(*begin, tmp_path / "facts.xlsx", *end), "facts.xlsx", ".csv", ".yaml")


def test_what_does_not_fit_into_a_budget_is_named_ends_with_code_3_and_is_tried_again(edit, some, checkpoint, tmp_path):
    out = tmp_path / "out"
    code, output, _ = edit(some(2), out, "--budget", "drift=1e-9", "kl=0.5", judged=True)
    assert code == 3
    assert "nothing was written" in output
    assert "0 of 2 facts written, 2 left out" in output
    assert output.count("over budget: drift of layer") == 2
    assert sorted(path.name for path in tmp_path.glob("out/*")) == []

    assert_done(edit(some(1), out))
    spent = max(Session.resume(out / "session", loaded(checkpoint), read_only=True).report().drift.values())
    before = weights_in(out / "model")
    code, output, _ = edit(some(3), out, "--budget", f"drift={1.0001 * spent}", judged=True)
    assert code == 3
    assert "1 of 3 facts are in the session already" in output
    assert "0 of 3 facts written, 2 left out" in output
    assert_same(weights_in(out / "model"), before)

    output = edit(some(3), out, "--budget", "drift=1e9")[1]
    assert "1 of 3 facts are in the session already" in output, "what was left out is no fact of the session"
    assert "left out" not in output
    assert len(Session.resume(out / "session", loaded(checkpoint), read_only=True).facts) == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["drift"], "write NAME=NUMBER"),
        (["drift=much"], "write NAME=NUMBER"),
        (["drift=1", "drift=2"], "names drift twice"),
        (["norm=1"], "may name drift, leakage, kl"),
        (["kl=-1"], "from 0 up"),
    ],
)
def test_a_word_that_is_no_budget_is_one_line(words, said, edit, some, tmp_path):
    assert_one_line(edit(some(1), tmp_path / "out", "--budget", *words, model="no-such-model"), said)


def test_an_adapter_takes_the_place_of_the_checkpoint(edit, some, checkpoint, tmp_path):
    peft = pytest.importorskip("peft", reason="whether PEFT can read an adapter, only PEFT can tell")
    output = assert_done(edit(some(2), tmp_path / "out", "--lora"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["lora", "patch.safetensors", "session"]
    config = json.loads((tmp_path / "out" / "lora" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == checkpoint
    assert f"rank {config['r']}" in output
    model = loaded(checkpoint)
    apply_patch(model, tmp_path / "out" / "patch.safetensors")
    ids = torch.tensor([[5, 9, 11, 3, 77, 20]])
    with torch.no_grad():
        expected = model(ids).logits
        found = peft.PeftModel.from_pretrained(loaded(checkpoint), tmp_path / "out" / "lora")(ids).logits
        assert float((loaded(checkpoint)(ids).logits - expected).abs().max()) > 1e-3
    assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("first", ["--lora", None], ids=["adapter first", "checkpoint first"])
def test_whatever_lies_in_the_folder_afterwards_is_the_edit_as_it_is_now(first, edit, some, checkpoint, tmp_path):
    """Whichever of checkpoint and adapter the second run asks for."""
    out = tmp_path / "out"
    assert_done(edit(some(1), out, *([first] if first else [])))
    assert_done(edit(some(3), out, *([] if first else ["--lora"])))
    session = Session.resume(out / "session", loaded(checkpoint))
    if (out / "model").exists():
        assert_same(weights_in(out / "model"), everything(session.model))
    if (out / "lora").exists():
        session.to_lora(tmp_path / "expected")
        found, expected = (
            load_file(folder / "adapter_model.safetensors") for folder in (out / "lora", tmp_path / "expected")
        )
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("method", ["alphaedit", "prune+P", "rome"])
def test_undo_gives_what_fewer_facts_gave(method, run, edit, some, checkpoint, tmp_path):
    out = tmp_path / "out"
    assert_done(edit(some(3), out, "--method", method))
    output = assert_done(run("undo", out, "--quiet"))
    assert "undone: Microsoft is located in the city of → Rome" in output
    assert f"{method}: 2 facts in 2 batches" in output
    assert_done(edit(some(2), tmp_path / "fewer", "--method", method))
    assert_same(weights_in(out / "model"), weights_in(tmp_path / "fewer" / "model"))
    assert_done(run("apply", checkpoint, out / "patch.safetensors", "--out", tmp_path / "applied"))
    assert_same(weights_in(tmp_path / "applied"), weights_in(out / "model"))

    output = assert_done(run("undo", out, "--batches", 2, "--quiet"))
    assert output.count("undone:") == 2
    assert_same(weights_in(out / "model"), weights_in(checkpoint))
    assert_one_line(run("undo", out, "--quiet"), "0")
    assert_done(edit(some(2), out, "--method", method))
    assert_same(weights_in(out / "model"), weights_in(tmp_path / "fewer" / "model"))


@pytest.mark.parametrize("method", ["alphaedit", "prune+P", "rome"])
def test_any_fact_is_taken_back_by_its_number(method, run, edit, some, checkpoint, tmp_path):
    out = tmp_path / "out"
    assert_done(edit(some(3), out, "--method", method))
    output = assert_done(run("undo", out, "--fact", 1, 3, "--quiet"))
    assert output.count("undone:") == 2
    with Session.resume(out / "session", loaded(checkpoint)) as session:
        assert session.facts == parse_requests(FACTS[1:2])
        assert_same(weights_in(out / "model"), everything(session.model))
    assert_one_line(run("undo", out, "--fact", 2, "--quiet"), "2", "holds 1")
    assert_done(run("undo", out, "--fact", 1, "--quiet"))
    assert_same(weights_in(out / "model"), weights_in(checkpoint))


def test_a_number_is_one_fact_even_if_it_was_written_twice(run, edit, some, checkpoint, tmp_path):
    other = tmp_path / "other.json"
    other.write_text(json.dumps([{**parse_requests(FACTS[:1])[0].__dict__, "target_new": "Warsaw"}]))
    for facts in (some(1), other, some(1)):
        assert_done(edit(facts, tmp_path / "out"))
    assert assert_done(run("undo", tmp_path / "out", "--fact", 3, "--quiet")).count("undone:") == 1
    with Session.resume(tmp_path / "out" / "session", loaded(checkpoint)) as session:
        assert [fact.target_new for fact in session.facts] == ["Rome", "Warsaw"]
    assert_one_line(run("undo", tmp_path / "out", "--fact", 1, "--batches", 1), "exclude each other")


def test_going_on_means_the_same_model_and_layers_wherever_from(run, edit, some, checkpoint, tmp_path, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.chdir(Path(checkpoint).parent)
    assert_done(edit(some(1), out, model=Path(checkpoint).name))
    monkeypatch.chdir(tmp_path)
    assert "1 of 2 facts are in the session already" in assert_done(edit(some(2), out, model=checkpoint))
    assert_done(run("show", out))
    assert_one_line(edit(some(3), out, "--layers", 1), "--layers")


def test_a_folder_that_is_called_like_the_demo_model_is_not_taken_for_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (DEMO_MODEL, "mine"):
        (tmp_path / name).mkdir()
    assert [whole_name(name) for name in (DEMO_MODEL, "mine", "a/b")] == [DEMO_MODEL, str(tmp_path / "mine"), "a/b"]


def test_a_leakage_budget_can_go_on(edit, some, tmp_path):
    for count in (1, 2):
        assert_done(edit(some(count), tmp_path / "out", "--budget", "leakage=10"))


def test_a_gguf_file_alone_is_not_what_push_publishes(run, some, checkpoint, tmp_path):
    words = ("edit", checkpoint, some(1), "--out", tmp_path / "out", "--gguf", tmp_path / "x.gguf", "--push", "me/x")
    assert_one_line(run(*words), "--lora")


def test_two_edits_are_merged(run, edit, some, checkpoint, tmp_path):
    assert_done(edit(some(1), tmp_path / "one"))
    assert_done(edit(some(3), tmp_path / "three"))
    output = assert_done(run("merge", tmp_path / "one", tmp_path / "three", "--quiet"))
    assert output.count("written:") == 2
    with Session.resume(tmp_path / "one" / "session", loaded(checkpoint)) as session:
        assert session.facts == parse_requests(FACTS[:3])
        assert_same(weights_in(tmp_path / "one" / "model"), everything(session.model))
    assert_one_line(run("merge", tmp_path / "one", tmp_path / "nowhere", "--quiet"), "nowhere")


def test_undo_writes_the_adapter_anew_and_no_checkpoint(run, edit, some, tmp_path):
    assert_done(edit(some(3), tmp_path / "out", "--lora"))
    assert_done(run("undo", tmp_path / "out", "--quiet"))
    assert_done(edit(some(2), tmp_path / "fewer", "--lora"))
    found, expected = (load_file(tmp_path / name / "lora" / "adapter_model.safetensors") for name in ("out", "fewer"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert not (tmp_path / "out" / "model").exists()


def test_undoing_everything_leaves_no_adapter_that_still_holds_the_edit(run, edit, some, checkpoint, tmp_path):
    assert_done(edit(some(1), tmp_path / "out", "--lora"))
    assert_done(run("undo", tmp_path / "out", "--quiet"))
    assert Session.resume(tmp_path / "out" / "session", loaded(checkpoint)).facts == []
    path = tmp_path / "out" / "lora" / "adapter_model.safetensors"
    assert not path.exists() or not any(tensor.any() for tensor in load_file(path).values())


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_session_goes_on_in_its_own_precision(dtype, run, edit, some, tmp_path):
    assert_done(edit(some(2), tmp_path / "out", "--dtype", dtype))
    assert_done(edit(some(3), tmp_path / "out"))
    assert_done(run("undo", tmp_path / "out", "--quiet"))
    assert str(loaded(tmp_path / "out" / "model").dtype) == f"torch.{dtype}"
    assert_done(edit(some(2), tmp_path / "fewer", "--dtype", dtype))
    assert_same(weights_in(tmp_path / "out" / "model"), weights_in(tmp_path / "fewer" / "model"))


def test_what_is_not_projected_needs_no_null_space(run, some, checkpoint, tmp_path):
    """At the paper's threshold this model has none; plain MEMIT does not ask for any."""
    assert_one_line(run("prepare", checkpoint, "--layers", 1, "--quiet"), "nothing is null")
    command = ("edit", checkpoint, some(1), "--out", tmp_path / "out", "--layers", 1, "--quiet", "--allow-failures")
    command += ("--method",)
    assert_done(run(*command, "memit"))
    assert not list((tmp_path / "alphaedit-cache").glob("null-space/*"))
    assert_one_line(run(*command[:4], tmp_path / "other", *command[5:], "memit+P"), "nothing is null")


@pytest.mark.parametrize("command", ["prepare", "inspect"])
def test_a_method_brings_its_own_layers(command, run, checkpoint, tmp_path):
    output = assert_done(run(command, checkpoint, "--method", "rome", "--nullity", 12, "--quiet"))
    rome = Hyperparameters.for_model("rome", tiny("llama", vocab_size=512), checkpoint)
    rows = [line.split("│")[1].strip() for line in output.splitlines() if line.startswith("│")]
    assert [int(row) for row in rows if row.isdigit()] == list(rome.layers)
    assert rome.layers != Hyperparameters.for_model("alphaedit", tiny("llama", vocab_size=512), checkpoint).layers


# ---------------------------------------------------------------------------------------------- interrupted edits


# when -> at which call of what
MOMENTS = {
    "before the first batch is saved": (SessionFolder, "_save_manifest", 1),
    "in the second batch": (Write, "__call__", 4),
    "between batches": (Session, "edit", 3),
    "while exporting": (Session, "to_patch", 1),
}


@pytest.mark.parametrize("when", MOMENTS)
def test_an_interrupted_edit_is_taken_up_by_the_same_command(when, edit, some, checkpoint, tmp_path):
    """Killed, in a process of its own."""

    def work() -> None:
        owner, name, call = MOMENTS[when]
        original, counted = getattr(owner, name), []

        def dying(*args: object, **kwargs: object) -> object:
            counted.append(1)
            if len(counted) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        setattr(owner, name, dying)
        edit(some(3), tmp_path / "out", "--method", "prune+P")

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "out" / "model").exists()
    assert_done(edit(some(3), tmp_path / "out", "--method", "prune+P"))
    assert_done(edit(some(3), tmp_path / "whole", "--method", "prune+P"))
    assert_same(weights_in(tmp_path / "out" / "model"), weights_in(tmp_path / "whole" / "model"))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["model", "patch.safetensors", "session"]
    resumed = (Session.resume(tmp_path / name / "session", loaded(checkpoint)) for name in ("out", "whole"))
    assert_same_session(*resumed)


# ------------------------------------------------------------------------------------- errors of edit, undo, apply


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"--method": "memit"}, ["alphaedit", "memit"]),
        ({"--method": "alphaedit@L2=1"}, ["alphaedit", "alphaedit@L2=1"]),
        ({"model": "stranger"}, ["stranger", "tiny-llama"]),
    ],
    ids=["another method", "another setting", "another model"],
)
def test_a_folder_goes_on_only_with_the_method_and_model_it_began_with(changes, parts, edit, some, stranger, tmp_path):
    assert_done(edit(some(1), tmp_path / "out"))
    before = snapshot(tmp_path / "out")
    method = changes.get("--method", "alphaedit")
    options = {"model": stranger} if "model" in changes else {}
    assert_one_line(edit(some(2), tmp_path / "out", "--method", method, **options), str(tmp_path / "out"), *parts)
    assert snapshot(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("[", []),
        ("", []),
        ("[]", ["holds no facts"]),
        ("{}", ["no list"]),
        ("3", ["no list"]),
        ('["text"]', ["record 0"]),
        ('[{"prompt": "A {}", "subject": "B", "target_new": "C"}, {"prompt": "A {}"}]', ["record 1", "subject"]),
        ('[{"prompt": "A {} {}", "subject": "B", "target_new": "C", "case_id": 7}]', ["record 0", "case_id 7"]),
        ('[{"prompt": "A {}", "subject": "B", "target_new": "C", "case_id": [1]}]', ["record 0", "case_id"]),
        ('[{"prompt": "A {}", "subject": "B", "target_new": "C", "case_id": {}}]', ["record 0", "case_id"]),
        (
            '[{"prompt": "A {}", "subject": "B", "target_new": "C", "case_id": 7}, '
            '{"prompt": "A B", "subject": "B", "target_new": "D"}]',
            ["record 0 (case_id 7)", "record 1 contradict", "'C'", "'D'"],
        ),
    ],
)
def test_malformed_facts_are_one_line_that_names_file_and_record(content, parts, run, checkpoint, tmp_path):
    """Found before anything is prepared."""
    path = tmp_path / "facts.json"
    path.write_text(content)
    result = run("edit", checkpoint, path, "--out", tmp_path / "out", *SMALL, "--method", "memit+P")
    assert_one_line(result, "facts.json", *parts)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "alphaedit-cache").exists()


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--batch", "0"], ["--batch"]),
        (["--batch", "-1"], ["--batch"]),
        (["--method", "magic"], ["magic"]),
        (["--layers", "99"], ["99"]),
        (["--hparams", "absent.yaml"], ["absent.yaml"]),
        (["--stats-dir", "absent"], ["absent"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_a_wrong_option_of_edit_is_one_line_and_writes_nothing(arguments, parts, edit, some, tmp_path):
    assert_one_line(edit(some(1), tmp_path / "out", *arguments), *parts)
    assert not (tmp_path / "out").exists()


def test_facts_that_are_not_there_are_one_line(edit, tmp_path):
    assert_one_line(edit(tmp_path / "absent.json", tmp_path / "out"), "absent.json")


def test_a_place_that_cannot_be_written_is_one_line(edit, some, tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert_one_line(edit(some(1), tmp_path / "file"), "file")
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.parametrize("damage", ["no session", "half a manifest", "no batch", "another base"])
@pytest.mark.parametrize("command", ["undo", "edit"])
def test_a_session_that_cannot_be_resumed_is_one_line(command, damage, run, edit, some, tokenizer, tmp_path):
    model = tmp_path / "own-model"
    tiny("llama", vocab_size=512).save_pretrained(model)
    tokenizer.save_pretrained(model)
    out = tmp_path / "out"
    assert_done(edit(some(1), out, model=str(model)))
    if damage == "no session":
        shutil.rmtree(out / "session")
    elif damage == "half a manifest":
        path = out / "session" / "session.json"
        path.write_text(path.read_text()[: path.stat().st_size // 2])
    elif damage == "no batch":
        next((out / "session" / "batches").iterdir()).unlink()
    else:
        tiny("llama", vocab_size=512, seed=2).save_pretrained(model)
    before = snapshot(out)
    if command == "undo":
        assert_one_line(run("undo", out, "--quiet"), str(out / "session"))
    elif damage == "no session":
        assert_done(edit(some(1), out, model=str(model)))  # it begins anew
        return
    else:
        assert_one_line(edit(some(2), out, model=str(model)), str(out / "session"))
    assert snapshot(out) == before


@pytest.mark.parametrize("batches", ["2", "0", "-1"])
def test_undoing_too_much_is_one_line_and_changes_nothing(batches, run, edit, some, tmp_path):
    assert_done(edit(some(1), tmp_path / "out"))
    before = snapshot(tmp_path / "out")
    assert_one_line(run("undo", tmp_path / "out", "--batches", batches, "--quiet"), batches)
    assert snapshot(tmp_path / "out") == before


@pytest.fixture
def patch(edit, some, tmp_path) -> Path:
    assert_done(edit(some(2), tmp_path / "made"))
    return tmp_path / "made" / "patch.safetensors"


def test_a_patch_of_another_model_is_refused_unless_forced(run, patch, checkpoint, stranger, tmp_path):
    out = tmp_path / "out"
    assert_one_line(run("apply", stranger, patch, "--out", out), patch.name)
    assert not out.exists()
    assert_done(run("apply", stranger, patch, "--force", "--out", out))
    moved = {name: (loaded(out).state_dict()[name] - weight) for name, weight in loaded(stranger).state_dict().items()}
    expected = loaded(patch.parent / "model").state_dict()
    for name, weight in loaded(checkpoint).state_dict().items():
        assert torch.allclose(moved[name], expected[name] - weight, atol=1e-6), name
    assert any(difference.any() for difference in moved.values())


def test_a_patch_is_applied_once_and_taken_out_once(run, patch, checkpoint, tmp_path):
    edited, out = patch.parent / "model", tmp_path / "out"
    assert_one_line(run("apply", edited, patch, "--out", out), "already")
    assert_one_line(run("apply", checkpoint, patch, "--revert", "--out", out), "not applied")
    assert_one_line(run("apply", edited, patch, "--revert", "--force", "--out", out), "--revert", "--force")
    assert_one_line(run("apply", checkpoint, tmp_path / "absent.safetensors", "--out", out), "absent.safetensors")
    assert_one_line(run("apply", checkpoint, edited / "model.safetensors", "--out", out), "model.safetensors")
    spaces = patch.parent / "session" / "null_spaces.safetensors"
    assert_one_line(run("apply", checkpoint, spaces, "--out", out), spaces.name)
    assert not out.exists()


def test_a_patch_can_be_applied_in_place(run, patch, checkpoint, tmp_path):
    place = tmp_path / "place"
    shutil.copytree(checkpoint, place)
    assert_done(run("apply", place, patch, "--out", place))
    assert_same(weights_in(place), weights_in(patch.parent / "model"))
    assert_done(run("apply", place, patch, "--revert", "--out", place))
    assert_same(weights_in(place), weights_in(checkpoint))


def test_a_folder_with_other_things_in_it_keeps_them(run, patch, checkpoint, tmp_path):
    """Only what is a checkpoint may be replaced by one."""
    (tmp_path / "results" / "deep").mkdir(parents=True)
    (tmp_path / "results" / "deep" / "thesis.txt").write_text("years of work")
    code, _, _ = result = run("apply", checkpoint, patch, "--out", tmp_path / "results")
    assert (tmp_path / "results" / "deep" / "thesis.txt").exists()
    if code:
        assert_one_line(result, str(tmp_path / "results"))
    else:
        assert_same(weights_in(tmp_path / "results"), weights_in(patch.parent / "model"))


def test_a_checkpoint_that_cannot_be_written_is_one_line(run, patch, checkpoint, tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert_one_line(run("apply", checkpoint, patch, "--out", tmp_path / "file" / "model"), "file")


# -------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("layers", ["a", "4-", "-1", "8-4", "1,1", "", "1-2,2", "1.5"])
def test_bad_layers_are_one_line(run, checkpoint, layers):
    assert_one_line(run("prepare", checkpoint, f"--layers={layers}", "--quiet"), "--layers")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--layers", "99"], ["99", "0 to 3"]),
        (["--tokens", "5"], ["5 tokens"]),
        (["--tokens", "-5"], ["-5 tokens"]),
        (["--threshold", "0"], ["threshold"]),
        (["--threshold", "1", "--energy", "0.5"], ["threshold", "energy"]),
        (["--nullity", "5000"], ["everything is null"]),
        (["--threshold", "1e-30"], ["nothing is null"]),
        (["--corpus", "absent.txt"], ["absent.txt"]),
        (["--hparams", "absent.yaml"], ["absent.yaml"]),
        (["--dtype", "float99"], ["float99"]),
        (["--device", "nowhere"], ["nowhere"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_a_wrong_option_of_prepare_is_one_line(run, checkpoint, arguments, parts):
    defaults = [] if "--layers" in arguments else ["--layers", "1"]
    assert_one_line(run("prepare", checkpoint, *defaults, *arguments, "--quiet"), *parts)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--facts", "absent.json"], ["absent.json"]),
        (["--held-out", "absent.txt"], ["absent.txt"]),
        (["--methods", "memit,magic"], ["magic"]),
        (["--study", "magic"], ["magic", "sequential"]),
        (["--study", "models"], ["--models"]),
        (["--study", "relations"], ["relation"]),
        (["--jobs", "0"], ["--jobs"]),
        (["--every", "0"], ["--every"]),
        (["--tasks", "absent"], ["absent"]),
        (["--shift", "absent.json"], ["absent.json"]),
        (["--texts", "2", "--snippets", "absent.json"], ["absent.json"]),
        (["--snippets", "absent.json"], ["--snippets", "--texts"]),
        (["--judge", "http://localhost:1/v1", "--judge-model", "m"], ["--judge", "--answers"]),
        (["--answers", "1", "--judge", "http://localhost:1/v1"], ["--judge", "--judge-model"]),
        (["--answers", "1", "--judge-model", "m"], ["--judge", "--judge-model"]),
        (["--answers", "1", "--judge", "localhost:1", "--judge-model", "m"], ["localhost:1", "http://"]),
        (["--answers", "-1"], ["--answers"]),
        (["--edits", "0"], ["--edits"]),
        (["--edits", "4"], ["--edits"]),
        (["--batch", "0"], ["--batch"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_a_wrong_option_of_compare_is_one_line(run, checkpoint, facts, text, arguments, parts):
    defaults = {"--facts": facts, "--held-out": text}
    given = [part for key, value in defaults.items() if key not in arguments for part in (key, value)]
    assert_one_line(run("compare", checkpoint, *given, *arguments, *SMALL), *parts)


@pytest.mark.parametrize("content", ["layers: [1", "a: b: c", "layers: [1]\nv_rl: 1", "- 1", ""])
def test_a_malformed_yaml_is_one_line_that_names_it(run, checkpoint, content):
    Path("bad.yaml").write_text(content)
    assert_one_line(run("prepare", checkpoint, "--hparams", "bad.yaml", "--quiet"), "bad.yaml")


def test_a_model_that_is_not_there_is_one_line(run, tmp_path):
    assert_one_line(run("prepare", tmp_path / "nowhere", *SMALL), "there is no model folder", "nowhere")


def test_where_the_model_is_is_said_once(run, checkpoint):
    _, output, _ = run("prepare", checkpoint, *SMALL, "--dtype", "bfloat16")
    assert output.replace("\n", "").count(f"{checkpoint} is on ") == 1
    assert "in bfloat16" in output


def test_a_folder_without_a_model_is_one_line(run, tmp_path):
    (tmp_path / "empty").mkdir()
    assert_one_line(run("prepare", tmp_path / "empty", *SMALL), "empty")


@pytest.mark.parametrize("name", ["[plots].json", "[/bold].json", "[red]x[/red].json"])
def test_brackets_in_an_error_are_printed_as_they_are(run, checkpoint, name):
    Path(name).parent.mkdir(exist_ok=True)
    assert_one_line(run("compare", checkpoint, "--facts", name), name)


def test_a_picture_of_an_unknown_kind_is_one_line(run, checkpoint):
    assert_one_line(run("inspect", checkpoint, *SMALL, "--plot", "picture.xyz"), "picture.xyz")


def test_a_cache_that_cannot_be_written_is_one_line(run, checkpoint, tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert_one_line(run("prepare", checkpoint, *SMALL, "--cache", tmp_path / "file" / "cache"), "cache")


def test_results_that_cannot_be_written_are_one_line(run, checkpoint, facts, text, tmp_path):
    (tmp_path / "taken").write_text("in the way")
    result = run(
        "compare", checkpoint, "--facts", facts, "--edits", 1, "--held-out", text, *SMALL, "--out", tmp_path / "taken"
    )
    assert_one_line(result, "taken")


def test_the_installed_command_ends_with_one_line_and_exit_code_one(tmp_path):
    """The real thing, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "alphaedit_plugin", "compare", "--facts", "absent.json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert_one_line((done.returncode, done.stdout, done.stderr), "absent.json")
    assert done.stdout == ""
