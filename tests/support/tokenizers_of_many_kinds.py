"""Tokenizers as they occur: byte-level BPE, Metaspace Unigram, slow character-level ones; BOS and EOS or neither."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

TEXT = [  # what the tokenizers know; byte-level ones can write everything else too
    "The Eiffel Tower is located in the city of Paris, and the capital of France is Paris.",
    "Marie Curie was a physicist who was born in Warsaw and worked in the field of physics.",
    "O'Brien's mother-in-law lives in St. John's; Dr. Strange (the film) is by Marvel.",
    "東京は日本の首都です。東京タワーは東京にあります。",
    "عاصمة فرنسا هي باريس وبرج إيفل في باريس",
    "Москва является столицей России. Лев Толстой написал роман.",
    "🗼 is in 🇫🇷, and 👩‍🔬 is a scientist. Zoë went to São Paulo.",
]


def _fast(tokenizer: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", **special)


def _with_special(tokenizer: Tokenizer, bos: bool, eos: bool) -> None:
    if bos or eos:
        single = f"{'<s> ' * bos}$A{' </s>' * eos}"
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=[("<s>", 2), ("</s>", 3)]
        )


SPECIAL = ["<pad>", "<unk>", "<s>", "</s>"]


def byte_level(prefix_space: bool, trim_offsets: bool, bos: bool = False, eos: bool = False) -> Any:
    """GPT-2, Llama 3, Qwen. Characters that were not in TEXT fall apart into bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    if bos or eos:
        single = f"{'<s> ' * bos}$A{' </s>' * eos}"
        template = processors.TemplateProcessing(single=single, special_tokens=[("<s>", 2), ("</s>", 3)])
        tokenizer.post_processor = processors.Sequence([tokenizer.post_processor, template])
    return _fast(tokenizer, bos_token="<s>", eos_token="</s>")


def metaspace(prepend: str, bos: bool = False, eos: bool = False) -> Any:
    """SentencePiece's Unigram as in T5 and Gemma: spaces are ▁. A character that was not in TEXT is <unk>."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=prepend)
    trainer = trainers.UnigramTrainer(vocab_size=400, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    _with_special(tokenizer, bos, eos)
    return _fast(tokenizer, bos_token="<s>", eos_token="</s>")


def llama_2(bos: bool = True) -> Any:
    """As transformers converts Llama 2: no pre-tokenizer, a normalizer that writes ▁, bytes for what is unknown."""
    vocabulary = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    letters = sorted({letter for text in TEXT[:3] for letter in text if letter != " "})
    merges = [("▁", letter) for letter in letters]
    vocabulary += [*letters, *(f"▁{letter}" for letter in letters)]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(vocabulary)},
            merges=merges,
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    _with_special(tokenizer, bos, False)
    return _fast(tokenizer, bos_token="<s>", eos_token="</s>")


class Characters(PreTrainedTokenizer):
    """A tokenizer in Python, one token a character, that knows no offsets."""

    def __init__(self, bos: bool = False, eos: bool = False, **kwargs: Any) -> None:
        self._bos, self._eos = bos, eos
        self._ids = {token: i for i, token in enumerate([*SPECIAL, *sorted({c for text in TEXT for c in text})])}
        self._tokens = {i: token for token, i in self._ids.items()}
        super().__init__(pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>", **kwargs)

    @property
    def vocab_size(self) -> int:
        return len(self._ids)

    def get_vocab(self) -> dict[str, int]:
        return dict(self._ids)

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        return list(text)

    def _convert_token_to_id(self, token: str) -> int:
        return self._ids.get(token, 1)

    def _convert_id_to_token(self, index: int) -> str:
        return self._tokens[index]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return "".join(tokens)

    def build_inputs_with_special_tokens(self, token_ids_0: list[int], token_ids_1: Any = None) -> list[int]:
        return [2] * self._bos + token_ids_0 + [3] * self._eos

    def get_special_tokens_mask(
        self, token_ids_0: list[int], token_ids_1: Any = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        if already_has_special_tokens:
            return [int(i in (0, 2, 3)) for i in token_ids_0]
        return [1] * self._bos + [0] * len(token_ids_0) + [1] * self._eos


class SentencePieceCharacters(Characters):
    """The same with a ▁ before the text, which decoding takes away again: as slow Llama tokenizers do."""

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        return ["▁", *text.replace(" ", "▁")]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._ids.setdefault("▁", len(self._ids))
        self._tokens[self._ids["▁"]] = "▁"

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return "".join(tokens).replace("▁", " ").removeprefix(" ")


MAKERS: dict[str, Callable[[], Any]] = {
    "byte-level": lambda: byte_level(False, True),
    "byte-level, untrimmed": lambda: byte_level(False, False),
    "byte-level, prefix space": lambda: byte_level(True, True),
    "byte-level, prefix space, untrimmed": lambda: byte_level(True, False),
    "byte-level, BOS": lambda: byte_level(False, True, bos=True),
    "byte-level, BOS and EOS": lambda: byte_level(False, False, bos=True, eos=True),
    "metaspace": lambda: metaspace("always"),
    "metaspace, first": lambda: metaspace("first", bos=True),
    "metaspace, never": lambda: metaspace("never", eos=True),
    "llama 2": llama_2,
    "slow": lambda: Characters(),
    "slow, BOS and EOS": lambda: Characters(bos=True, eos=True),
    "slow, sentencepiece": lambda: SentencePieceCharacters(bos=True),
}


@cache
def tokenizer_of(kind: str) -> Any:
    return MAKERS[kind]()
