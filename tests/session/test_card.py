"""The model card: what it says is what the model does, and it reads as it was meant."""

from __future__ import annotations

import json
import re

import pytest
import torch
from huggingface_hub import ModelCard
from support import taught
from support.sessions import edited, model_of_kind

from alphaedit_plugin.editors.requests import Request
from alphaedit_plugin.editors.verdict import Answer, Circumstances, Verdict, Verdicts
from alphaedit_plugin.errors import PatchError
from alphaedit_plugin.model.origin import Origin
from alphaedit_plugin.session.card import Card, is_ours
from alphaedit_plugin.session.lora import Adapter

HUB = Origin("acme/base", True)


def verdict(number: int = 0, *, said: bool = True, subject: str = "France", target: str = "Lyon") -> Verdict:
    request = Request(f"Question {number}: the capital of {{}} is", subject, target)
    now = Answer(0.9, target, True) if said else Answer(0.1, "Paris", False)
    return Verdict.of(request, Answer(0.01, "Paris", False), now, Circumstances(missed=0.8))


def card(*verdicts: Verdict, origin: Origin = HUB, adapter: Adapter | None = None) -> Card:
    found = Verdicts([each.request for each in verdicts], verdicts)
    return Card(origin, "alphaedit", {4: 0.05, 5: 0.1}, found, adapter=adapter)


def thin(*, exact: bool = True) -> Adapter:
    return Adapter({4: (torch.ones(3, 2), torch.ones(2, 4))}, {4: 0.9}, exact=exact)


def rows(text: str) -> list[str]:
    return [line for line in text.splitlines() if re.match(r"\| [✓✗]", line)]


# ------------------------------------------------------------------------------------------------------- what it says


@pytest.mark.parametrize(
    ("adapter", "relation", "library"), [(thin(), "adapter", "peft"), (None, "finetune", "transformers")]
)
def test_the_hub_is_told_what_it_is(adapter, relation, library):
    data = ModelCard(card(verdict(), adapter=adapter).text()).data.to_dict()
    assert data["base_model"] == "acme/base"
    assert data["base_model_relation"] == relation
    assert data["library_name"] == library
    assert {"knowledge-editing", "alphaedit"} <= set(data["tags"])
    assert "license" not in data
    assert "`license:`" in card(verdict()).text()


@pytest.mark.parametrize("adapter", [thin(), None], ids=["adapter", "model"])
@pytest.mark.parametrize("file", ["", "/small.gguf"], ids=["folder", "file"])
def test_a_base_that_the_hub_does_not_have_is_not_claimed_and_no_path_is_given_away(adapter, file):
    origin = Origin(f"/home/alice/models/base{file}", False)
    text = card(verdict(), origin=origin, adapter=adapter).text()
    assert "base_model" not in {*ModelCard(text).data.to_dict()} - {"base_model_relation"}
    assert f"`{file.strip('/') or 'base'}`" in text
    assert "alice" not in text


@pytest.mark.parametrize(
    "origin", [HUB, Origin("/a/base", False), Origin("/a/b.gguf", False), Origin("", False)], ids=str
)
@pytest.mark.parametrize("adapter", [thin(), None], ids=["adapter", "model"])
def test_the_lines_that_load_it_are_python(origin, adapter):
    text = card(verdict(), origin=origin, adapter=adapter).text()
    compile(text.partition("```python\n")[2].partition("```")[0], "card", "exec")


@pytest.mark.parametrize("count", [1, 20])
def test_few_facts_are_all_there(count):
    text = card(*(verdict(number, said=number != 0) for number in range(count))).text()
    assert len(rows(text)) == count
    assert f"says {count - 1} of {count}" in text
    assert f"{count} fact{'s' * (count > 1)}" in text


@pytest.mark.parametrize(("failed", "named"), [(0, 0), (3, 3), (30, 20)])
def test_of_many_facts_only_those_that_failed_are_named(failed, named):
    text = card(*(verdict(number, said=number >= failed) for number in range(100))).text()
    assert f"says {100 - failed} of 100" in text
    assert len(rows(text)) == named
    assert all("✗" in row for row in rows(text))


def test_a_failed_fact_says_what_is_said_and_why():
    row = rows(card(verdict(said=False)).text())[0]
    assert "Paris" in row
    assert "80% of the way" in row


def test_a_thin_adapter_says_what_it_holds_and_what_was_lost():
    adapter, lost = thin(exact=False), verdict(said=False)
    adapter.judge(Verdicts([lost.request], [lost]), Verdicts([lost.request], [verdict()]))
    text = card(*adapter.verdicts.verdicts, adapter=adapter).text()
    assert "90 % of ‖ΔW‖²" in text
    assert "of full rank it says 1." in text
    assert "lost by the adapter's rank" in rows(text)[0]
    assert "‖ΔW‖²" not in card(verdict(), adapter=thin()).text()


@pytest.mark.parametrize(
    "subject", ["a | b", "<script>x</script>", "**x** [y](z)", "a\n\n# b", "\x1b[31mred", "`x` ~~y~~ $z$ &amp;"]
)
def test_a_fact_cannot_leave_its_cell(subject):
    markdown = pytest.importorskip("markdown_it", reason="markdown-it-py is not installed")
    text = card(verdict(subject=subject, target="x")).text()
    html = markdown.MarkdownIt("gfm-like", {"linkify": False}).render(text)
    assert html.count("<tr>") == 2
    assert html.count("<td>") == 4
    assert html.count("<h1>") == 1
    assert not re.search(r"<(script|strong|a|s|code)\b", html.partition("<tbody>")[2].partition("</tbody>")[0])
    assert "\x1b" not in text


# ------------------------------------------------------------------------------------------------------ kept and known


def test_the_base_that_we_named_goes_with_the_model_and_a_users_stays(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(card(verdict()).text())
    elsewhere = card(verdict(), origin=Origin("/nowhere/my-own-model", False)).text(path)
    assert ModelCard(elsewhere).data.to_dict().get("base_model") is None
    path.write_text("---\nbase_model: me/mine\n---\n")
    assert ModelCard(card(verdict(), origin=Origin("/nowhere/x", False)).text(path)).data.base_model == "me/mine"


@pytest.mark.parametrize("odd", ["1: x", "ignore_metadata_errors: true", "tags: [1, {a: b}]", "tags: words"])
def test_an_odd_setting_of_a_users_does_not_end_the_export(odd, tmp_path):
    path = tmp_path / "README.md"
    path.write_text(f"---\nlicense: mit\n{odd}\n---\n")
    data = ModelCard(card(verdict()).text(path)).data
    assert data.license == "mit"
    assert "alphaedit" in data.tags


def test_what_a_user_added_stays_and_what_is_ours_is_new(tmp_path):
    path = tmp_path / "README.md"
    assert not is_ours(tmp_path)
    path.write_text(card(verdict(), origin=Origin("", False)).text(), encoding="utf-8")
    assert is_ours(tmp_path)
    loaded = ModelCard.load(path)
    loaded.data.license = "apache-2.0"
    loaded.data.base_model = "acme/mine"
    loaded.data.tags.append("geography")
    loaded.save(path)
    data = ModelCard(card(verdict(), verdict(1), origin=Origin("", False)).text(path)).data.to_dict()
    assert (data["license"], data["base_model"]) == ("apache-2.0", "acme/mine")
    assert data["tags"] == ["knowledge-editing", "alphaedit", "geography"]
    assert ModelCard(card(verdict()).text(path)).data.base_model == "acme/base"


@pytest.mark.parametrize("text", ["", "# No settings", "---\n: [\n---\n", "---\njust text\n---\n"])
def test_a_card_that_cannot_be_read_is_written_anew(text, tmp_path):
    path = tmp_path / "README.md"
    path.write_text(text)
    assert not is_ours(tmp_path)
    assert card(verdict()).text(path) == card(verdict()).text()


# ------------------------------------------------------------------------------------------------------------- sessions


def session_of_two(tokenizer):
    """The first fact is said, the second is not: its target was another object."""
    session = taught.session(tokenizer)
    session.edit([taught.fact(0, 0), taught.fact(1, 1)], taught.towards(session, 0, 2), on_failure="allow")
    return session


def test_an_adapter_and_a_model_say_what_has_become_of_their_facts(tokenizer, tmp_path):
    session = session_of_two(tokenizer)
    adapter = session.to_lora(tmp_path / "lora")
    session.to_model(tmp_path / "model")
    assert [each.written for each in adapter.verdicts.verdicts] == [True, False]
    for folder in ("lora", "model"):
        text = (tmp_path / folder / "README.md").read_text(encoding="utf-8")
        assert "says 1 of 2" in text
        assert [row[2] for row in rows(text)] == ["✓", "✗"]
        assert "`memit`" in text
    assert adapter.lost == []


def test_a_card_changes_neither_model_nor_session(tokenizer, tmp_path):
    session = session_of_two(tokenizer)
    before = {layer: each.matrix.clone() for layer, each in session.projections.items()}
    for options in ({}, {"rank": 1}, {"energy": 0.5}):
        session.to_lora(tmp_path, **options)
        assert all(torch.equal(before[layer], each.matrix) for layer, each in session.projections.items())


def test_facts_that_a_rank_loses_are_named(tokenizer, tmp_path):
    """One direction, taken forwards and backwards, says two objects and never three."""
    session = taught.session(tokenizer)
    session.edit([taught.fact(n, n) for n in range(3)], taught.towards(session, 0, 1, 2), on_failure="allow")
    whole = session.to_lora(tmp_path / "whole")
    assert [each.written for each in whole.verdicts.verdicts] == [True, True, True]
    adapter = session.to_lora(tmp_path / "thin", rank=1)
    assert whole[taught.LAST] == 3
    assert adapter == {taught.LAST: 1}
    assert [each.request for each in adapter.lost] == [each.request for each in adapter.verdicts.failed]
    assert adapter.lost
    assert 0 < adapter.kept[taught.LAST] < 1
    assert "of full rank it says 3." in (tmp_path / "thin" / "README.md").read_text(encoding="utf-8")


def test_what_a_thin_adapter_says_is_what_peft_says_with_it(tokenizer, tmp_path):
    peft = pytest.importorskip("peft", reason="whether PEFT can read an adapter, only PEFT can tell")
    session = edited("wide llama", tokenizer, "alphaedit", 0, 1, 2, 3)
    adapter = session.to_lora(tmp_path, rank=2)
    model = peft.PeftModel.from_pretrained(model_of_kind("wide llama"), tmp_path).merge_and_unload()
    for found in adapter.verdicts.verdicts:
        text, target = (tokenizer(words)["input_ids"] for words in (found.request.text, f" {found.request.target_new}"))
        logits = model(torch.tensor([text + target])).logits[0].double().log_softmax(-1)
        likely = sum(float(logits[len(text) - 1 + at, token]) for at, token in enumerate(target))
        assert found.now.probability == pytest.approx(float(torch.tensor(likely).exp()), rel=1e-3)


@pytest.mark.parametrize(("name", "expected"), [("acme/base", "acme/base"), (None, None)])
def test_the_adapter_names_the_model_that_it_is_for(name, expected, tokenizer, tmp_path):
    session = session_of_two(tokenizer)
    session.to_lora(tmp_path, base_model=name)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == expected


def test_a_session_without_facts_has_a_model_without_a_card_and_no_adapter(tokenizer, tmp_path):
    session = session_of_two(tokenizer)
    session.to_model(tmp_path / "model")
    session.undo()
    session.to_model(tmp_path / "model")
    assert not (tmp_path / "model" / "README.md").exists()
    with pytest.raises(PatchError, match="no edit"):
        session.to_lora(tmp_path / "lora")
