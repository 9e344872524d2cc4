"""The finding of a comparison, as sentences computed from its numbers."""

from __future__ import annotations

from collections.abc import Sequence

from ..comparison.results import BEFORE, SEVERAL, Comparison, Row, shared_checkpoint
from .columns import Column
from .contrast import FEWEST, Contrast
from .frontier import FRONTIER
from .style import method_of, pairs
from .verdict import OPEN, effects, fullest, leading, outcome, ranking

ONCE = "targets found once, on the unedited model"
NAMED = 4
"""As many variants are named in a sentence; of others there is the number."""
MANY = 12
"""As many are listed where each one matters."""


def question(comparisons: Sequence[Comparison]) -> str:
    """What was compared, as the question that it answers."""
    variants = list(dict.fromkeys(row.variant for of in comparisons for row in of.rows if row.variant != BEFORE))
    if all(of.settings.get("study") == FRONTIER for of in comparisons):
        variants = list(dict.fromkeys(map(method_of, variants)))
    both = [base for base, plain, projected in pairs(variants) if plain and projected]
    if both:
        return f"Does the projection help {listed(both)}?"
    if len(variants) > 1:
        return f"Which of {listed(variants)} edits best?"
    return f"What does {variants[0]} do to its model?" if variants else "What will the edits do to the model?"


def listed(names: Sequence[str], word: str = "and") -> str:
    """ "a, b and c"; of many names the first, and how many more there are."""
    shown = list(names) if len(names) <= NAMED else [*names[: NAMED - 1], f"{len(names) - NAMED + 1} more"]
    return f"{', '.join(shown[:-1])} {word} {shown[-1]}" if len(shown) > 1 else "".join(shown)


def after(comparisons: Sequence[Comparison]) -> str:
    """The edits at which variants stand side by side: "all 500 edits", "200 of 500 edits"."""
    edits, of = shared_checkpoint(comparisons), max(comparison.edits for comparison in comparisons)
    return f"all {of:,} edits" if edits == of else f"{edits:,} of {of:,} edits"


def standing(comparison: Comparison) -> str:
    """Which variants are not finished or failed, and how far they are; empty if there are none."""
    failed, of = comparison.failed, comparison.edits
    far = {
        name: f"{edits:,} of {of:,} edits" if edits else "no edits yet" for name, edits in comparison.unfinished.items()
    }
    left = [f"{name} ({text})" for name, text in far.items() if name not in failed]
    waiting = ", ".join(left if len(left) <= MANY else [*left[:NAMED], f"{len(left) - NAMED} more"])
    broken = "; ".join(f"{name} ({far[name]}: {why})" for name, why in failed.items())
    told = [f"Not finished: {waiting}."] if waiting else []
    told += [f"Failed: {broken}."] if broken else []
    beside = {row.variant for row in comparison.final}
    absent = [name for name in comparison.variants if name not in beside and name not in far]
    told += [f"Not measured after {comparison.checkpoint:,} edits: {', '.join(absent)}."] if absent else []
    return " ".join(told)


def finding(comparison: Comparison) -> str:
    """Which variant is best in the deciding column, or which are level there, and how many facts would tell."""
    column, before = leading(comparison), comparison.before
    found = ranking(comparison, column) if column is not None else None
    if column is None or found is None or not found.rows:
        return "No variant has been measured yet."
    best, title = found.rows[0], _title(column)
    edits = f"After {best.edits:,} edits"
    start = f" Before any edit it was {_number(column, before)}." if before and column.of(before) else ""
    number = f"{_number(column, best)}{_interval(column, best)}"
    if len(found.rows) == 1:
        return f"{edits} {best.variant} has a {title} of {number}.{start}"
    if not found.contrasts:
        return f"{edits} {listed(sorted(found.best))} has the best {title}, {number}.{start}"
    second = found.rows[1]
    if not found.level:
        return (
            f"{edits} {best.variant} has the best {title}, {number}, apart from every other variant: {second.variant} "
            f"is next with {_number(column, second)}.{start}"
        )
    if min(each.items for each in found.contrasts) < FEWEST:
        return (
            f"{edits} {best.variant} has the {'highest' if column.better is max else 'lowest'} {title}, {number}, but "
            f"no winner is named with fewer than {FEWEST} facts.{start}"
        )
    names = [f"{each.other.variant} ({_number(column, each.other)})" for each in found.level]
    verb = "is" if len(names) == 1 else "are"
    return (
        f"{edits} no variant alone has the best {title}: {listed(names)} {verb} level with {best.variant}, {number}. "
        f"{_apart_with(found.level)}{start}"
    )


def projection(comparison: Comparison) -> list[str]:
    """What P changes for each method that was run without and with it, one sentence each."""
    return [f"{base}: {_effect(of)}." for base, of in effects(comparison).items()]


def held(comparison: Comparison) -> str:
    """How far from null the null spaces are; empty if they are null enough to be called so."""
    shares = fullest(comparison)
    if shares is None:
        return ""
    least, most = (f"{100 * share:.0f}" for share in shares)
    span = f"{most} %" if least == most else f"{least} to {most} %"
    return (
        f"The null space is not null here: in the edited layers it holds {span} of the preserved keys’ energy, so "
        "(W + ΔP)K0 = WK0 holds only so far."
    )


def mixed(comparison: Comparison) -> str:
    """That the facts are of several formats, whose metrics may be defined differently; empty if they are of one."""
    formats = comparison.settings.get("format") or ""
    if SEVERAL not in formats:
        return ""
    return (
        f"The facts are of several formats ({formats}): efficacy, generalization and specificity are means over facts "
        "with old object and neighbours (is the right one of new and old object the likelier one?) and over all others "
        "(the share of the answer’s tokens that are the likeliest), two definitions."
    )


def caveats(comparison: Comparison) -> list[str]:
    """What a reader must know before believing the numbers: how null the null space is, what is averaged, and what is
    not finished.
    """
    return [told for told in (held(comparison), mixed(comparison), standing(comparison)) if told]


def answer(comparison: Comparison) -> str:
    """What P does to the methods, in one sentence or two; empty if none was run without and with it."""
    found = effects(comparison)
    if len(found) < 2:
        return "".join(projection(comparison))
    said: dict[str, list[str]] = {}
    for base, of in found.items():
        said.setdefault(outcome(of), []).append(base)
    order = ("P helps", "P helps and hurts", "P hurts")
    told = [f"{verb} {listed(said[verb])}." for verb in order if verb in said]
    told += [f"Whether P helps {listed(said[OPEN], 'or')} cannot be told."] if OPEN in said else []
    return " ".join(told)


def signed(column: Column, difference: float) -> str:
    """The difference with its sign, written with a true minus; without one where it is too small to be shown."""
    text = column.form.format(abs(difference))
    return text if text == column.form.format(0) else ("+" if difference > 0 else "−") + text


def spanned(contrast: Contrast) -> str:
    """The difference with its interval: "+3.4 (+1.4 to +5.4)"."""
    text = signed(contrast.column, contrast.value)
    if contrast.interval is None:
        return text
    low, high = (signed(contrast.column, end) for end in contrast.interval)
    return f"{text} ({low} to {high})"


def rounded(count: int) -> str:
    """To two digits: a number that was estimated."""
    return f"{int(float(f'{count:.1e}')):,}"


def _effect(of: Sequence[Contrast]) -> str:
    told = []
    for verb, said in (("P helps", True), ("P hurts", False), ("it cannot be told for", None)):
        found = [f"{_title(each.column)} ({_values(each)})" for each in of if each.better is said]
        told += [f"{verb} {listed(found)}"] if found else []
    return "; ".join(told)


def _values(contrast: Contrast) -> str:
    """What was and what is; where that tells nothing, how many items would."""
    column = contrast.column
    values = f"{column.text(contrast.other)} → {_number(column, contrast.row)}"
    if contrast.better is not None:
        return values
    needed = contrast.needed
    would = f"; about {rounded(needed)} would tell" if needed is not None and contrast.items >= FEWEST else ""
    return f"{values} {contrast.asked}{would}"


def _apart_with(level: Sequence[Contrast]) -> str:
    """With how many items variants are level, and how many would tell the first two of them."""
    paired = [each for each in level if each.paired is not None]
    if not paired:
        return "Their 95 % intervals overlap."
    start = f"{paired[0].asked.capitalize()} they are not told apart"
    found = [(needed, each) for each in paired if (needed := each.needed) is not None]
    if not found:
        return f"{start}: they say the same."
    needed, each = min(found, key=lambda of: of[0])
    return f"{start}; about {rounded(needed)} would tell {each.row.variant} from {each.other.variant}."


def _title(column: Column) -> str:
    return column.label.removesuffix(" %")


def _number(column: Column, row: Row) -> str:
    return column.text(row) + (" %" if column.label.endswith(" %") else "")


def _interval(column: Column, row: Row) -> str:
    estimate = column.of(row)
    if estimate is None or estimate.low is None or estimate.high is None:
        return ""
    return f" (95 % interval {column.form.format(estimate.low)} to {column.form.format(estimate.high)})"
