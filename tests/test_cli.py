"""The command line, on a tiny model in a folder: what it writes is right, what goes wrong is one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tiny import tiny
from transformers.utils.logging import disable_progress_bar, enable_progress_bar

from alphaedit_plugin import cli
from alphaedit_plugin.hparams import Hyperparameters
from alphaedit_plugin.nullspace import NullSpaces
from alphaedit_plugin.statistics import Covariance

FACTS = [
    {
        "case_id": number,
        "requested_rewrite": {
            "prompt": "{} is located in the city of",
            "subject": subject,
            "target_new": {"str": "Rome"},
            "target_true": {"str": "Paris"},
        },
        "paraphrase_prompts": [f"Everyone knows that {subject} is in", f"You find {subject} in"],
        "neighborhood_prompts": ["The Louvre is in", "The Seine flows through"],
    }
    for number, subject in enumerate(["The Eiffel Tower", "The old village", "Microsoft"])
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tokenizer) -> str:
    """A tiny Llama that saves with its tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    tiny("llama", vocab_size=512).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def facts(tmp_path) -> str:
    path = tmp_path / "facts.json"
    path.write_text(json.dumps(FACTS), encoding="utf-8")
    return str(path)


@pytest.fixture
def text(tmp_path) -> str:
    path = tmp_path / "text.txt"
    path.write_text("The river flows through the old town to the sea, where many ships lie at anchor. " * 20)
    return str(path)


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run `alphaedit …` in this process, in an empty directory; returns (exit code, standard output, errors)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")  # wide enough that no cell is cut
    disable_progress_bar()  # of transformers, which loads the checkpoint; see the test of --quiet

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["alphaedit", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    yield call
    enable_progress_bar()


SMALL = ("--layers", "1-2", "--tokens", "300", "--nullity", "12", "--quiet")


def assert_one_line(result: tuple[int, str, str], *parts: str) -> None:
    code, _, errors = result
    assert code == 1
    assert len(errors.strip().splitlines()) == 1, errors
    assert errors.startswith("error:")
    assert "Traceback" not in errors
    for part in parts:
        assert part in errors


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

    monkeypatch.setattr("alphaedit_plugin.prepare.collect", never)
    monkeypatch.setattr("alphaedit_plugin.corpus.self_written", never)
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
    written = json.loads((out / "comparison.json").read_text())
    settings, rows = written["settings"], written["rows"]
    assert [row["variant"] for row in rows] == ["before", "memit", "memit+P"]
    for row in rows:
        assert row["variant"] in output
        for metric in ("efficacy", "generalization", "specificity"):
            assert 0 <= row[metric] <= 1
            assert len(row["per_fact"][metric]) == 3
            assert row[metric] == pytest.approx(sum(row["per_fact"][metric]) / 3)
        assert row["perplexity"] > 1
        assert (set(row["drift"]) == {"1", "2"}) == (row["variant"] != "before")
    assert rows[2]["mean_leakage"] < rows[1]["mean_leakage"]
    assert settings["command"][:2] == ["alphaedit", "compare"]
    assert (settings["model"], settings["facts"], settings["held_out"]) == (checkpoint, facts, text)
    assert (settings["edits"], settings["batch_size"], settings["dtype"]) == (3, 2, "torch.float32")
    used = Hyperparameters.from_mapping({k: v for k, v in settings["hyperparameters"].items() if v is not None}, "x")
    assert used.layers == (1, 2)
    assert (used.v_num_grad_steps, used.mom2_update_weight, used.null_space.nullity) == (3, 0.1, 12)
    assert settings["contexts"][0] == "{}"
    assert set(settings["null_spaces"]["leakage"]) == {"1", "2"}
    assert settings["statistics"]["text"]["tokens"] >= 300
    assert settings["environment"]["torch"] == torch.__version__


def test_compare_repeats_itself_to_the_last_digit(run, checkpoint, facts, text, tmp_path):
    rows = []
    for name in ("first", "second"):
        run(
            "compare", checkpoint, "--facts", facts, "--edits", 2, "--batch", 1, "--held-out", text,
            "--methods", "memit+P", *SMALL, "--out", tmp_path / name,
        )  # fmt: skip
        rows.append(json.loads((tmp_path / name / "comparison.json").read_text())["rows"])
    for first, second in zip(*rows, strict=True):
        assert {**first, "seconds": 0} == {**second, "seconds": 0}


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
    assert_one_line(run("prepare", tmp_path / "nowhere", *SMALL), "nowhere")


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
        [sys.executable, "-m", "alphaedit_plugin.cli", "compare", "--facts", "absent.json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert_one_line((done.returncode, done.stdout, done.stderr), "absent.json")
    assert done.stdout == ""
