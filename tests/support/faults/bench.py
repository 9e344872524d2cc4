"""What faults are done to: a tiny model, its session, and what "as it was" means."""

from __future__ import annotations

import copy
import functools
import os
import pickle
import random
import select
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from alphaedit_plugin import Session
from alphaedit_plugin.nullspace.null_spaces import NullSpaces
from support.sessions import FACTS as FEW
from support.sessions import HYPERPARAMETERS, covariances_of
from support.spaces import random_spaces
from support.tiny import tiny
from support.tokenizer import VOCABULARY, make_tokenizer
from support.weights import everything

LAYER = 1
ONE = replace(HYPERPARAMETERS, layers=(LAYER,), v_num_grad_steps=1)
FACTS = [
    {**FEW[number % len(FEW)], "subject": f"{FEW[number % len(FEW)]['subject']} {number}", "case_id": number}
    for number in range(1000)
]
"""All different, so that each can be told by its case_id."""

# Attempts fork this process: a bar's monitor thread, or a lock shared with a fork that is killed, would hang the next.
tqdm.monitor_interval = 0
tqdm.set_lock(threading.RLock())


@functools.cache
def tokenizer_of(bos: bool = True) -> Any:
    return make_tokenizer(bos=bos)


@functools.cache
def _model() -> nn.Module:
    return tiny("llama", vocab_size=VOCABULARY, num_hidden_layers=2)


def new_model() -> nn.Module:
    """Always the same one, before any edit."""
    return copy.deepcopy(_model())


@functools.cache
def spaces_of(nullity: int = 15) -> NullSpaces:
    return random_spaces(_model(), (LAYER,), nullity)


def new_session(
    model: nn.Module | None = None, method: str = "alphaedit", nullity: int = 15, **options: Any
) -> Session:
    return Session(
        new_model() if model is None else model,
        tokenizer_of(),
        method,
        spaces_of(nullity),
        hyperparameters=ONE,
        covariances={LAYER: covariances_of()[LAYER]},
        contexts=("{}",),
        check_model=False,
        **options,
    )


def edit(session: Session, *facts: dict[str, Any]) -> None:
    """A batch per fact."""
    for fact in facts:
        session.edit([fact], on_failure="ignore")


def close(session: Session) -> None:
    """Let go of the session's folder."""
    session.close()


def resume(folder: Path, model: nn.Module | None = None, **options: Any) -> Session:
    return Session.resume(folder, new_model() if model is None else model, **options)


def look(folder: Path, model: nn.Module | None = None) -> Session:
    """The session in a folder, without owning it."""
    return resume(folder, model, read_only=True)


def cases(session: Session) -> list[Any]:
    return [fact.case_id for fact in session.facts]


@functools.cache
def after(*numbers: int) -> dict[str, torch.Tensor]:
    """The bits of the model into which an uninterrupted session has written these facts."""
    session = new_session()
    edit(session, *(FACTS[number] for number in numbers))
    return everything(session.model)


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


# ------------------------------------------------------------------------------------------------- as it was


def furniture(model: nn.Module) -> dict[str, Any]:
    """All that an interrupted call may leave behind in a model and in its process, except the weights' values."""
    hooks = [name for name in vars(nn.Module()) if name.endswith("_hooks")]
    return {
        "modules": {name: (id(module), type(module).__name__) for name, module in model.named_modules()},
        "hooks": {
            f"{name}{hook}": len(getattr(module, hook))
            for name, module in model.named_modules()
            for hook in hooks
            if getattr(module, hook)
        },
        "replaced methods": [name for name, module in model.named_modules() if "forward" in vars(module)],
        "training": {name: module.training for name, module in model.named_modules()},
        "parameters": {
            name: (id(parameter), type(parameter), parameter.requires_grad, parameter.dtype, parameter.shape)
            for name, parameter in model.named_parameters()
        },
        "attention": model.config._attn_implementation,
        "SIGINT": signal.getsignal(signal.SIGINT),
        "threads": torch.get_num_threads(),
        "default type": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
    }


def random_states() -> tuple[Any, ...]:
    numpy = np.random.get_state()  # noqa: NPY002  # the global state must not change
    return (random.getstate(), numpy[1].tolist(), numpy[2], torch.get_rng_state().tolist())


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The names of what is no longer as it was, with an example."""
    found = []
    for name, was in before.items():
        if now[name] != was:
            inside = isinstance(was, dict) and sorted(
                k for k in was.keys() | now[name] if was.get(k) != now[name].get(k)
            )
            found.append(f"{name} ({inside[0]})" if inside else name)
    return found


def litter(folder: Path) -> list[str]:
    """What no call may leave in a folder: the temporary files of writers."""
    found = (path.relative_to(folder) for path in folder.rglob(".*"))
    return [str(path) for path in found if not path.name.endswith("lock") and path.name != ".locks"]


def content(folder: Path) -> dict[str, bytes]:
    """Every file below, but for locks."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.endswith("lock"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# ------------------------------------------------------------------------------------------------- processes


class Child:
    """A process of its own, forked (so that it need not import torch), that does `work` and hands back what it returns.

    With an exception it hands back the exception's text.
    """

    def __init__(self, work: Callable[[], Any]) -> None:
        self._answers, answers = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._answers)
            code = 1
            try:
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                found: tuple[bool, Any] = (True, work())
                code = 0
            except BaseException as failure:
                found = (False, f"{type(failure).__name__}: {failure}")
            try:
                with os.fdopen(answers, "wb") as file:
                    pickle.dump(found, file)
            finally:
                os._exit(code)
        os.close(answers)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def join(self, patience: float = 60) -> tuple[bool, Any]:
        """(whether it ended well, what it returned or the error's text); (False, None) if it was killed."""
        received = b""
        try:
            while True:
                ready, _, _ = select.select([self._answers], [], [], patience)
                if not ready:
                    self.kill()
                    raise AssertionError(f"a process still hung after {patience:g} s")
                chunk = os.read(self._answers, 1 << 16)
                if not chunk:
                    break
                received += chunk
        finally:
            os.close(self._answers)
            os.waitpid(self.pid, 0)
        return pickle.loads(received) if received else (False, None)
