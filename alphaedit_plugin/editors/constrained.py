"""The decorator that puts anybody's editing function under a guard."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator, Mapping, Set
from concurrent.futures import Future, wait
from pathlib import Path
from typing import ParamSpec, TypeVar

from torch import nn

from ..errors import GuardError
from ..nullspace.guard import guard, guarded_decoder
from ..nullspace.null_spaces import NullSpaces, Spaces
from .witness import Witness, edited_model

Params = ParamSpec("Params")
Result = TypeVar("Result")


def null_space_constrained(
    null_spaces: Spaces | str | Path | Callable[[nn.Module], Spaces], *, check_model: bool = True
) -> Callable[[Callable[Params, Result]], Callable[Params, Result]]:
    """Decorate an editing function, whose first argument is the model, so that all it writes is projected.

        @null_space_constrained("llama3.safetensors")      # or NullSpaces, or model -> NullSpaces
        def edit(model, tokenizer, requests): ...

    The function keeps its signature, docstring and return value; it runs inside `guard`, whose docstring says what is
    guaranteed. A file is read once, at the first call; a callable is called at every call. If a tokenizer and a list of
    facts are among the arguments, the log says afterwards what became of each fact.

    A model that the function returns, alone or in a tuple, a list or a dict, is projected and checked like the one that
    it was given, in whatever way it was made.

    Raises GuardError while decorating: for a class, a coroutine or a generator (their body would run after the guard
    has ended), a function without arguments, a file that does not exist, or a forgotten argument. When called, the
    function raises GuardError if its first argument is not the model, or if it returns (alone, or in a tuple, a list or
    a dict) an iterator, an awaitable or a pending Future, which has yet to run; what it wrote is then undone.
    """
    if isinstance(null_spaces, str | Path):
        path = Path(null_spaces)
        if not path.is_file():
            raise GuardError(f"@null_space_constrained: there is no file {path}; make it with `alphaedit prepare`")
        read = functools.cache(lambda: NullSpaces.load(path))

        def find(model: nn.Module) -> Spaces:
            return read()

    elif isinstance(null_spaces, Spaces):

        def find(model: nn.Module) -> Spaces:
            return null_spaces

    elif callable(null_spaces) and _looks_like_an_editor(null_spaces):
        raise GuardError(
            "@null_space_constrained needs to know the null spaces: write @null_space_constrained(null_spaces) with "
            "NullSpaces, the path of a file of them, or a function model -> NullSpaces"
        )
    elif callable(null_spaces):
        given = null_spaces

        def find(model: nn.Module) -> Spaces:
            return given(model)

    else:
        raise GuardError(
            f"@null_space_constrained takes NullSpaces, a path or a function model -> NullSpaces, not a "
            f"{type(null_spaces).__name__}"
        )

    def decorate(function: Callable[Params, Result]) -> Callable[Params, Result]:
        name = getattr(function, "__qualname__", type(function).__name__)
        if isinstance(function, nn.Module):
            raise GuardError(
                "@null_space_constrained was called with a model where a function was expected: were its arguments "
                "forgotten? Write @null_space_constrained(null_spaces)"
            )
        if inspect.isclass(function) or not callable(function):
            raise GuardError(f"@null_space_constrained decorates a function, not {name}")
        if any(
            kind(called)
            for called in (function, type(function).__call__)
            for kind in (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)
        ):
            raise GuardError(f"@null_space_constrained: {name} would run after the guard has ended; make it plain")
        signature = inspect.signature(function)
        first = next(iter(signature.parameters.values()), None)
        if first is None or first.kind in (first.KEYWORD_ONLY, first.VAR_KEYWORD):
            raise GuardError(f"@null_space_constrained: {name} must take the model as its first argument")

        @functools.wraps(function)
        def constrained(*args: Params.args, **kwargs: Params.kwargs) -> Result:
            model = args[0] if args else kwargs.get(first.name)
            if not isinstance(model, nn.Module):
                raise GuardError(f"{name}: the first argument must be the model, not a {type(model).__name__}")
            spaces = find(model)
            with guard(model, spaces, check_model=check_model) as guarding:
                last = guarded_decoder(model, spaces).out_projections(list(spaces), together=True)[max(spaces)]
                witness = Witness.of_call(model, (*args, *kwargs.values()), last)
                result = function(*args, **kwargs)
                parts = _parts(result)
                if later := [type(part).__name__ for part in parts if _is_yet_to_run(part)]:
                    raise GuardError(
                        f"{name} returned a {later[0]}, which would run after the guard has ended: make it do its work "
                        "before it returns"
                    )
                for part in parts:
                    guarding.include(part)
            if witness is not None:
                witness.tell(edited_model(result, model), name)
            return result

        return constrained

    return decorate


def _parts(result: object) -> list[object]:
    """What a function returned, and what that holds if it is a tuple, a list, a set or a dict."""
    if isinstance(result, Mapping):
        return [result, *result.values()]
    return [result, *result] if isinstance(result, tuple | list | Set) else [result]


def _is_yet_to_run(result: object) -> bool:
    """Whether this is work instead of its outcome. Such work never runs, as far as that can be prevented.

    What another thread has begun is waited for: its writes must come before the guard undoes them.
    """
    if isinstance(result, Future):
        later = not result.done()
        if later and not result.cancel():
            wait([result])
        return later
    later = isinstance(result, Iterator | AsyncIterator) or inspect.isawaitable(result)
    if later and isinstance(result, Generator | Coroutine):
        result.close()
    return later


def _looks_like_an_editor(function: Callable) -> bool:
    """Whether a callable needs more than one argument, so that it cannot be model -> NullSpaces."""
    if inspect.isclass(function):
        return True
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    needed = [p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(needed) != 1
