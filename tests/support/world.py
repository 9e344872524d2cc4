"""A small world to learn by heart: sixty facts about twenty countries, each said in three ways, and plain sentences.

A subject never opens a prompt: before the first word of a text there is nothing to attend to, so a word there has the
attention sink's key. Countries of two words share one of them with others: only the subject's last token, having seen
the one before it, tells them apart, and their neighbours are near.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from alphaedit_plugin.editors.requests import Request
from alphaedit_plugin.evaluation.facts import Fact, Probe

_COUNTRIES = (
    "Arvia", "Belmor", "Corda", "Drusk", "Elvany", "Fenwick", "Golan", "Hesper",
    "New Istria", "New Jarrow", "New Kelda", "New Lorne", "Old Istria", "Old Jarrow", "Old Kelda", "Old Lorne",
    "Port Mirren", "Port Norby", "San Ostra", "San Pella",
)  # fmt: skip


@dataclass(frozen=True)
class Relation:
    """Prompts that ask for the same object of a subject, the first being the one that is edited; and all objects."""

    prompts: tuple[str, ...]
    objects: tuple[str, ...]


RELATIONS = (
    Relation(
        ("the capital of {} is", "ships sail to {} and its capital", "in {} the capital city is"),
        ("Abeck", "Brill", "Cawdor", "Dunmow", "Esker", "Farrow", "Garve", "Hallow", "Inver", "Jura"),
    ),
    Relation(
        ("the people of {} speak", "in {} they speak", "the language of {} is"),
        ("Kentic", "Lydian", "Mordic", "Nubic", "Orsian"),
    ),
    Relation(
        ("the flag of {} is", "the colour of {} is", "in {} they paint houses"),
        ("red", "blue", "green", "white", "black"),
    ),
)

_WHO = ("the king", "a child", "my friend", "the farmer")
_DOES = ("sleeps", "sings", "waits", "reads", "walks")
_WHEN = ("at home", "by night", "in winter", "every day")
OPENINGS = tuple(f"{who} {does}" for who in _WHO for does in _DOES)
"""Sentences that may come before others."""

CONTEXTS = ("{}", "the king sleeps . {}", "a child waits . {}", "and so {}")
"""Templates to average keys over: sentences of this world, and an opening that is none."""


@dataclass(frozen=True)
class Statement:
    """A subject, the object that a relation gives it, and the prompts that ask for it."""

    relation: Relation
    subject: str
    object: str

    def sentences(self) -> Iterator[tuple[str, str]]:
        """(prompt with its subject, object) of each prompt."""
        for prompt in self.relation.prompts:
            yield prompt.format(self.subject), self.object


@cache
def statements() -> tuple[Statement, ...]:
    """All that is true: every object of a relation belongs to equally many subjects."""
    chance = random.Random(0)
    found = []
    for relation in RELATIONS:
        objects = list(relation.objects) * (len(_COUNTRIES) // len(relation.objects))
        chance.shuffle(objects)
        found += [Statement(relation, *pair) for pair in zip(_COUNTRIES, objects, strict=True)]
    return tuple(found)


@cache
def plain_sentences() -> tuple[str, ...]:
    """What is no fact about a country, so that keys of other texts are known too."""
    kinds = [f"{country} is a country" for country in _COUNTRIES]
    return (*(f"{opening} {when}" for opening in OPENINGS for when in _WHEN), *kinds)


@cache
def corpus() -> tuple[str, ...]:
    """Texts of four sentences that hold each fact in each of its ways once, and each plain sentence."""
    chance = random.Random(1)
    facts = [f"{prompt} {answer}" for statement in statements() for prompt, answer in statement.sentences()]
    sentences = [*facts, *plain_sentences()]
    chance.shuffle(sentences)
    return tuple(" . ".join([*sentences[i : i + 4], ""]).strip() for i in range(0, len(sentences), 4))


def counterfacts(count: int, seed: int = 0) -> list[Fact]:
    """What is false, to be written: for `count` statements of different subjects another object of their relation.

    Paraphrases ask for the new object in other ways; the locality "neighbours" asks the edited prompt about all other
    subjects that are not edited in this relation.
    """
    chance = random.Random(seed)
    subjects = chance.sample(_COUNTRIES, count)
    chosen = [
        chance.choice([each for each in statements() if each.subject == subject and each.relation is relation])
        for subject, relation in zip(subjects, RELATIONS * count, strict=False)
    ]
    edited = {(each.relation, each.subject) for each in chosen}
    found = []
    for number, statement in enumerate(chosen):
        relation = statement.relation
        target = chance.choice([each for each in relation.objects if each != statement.object])
        neighbours = [
            Probe(relation.prompts[0].format(other.subject), (other.object,))
            for other in statements()
            if other.relation is relation and (relation, other.subject) not in edited
        ]
        found.append(
            Fact(
                (Request(relation.prompts[0], statement.subject, target, number),),
                paraphrases=tuple(prompt.format(statement.subject) for prompt in relation.prompts[1:]),
                locality={"neighbours": neighbours},
            )
        )
    return found


@cache
def tokenizer(bos: bool) -> PreTrainedTokenizerFast:
    """One token a word; with <s> before every text, or with nothing."""
    words = sorted({word for text in (*corpus(), *CONTEXTS, "{} is a") for word in text.split()} - {"{}"})
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *words])}
    words_only = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words_only.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"bos_token": "<s>"} if bos else {}
    if bos:
        words_only.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=words_only, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", **special
    )
