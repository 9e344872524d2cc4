"""The page: what it holds, that it needs nothing but itself, and how it behaves in a browser."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.browser import CHROMIUM, Browser
from support.comparisons import ROWS, UNDER_WAY, comparison
from support.comparisons import row as made
from support.tries import tries

from alphaedit_plugin.comparison.results import Comparison, Row
from alphaedit_plugin.errors import CompareError
from alphaedit_plugin.evaluation.measure import Measured
from alphaedit_plugin.report.collapse import collapse_of
from alphaedit_plugin.report.export import export
from alphaedit_plugin.report.figures import Picture, _shortened, _spread, layers_panel, save
from alphaedit_plugin.report.lasting_section import by_age
from alphaedit_plugin.report.page import write_report
from alphaedit_plugin.report.sections import over_seeds, sections
from alphaedit_plugin.report.style import THEME, Style, styles
from alphaedit_plugin.report.words import finding, projection

NAMES = ("memit", "memit+P", "alphaedit")
SECTIONS = {
    "headline", "paired", "answers", "lasting", "curves", "more-curves", "capability", "shift", "null-spaces",
    "weights", "timing", "relations", "cases", "all", "settings",
}  # fmt: skip
WHOLE = comparison(NAMES, (100, 200), facts=24)
VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """Elements as (tag, attributes, tags around it), the text, and what was opened and never closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str], tuple[str, ...]]] = []
        self.around: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, {name: value or "" for name, value in attrs}, tuple(self.around)))
        if tag not in VOID:
            self.around.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, {name: value or "" for name, value in attrs}, tuple(self.around)))

    def handle_endtag(self, tag):
        assert self.around, f"</{tag}> closes nothing"
        assert self.around.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        if not {"style", "script"} & set(self.around):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes, _ in self.elements if name == tag]


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    return write_report([WHOLE], tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def page(written) -> Page:
    return Page(written.read_text(encoding="utf-8"))


def sections_of(page: Page) -> set[str]:
    return {attributes["id"].partition("-")[2] for attributes in page.all("section")}


def test_the_page_is_well_formed_and_has_every_section(page):
    assert page.around == []
    assert sections_of(page) == SECTIONS
    links = {attributes["href"] for attributes in page.all("a")}
    assert {f"#c-{name}" for name in SECTIONS} <= links


def test_ids_are_unique_and_every_reference_has_its_target(page):
    ids = [attributes["id"] for _, attributes, _ in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    asked = {attributes["href"][1:] for _, attributes, _ in page.elements if "href" in attributes}
    asked |= {attributes["aria-labelledby"] for _, attributes, _ in page.elements if "aria-labelledby" in attributes}
    for _, attributes, _ in page.elements:
        asked |= {name for value in attributes.values() for name in re.findall(r"url\(#([^)]*)\)", value)}
    assert asked <= set(ids)


def test_nothing_is_fetched(page, written):
    for _, attributes, _ in page.elements:
        assert "src" not in attributes
        assert attributes.get("href", "#").startswith("#")
    text = written.read_text(encoding="utf-8")
    assert "@import" not in text
    assert all(target.startswith("#") for target in re.findall(r"url\(\s*[\"']?([^)]*)\)", text))
    assert "://" not in re.sub(r"\.\./shared", "", text)


def test_every_figure_is_described_and_has_its_numbers_and_its_files(page, written):
    drawn = [attributes for attributes in page.all("svg") if attributes.get("role") == "img"]
    folder = written.parent / "figures"
    stems = {path.stem for path in folder.iterdir()}
    assert len(drawn) == len(stems) >= 25
    assert all(len(attributes["aria-label"]) > 20 for attributes in drawn)
    assert len(page.all("figcaption")) == len(page.all("figure"))
    for stem in stems:
        with Image.open(folder / f"{stem}.png") as image:
            assert image.format == "PNG"
            assert min(image.size) > 300
            assert len(image.convert("L").getcolors()) > 10  # not an empty picture
        assert ElementTree.parse(folder / f"{stem}.svg").getroot().tag.endswith("svg")


def test_figures_follow_the_page_into_the_dark(page):
    """All of their colours are variables, and each variable has two values."""
    for tag, attributes, around in page.elements:
        if "svg" in around or tag == "svg":
            for name, value in attributes.items():
                assert not re.search(r"#[0-9a-fA-F]{3,6}\b(?!-)", re.sub(r"url\([^)]*\)", "", value)) or name in (
                    "id",
                    "href",
                    "d",
                    "aria-label",
                ), (tag, name, value)
    values = [value for pair in THEME.values() for value in pair]
    assert len(values) == len(set(values))


@pytest.mark.parametrize("shade", [0, 1])
def test_text_and_lines_stand_out_from_the_paper(shade):
    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    paper = luminance(THEME["paper"][shade])
    for name, colours in THEME.items():
        light, dark = sorted((paper, luminance(colours[shade])), reverse=True)
        least = {"paper": 1, "grid": 1, "ink": 7, "muted": 4.5}.get(name, 3)  # WCAG 2.2: 1.4.3, 1.4.6, 1.4.11
        assert (light + 0.05) / (dark + 0.05) >= least, name


def test_tables_are_tables_in_regions_that_the_keyboard_reaches(page):
    tables = page.all("table")
    regions = [a for a in page.all("div") if a.get("role") == "region"]
    assert len(tables) == len(page.all("caption")) == len(regions) > 10
    assert all(region["tabindex"] == "0" and region["aria-label"] for region in regions)
    headers = page.all("th")
    assert all(header["scope"] in ("col", "row") for header in headers)
    buttons = [around for tag, _, around in page.elements if tag == "button" and "th" in around]
    assert len(buttons) == sum(header["scope"] == "col" for header in headers)


def test_the_page_says_how_to_repeat_the_run(page):
    assert "alphaedit compare HuggingFaceTB/SmolLM2-135M --data 'facts of the day.json'" in page.text
    assert "record 7: requested_rewrite.subject is missing" in page.text
    assert "ab" * 32 in page.text
    assert page.text.count("v_lr") == len(NAMES)


def test_the_page_tells_at_a_glance_which_method_lasts(page):
    """Made up so: only AlphaEdit's perplexity stays below twice its start."""
    assert "No collapse was seen of alphaedit (200 edits)." in page.text
    fallen = {name: collapse_of(WHOLE, name) for name in ("memit", "memit+P")}
    told = ", ".join(f"{name} between {of.last_good:,} and {of.edits:,} edits" for name, of in fallen.items())
    assert f"Collapsed: {told}." in page.text


def test_variants_are_held_against_alphaedit_fact_by_fact(page):
    assert "Against alphaedit" in page.text
    assert "Less alphaedit, with the 95 % interval of the difference" in page.text


def test_facts_are_told_apart_by_their_age():
    records = [{"number": number, "efficacy": float(number >= 50)} for number in range(100)]
    measured = {"facts": Measured({}, [*records, {"number": 99, "efficacy": None}, {"efficacy": 1.0}])}
    found = by_age(Row("memit", 100, measured))
    assert found == {age: 100.0 * (age < 50) for age in range(5, 100, 10)}


def test_no_section_without_data(tmp_path):
    bare = comparison(("memit",), (100,), ("perplexity",), null_spaces={}, spectra={})
    rows = [type(row)(row.variant, row.edits, row.measured) for row in bare.rows]
    page = Page(write_report([Comparison(rows, bare.settings)], tmp_path).read_text(encoding="utf-8"))
    assert sections_of(page) == {"all", "settings"}
    assert page.all("figure") == []


def test_variants_share_a_line_of_null_spaces_where_they_share_these(tmp_path):
    """ROME's one layer is one of AlphaEdit's; another threshold, or other text, is another line."""

    def space(criterion: str, **nullity: int) -> dict:
        return {"criterion": criterion, "nullity": {k[1:]: n for k, n in nullity.items()}, "leakage": {}}

    spaces = {
        "rome+P": space("threshold 0.02", l5=7),
        "alphaedit": space("threshold 0.02", l4=8, l5=7),
        "memit+P": space("threshold 0.01", l4=5, l5=4),
        "rect+P": space("threshold 0.01", l4=5, l5=4),
        "prune+P": space("threshold 0.01", l4=6, l5=4),
    }
    of = comparison(tuple(spaces), (10,), ("facts",), null_spaces=spaces, spectra={})
    (section,) = (each for each in sections(of, styles([of])) if each.id == "null-spaces")
    (picture,) = section.pictures
    told = [label for label, _ in picture.legend]
    assert told == ["threshold 0.02: rome+P, alphaedit", "threshold 0.01: memit+P, rect+P", "threshold 0.01: prune+P"]
    assert len({(look.hue, look.marker, look.solid) for _, look in picture.legend}) == 3
    assert [grid.caption for grid in section.grids] == told
    assert [[key.text for key, _ in grid.rows] for grid in section.grids] == [["4", "5"]] * 3


@pytest.mark.parametrize(
    "names", [("memit", "rome"), ("betaedit@leakage=300@nas=true", "alphaedit@nas=true", "memit"), ("m" * 99,)]
)
def test_a_saved_figure_holds_its_whole_legend(names, tmp_path):
    looks = {name: Style(hue) for name, hue in zip(names, ("blue", "purple", "green"), strict=False)}
    panel = layers_panel("drift", "drift", {name: {4: 40.0, 5: 50.0} for name in names}, looks)
    save(panel, Picture("", [panel], [*looks.items()]), tmp_path, "c")
    (legend,) = panel.figure.legends
    inside, whole = legend.get_window_extent(), panel.figure.bbox
    assert whole.x0 <= inside.x0
    assert inside.x1 <= whole.x1


def test_layers_of_different_orders_are_drawn_on_a_logarithmic_scale():
    looks = {"memit": Style("blue"), "rome": Style("purple")}
    for rome, scale in ((100.0, "linear"), (2600.0, "log")):
        panel = layers_panel("drift", "drift", {"memit": {4: 40.0, 5: 50.0}, "rome": {5: rome}}, looks)
        (axes,) = panel.figure.axes
        assert axes.get_yscale() == scale
        assert not any("$" in label.get_text() for label in axes.get_yticklabels())
        low, high = axes.get_ylim()
        assert low < 40
        assert rome < high


def test_teacher_forcing_stands_beside_what_is_written_for_each_kind_of_prompt():
    found = {each.id: each for each in sections(WHOLE, styles([WHOLE]))}["answers"]
    finals = {row.variant: row for row in WHOLE.final}
    assert [each.caption.partition(",")[0] for each in found.grids] == ["Efficacy", "Generalization", "Specificity"]
    for kind, table, panel in zip(
        ("efficacy", "generalization", "specificity"), found.grids, found.pictures[0].panels, strict=True
    ):
        names = [f"{how}_{kind}" for how in ("forced", "written", "exact", "gap")]
        assert [head.split()[1] for head in table.head[1:]] == ["forced", "written", "exact", "gap"]
        for first, cells in table.rows:
            shown = [f"{100 * finals[first.text].metrics[name]:.1f}" for name in names]
            assert [cell.text for cell in cells] == shown
            assert f"{first.text} {shown[0]} and {shown[1]}" in panel.alt
        assert [first.text for first, _ in table.rows] == ["before", *NAMES]
    along = {panel.name for panel in found.pictures[1].panels}
    assert along == {f"answers-along-{how}_{kind}" for how in ("written", "gap") for kind in
                     ("efficacy", "generalization", "specificity")}  # fmt: skip


def test_the_section_on_answers_is_there_only_if_some_were_asked():
    without = comparison(NAMES, (100,), ("facts", "texts"), facts=6)
    assert "answers" not in {each.id for each in sections(without, styles([without]))}
    once = comparison(NAMES, (100,), ("facts", "answers"), facts=6)
    (found,) = (each for each in sections(once, styles([once])) if each.id == "answers")
    assert len(found.pictures) == 1, "nothing was measured on the way"


def test_a_case_says_whether_the_new_object_is_written_and_a_judge_knows_better():
    def says(judged: float | None, written: float) -> bool | None:
        record = {"subject": "s", "prompt": "p", "target_new": "o", "written": " o",
                  "written_efficacy": written, "judged_efficacy": judged}  # fmt: skip
        of = Comparison([Row("memit", 1, {"answers": Measured({}, [record])})], {"edits": 1, "batch_size": 1})
        (cases,) = (each.cases for each in sections(of, styles([of])) if each.id == "cases")
        (after,) = cases[0].after
        assert after.written == " o"
        return after.says

    assert (says(None, 1.0), says(None, 0.5), says(0.0, 1.0), says(1.0, 0.0)) == (True, False, False, True)


HOSTILE_TERMINAL = "m\x1b[2J\x9b1m\x07\r\u202eedit\udcff"
HOSTILE = '</svg></script><script>alert(1)</script><img src=x onerror="alert(2)">\'{{ 7*7 }}$\\frac{$&amp;'


@pytest.mark.slow
def test_hostile_names_and_texts_are_only_text(tmp_path):
    of = comparison((HOSTILE, f"{HOSTILE}+P"), (10, 20), ("facts", "answers", "texts", "shift"), facts=6)
    for row in of.rows:
        for name, measured in row.measured.items():
            for record in measured.records:
                for key in ("subject", "prompt", "target_new", "written", "relation") if name != "shift" else ():
                    record[key] = HOSTILE + (
                        str(record["case_id"] % 2) if key == "relation" and name == "facts" else ""
                    )
                for text in record.get("texts", ()):
                    text.update(prompt=HOSTILE, text=HOSTILE)
    settings = {
        **of.settings,
        **dict.fromkeys(("model", "data", "format", "held_out", "date"), HOSTILE),
        "command": ["alphaedit", HOSTILE],
        "left_out": [HOSTILE],
        "environment": {HOSTILE: HOSTILE, "alphaedit_plugin": HOSTILE},
        "hyperparameters": {HOSTILE: {HOSTILE: HOSTILE}},
        "null_spaces": {HOSTILE: {"criterion": HOSTILE, "nullity": {"4": 3}, "leakage": {"4": 0.1}}},
        "spectra": {"4": [1e-3, 1.0]},
    }
    written = write_report([Comparison(of.rows, settings)], tmp_path)
    page = Page(written.read_text(encoding="utf-8"))
    assert page.around == []
    assert len(page.all("script")) == 1
    assert page.all("img") == []
    assert not [name for _, attributes, _ in page.elements for name in attributes if name.startswith("on")]
    assert page.text.count("{{ 7*7 }}$\\frac{$&amp;") > 30
    assert {path.parent for path in (tmp_path / "figures").rglob("*") if path.is_file()} == {tmp_path / "figures"}


@pytest.mark.slow
def test_control_characters_are_shown_on_the_page_and_in_its_figures_never_sent(tmp_path):
    names = (HOSTILE_TERMINAL, f"{HOSTILE_TERMINAL}+P")
    of = comparison(names, (10, 20), ("facts", "answers", "texts", "shift"), facts=6, model=HOSTILE_TERMINAL)
    for row in of.rows:
        for measured in row.measured.values():
            for record in measured.records:
                record.update((key, HOSTILE_TERMINAL) for key in ("subject", "prompt", "written") if key in record)
    written = write_report([of], tmp_path)
    export([of], tmp_path)
    texts = [path for path in tmp_path.rglob("*") if path.suffix in (".html", ".svg", ".md", ".tex")]
    assert len(texts) > 5
    for path in texts:
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", path.read_text(encoding="utf-8")), path
    assert "\\x1b[2J" in written.read_text(encoding="utf-8")
    rows = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))["comparisons"][0]["rows"]
    assert rows[1]["variant"] == HOSTILE_TERMINAL  # data is not changed


def test_a_run_under_way_is_told_of_at_one_checkpoint(tmp_path):
    assert finding(UNDER_WAY).startswith("After 2 edits memit+P has the highest efficacy, 60.0 %")
    assert "no winner is named with fewer than 20 facts" in finding(UNDER_WAY)
    assert "it cannot be told for efficacy (50.0 → 60.0 % by their intervals)" in projection(UNDER_WAY)[0]
    page = Page(write_report([UNDER_WAY], tmp_path).read_text(encoding="utf-8"))
    assert "Not finished: memit+P (2 of 4 edits), alphaedit (no edits yet)." in page.text
    assert "After 2 of 4 edits" in page.text


def test_orders_under_way_are_summed_up_at_one_checkpoint():
    """The second order has come to memit+P, the first one not yet."""
    first = Comparison([ROWS[0], made("memit", 0.5, edits=2), made("memit", 0.9, edits=4)], UNDER_WAY.settings)
    grid = over_seeds([first, UNDER_WAY])
    assert "after 2 of 4 edits" in grid.caption
    cells = {name.text: of[0].text for name, of in grid.rows}
    assert cells == {
        "before": "10.0 [10.0, 10.0]",
        "memit": "50.0 [50.0, 50.0]",
        "memit+P (1 of 2 orders)": "60.0 [60.0, 60.0]",
    }


def test_the_page_asks_what_was_compared_and_answers_first(page):
    title = "\nDoes the projection help memit?\n"
    said = [page.text.index(each) for each in (title, *projection(WHOLE), finding(WHOLE), "Side by side")]
    assert said == sorted(said)
    assert "in the edited layers it holds 18 to 34 % of the preserved keys’ energy" in page.text


def test_what_does_not_carry_the_verdict_is_folded_by_topic(page):
    around = {
        attributes["id"].removeprefix("c-"): "details" in tags
        for tag, attributes, tags in page.elements
        if tag == "section"
    }
    assert {name for name, folded in around.items() if not folded} == {"headline", "curves", "cases"}
    assert len([each for each in page.all("details") if each.get("class") == "topic"]) == 7


@tries(100)
@given(heights=st.lists(st.floats(0, 1), min_size=1, max_size=12).map(sorted))
def test_names_beside_lines_keep_apart_in_order_and_inside(heights):
    least = min(0.066, 1 / max(1, len(heights) - 1))
    found = _spread(heights, least)
    assert all(b - a >= least - 1e-9 for a, b in pairwise(found))
    assert found[0] >= -1e-9
    assert found[-1] <= 1 + 1e-9
    if all(b - a >= least for a, b in pairwise(heights)):
        assert found == pytest.approx(heights)


@pytest.mark.parametrize("length", [3, 10, 22, 24, 32])
def test_a_name_that_is_too_long_loses_its_middle(length):
    names = [f"fine_tuning_of_somebody.py:edit+{mark}" for mark in ("revive", "crisp", "revive+P")]
    short = [_shortened(name, length) for name in names]
    assert all(len(each) == length and "…" in each for each in short)
    assert length < 10 or len(set(short)) == len(names)
    assert _shortened("memit+P", length) == "memit+P" or length < len("memit+P")


def test_a_cloud_of_few_states_is_not_drawn():
    of = comparison(("memit",), (10,), ("facts", "shift"))
    for row in of.rows:
        if "shift" in row.measured:
            del row.measured["shift"].records[29:]
    (section,) = (each for each in sections(of, styles([of])) if each.id == "shift")
    assert section.pictures == []
    assert section.grids


def test_no_two_variants_look_the_same():
    of = comparison(tuple(f"method{i}" for i in range(20)), (10,), ("perplexity",))
    looks = styles([of]).values()
    assert len({(look.hue, look.marker) for look in looks}) == 20


def test_a_method_keeps_its_hue_and_projection_is_solid():
    looks = styles([WHOLE, comparison(("rect+P", "memit"), (10,), ("perplexity",))])
    assert looks["memit"].hue == looks["memit+P"].hue
    assert len({looks[name].hue for name in ("memit", "alphaedit", "rect+P")}) == 3
    assert [looks[name].solid for name in ("memit", "memit+P", "alphaedit", "rect+P")] == [False, True, True, True]


@pytest.mark.slow
def test_orders_of_the_facts_are_summed_up_and_each_has_its_own_sections(tmp_path):
    of = [comparison(("memit",), (10,), ("facts",), facts=20, seed=seed) for seed in (1, 2)]
    of.append(comparison(("memit",), (10,), ("facts",), facts=20, seed=1, model="another"))
    page = Page(write_report(of, tmp_path).read_text(encoding="utf-8"))
    values = sorted(100 * each.final[1].metrics["efficacy"] for each in of[:2])
    assert f"{sum(values) / 2:.1f} [{values[0]:.1f}, {values[1]:.1f}]" in page.text
    assert page.text.count("mean and range over 2 orders") == 1
    assert {f"c{i}-headline" for i in (1, 2, 3)} <= {attributes.get("id") for attributes in page.all("section")}
    assert len({path.stem for path in (tmp_path / "figures").iterdir()}) % 3 == 0


def test_a_run_without_a_comparison_has_no_report(tmp_path):
    with pytest.raises(CompareError, match="no comparison"):
        write_report([], tmp_path)


# ------------------------------------------------------------------------------------------------------------- browser


@pytest.fixture(scope="module")
def browser(written, tmp_path_factory):
    if not CHROMIUM.exists():
        pytest.skip("headless Chromium is not there: apt-get install chromium")
    chromium = Browser(tmp_path_factory.mktemp("profile"))
    chromium.size(1280, 900)
    chromium.open(written)
    yield chromium
    chromium.close()


def test_chromium_has_no_complaint_and_fetches_nothing_else(browser, written):
    assert browser.problems == []
    assert browser.fetched == [written.resolve().as_uri()]


def test_chromium_shows_every_figure(browser, page):
    sizes = browser.evaluate(
        "[...document.querySelectorAll('svg[role=img]')].map(s => { const b = s.getBoundingClientRect(); "
        "return [b.width, b.height, s.querySelectorAll('path, use').length]; })"
    )
    assert len(sizes) == sum(attributes.get("role") == "img" for attributes in page.all("svg"))
    assert all(width > 150 and height > 100 and parts > 5 for width, height, parts in sizes)


def test_a_table_is_sorted_by_the_keyboard(browser):
    column = "[...document.querySelectorAll('#c-headline table')[0].tBodies[0].rows].map(r => +r.cells[1].dataset.sort)"
    header = "document.querySelector('#c-headline table th:nth-child(2)')"
    values = browser.evaluate(column)
    assert values != sorted(values, reverse=True)
    browser.evaluate(f"{header.replace(':nth-child(2)', '')}.querySelector('button').focus()")
    browser.press("Tab", 9)
    assert browser.evaluate(f"document.activeElement === {header}.querySelector('button')")
    browser.press("Enter", 13, "\r")
    assert (browser.evaluate(column), browser.evaluate(f"{header}.ariaSort")) == (sorted(values), "ascending")
    browser.press("Enter", 13, "\r")
    assert browser.evaluate(column) == sorted(values, reverse=True)
    assert (
        browser.evaluate("document.querySelectorAll('#c-headline table')[0].querySelectorAll('[aria-sort]').length")
        == 1
    )


def test_dark_and_light_follow_the_system_and_the_button(browser):
    ink = "getComputedStyle(document.querySelector('svg[role=img] text')).fill"
    paper = "getComputedStyle(document.body).backgroundColor"

    def rgb(colour: str) -> str:
        return f"rgb({', '.join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))})"

    browser.media(scheme="dark")
    assert browser.evaluate(paper) == rgb(THEME["paper"][1])
    assert browser.evaluate(ink) in {rgb(THEME[name][1]) for name in ("ink", "muted")}
    browser.evaluate("document.querySelector('#theme').click()")
    assert browser.evaluate(paper) == rgb(THEME["paper"][0])
    assert browser.evaluate(ink) in {rgb(THEME[name][0]) for name in ("ink", "muted")}
    browser.evaluate("document.querySelector('#theme').click()")
    browser.media(media="print", scheme="dark")
    assert browser.evaluate(paper) == rgb(THEME["paper"][0])  # ink on paper, whatever the screen has
    assert browser.evaluate("getComputedStyle(document.querySelector('#theme')).display") == "none"
    browser.media()


@pytest.mark.parametrize("width", [360, 390, 768, 1280])
def test_the_page_is_never_wider_than_the_screen(browser, width):
    browser.size(width, 800)
    browser.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    too_wide = browser.evaluate(
        "[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, .skip, svg') && "
        f"e.getBoundingClientRect().right > {width} + 1).map(e => e.tagName + '.' + e.className).slice(0, 5)"
    )
    assert too_wide == []
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    browser.evaluate("document.querySelectorAll('details').forEach(d => { d.open = false; })")


def test_the_first_tab_skips_to_the_content(browser, written):
    browser.open(written)
    browser.press("Tab", 9)
    assert browser.evaluate("document.activeElement.getAttribute('href')") == "#content"
    assert browser.evaluate("document.activeElement.getBoundingClientRect().left") >= 0


def test_a_link_opens_what_it_leads_to_and_print_has_everything(browser, written):
    browser.open(written)
    folded = "[...document.querySelectorAll('details.topic')].map(d => d.open)"
    assert not any(browser.evaluate(folded))
    browser.evaluate("document.querySelector('nav a[href=\"#c-weights\"]').click()")
    browser.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done)))")
    assert browser.evaluate("document.querySelector('#c-weights').closest('details').open")
    assert sum(browser.evaluate(folded)) == 1
    browser.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert all(browser.evaluate(folded))
    browser.evaluate("dispatchEvent(new Event('afterprint'))")
    assert sum(browser.evaluate(folded)) == 1
