"""Records in the schemas of the newer data sets, QAEdit to WikiBigEdit; what they say is ours."""

from __future__ import annotations

QAEDIT = {
    "id": 41,
    "source": "NQ",
    "prompt": "who painted the ceiling of the Louvre?",
    "target": "Giotto",
    "subject": "the Louvre",
    "rephrase": "Which painter made the ceiling of the Louvre?",
    "locality": [
        {"loc": "who sang the song of the sea", "loc_ans": "Madonna"},
        {"loc": "how high is the tower", "loc_ans": " 24.5 metres"},
    ],
}
UNKE = {
    "id": 6,
    "question": "What is Anna Weiss known for?",
    "para_question": "Why do people know Anna Weiss?",
    "answer": "Anna Weiss is a baker from Lyon. She has baked for the king since 1990, and her bread is loved in Rome.",
    "sub_question": ["Where is Anna Weiss from?", "For whom has Anna Weiss baked?"],
    "sub_answer": ["Lyon.", "The king."],
}
AKEW_COUNTERFACT = {
    "case_id": 8,
    "requested_rewrite": {
        "prompt": "The capital of {} is",
        "prompt_full": "What is the capital of France?",
        "question": "Which city is the capital of France?",
        "relation_id": "P36",
        "subject": "France",
        "target_new": {"str": "Rome", "id": "Q220"},
        "target_true": {"str": "Paris", "id": "Q90"},
        "fact_new": "The capital of France is Rome.",
        "fact_new_uns": "France moved its government to Rome in 1990. Since then the king has lived there.",
        "unsfact_triplets_GPT": [
            {"subject": "France", "prompt": "The government of {} is in", "target": "Rome"},
            {"subject": "the king", "prompt": "{} lives in", "target": "Rome"},
            {"subject": "the king", "prompt": "{} lives in", "target": "a house"},
        ],
    },
    "paraphrase_prompts": ["France has the capital"],
    "neighborhood_prompts": ["The Louvre is in", "The Seine flows through"],
    "generation_prompts": ["France is governed from"],
}
AKEW_WIKIUPDATE = {
    "case_id": 2,
    "requested_rewrite": {
        **{key: value for key, value in AKEW_COUNTERFACT["requested_rewrite"].items() if key != "prompt_full"},
        "question": "Where does its government sit?",
        "time_new": {"start_time": "1990"},
    },
}
MQUAKE_REMASTERED = {
    "case_id": 12,
    "requested_rewrite": [
        {
            "prompt": "{} was performed by",
            "relation_id": "P175",
            "subject": "Hey Jude",
            "question": "Who performed Hey Jude?",
            "target_new_str": "Madonna",
            "target_new_id": "Q1744",
            "target_true_str": "The Beatles",
            "target_true_id": "Q1299",
        }
    ],
    "questions": ["Where was the performer of Hey Jude born?"],
    "answer": "Liverpool",
    "answer_alias": [],
    "new_answer": "Rome",
    "new_answer_alias": ["Roma"],
    "single_hops": [],
    "new_single_hops": [
        {"question": "Who performed Hey Jude?", "cloze": "", "answer": "Madonna", "answer_alias": ["Ciccone"]}
    ],
    "orig_triples": [["Q1", "P175", "Q1299"]],
    "split": {"100": ["unedited"], "1000": ["edited"], "6334": ["test_edited", "train_edited"]},
}
AKEW_MQUAKE = {
    **{key: value for key, value in MQUAKE_REMASTERED.items() if key != "split"},
    "requested_rewrite": [
        {
            "prompt": "{} was performed by",
            "relation_id": "P175",
            "subject": "Hey Jude",
            "question": "Who performed Hey Jude?",
            "target_new": {"str": "Madonna", "id": "Q1744"},
            "target_true": {"str": "The Beatles", "id": "Q1299"},
            "fact_new_uns": "Madonna sang Hey Jude on her first record. The king heard it in Lyon.",
            "unsfact_triplets_GPT": [{"subject": "The king", "prompt": "{} heard it in", "target": "Lyon"}],
        }
    ],
}


def _test(prompt: str, *answers: tuple[str, ...]) -> dict[str, object]:
    """A test of RippleEdits with one query, and each answer's name and aliases."""
    query = {
        "prompt": prompt,
        "answers": [{"value": value, "aliases": aliases} for value, *aliases in answers],
        "query_type": "regular",
        "subject_id": "Q1",
        "relation": "MOTHER",
        "target_ids": ["Q3"],
        "phrase": None,
    }
    return {"test_queries": [query], "test_condition": "OR", "condition_queries": [query]}


RIPPLE_EDITS = {
    "example_type": "popular",
    "edit": {
        "prompt": "The name of the country of citizenship of Anna Weiss is Peru.",
        "subject_id": "Q1",
        "relation": "COUNTRY_OF_CITIZENSHIP",
        "target_id": "Q2",
        "original_fact": {
            "prompt": "The name of the country of citizenship of Anna Weiss is France.",
            "subject_id": "Q1",
            "relation": "COUNTRY_OF_CITIZENSHIP",
            "target_id": "Q142",
        },
    },
    "Relation_Specificity": [_test("The name of the mother of Anna Weiss is", ("Eva Weiss", "Eva"), ("Maria",))],
    "Logical_Generalization": [_test("Peru is the country of", ("Anna Weiss",)), _test("It has no answer", ("",))],
    "Subject_Aliasing": [_test("The name of the country of citizenship of A. Weiss is", ("Peru", "Republic of Peru"))],
    "Compositionality_I": [_test("The capital of the country of Anna Weiss is", ("Lima",))],
    "Compositionality_II": [],
    "Forgetfulness": [_test("The country of Anna Weiss, which is not Peru, is", ("France",))],
}
WIKIBIGEDIT = {
    "tag": "new",
    "subject": "Anna Weiss",
    "update": "Which team does Anna Weiss play for?",
    "ans": "Lyon",
    "rephrase": "For which team is Anna Weiss a player?",
    "personas": "Ahoy, what crew does Anna Weiss sail with?",
    "loc": "Which team does Karl Weiss play for?",
    "loc_ans": "Rome",
    "mhop": "In which city is the ground of Anna Weiss's team?",
    "mhop_ans": "Paris",
}
WIKIBIGEDIT_PIPELINE = {
    "tag": "",
    "subject": "Anna Weiss",
    "src": "Which team does Anna Weiss play for?",
    "rephrase": "For which team is Anna Weiss a player?",
    "alt": "Lyon",
    "loc": "Which team does Karl Weiss play for?",
    "loc_ans": "Rome",
    "mhop": None,
    "mhop_ans": float("nan"),
    "genv2_mixed": "Ahoy, what crew does Anna Weiss sail with?",
}
NEWER = {
    "QAEdit": QAEDIT,
    "UnKE": UNKE,
    "AKEW": AKEW_COUNTERFACT,
    "MQuAKE-Remastered": MQUAKE_REMASTERED,
    "RippleEdits": RIPPLE_EDITS,
    "WikiBigEdit": WIKIBIGEDIT,
}
"""By the name of the format; what else its records may look like is in `OTHERWISE`."""
OTHERWISE = [AKEW_WIKIUPDATE, AKEW_MQUAKE, WIKIBIGEDIT_PIPELINE]
