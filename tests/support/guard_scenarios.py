"""What people do under a guard, at random: write, replace, wrap, compute, copy, fail, return work that is yet to run.

`scenario(seed)` does one such thing to one random model, and says what is wrong unless afterwards

- everything that was written lies in the null space, but for rounding; or
- the guarded weights, their modules and the way to them are as before, bit for bit, and the right error came out;

and never is a weight still guarded, or a hook left.
"""

from __future__ import annotations

import copy
import functools
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from alphaedit_plugin.editors.constrained import null_space_constrained
from alphaedit_plugin.errors import GuardError, ModelStructureError
from alphaedit_plugin.model.decoder import Decoder, OutProjection
from alphaedit_plugin.nullspace.guard import guard
from alphaedit_plugin.nullspace.null_spaces import NullSpaces
from alphaedit_plugin.nullspace.projection import Criterion, NullSpace
from support.spaces import random_covariance
from support.tiny import NAMES, tiny
from support.weights import bits
from support.wrapping import lora

LAYERS = (1, 2)
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Shifted(nn.Module):
    """A parametrization: the weight is what is stored, and a bit more."""

    def forward(self, stored: Tensor) -> Tensor:
        return stored + 0.5

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight - 0.5


class _Bench:
    """A model, what is guarded in it, and how that was before."""

    def __init__(self, choice: random.Random) -> None:
        self.choice = choice
        self.name, self.dtype = choice.choice(NAMES), choice.choice(_DTYPES)
        self.model: nn.Module = tiny(self.name, dtype=self.dtype)
        self.projections: dict[int, OutProjection] = Decoder(self.model).out_projections(list(LAYERS))
        self.nullity = choice.choice([3, 9, 15, 20])
        self.copies: list[nn.Module] = []
        self.remember()

    def remember(self) -> None:
        self.start = {layer: p.module.weight.detach().clone() for layer, p in self.projections.items()}
        self.before = {layer: _held(self.model, p) for layer, p in self.projections.items()}

    @functools.cached_property
    def spaces(self) -> dict[int, NullSpace]:
        return {
            layer: NullSpace.of(random_covariance(p.d_in, seed=layer), Criterion(nullity=self.nullity))
            for layer, p in self.projections.items()
        }

    def any_module(self) -> nn.Module:
        return self.choice.choice(list(self.projections.values())).module

    def noise(self, like: Tensor, size: float | None = None) -> Tensor:
        generator = torch.Generator().manual_seed(self.choice.randrange(1 << 30))
        size = self.choice.choice([1e-3, 0.1, 1.0]) if size is None else size
        return (torch.randn(like.shape, generator=generator) * size).to(like.dtype)

    def slot(self) -> tuple[nn.Module, str, nn.Module]:
        """(parent, key, module) of one guarded module."""
        projection = self.choice.choice(list(self.projections.values()))
        parent, _, key = projection.name.rpartition(".")
        return self.model.get_submodule(parent), key, projection.module


def _held(model: nn.Module, projection: OutProjection) -> list[Any]:
    """All that must be as it was: the modules on the way, by identity, and everything that the last one holds."""
    parts = projection.name.split(".")
    way = [".".join(parts[:end]) for end in range(len(parts) + 1)]
    module = projection.module
    found: list[Any] = [(name, id(model.get_submodule(name))) for name in way]
    found += [type(module), list(vars(module))]
    found += [
        (name, [(key, id(held)) for key, held in table.items()])
        for name, table in vars(module).items()
        if isinstance(table, dict)
    ]
    found += [(name, id(table)) for name, table in vars(module).items() if isinstance(table, dict)]
    found += [
        (name, type(p), p.requires_grad, p.dtype, p.shape) for name, p in module._parameters.items() if p is not None
    ]
    return found


# ------------------------------------------------------------------------- what can be projected: writes of all kinds


def _add(bench: _Bench, module: nn.Module) -> None:
    module.weight.add_(bench.noise(module.weight))


def _copy(bench: _Bench, module: nn.Module) -> None:
    module.weight.copy_(bench.noise(module.weight))


def _row(bench: _Bench, module: nn.Module) -> None:
    module.weight[3] = bench.noise(module.weight)[3]


def _column(bench: _Bench, module: nn.Module) -> None:
    module.weight.T[2].mul_(-1.5)


def _data(bench: _Bench, module: nn.Module) -> None:
    module.weight.data += bench.noise(module.weight)


def _new_data(bench: _Bench, module: nn.Module) -> None:
    module.weight.data = bench.noise(module.weight)


def _view(bench: _Bench, module: nn.Module) -> None:
    module.weight.view(-1)[7:40] = 0.25


def _alias(bench: _Bench, module: nn.Module) -> None:
    alias = module.weight.detach()
    alias += bench.noise(alias)


def _past_the_hook(bench: _Bench, module: nn.Module) -> None:
    values = module.weight.detach()
    if values.dtype != torch.bfloat16:  # NumPy has none
        values.numpy()[...] += bench.noise(values).numpy()


def _new_parameter(bench: _Bench, module: nn.Module) -> None:
    module.weight = nn.Parameter(module.weight.detach() + bench.noise(module.weight), requires_grad=False)


def _sgd(bench: _Bench, module: nn.Module) -> None:
    module.weight.grad = bench.noise(module.weight)
    torch.optim.SGD([module.weight], lr=0.1).step()
    module.weight.grad = None


def _adam(bench: _Bench, module: nn.Module) -> None:
    with torch.enable_grad():
        module.weight.requires_grad_(True)
        optimizer = torch.optim.Adam([module.weight], lr=0.05, eps=1e-3)  # a smaller ε is 0 in float16
        module.weight.float().pow(2).sum().backward()
        optimizer.step()
    module.weight.requires_grad_(False).grad = None


def _state(bench: _Bench, module: nn.Module) -> None:
    module.load_state_dict({key: bench.noise(value) for key, value in module.state_dict().items()})


def _a_copy(bench: _Bench, module: nn.Module) -> None:
    bench.copies.append(copied := copy.deepcopy(bench.model))
    for projection in Decoder(copied).out_projections(list(LAYERS)).values():
        bench.choice.choice([_add, _new_data, _new_parameter, _state])(bench, projection.module)


def _forward(bench: _Bench, module: nn.Module) -> None:
    bench.model(torch.tensor([[1, 5, 9, 3]]))


def _parametrized_for_a_while(bench: _Bench, module: nn.Module) -> None:
    parametrize.register_parametrization(module, "weight", Shifted())
    module.parametrizations.weight.original.mul_(1.25)
    parametrize.remove_parametrizations(module, "weight")


def _replaced_for_a_while(bench: _Bench, module: nn.Module) -> None:
    parent, key, module = bench.slot()
    setattr(parent, key, nn.Identity())
    setattr(parent, key, module)


def _a_hook_for_a_while(bench: _Bench, module: nn.Module) -> None:
    module.register_forward_pre_hook(lambda *_: None).remove()


WRITES: tuple[Callable[[_Bench, nn.Module], None], ...] = (
    _add, _copy, _row, _column, _data, _new_data, _view, _alias, _past_the_hook, _new_parameter, _sgd, _adam, _state,
    _a_copy, _forward, _parametrized_for_a_while, _replaced_for_a_while, _a_hook_for_a_while,
)  # fmt: skip

# ---------------------------------------------------------------------- what cannot: the weight is no longer the weight


def _parametrized(bench: _Bench, module: nn.Module) -> None:
    parametrize.register_parametrization(module, "weight", Shifted())


def _weight_norm(bench: _Bench, module: nn.Module) -> None:
    parametrizations.weight_norm(module)


def _old_weight_norm(bench: _Bench, module: nn.Module) -> None:
    nn.utils.weight_norm(module)


def _spectral_norm(bench: _Bench, module: nn.Module) -> None:
    nn.utils.spectral_norm(module)


def _new_spectral_norm(bench: _Bench, module: nn.Module) -> None:
    parametrizations.spectral_norm(module)


def _pruned(bench: _Bench, module: nn.Module) -> None:
    prune.l1_unstructured(module, "weight", amount=0.3)


def _replaced(bench: _Bench, module: nn.Module) -> None:
    parent, key, module = bench.slot()
    new = copy.deepcopy(module)
    new.weight.add_(1)
    setattr(parent, key, new)


def _block_replaced(bench: _Bench, module: nn.Module) -> None:
    blocks = Decoder(bench.model).blocks
    blocks[LAYERS[0]] = blocks[LAYERS[1]]


def _block_removed(bench: _Bench, module: nn.Module) -> None:
    del Decoder(bench.model).blocks[0]


def _wrapped(bench: _Bench, module: nn.Module) -> None:
    parent, key, module = bench.slot()
    setattr(parent, key, nn.Sequential(module, nn.Identity()))


def _lora(bench: _Bench, module: nn.Module) -> None:
    lora(bench.model, bench.projections[LAYERS[0]].name.rpartition(".")[2], trained=True)


def _another_shape(bench: _Bench, module: nn.Module) -> None:
    module.weight = nn.Parameter(torch.zeros(3, 5, dtype=module.weight.dtype), requires_grad=False)


def _another_shape_of_data(bench: _Bench, module: nn.Module) -> None:
    module.weight.data = torch.zeros(3, 5, dtype=module.weight.dtype)


def _tied(bench: _Bench, module: nn.Module) -> None:
    first, second = (projection.module for projection in bench.projections.values())
    first.weight = second.weight


def _not_finite(bench: _Bench, module: nn.Module) -> None:
    module.weight[1, 2] = float("nan")


def _another_forward(bench: _Bench, module: nn.Module) -> None:
    module.forward = lambda inputs: inputs


def _a_hook(bench: _Bench, module: nn.Module) -> None:
    module.register_forward_hook(lambda _module, _inputs, output: output + 1)


def _a_hook_before(bench: _Bench, module: nn.Module) -> None:
    module.register_forward_pre_hook(lambda _module, inputs: (inputs[0] + 1,))


def _a_copy_broken(bench: _Bench, module: nn.Module) -> None:
    bench.copies.append(copied := copy.deepcopy(bench.model))
    breaking = bench.choice.choice([_parametrized, _old_weight_norm, _another_shape, _another_forward, _a_hook, None])
    name = bench.projections[bench.choice.choice(LAYERS)].name
    if breaking is None:
        copied.set_submodule(name, nn.Identity())
    else:
        breaking(bench, copied.get_submodule(name))


def _codes(bench: _Bench, module: nn.Module) -> None:
    del module.weight
    module.register_buffer("weight", torch.ones(bench.start[LAYERS[0]].shape, dtype=torch.int8))


def _deleted(bench: _Bench, module: nn.Module) -> None:
    del module.weight


COMPUTED = (
    _parametrized, _weight_norm, _old_weight_norm, _spectral_norm, _new_spectral_norm, _pruned
)  # fmt: skip
BREAKING: tuple[Callable[[_Bench, nn.Module], None], ...] = (
    *COMPUTED, _replaced, _block_replaced, _block_removed, _wrapped, _lora, _another_shape, _another_shape_of_data,
    _tied, _not_finite, _codes, _deleted, _another_forward, _a_hook, _a_hook_before, _a_copy_broken,
)  # fmt: skip

# ------------------------------------------------------------------------------------------------------ one scenario


class Mine(Exception):
    """A user's own exception."""


def scenario(seed: int) -> str:
    """One scenario; the same for the same seed. Returns its kind. Raises AssertionError if something is wrong."""
    choice = random.Random(seed)
    kind = choice.choice(
        [_written, _written, _broken, _broken, _raised, _raised, _decorated, _refused, _shared, _raced]
    )
    bench = _Bench(choice)
    about = f"seed {seed}: {kind.__name__}, {bench.name}, {bench.dtype}, nullity {bench.nullity}"
    try:
        with torch.no_grad():
            said = kind(bench)
        _check_free(bench)
    except AssertionError as failure:
        raise AssertionError(f"{about}: {failure}") from failure
    return said


def _written(bench: _Bench) -> str:
    with guard(bench.model, bench.spaces):
        done = _write(bench)
    _check_inside(bench, done)
    return "writes"


def _broken(bench: _Bench) -> str:
    breaking = bench.choice.choice(BREAKING)
    raised: list[BaseException] = []

    def run() -> None:
        with guard(bench.model, bench.spaces):
            try:
                _write(bench)
                breaking(bench, bench.any_module())
                if bench.choice.random() < 0.3:
                    _write(bench, reads=True)
            except Exception as failure:
                raised.append(failure)
                raise

    outcome = _outcome(run)
    _check(outcome is not None, f"{breaking.__name__} passed in silence")
    _check(
        raised == [outcome] or (not raised and isinstance(outcome, GuardError)),
        f"{outcome!r}, not {raised or 'GuardError'}",
    )
    _check_as_before(bench)
    return f"broken by {_plain(breaking)}"


def _raised(bench: _Bench) -> str:
    """An exception of the user's, after anything."""
    mine = bench.choice.choice([Mine, KeyboardInterrupt, SystemExit, GeneratorExit, StopIteration, GuardError])("mine")
    breaking = bench.choice.choice([None, *BREAKING])
    seen: list[BaseException] = []

    def run() -> None:
        with guard(bench.model, bench.spaces):
            try:
                _write(bench)
                if breaking is not None:
                    breaking(bench, bench.any_module())
                raise mine
            except BaseException as failure:
                seen.append(failure)  # what a write to a weight of another shape raises is the user's, too
                raise

    outcome = _outcome(run)
    _check(outcome is seen[0], f"{outcome!r} came out instead of {seen[0]!r}")
    _check_as_before(bench)
    return "an exception" if breaking is None else f"an exception after {_plain(breaking)}"


def _decorated(bench: _Bench) -> str:
    """A function that returns work instead of doing it."""
    name = bench.choice.choice(["generator", "coroutine", "asynchronous generator", "awaitable", "map"])
    ran: list[str] = []

    def generator(model: nn.Module) -> Iterator[None]:
        ran.append(name)
        yield

    async def coroutine(model: nn.Module) -> None:
        ran.append(name)

    async def asynchronous(model: nn.Module):
        ran.append(name)
        yield

    class Awaitable:
        def __await__(self) -> Iterator[None]:
            ran.append(name)
            return iter([None])

    make: dict[str, Callable[[nn.Module], Any]] = {
        "generator": lambda model: generator(model),
        "coroutine": lambda model: coroutine(model),
        "asynchronous generator": lambda model: asynchronous(model),
        "awaitable": lambda model: Awaitable(),
        "map": lambda model: map(ran.append, [name]),
    }

    def edit(model: nn.Module) -> Any:
        _write(bench)
        return make[name](model)

    class Callable_:
        def __call__(self, model: nn.Module) -> Any:
            return edit(model)

    spaces = NullSpaces(bench.spaces, {})
    function = bench.choice.choice([edit, functools.partial(edit), lambda model: edit(model), Callable_()])
    outcome = _outcome(lambda: null_space_constrained(spaces, check_model=False)(function)(bench.model))
    _check(isinstance(outcome, GuardError), f"{outcome!r} instead of GuardError for a function that returns a {name}")
    _check(not ran, f"the {name} ran")
    _check_as_before(bench)
    return f"a function that returns a {name}"


def _refused(bench: _Bench) -> str:
    """A weight that is computed before the guard begins."""
    computed = bench.choice.choice(COMPUTED)
    try:
        computed(bench, bench.any_module())
    except Exception as failure:  # LAPACK has no half precision, …
        return f"not possible: {type(failure).__name__}"
    now = {layer: _tables_of(p.module) for layer, p in bench.projections.items()}
    entered: list[bool] = []

    def run() -> None:
        with guard(bench.model, bench.spaces):
            entered.append(True)

    outcome = _outcome(run)
    _check(isinstance(outcome, ModelStructureError | GuardError), f"{outcome!r} for a weight that is computed")
    _check(not entered, "the guard began on a weight that is computed")
    _check({layer: _tables_of(p.module) for layer, p in bench.projections.items()} == now, "something was touched")
    return f"refused after {_plain(computed)}"


def _shared(bench: _Bench) -> str:
    """Two guarded layers with one Parameter."""
    first, second = (projection.module for projection in bench.projections.values())
    second.weight = first.weight
    if getattr(first, "bias", None) is not None:
        second.bias = first.bias
    bench.remember()
    meets = 2 * bench.nullity > bench.projections[1].d_in
    kind = bench.choice.choice(["both", "one"])
    spaces = bench.spaces if kind == "both" else {1: bench.spaces[1]}
    entered: list[bool] = []

    def run() -> None:
        with guard(bench.model, spaces):
            entered.append(True)
            done.extend(_write(bench, shared=True))

    done: list[str] = []
    outcome = _outcome(run)
    if kind == "one" or not meets:
        _check(
            isinstance(outcome, ModelStructureError | GuardError) and not entered, f"{outcome!r} for a shared weight"
        )
        _check_as_before(bench)
        return f"a shared weight, {kind} guarded, refused"
    _check(outcome is None, f"{outcome!r} for a shared weight whose null spaces meet")
    _check_inside(bench, done)
    return "a shared weight, both guarded"


def _raced(bench: _Bench) -> str:
    """Several threads enter at once: one works, the others are refused."""
    count = bench.choice.choice([2, 4])
    together, leaving = threading.Barrier(count), threading.Event()
    outcomes: list[BaseException | None] = []
    refused = threading.Semaphore(0)
    amount = {layer: bench.noise(start, 0.5) for layer, start in bench.start.items()}

    def run() -> None:
        together.wait()
        try:
            with torch.no_grad(), guard(bench.model, bench.spaces):
                leaving.wait(20)
                for layer, projection in bench.projections.items():
                    projection.module.weight.add_(amount[layer])
            outcomes.append(None)
        except BaseException as failure:
            outcomes.append(failure)
            refused.release()

    _ = bench.spaces
    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for _ in range(count - 1):
        refused.acquire(timeout=20)
    leaving.set()
    for thread in threads:
        thread.join()
    wrong = [each for each in outcomes if not (each is None or isinstance(each, GuardError))]
    _check(not wrong, f"{wrong!r} in a thread")
    _check(outcomes.count(None) == 1, f"{outcomes.count(None)} of {count} threads got the guard")
    _check_inside(bench, ["add"])
    return f"{count} threads"


# --------------------------------------------------------------------------------------------------------- judgements


def _write(bench: _Bench, *, shared: bool = False, reads: bool = False) -> list[str]:
    """Some writes; their names."""
    done = []
    separating = (_new_parameter, _parametrized_for_a_while, _a_copy)
    if reads:
        bench.any_module().weight.sum()
        return []
    for _ in range(bench.choice.randint(1, 5)):
        write = bench.choice.choice([each for each in WRITES if not (shared and each in separating)])
        write(bench, bench.any_module())
        done.append(_plain(write))
    return done


def _outcome(run: Callable[[], Any]) -> BaseException | None:
    try:
        run()
    except BaseException as failure:
        return failure
    return None


def _check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise AssertionError(otherwise)


def _check_inside(bench: _Bench, done: list[str]) -> None:
    """‖ΔW(I − P)‖ is rounding: of the weight, of its projection, and of the largest write."""
    models = [bench.model, *bench.copies]
    for model in models:
        transposed = bench.projections[LAYERS[0]].transposed
        for layer, space in bench.spaces.items():
            found = (
                bench.projections[layer].module
                if model is bench.model
                else model.get_submodule(bench.projections[layer].name)
            )
            now, start = found.weight.detach().double(), bench.start[layer].double()
            delta = (now - start).T if transposed else now - start
            outside, size = float((delta - delta @ space.dense()).norm()), float(delta.norm())
            unit = torch.finfo(bench.dtype).eps
            entries = start.numel() ** 0.5
            allowed = 1e-5 * (size + entries) + unit * float(now.norm()) + 1e-7 * entries
            _check(
                outside <= allowed, f"layer {layer}: {outside:.2g} of {size:.2g} lies outside, after {', '.join(done)}"
            )
    for layer, projection in bench.projections.items():
        depth = projection.name.count(".") + 4  # the way there, the module's class, the names of its attributes
        now = _held(bench.model, projection)[:depth]
        _check(now == bench.before[layer][:depth], f"layer {layer}: not the module that was there")


def _check_as_before(bench: _Bench) -> None:
    for layer, projection in bench.projections.items():
        now = _held(bench.model, projection)
        different = [pair for pair in zip(now, bench.before[layer], strict=False) if pair[0] != pair[1]]
        _check(not different, f"layer {layer} is not as before: {different}")
        same = torch.equal(bits(projection.module.weight), bits(bench.start[layer]))
        _check(same, f"layer {layer}: the weight is not what it was, to the bit")


def _check_free(bench: _Bench) -> None:
    """Nothing is guarded any longer, in the model or in a copy of it, and no hook is left."""
    for projection in bench.projections.values():
        tensors = [*projection.module.parameters(), *projection.module.buffers()]
        _check(not any(hasattr(type(each), "_guard") for each in tensors), f"{projection.name} is still guarded")
        _check(not _has_our_hook(projection.module), f"{projection.name} still has the guard's hook")
    for copied in bench.copies:
        guarded = [name for name, each in copied.named_parameters() if hasattr(type(each), "_guard")]
        _check(not guarded, f"a copy's {guarded} are still guarded")


def _has_our_hook(module: nn.Module) -> bool:
    return any(hasattr(hook, "_guard") for hook in module._forward_pre_hooks.values())


def _tables_of(module: nn.Module) -> list[Any]:
    tables = [table for table in vars(module).values() if isinstance(table, dict)]
    return [type(module), [[(key, id(value)) for key, value in table.items()] for table in tables]]


def _plain(function: Callable[..., Any]) -> str:
    return function.__name__.strip("_").replace("_", " ")
