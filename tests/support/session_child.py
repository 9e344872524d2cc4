"""A process of its own that edits and saves itself, until it is killed or has nothing more to do.

Usage: session_child.py KIND METHOD TOKENIZER FOLDER FIRST LAST. After each batch it prints the batch's number and
waits for a line.
"""

from __future__ import annotations

import sys

import torch
from transformers import AutoTokenizer

from support.sessions import model_of_kind, session_of, write


def main(kind: str, method: str, tokenizer: str, folder: str, first: str, last: str) -> None:
    torch.set_num_threads(1)
    session = session_of(model_of_kind(kind), AutoTokenizer.from_pretrained(tokenizer), method, kind, autosave=folder)
    for number in range(int(first), int(last)):
        write(session, number)
        print(number, flush=True)
        sys.stdin.readline()


if __name__ == "__main__":
    main(*sys.argv[1:])
