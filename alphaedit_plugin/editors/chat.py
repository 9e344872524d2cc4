"""A model's chat template around every prompt that the model is asked."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..errors import ChatError
from .wrapped_tokenizer import WrappedTokenizer

_PROBE = "Who wrote “{}” & <it>'s\n sequel?"


@dataclass(frozen=True)
class ChatTemplate:
    """What stands before and after the words of a user whose turn is the first, up to where the answer begins.

    Rendered once, so that a template that tells the date tells all facts the same. `trims`: whether the template drops
    whitespace at the ends of the words.
    """

    opening: str
    closing: str
    trims: bool

    @classmethod
    def of(cls, tokenizer: Any) -> ChatTemplate:
        """Raises ChatError if the tokenizer has no template, or one that changes the user's words."""
        if not getattr(tokenizer, "chat_template", None):
            name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
            raise ChatError(
                f"the tokenizer {name} has no chat template: leave out chat (--chat), take the version of the model "
                "that is made for chats, or set tokenizer.chat_template"
            )
        spaced = f" \n{_PROBE} \n"
        opening, found, closing = _rendered(tokenizer, _PROBE).partition(_PROBE)
        whole = _rendered(tokenizer, spaced)
        for trims, words in ((False, spaced), (True, _PROBE)):
            if found and whole == opening + words + closing:
                return cls(opening, closing, trims)
        raise ChatError("the chat template changes the words of a user: prompts cannot be wrapped in it")

    def around(self, words: str) -> tuple[str, int]:
        """(the text up to the answer, the position in it where `words` begin)."""
        kept, place = words, len(self.opening)
        if self.trims:
            kept, place = words.strip(), place - len(words) + len(words.lstrip())
        return self.opening + kept + self.closing, place


def _rendered(tokenizer: Any, words: str) -> str:
    turn = [{"role": "user", "content": words}]
    try:
        text: str = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    except Exception as failure:  # a template is a program: anything may come
        raise ChatError(f"the chat template cannot render the turn of a user: {failure}") from failure
    return text


@dataclass(frozen=True, eq=False)
class Chat(WrappedTokenizer):
    """A tokenizer for a model that is asked in its chat template.

    Whoever asks a prompt goes through `encode`, which makes it the turn of a user; the answer follows where the
    template ends, with nothing in between. In all else this is the tokenizer itself, so text that is only read
    (covariances, perplexity) stays as it is.
    """

    template: ChatTemplate

    @classmethod
    def of(cls, tokenizer: Any) -> Chat:
        """Raises ChatError if the tokenizer's template cannot be used."""
        return tokenizer if isinstance(tokenizer, Chat) else cls(tokenizer, ChatTemplate.of(tokenizer))

    def written_out(self, prompt: str) -> str:
        """The turn as text, for editors that know nothing of chats: without the BOS that the tokenizer adds itself."""
        text, _ = self.template.around(prompt)
        adds = self.tokenizer("a")["input_ids"][:1] == [self.tokenizer.bos_token_id]
        return text.removeprefix(self.tokenizer.bos_token) if adds else text


def plain(tokenizer: Any) -> Any:
    """The tokenizer itself, without what is around it."""
    return plain(tokenizer.tokenizer) if isinstance(tokenizer, WrappedTokenizer) else tokenizer


def chat_identity(tokenizer: Any) -> dict[str, Any]:
    """What an identity says of the chat; nothing if there is none."""
    return {"chat": asdict(tokenizer.template)} if isinstance(tokenizer, Chat) else {}
