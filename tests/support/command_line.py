"""What the tests of the command line share."""

from __future__ import annotations

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

SMALL = ("--layers", "1-2", "--tokens", "300", "--nullity", "12", "--quiet")
"""Options that make a tiny model quick to prepare."""


def assert_one_line(result: tuple[int, str, str], *parts: str) -> None:
    code, _, errors = result
    assert code == 1
    assert len(errors.strip().splitlines()) == 1, errors
    assert errors.startswith("error:")
    assert "Traceback" not in errors
    for part in parts:
        assert part in errors
