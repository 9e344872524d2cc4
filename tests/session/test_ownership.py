"""A session's folder has one owner: edits of two sessions are never mixed in it."""

from __future__ import annotations

import copy
import gc
import json
import shutil
import subprocess
import sys

import pytest
from support.paths import IMPORTS
from support.processes import exit_code_of
from support.sessions import (
    assert_folder_holds,
    assert_same_session,
    assert_state,
    edited,
    manifest,
    model_of_kind,
    reference,
    session_of,
    state,
    write,
)

from alphaedit_plugin.errors import SessionError, SessionInUseError
from alphaedit_plugin.session.manifest import MANIFEST
from alphaedit_plugin.session.session import Session
from alphaedit_plugin.storage.json_file import write_json


@pytest.fixture
def owned(tokenizer, tmp_path):
    """A session that saves itself to tmp_path / "s", after its first batch."""
    session = session_of(model_of_kind(), tokenizer, "alphaedit", autosave=tmp_path / "s")
    write(session, 0)
    return session


def test_a_folder_in_use_is_refused_and_whose_it_is_is_said(owned, tmp_path):
    model = model_of_kind()
    with pytest.raises(SessionInUseError, match=r"another Session of this process \(\d+ on .*read_only"):
        Session.resume(tmp_path / "s", model)
    write(owned, 1)
    assert_folder_holds(tmp_path / "s", owned)


def test_another_process_is_refused_and_told_which_one_it_is(owned, tmp_path):
    script = (
        "import sys; sys.path[:0] = sys.argv[2].split(':')\n"
        "from support.sessions import model_of_kind\n"
        "from alphaedit_plugin.session.session import Session\n"
        "Session.resume(sys.argv[1], model_of_kind())\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "s", IMPORTS], capture_output=True, text=True, check=False
    )
    assert "SessionInUseError" in said.stderr
    assert "another process" in said.stderr
    write(owned, 1)
    assert_folder_holds(tmp_path / "s", owned)


def test_who_only_looks_changes_nothing_and_is_not_in_the_way(owned, tmp_path):
    before = {path: path.read_bytes() for path in (tmp_path / "s").rglob("*") if path.is_file()}
    looking = Session.resume(tmp_path / "s", model_of_kind(), read_only=True)
    write(looking, 1)
    assert {path: path.read_bytes() for path in (tmp_path / "s").rglob("*") if path.is_file()} == before
    with pytest.raises(SessionError, match="in use"):
        looking.save(tmp_path / "s")
    write(owned, 2)
    assert_folder_holds(tmp_path / "s", owned)


@pytest.mark.parametrize("how", ["closed", "left", "forgotten"])
def test_a_folder_is_free_again_when_its_session_is(how, tokenizer, tmp_path):
    session = session_of(model_of_kind(), tokenizer, "alphaedit", autosave=tmp_path / "s")
    if how == "left":
        with session:
            write(session, 0)
    else:
        write(session, 0)
    if how == "closed":
        session.close()
    if how == "forgotten":
        del session
        gc.collect()
    resumed = Session.resume(tmp_path / "s", model_of_kind())
    write(resumed, 1)
    assert_folder_holds(tmp_path / "s", reference("llama", tokenizer, "alphaedit", 0, 1))


def test_a_process_that_ends_lets_go(tokenizer, tmp_path):
    def work() -> None:
        session = session_of(model_of_kind(), tokenizer, "alphaedit", autosave=tmp_path / "s")
        write(session, 0)

    assert exit_code_of(work) == 0
    write(Session.resume(tmp_path / "s", model_of_kind()), 1)
    assert_folder_holds(tmp_path / "s", reference("llama", tokenizer, "alphaedit", 0, 1))


def test_a_copy_of_the_process_does_not_take_the_folder_along(owned, tmp_path):
    def work() -> None:
        owned.close()

    assert exit_code_of(work) == 0
    with pytest.raises(SessionInUseError):
        Session.resume(tmp_path / "s", model_of_kind())


def test_a_fork_may_not_save_where_its_parent_does(owned, tmp_path):
    def work() -> None:
        with pytest.raises(SessionInUseError, match="a fork"):
            write(owned, 1)

    assert exit_code_of(work) == 0
    write(owned, 2)
    assert_folder_holds(tmp_path / "s", owned)


def test_a_copy_of_a_session_does_not_own_its_folder(owned, tmp_path):
    twin = copy.deepcopy(owned)
    with pytest.raises(SessionInUseError):
        write(twin, 1)
    write(owned, 2)
    assert_folder_holds(tmp_path / "s", owned)


def test_a_relative_folder_is_the_same_one_wherever_the_process_goes(tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    session = session_of(model_of_kind(), tokenizer, "alphaedit", autosave="s")
    write(session, 0)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    write(session, 1)
    session.close()
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert not (tmp_path / "s" / "owner.json").exists()
    assert_folder_holds(tmp_path / "s", session)


def test_what_lies_beside_the_tokenizers_files_is_no_damage(owned, tmp_path):
    owned.close()
    (tmp_path / "s" / "tokenizer" / ".DS_Store").write_text("a desktop's")
    (tmp_path / "s" / "tokenizer" / ".ipynb_checkpoints").mkdir()
    assert_folder_holds(tmp_path / "s", owned)


@pytest.mark.parametrize("call", ["edit", "undo", "finish", "save"])
def test_a_closed_session_does_not_save_over_what_another_has_saved_since(call, tokenizer, tmp_path):
    first = session_of(model_of_kind(), tokenizer, "prune+P", autosave=tmp_path / "s")
    write(first, 0)
    first.close()
    second = Session.resume(tmp_path / "s", model_of_kind())
    write(second, 1)
    second.close()
    before = state(first)
    calls = {"edit": lambda: write(first, 2), "undo": first.undo, "finish": first.finish}
    with pytest.raises(SessionError, match="another Session has saved there since"):
        calls.get(call, lambda: first.save(tmp_path / "s"))()
    assert_state(first, before)
    assert_folder_holds(tmp_path / "s", reference("llama", tokenizer, "prune+P", 0, 1))


def test_a_closed_session_goes_on_where_nobody_else_did(owned, tmp_path):
    owned.close()
    write(owned, 1)
    assert_folder_holds(tmp_path / "s", owned)
    write(Session.resume(tmp_path / "s", model_of_kind()), 2)


def test_a_session_without_edits_leaves_nothing_behind(tokenizer, tmp_path):
    session = session_of(model_of_kind(), tokenizer, "alphaedit", autosave=tmp_path / "deep" / "s")
    session.close()
    assert not (tmp_path / "deep" / "s").exists()


def test_a_place_that_cannot_be_written_is_noticed_before_anything_is_edited(tokenizer, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SessionError, match="file"):
        session_of(model_of_kind(), tokenizer, "alphaedit", autosave=tmp_path / "file" / "s")
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_first_save_that_fails_leaves_what_is_others_alone(tokenizer, tmp_path, monkeypatch):
    """tokenizers raises a plain Exception on a full disk."""
    (tmp_path / "s" / "batches").mkdir(parents=True)
    (tmp_path / "s" / "batches" / "mine.txt").write_text("mine")
    session = edited("llama", tokenizer, "alphaedit", 0)

    def full(*_: object) -> None:
        raise Exception("No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr(type(tokenizer), "save_pretrained", full)
        with pytest.raises(SessionError, match="No space left"):
            session.save(tmp_path / "s")
    assert [path.name for path in (tmp_path / "s").rglob("*") if path.is_file()] == ["mine.txt"]
    session.save(tmp_path / "s")
    assert_folder_holds(tmp_path / "s", session)


# ------------------------------------------------------------------------------------------------- session.json


@pytest.fixture
def saved(tokenizer, tmp_path):
    edited("llama", tokenizer, "alphaedit", 0, 1, 2).save(tmp_path / "s")
    return tmp_path / "s"


def rewritten(folder, **changes) -> None:
    """The manifest with these entries and a checksum that fits."""
    values = {key: value for key, value in manifest(folder).items() if key != "sha256"}
    write_json(folder / MANIFEST, {**values, **changes}, SessionError)


@pytest.mark.parametrize("what", ["twice", "outside", "absolute", "number"])
def test_names_of_batches_are_plain_and_differ(what, saved, tmp_path):
    names = manifest(saved)["batches"]
    shutil.copy(saved / "batches" / names[0], tmp_path / "x.safetensors")
    changed = {
        "twice": [names[0], names[0]],
        "outside": ["../../x.safetensors"],
        "absolute": [str(tmp_path / "x.safetensors")],
        "number": [1],
    }
    rewritten(saved, batches=changed[what])
    with pytest.raises(SessionError, match=MANIFEST):
        Session.resume(saved, model_of_kind())


def test_settings_that_are_not_those_of_the_beginning_are_found_when_resuming(saved):
    settings = {**manifest(saved)["hyperparameters"], "L2": 0.25}
    rewritten(saved, hyperparameters=settings)
    with pytest.raises(SessionError, match="not those that the session began with"):
        Session.resume(saved, model_of_kind())


@pytest.mark.parametrize("vouched", [True, False], ids=["sums", "no sums"])
def test_a_batch_of_another_session_does_not_pass_for_rounding(vouched, saved, tokenizer, tmp_path):
    edited("llama", tokenizer, "alphaedit", 3, 4, 5).save(tmp_path / "other")
    name = manifest(saved)["batches"][1]
    shutil.copy(tmp_path / "other" / "batches" / name, saved / "batches" / name)
    if not vouched:
        rewritten(saved, sums={})
    model = model_of_kind()
    with pytest.raises(SessionError, match="not the batch that" if vouched else "does not lead to the weights"):
        Session.resume(saved, model)
    assert_same_session(session_of(model, tokenizer, "alphaedit"), session_of(model_of_kind(), tokenizer, "alphaedit"))


def test_another_tokenizer_in_the_folder_is_found(saved, bos_tokenizer):
    bos_tokenizer.save_pretrained(saved / "tokenizer")
    with pytest.raises(SessionError, match="is not the one that was saved"):
        Session.resume(saved, model_of_kind())


@pytest.mark.parametrize("kind", ["llama", "llama bfloat16"])
def test_rounding_is_said_and_no_error(kind, tokenizer, tmp_path, caplog):
    """Some weights differ in their last bit, as after other arithmetic."""
    edited(kind, tokenizer, "alphaedit", 0, 1).save(tmp_path / "s")
    session = edited(kind, tokenizer, "alphaedit", 0, 1)
    for projection in session.projections.values():
        row = projection.matrix[::9, ::7]
        row.copy_((row.double() * (1 + 0.6 * 2.0 ** (-7 if "16" in kind else -23))).to(row.dtype))
    values = manifest(tmp_path / "s")
    rewritten(tmp_path / "s", weights=session._digests(), moved=session._moved())
    assert session._digests() != values["weights"]
    Session.resume(tmp_path / "s", model_of_kind(kind))
    assert "last bits" in caplog.text


def test_a_flip_anywhere_in_the_manifest_is_found_or_changes_nothing(saved, tokenizer):
    content = (saved / MANIFEST).read_bytes()
    expected, said = reference("llama", tokenizer, "alphaedit", 0, 1, 2), []
    for place in range(0, len(content), 97):
        (saved / MANIFEST).write_bytes(
            content[:place] + bytes([content[place] ^ 1 << place % 7]) + content[place + 1 :]
        )
        try:
            resumed = Session.resume(saved, model_of_kind(), read_only=True)
        except SessionError as failure:
            said.append(str(failure))
        else:
            assert_same_session(resumed, expected)
    assert len(said) > len(content) // 97 // 2
    assert all(str(saved) in each for each in said)
    (saved / MANIFEST).write_bytes(content)
    assert_folder_holds(saved, expected)
    assert json.loads(content)["sha256"]


# ------------------------------------------------------------------------------------------------ what is left to do


@pytest.mark.parametrize(
    ("written", "wanted", "left"),
    [
        ("", "ABA", "ABA"),
        ("A", "ABA", "BA"),
        ("AB", "ABA", "A"),
        ("ABA", "ABA", ""),
        ("B", "B", ""),
        ("BA", "B", "B"),
        ("xAB", "AB", ""),
        ("xy", "xz", "z"),
        ("Ax", "AB", "B"),
    ],
)
def test_what_is_in_force_decides_what_is_left(written, wanted, left, tokenizer):
    """A and B are two objects of one fact; x, y, z are others."""
    objects = {"A": (0, "Rome"), "B": (0, "Warsaw"), "x": (1, "Rome"), "y": (2, "Rome"), "z": (3, "France")}

    def facts(letters: str) -> list[dict]:
        return [
            {"prompt": f"{{}} number {n} is in", "subject": "Eiffel Tower", "target_new": target}
            for n, target in (objects[letter] for letter in letters)
        ]

    session = session_of(model_of_kind(), tokenizer, "memit")
    for fact in facts(written):
        session.edit([fact], on_failure="ignore")
    parsed = [session.check([fact])[0] for fact in facts(wanted)]
    assert [(one.prompt, one.target_new) for one in map(parsed.__getitem__, session.to_do(parsed))] == [
        (fact["prompt"], fact["target_new"]) for fact in facts(left)
    ]
