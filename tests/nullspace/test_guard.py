"""The projection hook: whatever is written to a guarded weight, however it is written, stays in the null space."""

from __future__ import annotations

import copy
import io
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.spaces import assert_inside, outside, random_covariance, random_spaces
from support.tiny import tiny
from support.tries import tries
from support.weights import assert_unchanged, parameters
from support.wrapping import lora
from torch import Tensor, nn
from torch.nn.utils import parametrize

from alphaedit_plugin.errors import AlphaEditError, GuardError, ModelStructureError, WrongModelError
from alphaedit_plugin.model.decoder import Decoder
from alphaedit_plugin.nullspace.guard import guard, guards
from alphaedit_plugin.nullspace.null_spaces import NullSpaces
from alphaedit_plugin.nullspace.projection import Criterion, NullSpace

LAYERS = (1, 2)
MODELS = ("llama", "gpt2")  # Linear and Conv1D
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
IDS = torch.tensor([[1, 5, 9, 3]])


def modules_of(model: nn.Module) -> dict[int, nn.Module]:
    return {layer: p.module for layer, p in Decoder(model).out_projections(list(LAYERS)).items()}


def weights_of(model: nn.Module) -> dict[int, Tensor]:
    return {layer: module.weight for layer, module in modules_of(model).items()}


def is_transposed(model: nn.Module) -> bool:
    return Decoder(model).out_projection(1).transposed


def assert_guarded(model: nn.Module, spaces: NullSpaces, before: dict[int, Tensor]) -> None:
    """For updates of ordinary size, in float32."""
    assert_inside(spaces, before, weights_of(model), 1e-5, transposed=is_transposed(model))


# ------------------------------------------------------------------------------------------- programs of writes

Holders = dict[int, object]  # layer → something with a `.weight`


def _noise(weight: Tensor, seed: int, size: float) -> Tensor:
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)) * size
    return noise.bfloat16().to(weight.dtype)  # the same numbers in every precision


def _assign(holder, x, i, _start):
    holder.weight[...] = x


def _add(holder, x, i, _start):
    holder.weight += x


def _add_row(holder, x, i, _start):
    holder.weight[i] += x[i]


def _set_column(holder, x, i, _start):
    holder.weight[:, i] = x[:, i]


def _multiply(holder, x, i, _start):
    holder.weight.mul_(0.5)


def _copy(holder, x, i, _start):
    holder.weight.copy_(x)


def _add_to_data(holder, x, i, _start):
    holder.weight.data += x


def _copy_to_data(holder, x, i, _start):
    holder.weight.data.copy_(x)


def _replace_data(holder, x, i, _start):
    holder.weight.data = x


def _add_to_detached(holder, x, i, _start):
    holder.weight.detach().add_(x)


def _set_entry_of_view(holder, x, i, _start):
    holder.weight.view(-1)[i] = x.view(-1)[i]


def _add_to_transposed_view(holder, x, i, _start):
    holder.weight.T[i] += x.T[i]


def _step(holder, x, i, _start):
    holder.weight.grad = x
    torch.optim.SGD([holder.weight], lr=0.1).step()
    holder.weight.grad = None


def _restore(holder, x, i, start):
    holder.weight.copy_(start)


def _read(holder, x, i, _start):
    holder.weight.sum().item()


WRITES = (
    _assign, _add, _add_row, _set_column, _multiply, _copy, _add_to_data, _copy_to_data, _replace_data,
    _add_to_detached, _set_entry_of_view, _add_to_transposed_view, _step,
)  # fmt: skip
INSTRUCTIONS = (*WRITES, _restore, _read, "foreach_add", "forward")

programs = st.lists(
    st.tuples(
        st.sampled_from(INSTRUCTIONS),
        st.sampled_from(LAYERS),
        st.integers(0, 15),  # an index that fits every dimension
        st.integers(0, 1000),  # seed
        st.sampled_from([1e-3, 1.0, 30.0]),
    ),
    min_size=1,
    max_size=8,
)


def _run(instruction, holders: Holders, layer: int, i: int, seed: int, size: float, starts) -> None:
    if instruction == "foreach_add":
        both = [holders[n].weight for n in LAYERS]
        torch._foreach_add_(both, [_noise(w, seed + n, size) for n, w in enumerate(both)])
    elif instruction != "forward":
        holder = holders[layer]
        instruction(holder, _noise(holder.weight, seed, size), i, starts[layer])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", MODELS)
@tries(25)
@given(program=programs, nullity=st.sampled_from([3, 15]))
def test_any_program_of_writes_does_what_it_says_but_inside_the_null_space(name, dtype, program, nullity):
    """Beside the guarded model runs a float64 shadow: plain weights, projected with the dense P after every write."""
    model = tiny(name, dtype=dtype)
    spaces = random_spaces(model, LAYERS, nullity)
    transposed, before = is_transposed(model), parameters(model)
    guarded = modules_of(model)
    starts = {n: w.detach().clone() for n, w in weights_of(model).items()}
    exact = {n: s.double() for n, s in starts.items()}
    shadows = {n: SimpleNamespace(weight=nn.Parameter(s.clone(), requires_grad=False)) for n, s in exact.items()}
    unit = torch.finfo(dtype).eps
    entries = starts[1].numel() ** 0.5
    error = dict.fromkeys(LAYERS, 0.0)  # how far rounding can have taken each weight from its shadow

    with torch.no_grad(), guard(model, spaces):
        for instruction, layer, i, seed, size in program:
            _run(instruction, guarded, layer, i, seed, size, starts)
            if instruction == "forward":
                model(IDS)
            _run(instruction, shadows, layer, i, seed, size, exact)
            for n, shadow in shadows.items():
                written = float(shadow.weight.norm())
                delta = shadow.weight - exact[n]
                kept = (spaces[n].dense() @ delta) if transposed else (delta @ spaces[n].dense())
                shadow.weight = nn.Parameter(exact[n] + kept, requires_grad=False)
                # Each write rounds once, its projection once more; float16 has a smallest step besides.
                error[n] += 2 * unit * (written + float(shadow.weight.norm())) + 1e-7 * entries * (dtype == DTYPES[2])
                seen = guarded[n].weight.clone().double()
                assert float((seen - shadow.weight).norm()) <= error[n] + 1e-6 * written, (n, instruction)

    for n, weight in weights_of(model).items():
        out, delta = outside(spaces[n], starts[n], weight, transposed)
        rounding = unit * float(weight.double().norm()) + 1e-7 * entries * (dtype == DTYPES[2])
        if dtype == torch.float32:
            last_write = 1e-7 * 30 * entries  # what is left where a large write lies across the null space
            assert out <= 1e-5 * delta + rounding + last_write
        else:
            assert out <= 1e-3 * delta + rounding
    guarded_ids = {id(w) for w in weights_of(model).values()}
    for parameter_name, parameter in model.named_parameters():
        if id(parameter) not in guarded_ids:
            assert torch.equal(parameter.detach(), before[parameter_name]), parameter_name


@pytest.mark.parametrize("write", WRITES, ids=lambda f: f.__name__.strip("_"))
@pytest.mark.parametrize("name", MODELS)
def test_the_next_read_and_the_next_forward_see_projected_weights(name, write):
    model = tiny(name)
    spaces = random_spaces(model, LAYERS)
    start = weights_of(model)[1].detach().clone()
    with torch.no_grad(), guard(model, spaces):
        module = modules_of(model)[1]
        write(module, _noise(module.weight, 3, 1.0), 2, start)
        keys = torch.randn(5, 24, generator=torch.Generator().manual_seed(0))
        answer = module(keys)
        out, size = outside(spaces[1], start, module.weight.clone(), is_transposed(model))
        again = module(keys)
    assert size > 0
    assert out <= 1e-5 * size
    assert torch.equal(answer, again), "the forward before the first read saw other weights"
    assert torch.allclose(answer, modules_of(model)[1](keys), atol=1e-5 * float(answer.abs().max()))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_writing_the_start_back_restores_it_exactly(name, dtype):
    model = tiny(name, dtype=dtype)
    before = parameters(model)
    with torch.no_grad(), guard(model, random_spaces(model, LAYERS)):
        for weight in weights_of(model).values():
            start = weight.clone()
            weight += 1
            weight.copy_(start)
            assert torch.equal(weight.clone(), start)
    assert_unchanged(model, before)


def test_a_guard_under_which_nothing_is_written_changes_nothing():
    model = tiny("llama", dtype=torch.bfloat16)
    before = parameters(model)
    with guard(model, random_spaces(model, LAYERS)):
        model(IDS)
    assert_unchanged(model, before)


def test_a_write_past_the_hook_is_projected_when_the_guard_ends():
    model = tiny("gpt2")
    spaces = random_spaces(model, LAYERS)
    before = {n: w.detach().clone() for n, w in weights_of(model).items()}
    with guard(model, spaces):
        for weight in weights_of(model).values():
            weight.detach().numpy()[...] += 1
    assert_guarded(model, spaces, before)


def test_a_square_conv1d_is_projected_on_its_input_side():
    model = tiny("gpt2", n_inner=16)
    spaces = random_spaces(model, LAYERS, 10)
    before = {n: w.detach().clone() for n, w in weights_of(model).items()}
    with torch.no_grad(), guard(model, spaces):
        for layer, weight in weights_of(model).items():
            weight += _noise(weight, layer, 1.0)
    assert_guarded(model, spaces, before)


# ------------------------------------------------------------------------------------------------ things go wrong


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit, GeneratorExit])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_exception_rolls_back_bit_for_bit(error, dtype):
    model = tiny("llama", dtype=dtype)
    before = parameters(model)

    def edit():
        with torch.no_grad(), guard(model, random_spaces(model, LAYERS)):
            weights = weights_of(model)
            weights[1] += 1
            weights[2].data = torch.ones_like(weights[2])
            raise error("stop")

    with pytest.raises(error):
        edit()
    assert_unchanged(model, before)
    assert all(type(w) is nn.Parameter for w in weights_of(model).values())


def _raise_after(model, spaces, change):
    with torch.no_grad(), guard(model, spaces):
        for weight in weights_of(model).values():
            weight += 1
        change(weights_of(model)[1])
        raise RuntimeError("stop")


@pytest.mark.parametrize(
    "change",
    [lambda w: setattr(w, "data", torch.zeros(2, 3)), lambda w: setattr(w, "data", w.data.double())],
    ids=["another shape", "another type"],
)
def test_roll_back_also_undoes_data_of_another_shape_or_type(change):
    model = tiny("llama")
    before = parameters(model)
    with pytest.raises((RuntimeError, AlphaEditError)):
        _raise_after(model, random_spaces(model, LAYERS), change)
    assert_unchanged(model, before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused_and_rolled_back(bad):
    model = tiny("llama")
    before = parameters(model)

    def edit():
        with torch.no_grad(), guard(model, random_spaces(model, LAYERS)):
            weights_of(model)[1] += 1
            weights_of(model)[2][3, 4] = bad

    with pytest.raises(GuardError, match=r"model\.layers\.2\.mlp\.down_proj"):
        edit()
    assert_unchanged(model, before)


def test_a_replacement_that_is_not_finite_is_undone():
    model = tiny("llama")
    before, original = parameters(model), weights_of(model)[1]

    def edit():
        with guard(model, random_spaces(model, LAYERS)):
            modules_of(model)[1].weight = nn.Parameter(torch.full_like(original, torch.nan))

    with pytest.raises(GuardError):
        edit()
    assert weights_of(model)[1] is original
    assert_unchanged(model, before)


@pytest.mark.parametrize("inner", [lambda model: model, copy.deepcopy], ids=["the model", "its copy"])
def test_nested_guards_are_refused_and_the_outer_one_goes_on(inner):
    model = tiny("llama")
    spaces = random_spaces(model, LAYERS)
    before = {n: w.detach().clone() for n, w in weights_of(model).items()}
    with torch.no_grad(), guard(model, spaces):
        with pytest.raises(GuardError, match="guarded already"), guard(inner(model), spaces, check_model=False):
            pass
        for layer, weight in weights_of(model).items():
            weight += _noise(weight, layer, 1.0)
    assert_guarded(model, spaces, before)


def test_a_model_of_another_fingerprint_is_refused_unless_asked():
    model, other = tiny("llama"), tiny("llama", seed=1)
    spaces = random_spaces(model, LAYERS)
    before = {n: w.detach().clone() for n, w in weights_of(other).items()}
    with pytest.raises(WrongModelError), guard(other, spaces):
        pass
    assert all(type(w) is nn.Parameter for w in weights_of(other).values())
    with torch.no_grad(), guard(other, spaces, check_model=False):
        for layer, weight in weights_of(other).items():
            weight += _noise(weight, layer, 1.0)
    assert_guarded(other, spaces, before)


def test_null_spaces_of_another_width_are_refused_even_unchecked():
    spaces = random_spaces(tiny("llama", intermediate_size=32), LAYERS)
    model = tiny("llama")
    with pytest.raises(ModelStructureError, match=r"24.*32"), guard(model, spaces, check_model=False):
        pass
    assert all(type(w) is nn.Parameter for w in weights_of(model).values())


def test_a_guard_that_cannot_begin_leaves_no_weight_guarded():
    """The second weight is an inference tensor, whose writes nobody can notice."""
    model = tiny("llama")
    with torch.inference_mode():
        modules_of(model)[2].weight = nn.Parameter(torch.zeros(16, 24), requires_grad=False)
    spaces = random_spaces(tiny("llama"), LAYERS)
    with pytest.raises(Exception, match=r"(?i)inference"), guard(model, spaces, check_model=False):
        pass
    assert all(type(w) is nn.Parameter for w in weights_of(model).values())


# ------------------------------------------------------------------------------- it leaves the world as it found it


@pytest.mark.parametrize("requires_grad", [True, False])
def test_identity_type_and_requires_grad_survive(requires_grad):
    model = tiny("llama").requires_grad_(requires_grad)
    before = weights_of(model)
    with guard(model, random_spaces(model, LAYERS)):
        for weight in weights_of(model).values():
            assert isinstance(weight, nn.Parameter)
            assert type(weight).__name__ == "Parameter"
    for layer, weight in weights_of(model).items():
        assert weight is before[layer]
        assert type(weight) is nn.Parameter
        assert weight.requires_grad is requires_grad
        assert vars(weight) == {}


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam], ids=["SGD", "Adam"])
def test_an_optimizer_made_before_the_guard_works_inside_and_after(make):
    model = tiny("llama").requires_grad_(True)
    spaces = random_spaces(model, LAYERS)
    before = {n: w.detach().clone() for n, w in weights_of(model).items()}
    optimizer = make(list(weights_of(model).values()), lr=0.05)

    def step():
        optimizer.zero_grad()
        model(IDS).logits.pow(2).mean().backward()
        optimizer.step()

    with guard(model, spaces):
        step()
        step()
    assert_guarded(model, spaces, before)
    inside = {n: w.detach().clone() for n, w in weights_of(model).items()}
    step()
    for n, weight in weights_of(model).items():
        out, size = outside(spaces[n], inside[n], weight, transposed=False)
        assert out > 0.01 * size, "after the guard a step is free again"


@pytest.mark.parametrize("name", MODELS)
def test_gradients_through_a_guarded_weight_are_the_same(name):
    plain, guarded = tiny(name).requires_grad_(True), tiny(name).requires_grad_(True)

    def gradients(model):
        loss = model(IDS).logits.log_softmax(-1)[0, -1, 7]
        return dict(zip([n for n, _ in model.named_parameters()], torch.autograd.grad(
            loss, list(model.parameters()), allow_unused=True), strict=True))  # fmt: skip

    expected = gradients(plain)
    with guard(guarded, random_spaces(guarded, LAYERS)):
        actual = gradients(guarded)
    for parameter_name, gradient in expected.items():
        assert (gradient is None) == (actual[parameter_name] is None)
        assert gradient is None or torch.equal(gradient, actual[parameter_name])


def test_state_dict_and_torch_save_inside_the_guard_hold_plain_projected_weights():
    model = tiny("llama")
    spaces = random_spaces(model, LAYERS)
    start = weights_of(model)[1].detach().clone()
    file = io.BytesIO()
    with torch.no_grad(), guard(model, spaces):
        weights_of(model)[1].detach().add_(1)
        state = model.state_dict()
        torch.save(state, file)
        torch.save(weights_of(model)[1], whole := io.BytesIO())
    name = Decoder(model).out_projection(1).name + ".weight"
    assert type(state[name]) is Tensor
    file.seek(0)
    whole.seek(0)
    loaded = torch.load(file)[name]
    assert type(loaded) is Tensor
    assert type(torch.load(whole, weights_only=False)) is nn.Parameter
    out, size = outside(spaces[1], start, loaded, transposed=False)
    assert size > 0
    assert out <= 1e-5 * size


def test_load_state_dict_inside_the_guard_is_projected():
    model, other = tiny("llama"), tiny("llama", seed=1)
    spaces = random_spaces(model, LAYERS)
    before = {n: w.detach().clone() for n, w in weights_of(model).items()}
    with guard(model, spaces):
        model.load_state_dict(other.state_dict())
    assert_guarded(model, spaces, before)


@pytest.mark.parametrize("copies", [1, 2], ids=["a copy", "a copy of a copy"])
def test_a_copy_made_inside_the_guard_is_guarded_too_and_ordinary_afterwards(copies):
    model = tiny("gpt2").requires_grad_(True)
    before = parameters(model)
    starts = {n: w.detach().clone() for n, w in weights_of(model).items()}
    spaces = random_spaces(model, LAYERS)
    with torch.no_grad(), guard(model, spaces):
        copied = model
        for _ in range(copies):
            copied = copy.deepcopy(copied)
        for layer, weight in weights_of(copied).items():
            weight += _noise(weight, layer, 1.0)
    assert_unchanged(model, before)
    assert_guarded(copied, spaces, starts)
    for weight in weights_of(copied).values():
        assert type(weight) is nn.Parameter
        assert weight.requires_grad


def _new_parameter(module: nn.Module) -> None:
    module.weight = nn.Parameter(module.weight.detach() + 1, requires_grad=False)


def _parametrize(module: nn.Module) -> None:
    parametrize.register_parametrization(module, "weight", nn.Tanh(), unsafe=True)


def _replace_forward(module: nn.Module) -> None:
    module.forward = lambda x: x[..., :16]


def _shadow_weight(module: nn.Module) -> None:
    vars(module)["weight"] = module.weight.detach() + 1


REFUSED = {
    "parametrized": _parametrize,
    "another shape": lambda module: setattr(module, "weight", nn.Parameter(torch.zeros(3, 5))),
    "not finite": lambda module: setattr(module, "weight", nn.Parameter(torch.full_like(module.weight, torch.nan))),
    "another forward": _replace_forward,
    "another weight in front": _shadow_weight,
    "a hook": lambda module: module.register_forward_hook(lambda _module, _inputs, output: output + 1),
    "a hook before": lambda module: module.register_forward_pre_hook(lambda _module, inputs: (inputs[0] + 1,)),
}
"""What nobody can project, done to one module."""


def _replace(model: nn.Module, by) -> None:
    mlp = model.model.layers[1].mlp
    mlp.down_proj = by(mlp.down_proj)


REFUSED_IN_A_MODEL = {
    **{name: (lambda model, do=do: do(modules_of(model)[1])) for name, do in REFUSED.items()},
    "replaced": lambda model: _replace(model, lambda module: nn.Linear(24, 16, bias=False)),
    "replaced by its copy": lambda model: _replace(model, copy.deepcopy),
    "wrapped": lambda model: _replace(model, nn.Sequential),
    "lora": lambda model: lora(model, "down_proj", trained=True),
    "tied": lambda model: setattr(modules_of(model)[1], "weight", modules_of(model)[2].weight),
    "a block replaced": lambda model: model.model.layers.__setitem__(1, model.model.layers[2]),
}

COPIES = {
    "a copy": copy.deepcopy,
    "a copy of a copy": lambda model: copy.deepcopy(copy.deepcopy(model)),
    "a copy of its body": lambda model: nn.ModuleDict({"model": copy.deepcopy(model.model)}),
}


@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
def test_a_new_parameter_in_a_copy_is_projected(make):
    model = tiny("llama")
    before, spaces = parameters(model), random_spaces(model, LAYERS)
    with guard(model, spaces):
        copied = make(model)
        for layer in LAYERS:
            _new_parameter(copied.get_submodule(f"model.layers.{layer}.mlp.down_proj"))
    assert_unchanged(model, before)
    for layer in LAYERS:
        module = copied.get_submodule(f"model.layers.{layer}.mlp.down_proj")
        out, size = outside(spaces[layer], before[f"model.layers.{layer}.mlp.down_proj.weight"], module.weight, False)
        assert size > 0
        assert out <= 1e-5 * size
        assert list(vars(module)) == list(vars(modules_of(model)[layer]))


def test_a_copy_made_after_a_parameter_was_replaced_is_projected():
    model = tiny("gpt2")
    spaces = random_spaces(model, LAYERS)
    before = {n: w.detach().clone() for n, w in weights_of(model).items()}
    with guard(model, spaces):
        for module in modules_of(model).values():
            _new_parameter(module)
        copied = copy.deepcopy(model)
    assert_guarded(model, spaces, before)
    assert_guarded(copied, spaces, before)


@pytest.mark.parametrize("make", [copy.deepcopy, COPIES["a copy of a copy"]], ids=["a copy", "a copy of a copy"])
@pytest.mark.parametrize("change", REFUSED_IN_A_MODEL.values(), ids=REFUSED_IN_A_MODEL)
def test_what_cannot_be_projected_in_a_copy_is_refused_and_the_model_rolled_back(change, make):
    model = tiny("llama")
    before, spaces = parameters(model), random_spaces(model, LAYERS)
    copies = []

    def edit():
        with torch.no_grad(), guard(model, spaces):
            weights_of(model)[2] += 1
            copies.append(make(model))
            change(copies[0])

    with pytest.raises(GuardError, match="a copy's "):
        edit()
    assert_unchanged(model, before)
    assert all(type(w) is nn.Parameter for w in (*model.parameters(), *copies[0].parameters()))


def _write_to_all(model: nn.Module) -> None:
    for layer, weight in weights_of(model).items():
        weight += _noise(weight, layer, 1.0)


def test_a_copy_that_is_gone_when_the_guard_ends_may_have_been_anything():
    model = tiny("llama")
    before, spaces = {n: w.detach().clone() for n, w in weights_of(model).items()}, random_spaces(model, LAYERS)

    def tried(scratch: nn.Module) -> dict[int, Tensor]:
        for module in modules_of(scratch).values():
            parametrize.register_parametrization(module, "weight", nn.Tanh(), unsafe=True)
        return {layer: module.weight.detach() for layer, module in modules_of(scratch).items()}

    with torch.no_grad(), guard(model, spaces):
        for layer, weight in tried(copy.deepcopy(model)).items():
            weights_of(model)[layer].copy_(weight)
    assert_guarded(model, spaces, before)


def test_a_copy_that_cannot_be_made_is_no_copy():
    model = tiny("llama")
    before, spaces = {n: w.detach().clone() for n, w in weights_of(model).items()}, random_spaces(model, LAYERS)
    model.cannot_be_copied = (each for each in ())
    with torch.no_grad(), guard(model, spaces):
        with pytest.raises(TypeError) as failure:
            copy.deepcopy(model)
        copy.deepcopy(vars(modules_of(model)[1]))
        _write_to_all(model)
    assert failure.traceback, "which keeps what was copied of it alive"
    assert_guarded(model, spaces, before)


def test_a_copy_of_a_model_offloaded_by_accelerate_is_projected():
    accelerate = pytest.importorskip("accelerate")
    plain = tiny("llama")
    spaces = random_spaces(plain, LAYERS)
    model = accelerate.cpu_offload(tiny("llama"), execution_device=torch.device("cpu"))
    with torch.no_grad(), guard(model, spaces, check_model=False):
        copied = copy.deepcopy(model)
        for projection in Decoder(copied).out_projections(list(LAYERS)).values():
            projection.matrix.add_(1)
    for layer, projection in Decoder(copied).out_projections(list(LAYERS)).items():
        out, size = outside(spaces[layer], weights_of(plain)[layer], projection.stored, transposed=False)
        assert size > 0
        assert out <= 1e-5 * size
        assert not any(hasattr(hook, "_guard") for hook in projection.module._forward_pre_hooks.values())


def _anew(model: nn.Module) -> nn.Module:
    """The same model, made so that nobody sees it."""
    new = type(model)(model.config)
    new.load_state_dict(model.state_dict())
    return new.requires_grad_(False)


def _pickled(model: nn.Module) -> nn.Module:
    torch.save(model, file := io.BytesIO())
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("make", [_anew, _pickled], ids=["made anew", "pickled"])
@pytest.mark.parametrize("name", MODELS)
def test_another_model_that_is_included_is_projected(name, make):
    model = tiny(name)
    spaces = random_spaces(model, LAYERS)
    before = {n: w.detach().clone() for n, w in weights_of(model).items()}
    with torch.no_grad(), guard(model, spaces) as guarding:
        guarding.include(new := make(model))
        for weight in weights_of(new).values():
            weight += 1
    assert_guarded(new, spaces, before)


@pytest.mark.parametrize("name", [name for name in REFUSED_IN_A_MODEL if "replaced" not in name])
def test_what_cannot_be_projected_in_a_model_that_is_included_is_refused(name):
    """Of a model that is made anew all modules are others: to replace one is nothing."""
    model = tiny("llama")
    before, spaces = parameters(model), random_spaces(model, LAYERS)

    def edit():
        with torch.no_grad(), guard(model, spaces) as guarding:
            weights_of(model)[2] += 1
            guarding.include(new := _anew(model))
            REFUSED_IN_A_MODEL[name](new)

    with pytest.raises(GuardError):
        edit()
    assert_unchanged(model, before)


@pytest.mark.parametrize(
    "other", [None, nn.Linear(2, 2), tiny("gpt2").transformer.h[0]], ids=["none", "a layer", "a block"]
)
def test_what_is_no_model_may_be_included(other):
    model = tiny("llama")
    spaces = random_spaces(model, LAYERS)
    before = {n: w.detach().clone() for n, w in weights_of(model).items()}
    with torch.no_grad(), guard(model, spaces) as guarding:
        for each in (other, model, model.model, model.model.layers[1], copy.deepcopy(model).model):
            guarding.include(each)
        _write_to_all(model)
    assert_guarded(model, spaces, before)


@pytest.mark.parametrize("change", REFUSED.values(), ids=REFUSED)
def test_an_edit_by_code_is_refused_and_rolled_back(change):
    model = tiny("llama")
    before, spaces, logits = parameters(model), random_spaces(model, LAYERS), model(IDS).logits
    held = [vars(module).copy() for module in modules_of(model).values()]

    def edit():
        with torch.no_grad(), guard(model, spaces):
            weights_of(model)[2] += 1
            change(modules_of(model)[1])

    with pytest.raises(GuardError, match=r"layers\.1\.mlp\.down_proj"):
        edit()
    assert_unchanged(model, before)
    assert [vars(module) for module in modules_of(model).values()] == held
    assert torch.equal(model(IDS).logits, logits)


def test_hooks_that_were_there_and_hooks_that_are_gone_at_the_end_do_not_count():
    model = tiny("llama")
    spaces = random_spaces(model, LAYERS)
    before = {n: w.detach().clone() for n, w in weights_of(model).items()}
    module = modules_of(model)[1]
    seen: list[int] = []
    module.register_forward_hook(lambda *_: seen.append(1))
    with torch.no_grad(), guard(model, spaces):
        handle = module.register_forward_pre_hook(lambda *_: seen.append(2))
        module.forward = lambda inputs: inputs[..., :16]
        del module.forward
        model(IDS)
        handle.remove()
        _write_to_all(model)
    model(IDS)
    assert seen == [2, 1, 1]
    assert_guarded(model, spaces, before)


# ------------------------------------------------------------------------------------- several kinds at once


def _of_both_kinds(model: nn.Module) -> dict[Decoder, dict[int, NullSpace]]:
    decoders = [Decoder(model, f"model.layers.{{}}.{name}") for name in ("mlp.down_proj", "self_attn.o_proj")]
    return {
        decoder: {
            layer: NullSpace.of(random_covariance(projection.d_in, seed=layer), Criterion(nullity=9))
            for layer, projection in decoder.out_projections(list(LAYERS)).items()
        }
        for decoder in decoders
    }


def _every(attached: dict[Decoder, dict[int, NullSpace]]):
    for decoder, spaces in attached.items():
        for layer, projection in decoder.out_projections(list(LAYERS)).items():
            yield projection, spaces[layer]


def test_several_kinds_of_out_projections_are_guarded_together():
    model = tiny("llama")
    attached = _of_both_kinds(model)
    starts = [projection.stored.detach().clone() for projection, _ in _every(attached)]
    with torch.no_grad(), guards(attached):
        for projection, _ in _every(attached):
            projection.module.weight += 1
    for start, (projection, space) in zip(starts, _every(attached), strict=True):
        out, size = outside(space, start, projection.stored, transposed=False)
        assert size > 0
        assert out <= 1e-5 * size


@pytest.mark.parametrize("fails", range(4), ids=lambda n: f"the weight number {n} fails")
def test_of_several_kinds_all_are_rolled_back_or_none(fails):
    model = tiny("llama")
    before, attached = parameters(model), _of_both_kinds(model)

    def edit():
        with torch.no_grad(), guards(attached):
            for n, (projection, _) in enumerate(_every(attached)):
                projection.module.weight += torch.nan if n == fails else 1

    with pytest.raises(GuardError, match="not finite"):
        edit()
    assert_unchanged(model, before)
    assert all(type(projection.stored) is nn.Parameter for projection, _ in _every(attached))


def test_one_weight_found_by_two_decoders_is_refused():
    model = tiny("llama")
    before = parameters(model)
    spaces = random_spaces(model, LAYERS)
    with pytest.raises(GuardError, match="guarded already"), guards({Decoder(model): spaces, Decoder(model): spaces}):
        pass
    assert_unchanged(model, before)


def test_deepcopy_keeps_ties():
    model = tiny("llama")
    weight = weights_of(model)[1]
    pair = nn.ParameterList([weight, weight])
    with guard(model, random_spaces(model, LAYERS)):
        copied = copy.deepcopy(pair)
    assert copied[0] is copied[1]
    assert copied[0] is not weight


def test_a_weight_tied_to_another_module_stays_tied():
    model = tiny("llama")
    model.tied = nn.Linear(24, 16, bias=False)
    model.tied.weight = weights_of(model)[1]
    spaces = random_spaces(model, LAYERS)
    start = model.tied.weight.detach().clone()
    with torch.no_grad(), guard(model, spaces, check_model=False):
        model.tied.weight += 1
    assert model.tied.weight is weights_of(model)[1]
    out, size = outside(spaces[1], start, model.tied.weight, transposed=False)
    assert size > 0
    assert out <= 1e-5 * size


def test_two_layers_that_share_one_weight_are_refused():
    model = tiny("llama")
    space, weight = random_spaces(model, LAYERS)[1], weights_of(model)[1]
    modules_of(model)[2].weight = weight
    start = weight.detach().clone()
    with pytest.raises(ModelStructureError, match=r"is shared by layers 1, 2"), guard(model, {1: space}):
        weight.add_(1.0)
    assert torch.equal(weight, start)
    assert type(weight) is nn.Parameter


def _shared(name: str, nullity: int) -> tuple[nn.Module, NullSpaces]:
    """A model whose layers 1 and 2 share one weight, and their null spaces."""
    model = tiny(name)
    spaces = random_spaces(model, LAYERS, nullity)
    first, second = modules_of(model).values()
    second.weight = first.weight
    if getattr(first, "bias", None) is not None:
        second.bias = first.bias
    return model, NullSpaces(spaces.by_layer, {})


@pytest.mark.parametrize("nullity", [15, 20])
@pytest.mark.parametrize("name", MODELS)
def test_layers_that_share_one_weight_and_are_both_guarded_keep_to_what_their_null_spaces_have_in_common(name, nullity):
    """P1 ∩ P2 by the singular vectors of (P1 + P2) / 2 whose value is 1, in float64."""
    model, spaces = _shared(name, nullity)
    u, values, _ = torch.linalg.svd((spaces[1].dense() + spaces[2].dense()) / 2)
    common = u[:, values > 1 - 1e-9]
    assert common.shape[1] == 2 * nullity - 24, "in general position"
    weight = Decoder(model).out_projections(list(LAYERS), together=True)[1].module.weight
    start, change = weight.detach().clone(), _noise(weight, 3, 1.0)
    with torch.no_grad(), guard(model, spaces, check_model=False):
        weight += change
    transposed = name == "gpt2"
    delta, wanted = (each.double().T if transposed else each.double() for each in (weight.detach() - start, change))
    expected = wanted @ common @ common.T
    assert float((delta - expected).norm()) <= 1e-5 * float(expected.norm())
    for layer in LAYERS:
        out, size = outside(spaces[layer], start, weight, transposed)
        assert size > 0
        assert out <= 1e-5 * size


def test_a_shared_weight_whose_null_spaces_have_nothing_in_common_is_refused():
    model, spaces = _shared("llama", 10)
    before = parameters(model)
    with pytest.raises(GuardError, match="layers 1, 2 share one weight"), guard(model, spaces, check_model=False):
        pass
    assert_unchanged(model, before)


def test_two_parameters_over_one_memory_are_refused():
    model = tiny("llama")
    spaces = random_spaces(model, LAYERS)
    first, second = modules_of(model).values()
    second.weight = nn.Parameter(first.weight.detach(), requires_grad=False)
    with pytest.raises(GuardError, match="not one Parameter"), guard(model, spaces, check_model=False):
        pass
    assert all(type(w) is nn.Parameter for w in weights_of(model).values())


def test_a_lora_adapter_that_is_merged_before_the_end_is_projected():
    """Put around the module and left there, it is refused (it would add what no guard projects); merged, it is ΔW."""
    model = tiny("llama")
    spaces = random_spaces(model, LAYERS)
    before = {n: w.detach().clone() for n, w in weights_of(model).items()}
    with guard(model, spaces):
        lora(model, "down_proj", trained=True).merge_and_unload()
    assert_guarded(model, spaces, before)


def test_a_wrapper_that_stays_is_named():
    model = tiny("llama")
    before, module = parameters(model), modules_of(model)[1]

    def edit():
        with guard(model, random_spaces(model, LAYERS)):
            model.model.layers[1].mlp.down_proj = nn.Sequential(module)

    with pytest.raises(GuardError, match=r"layers\.1\.mlp\.down_proj was replaced \(there is now a Sequential\)"):
        edit()
    assert model.model.layers[1].mlp.down_proj is module
    assert_unchanged(model, before)


def test_a_tensor_assigned_as_data_is_not_modified():
    model = tiny("llama")
    given = torch.ones(16, 24)
    with guard(model, random_spaces(model, LAYERS)):
        weights_of(model)[1].data = given
        weights_of(model)[1].sum()
    assert torch.equal(given, torch.ones(16, 24))


def test_a_parameter_put_in_the_place_of_a_guarded_one_is_projected_at_the_end():
    model = tiny("gpt2")
    spaces = random_spaces(model, LAYERS)
    before = {n: w.detach().clone() for n, w in weights_of(model).items()}
    with guard(model, spaces):
        for module in modules_of(model).values():
            module.weight = nn.Parameter(module.weight + 1)
    assert_guarded(model, spaces, before)


def test_a_replacement_of_another_shape_is_refused():
    model = tiny("llama")
    before = parameters(model)

    def edit():
        with guard(model, random_spaces(model, LAYERS)):
            modules_of(model)[1].weight = nn.Parameter(torch.zeros(16, 25))

    with pytest.raises(GuardError, match="replaced"):
        edit()
    assert_unchanged(model, before)


def test_a_parameter_can_be_made_from_what_a_guarded_one_holds():
    model = tiny("llama")
    with guard(model, random_spaces(model, LAYERS)):
        made = nn.Parameter(weights_of(model)[1].detach())
    assert type(made) is nn.Parameter
    assert torch.equal(made, weights_of(model)[1])


def test_training_of_the_whole_model_leaves_unguarded_parameters_free():
    guarded, plain = tiny("llama").requires_grad_(True), tiny("llama").requires_grad_(True)
    for model in (guarded, plain):
        model(IDS).logits.pow(2).mean().backward()
    with guard(guarded, random_spaces(guarded, LAYERS)):
        torch.optim.SGD(guarded.parameters(), lr=0.1).step()
    torch.optim.SGD(plain.parameters(), lr=0.1).step()
    own = {id(w) for w in weights_of(guarded).values()}
    for mine, theirs in zip(guarded.parameters(), plain.parameters(), strict=True):
        if id(mine) not in own:
            assert torch.equal(mine, theirs)


def test_a_model_offloaded_by_accelerate_is_guarded_and_edited():
    accelerate = pytest.importorskip("accelerate")
    plain = tiny("llama")
    spaces = random_spaces(plain, LAYERS)
    before = {n: w.detach().clone() for n, w in weights_of(plain).items()}
    model = accelerate.cpu_offload(tiny("llama"), execution_device=torch.device("cpu"))
    projections = Decoder(model).out_projections(list(LAYERS))
    with torch.no_grad(), guard(model, spaces, check_model=False):
        for layer, projection in projections.items():
            projection.matrix.add_(_noise(before[layer], layer, 1.0))
        inside = model(IDS).logits
    for layer, projection in projections.items():
        assert type(projection.stored) is Tensor
        out, size = outside(spaces[layer], before[layer], projection.stored, transposed=False)
        assert size > 0
        assert out <= 1e-5 * size
        weights_of(plain)[layer].copy_(projection.stored)
    assert torch.allclose(inside, plain(IDS).logits, atol=1e-4)
    assert torch.allclose(model(IDS).logits, plain(IDS).logits, atol=1e-6)


def test_an_offloaded_model_is_known_to_be_the_same_model():
    accelerate = pytest.importorskip("accelerate")
    spaces = random_spaces(tiny("llama"), LAYERS)
    model = accelerate.cpu_offload(tiny("llama"), execution_device=torch.device("cpu"))
    with guard(model, spaces), pytest.raises(GuardError, match="guarded already"), guard(model, spaces):
        pass


def test_an_offloaded_model_is_rolled_back():
    accelerate = pytest.importorskip("accelerate")
    model = accelerate.cpu_offload(tiny("llama"), execution_device=torch.device("cpu"))
    before = weights_of(tiny("llama"))
    projections = Decoder(model).out_projections(list(LAYERS))

    def edit():
        with guard(model, random_spaces(model, LAYERS)):
            projections[1].matrix.add_(1)
            model(IDS)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        edit()
    for layer, projection in projections.items():
        assert torch.equal(projection.stored, before[layer])
        assert type(projection.stored) is Tensor
