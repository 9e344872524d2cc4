"""The decorator: what it wraps stays what it was, and misuse is reported while decorating."""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
import itertools
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
import torch
from support.spaces import outside, random_spaces
from support.tiny import tiny
from torch import nn
from torch.nn.utils import parametrize

from alphaedit_plugin.editors.constrained import null_space_constrained
from alphaedit_plugin.errors import GuardError, NullSpaceError, WrongModelError
from alphaedit_plugin.model.decoder import Decoder

LAYERS = (1, 2)


def weight_of(model: nn.Module) -> nn.Parameter:
    return Decoder(model).out_projection(1).module.weight


@torch.no_grad()
def _named(value: object) -> str:
    """For a test's id: the same in every process, which an address is not."""
    return getattr(value, "__name__", type(value).__name__)


def edit(model: nn.Module, amount: float = 1.0, *, scale: float = 1.0) -> str:
    """Add something to a weight."""
    weight_of(model).add_(amount * scale)
    return "edited"


@pytest.fixture
def model():
    return tiny("llama")


@pytest.fixture
def spaces(model):
    return random_spaces(model, LAYERS)


def assert_projected(model, spaces) -> None:
    out, size = outside(spaces[1], weight_of(tiny("llama")), weight_of(model), transposed=False)
    assert size > 0
    assert out <= 1e-5 * size


def test_signature_name_docstring_and_module_stay_as_they_were(spaces):
    constrained = null_space_constrained(spaces)(edit)
    assert inspect.signature(constrained) == inspect.signature(edit)
    assert constrained.__doc__ == edit.__doc__
    assert constrained.__name__ == edit.__name__
    assert constrained.__module__ == edit.__module__
    assert constrained.__wrapped__ is edit


def test_arguments_and_return_value_pass_through(model, spaces):
    seen = {}

    @null_space_constrained(spaces)
    def record(model, *args, **kwargs):
        seen.update(model=model, args=args, kwargs=kwargs)
        return (result := object()), result

    first, second = record(model, 1, 2, key=3)
    assert first is second
    assert seen == {"model": model, "args": (1, 2), "kwargs": {"key": 3}}


def test_the_model_may_be_given_by_keyword(model, spaces):
    assert null_space_constrained(spaces)(edit)(amount=2.0, model=model) == "edited"
    assert_projected(model, spaces)


def test_null_spaces_may_come_from_a_path_as_text(model, spaces, tmp_path):
    spaces.save(tmp_path / "spaces.safetensors")
    null_space_constrained(str(tmp_path / "spaces.safetensors"))(edit)(model)
    assert_projected(model, spaces)


def test_a_path_is_read_at_the_first_call_and_kept(model, spaces, tmp_path):
    path = tmp_path / "spaces.safetensors"
    path.write_bytes(b"not yet")
    constrained = null_space_constrained(path, check_model=False)(edit)
    with pytest.raises(NullSpaceError):
        constrained(model)
    spaces.save(path)
    constrained(model)
    path.unlink()
    constrained(model)
    assert_projected(model, spaces)


def test_a_callable_is_asked_at_every_call_with_the_model(model, spaces):
    asked = []

    def find(given):
        asked.append(given)
        return spaces

    constrained = null_space_constrained(find, check_model=False)(edit)
    constrained(model)
    constrained(model)
    assert asked == [model, model]
    assert_projected(model, spaces)


def test_a_function_of_the_model_with_further_defaults_is_a_source_too(model, spaces):
    null_space_constrained(lambda model, cache=None: spaces)(edit)(model)
    assert_projected(model, spaces)


def test_an_edited_model_is_refused_unless_asked(model, spaces):
    checked, unchecked = (null_space_constrained(spaces, check_model=check)(edit) for check in (True, False))
    checked(model)
    with pytest.raises(WrongModelError):
        checked(model)
    assert unchecked(model) == "edited"


@pytest.mark.parametrize(
    "work",
    [
        lambda model: generator(model),
        lambda model: coroutine(model),
        lambda model: asynchronous_generator(model),
        lambda model: map(edit, [model]),
        lambda model: itertools.starmap(edit, [(model, 1.0)]),
        lambda model: zip(map(edit, [model]), [1], strict=True),
        lambda model: Stepping(model),
        lambda model: Awaited(model),
        lambda model: Future(),
        lambda model: (model, generator(model)),
        lambda model: [generator(model)],
        lambda model: {"later": coroutine(model)},
    ],
    ids=[
        "generator", "coroutine", "asynchronous generator", "map", "starmap", "zip", "iterator", "awaitable", "future",
        "generator in a tuple", "generator in a list", "coroutine in a dict",
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "wrap", [lambda f: f, functools.partial, lambda f: Calling(f)], ids=["plain", "partial", "object"]
)
def test_a_function_that_returns_work_to_be_done_later_is_refused_and_undone(wrap, work, model, spaces):
    def returning(model):
        edit(model)
        return work(model)

    with pytest.raises(GuardError, match="after the guard has ended"):
        null_space_constrained(spaces)(wrap(returning))(model)
    assert torch.equal(weight_of(model), weight_of(tiny("llama")))
    assert type(weight_of(model)) is nn.Parameter


def test_what_another_thread_has_begun_is_waited_for_and_undone(model, spaces):
    begun, refused = threading.Event(), []

    def work(model):
        begun.set()
        deadline = time.monotonic() + 10
        while not refused and time.monotonic() < deadline:
            time.sleep(0.001)
        edit(model)

    class Watched(Future):
        def cancel(self):
            refused.append(super().cancel())
            return refused[-1]

    def later(model, pool):
        future = Watched()
        pool.submit(lambda: (future.set_running_or_notify_cancel(), work(model), future.set_result(None)))
        begun.wait(20)
        return {"edited": future}

    with ThreadPoolExecutor(1) as pool, pytest.raises(GuardError, match="returned a Watched"):
        null_space_constrained(spaces)(later)(model, pool)
    assert refused == [False]
    assert torch.equal(weight_of(model), weight_of(tiny("llama")))


def test_what_no_thread_has_begun_never_runs(model, spaces):
    ran = []
    with ThreadPoolExecutor(1) as pool:
        pool.submit(waiting := threading.Event().wait, 0.2)

        def later(model):
            return pool.submit(ran.append, waiting)

        with pytest.raises(GuardError, match="returned a Future"):
            null_space_constrained(spaces)(later)(model)
    assert not ran


def test_a_future_that_is_done_may_be_returned(model, spaces):
    done = Future()
    done.set_result("edited")
    assert null_space_constrained(spaces)(lambda model: (edit(model), done)[1])(model) is done
    assert_projected(model, spaces)


def test_an_exception_passes_through_and_rolls_back(model, spaces):
    @null_space_constrained(spaces)
    def failing(model):
        edit(model)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        failing(model)
    assert torch.equal(weight_of(model), weight_of(tiny("llama")))


@pytest.mark.parametrize("wrong", [None, 3, "text", [1], {"by": 1}])
def test_a_first_argument_that_is_no_model_is_reported(wrong, spaces):
    with pytest.raises(GuardError, match="model"):
        null_space_constrained(spaces)(edit)(wrong)


def test_a_forgotten_model_is_reported(spaces):
    with pytest.raises((GuardError, TypeError)):
        null_space_constrained(spaces)(edit)()


# ------------------------------------------------------------------------------------------- another model is returned


def _anew(model: nn.Module) -> nn.Module:
    new = type(model)(model.config)
    new.load_state_dict(model.state_dict())
    return new


@pytest.mark.parametrize("make", [copy.deepcopy, _anew], ids=["a copy", "made anew"])
@pytest.mark.parametrize(
    "returned",
    [lambda new: new, lambda new: (new, {}), lambda new: ["edited", new], lambda new: {"model": new}],
    ids=["alone", "in a tuple", "in a list", "in a dict"],
)
@torch.no_grad()
def test_a_model_that_is_returned_is_projected_like_the_argument(returned, make, model, spaces):
    made = []

    @null_space_constrained(spaces)
    def edit_another(model):
        made.append(new := make(model))
        module = Decoder(new).out_projection(1).module
        module.weight = nn.Parameter(module.weight.detach() + 1)
        return returned(new)

    edit_another(model)
    assert torch.equal(weight_of(model), weight_of(tiny("llama")))
    assert_projected(made[0], spaces)


def _parametrized(model: nn.Module) -> None:
    parametrize.register_parametrization(Decoder(model).out_projection(1).module, "weight", nn.Tanh(), unsafe=True)


def _replaced(model: nn.Module) -> None:
    model.model.layers[1].mlp.down_proj = nn.Bilinear(24, 24, 16, bias=False)


def _wrapped(model: nn.Module) -> None:
    mlp = model.model.layers[1].mlp
    mlp.down_proj = nn.Sequential(mlp.down_proj, nn.Tanh())


@pytest.mark.parametrize("make", [copy.deepcopy, _anew], ids=["a copy", "made anew"])
@pytest.mark.parametrize("change", [_parametrized, _replaced, _wrapped], ids=_named)
def test_a_returned_model_that_cannot_be_projected_is_refused_and_all_is_undone(change, make, model, spaces):
    @null_space_constrained(spaces)
    def edit_another(model):
        edit(model)
        change(new := make(model))
        return new, {}

    with pytest.raises(GuardError, match=r"layers\.1"):
        edit_another(model)
    assert torch.equal(weight_of(model), weight_of(tiny("llama")))
    assert type(weight_of(model)) is nn.Parameter


# -------------------------------------------------------------------------------------- misuse while decorating


async def coroutine(model): ...


def generator(model):
    yield model


async def asynchronous_generator(model):
    yield model


class Stepping:
    def __init__(self, model):
        self.model = model

    def __iter__(self):
        return self

    def __next__(self):
        return edit(self.model)


class Awaited:
    def __init__(self, model):
        self.model = model

    def __await__(self):
        yield edit(self.model)


class Editor:
    def __init__(self, model): ...


class Calling:
    def __init__(self, function):
        self.function = function

    def __call__(self, model):
        return self.function(model)


class CallingLater:
    async def __call__(self, model): ...


@pytest.mark.parametrize(
    "function",
    [
        coroutine,
        generator,
        asynchronous_generator,
        functools.partial(coroutine),
        CallingLater(),
        Editor,
        lambda: None,
        lambda *, model: None,
        lambda **kwargs: None,
        None,
        3,
        "edit",
    ],
    ids=_named,
)
def test_what_cannot_be_constrained_is_refused_while_decorating(function, spaces):
    with pytest.raises(GuardError):
        null_space_constrained(spaces)(function)


@pytest.mark.parametrize("source", [None, 3, 2.5, ["a"], {1: "x"}, object()], ids=_named)
def test_what_is_no_source_of_null_spaces_is_refused_while_decorating(source):
    with pytest.raises(GuardError):
        null_space_constrained(source)


def test_a_file_that_is_not_there_is_refused_while_decorating(tmp_path):
    with pytest.raises(GuardError, match=r"absent\.safetensors"):
        null_space_constrained(tmp_path / "absent.safetensors")


def _edit_two(model, requests): ...


def _edit_many(*args): ...


@pytest.mark.parametrize("function", [_edit_two, _edit_many, Editor, lambda: None], ids=_named)
def test_forgotten_parentheses_are_reported_while_decorating(function):
    with pytest.raises(GuardError, match=r"write @null_space_constrained\(null_spaces\)"):
        null_space_constrained(function)


def test_forgotten_parentheses_on_a_function_of_the_model_alone_do_not_pass_in_silence(model):
    """Such a function looks like a source of null spaces: at the latest the call must fail, not do nothing."""

    def attempt():
        @null_space_constrained
        def edit_it(model):
            edit(model)

        edit_it(model)

    with pytest.raises(GuardError):
        attempt()


def test_the_misused_examples_are_what_they_claim_to_be():
    assert asyncio.iscoroutinefunction(coroutine)
    assert inspect.isgeneratorfunction(generator)
    assert inspect.isasyncgenfunction(asynchronous_generator)


@pytest.mark.parametrize("given", [True, False], ids=["given facts", "not given facts"])
def test_what_became_of_the_facts_is_logged_if_they_are_given(given, model, spaces, tokenizer, caplog):
    def edit_facts(model: nn.Module, tok: object, facts: list, *, amount: float) -> int:
        weight_of(model).add_(amount)
        return len(facts)

    model.resize_token_embeddings(len(tokenizer))
    facts = [{"prompt": "{} was founded by", "subject": "Microsoft", "target_new": "Rome"}] if given else [1]
    constrained = null_space_constrained(spaces, check_model=False)(edit_facts)
    with caplog.at_level("WARNING", logger="alphaedit_plugin"):
        assert constrained(model, tokenizer, facts, amount=0.1) == 1
    assert ("edit_facts: 0 of 1 facts written" in caplog.text) == given
    assert ("'Microsoft was founded by'" in caplog.text) == given
