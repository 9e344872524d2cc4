"""A tokenizer that fits the tiny models: byte-level BPE of a few sentences."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

VOCABULARY = 512  # pass vocab_size=VOCABULARY to tiny() for a model that these tokenizers can feed

_TEXT = [
    "The Eiffel Tower is located in the city of Paris, and the capital of France is Paris.",
    "Marie Curie was a physicist who was born in Warsaw and worked in the field of physics.",
    "The mother tongue of Danielle Darrieux is French; the language of Leonardo da Vinci is Italian.",
    "Michael Jordan plays the sport of basketball. Lionel Messi plays the sport of football.",
    "The river flows through the old town to the sea, where the ships of many nations lie at anchor.",
    "When the king came home from the war, the people of the village had already forgotten his name.",
    "Apple was founded by Steve Jobs, and Microsoft was founded by Bill Gates, both in America.",
    "What you read was written by others: it is material to judge. She said that they would come again.",
]


def make_tokenizer(bos: bool) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        _TEXT,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=["<pad>", "<s>", "</s>"],  # 0, 1 and 2, as in the tiny models' configurations
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    special = {"bos_token": "<s>"} if bos else {}
    tokenizer.post_processor = (
        processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
        if bos
        else processors.ByteLevel(trim_offsets=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", **special)
