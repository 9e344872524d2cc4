"""EasyEdit's own methods as variants, in the real EasyEdit: the edition of PyPI, or with EASYEDIT_HOME a checkout."""

from __future__ import annotations

from support import real_easyedit
from support.paths import ROOT

easyeditor = real_easyedit.load()

import copy
import importlib
import json
import logging
import random
import sys
from dataclasses import make_dataclass

import numpy as np
import pytest
import torch
import yaml
from support.easyedit_methods import FACTS, LAYERS, model_of, statistics_on_disk, weights
from support.easyedit_methods import hyperparameters as common_hyperparameters

from alphaedit_plugin.baselines.baseline import baseline, identity
from alphaedit_plugin.baselines.hyperparameters import hyperparameters, layers_of
from alphaedit_plugin.baselines.names import Named, is_baseline, parse_baseline
from alphaedit_plugin.comparison.compare import compare
from alphaedit_plugin.editors.hyperparameters import Hyperparameters
from alphaedit_plugin.editors.requests import Request
from alphaedit_plugin.errors import CompareError, EditError, HyperparameterError, WrongModelError
from alphaedit_plugin.evaluation.fact_scores import FactScores, score
from alphaedit_plugin.evaluation.facts import Fact
from alphaedit_plugin.evaluation.likelihood import score_pairs
from alphaedit_plugin.model.decoder import Decoder
from alphaedit_plugin.nullspace.null_spaces import null_spaces_of
from alphaedit_plugin.nullspace.projection import Criterion
from alphaedit_plugin.nullspace.statistics import prepare_statistics

REQUESTS = [Request.parse(fact, "a fact") for fact in FACTS]
PAIRS = [(request.text, request.target_new) for request in REQUESTS]
# Few steps are enough: what a method writes here is compared with what it writes when called by itself.
FEW = {"layers": LAYERS, "v_num_grad_steps": 3, "v_lr": 0.2, "mom2_update_weight": 10.0}
GIVEN = {
    "MEMIT": FEW,
    "AlphaEdit": {**FEW, "nullspace_threshold": 0.5, "L2": 1.0},
    "ROME": {"layers": LAYERS[:1], "v_num_grad_steps": 3, "v_lr": 0.2, "context_template_length_params": [[3, 5]]},
    "FT": {"layers": LAYERS, "num_steps": 3, "lr": 5e-3},
    "GRACE": {"n_iter": 20},
}
LORA = {
    "layers": [],
    "num_steps": 10,
    "lr": 5e-3,
    "weight_decay": 0,
    "kl_factor": 0,
    "norm_constraint": False,
    "target_modules": ["q_proj", "v_proj"],
    "rank": 4,
    "lora_alpha": 16,
    "lora_dropout": 0.1,
    "lora_type": "lora",
}
TABLE = importlib.import_module("easyeditor.util.alg_dict").ALG_DICT
HEAD = real_easyedit.is_head()
ONLY_HEAD = pytest.mark.skipif(not HEAD, reason="the edition of PyPI lacks it: set EASYEDIT_HOME to a checkout")
IN_PLACE = ["MEMIT", "ROME", "FT", pytest.param("AlphaEdit", marks=ONLY_HEAD)]
COPIED = [pytest.param("GRACE", marks=ONLY_HEAD)]


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """EasyEdit writes logs/ where it is started and believes in CUDA. The flag is not installed."""
    monkeypatch.chdir(tmp_path)
    if flag := sys.modules.get("alphaedit_plugin.easyedit"):
        flag.uninstall()
    with real_easyedit.on_cpu():
        yield


@pytest.fixture
def model():
    return model_of()


@pytest.fixture
def statistics(model, tokenizer):
    return prepare_statistics(model, tokenizer, range(4))


@pytest.fixture
def null_spaces(statistics):
    return null_spaces_of(statistics, Criterion(nullity=12))


def changed(model, before) -> list[str]:
    return [name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])]


def delta(model, before, layer: int) -> torch.Tensor:
    """ΔW of a llama's out-projection, which stores W as d_out × d_in, float64."""
    name = f"model.layers.{layer}.mlp.down_proj.weight"
    return model.get_parameter(name).detach().double() - before[name].double()


# ------------------------------------------------------------------------------------------------------------ writing


@pytest.mark.parametrize("name", ["MEMIT", "ROME", "FT"])
def test_writes_what_easyedits_function_writes_when_it_is_called_by_itself(
    name, model, tokenizer, statistics, tmp_path
):
    with baseline(f"easyedit:{name}", model, tokenizer, hparams=GIVEN[name], statistics=statistics) as run:
        assert run.edit(REQUESTS[:2]) is model
        ours = weights(model)

    # By hand, as a user of EasyEdit would: hyperparameters of the tests' own, statistics in its stats_dir.
    statistics_on_disk(model, tokenizer, tmp_path / "data" / "stats")
    hparams = common_hyperparameters(name)
    for key, value in GIVEN[name].items():
        setattr(hparams, key, value)
    hparams.v_weight_decay, hparams.clamp_norm_factor = 0.5, 4.0 if name == "ROME" else 0.75
    hparams.weight_decay, hparams.kl_factor, hparams.norm_constraint = 0, 0.0 if name == "FT" else 0.0625, False
    hparams.objective_optimization = "prompt_last"
    theirs = copy.deepcopy(tokenizer)
    theirs.unk_token = "</s>"
    facts = [[FACTS[0], FACTS[1]]] if name != "ROME" else [[FACTS[0]], [FACTS[1]]]
    _forget()
    for number, batch in enumerate(facts):
        torch.manual_seed(number)
        TABLE[name](model, theirs, copy.deepcopy(batch), hparams)
    assert changed(model, ours) == []
    assert changed(model, weights(model_of())) != []
    _forget()


def _forget() -> None:
    """EasyEdit's context templates and covariances are kept in its modules, by the model's name."""
    for module in ("memit.memit_main", "rome.rome_main", "rome.compute_u"):
        found = importlib.import_module(f"easyeditor.models.{module}")
        for cache in ("COV_CACHE", "inv_mom2_cache"):
            getattr(found, cache, {}).clear()
        if hasattr(found, "CONTEXT_TEMPLATES_CACHE"):
            found.CONTEXT_TEMPLATES_CACHE = None


@pytest.mark.parametrize("name", IN_PLACE)
def test_batches_add_up(name, model, tokenizer, statistics):
    with baseline(f"easyedit:{name}", model, tokenizer, hparams=GIVEN[name], statistics=statistics) as run:
        start = weights(model)
        run.edit(REQUESTS[:2])
        first = weights(model)
        assert changed(model, start)
        run.edit(REQUESTS[2:])
        both = weights(model)
        assert changed(model, first) == changed(model, start)
    with baseline(f"easyedit:{name}", model, tokenizer, hparams=GIVEN[name], statistics=statistics) as run:
        run.edit(REQUESTS[:2])
        assert changed(model, first) == []  # the same again, whatever was drawn or remembered in between
        run.edit(REQUESTS[2:])
        assert changed(model, both) == []


@pytest.mark.parametrize("name", IN_PLACE)
def test_projected_updates_stay_in_the_null_space(name, model, tokenizer, statistics, null_spaces):
    start = weights(model)
    with baseline(
        f"easyedit:{name}+P", model, tokenizer, hparams=GIVEN[name], statistics=statistics, null_spaces=null_spaces
    ) as run:
        for batch in (REQUESTS[:2], REQUESTS[2:]):
            run.edit(batch)
            for layer in GIVEN[name]["layers"]:
                written = delta(model, start, layer)
                outside = written - written @ null_spaces[layer].dense()
                assert written.norm() > 0
                assert outside.norm() < 1e-5 * written.norm()
    with baseline(f"easyedit:{name}", model, tokenizer, hparams=GIVEN[name], statistics=statistics) as run:
        run.edit(REQUESTS[:2])
        written = delta(model, start, 1)
        assert (written - written @ null_spaces[1].dense()).norm() > 0.05 * written.norm() or name == "AlphaEdit"


@ONLY_HEAD
def test_alphaedits_own_p_is_made_of_the_statistics_of_the_comparison(model, tokenizer, statistics):
    start, threshold = weights(model), GIVEN["AlphaEdit"]["nullspace_threshold"]
    with baseline("easyedit:AlphaEdit", model, tokenizer, hparams=GIVEN["AlphaEdit"], statistics=statistics) as run:
        run.edit(REQUESTS)
        for layer in LAYERS:
            written = delta(model, start, layer)
            eigenvalues, vectors = torch.linalg.eigh(statistics.covariances[layer].matrix)
            kept = vectors[:, eigenvalues >= threshold]
            assert 0 < kept.shape[1] < 24
            assert (written @ kept).norm() < 1e-4 * written.norm()


# ------------------------------------------------------------------------------------------------------------- traces


def _state(model):
    """All that an edit could leave behind in a model."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return (
        [(name, id(module), type(module), module.training) for name, module in model.named_modules()],
        [(name, id(p), p.requires_grad, p.grad is None) for name, p in model.named_parameters()],
        {name: len(getattr(module, kind)) for name, module in model.named_modules() for kind in hooks},
        set(vars(model)),
        model.config.to_dict(),
    )


def _randomness():
    return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002


@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("name", [*IN_PLACE, *COPIED])
def test_nothing_is_left_behind(name, projected, model, tokenizer, statistics, null_spaces, tmp_path, capsys):
    if projected and name == "GRACE":
        name = "FT"
    model.train()
    model.get_input_embeddings().requires_grad_(True)
    handlers = logging.getLogger().handlers[:]
    before, state, dice = weights(model), _state(model), _randomness()
    words, caches = (tokenizer.unk_token, tokenizer.pad_token, tokenizer.padding_side), _remembered()
    variant = f"easyedit:{name}{'+P' if projected else ''}"
    with baseline(
        variant, model, tokenizer, hparams=GIVEN[name], statistics=statistics, null_spaces=null_spaces
    ) as run:
        edited = run.edit(REQUESTS[:1])
        assert not torch.equal(
            score_pairs(edited, tokenizer, PAIRS[:1]).mean_log_probability,
            score_pairs(model_of(), tokenizer, PAIRS[:1]).mean_log_probability,
        )
    assert changed(model, before) == []
    assert _state(model) == state
    assert _randomness() == dice
    assert (tokenizer.unk_token, tokenizer.pad_token, tokenizer.padding_side) == words
    assert _remembered() == caches
    assert logging.getLogger().handlers == handlers
    assert {path.name for path in tmp_path.iterdir()} <= {"alphaedit-cache"}
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Executing" not in captured.err


def _remembered():
    """The globals of EasyEdit's modules that are data."""
    return {
        (module, name): repr(value)
        for module, found in sys.modules.items()
        if module.startswith("easyeditor.models.")
        for name, value in vars(found).items()
        if isinstance(value, dict | list | bool | torch.Tensor | None) and not name.startswith("__")
    }


def test_a_failure_inside_easyedit_is_ours_and_leaves_nothing(model, tokenizer, statistics, monkeypatch):
    memit = importlib.import_module("easyeditor.models.memit.memit_main")
    before, state = weights(model), _state(model)

    def broken(model, *_, **__):
        with torch.no_grad():
            model.get_parameter("model.layers.1.mlp.down_proj.weight").add_(1.0)
        raise KeyError("no such thing")

    monkeypatch.setattr(memit, "execute_memit", broken)
    with (
        pytest.raises(EditError, match=r"EasyEdit's MEMIT failed on 'Marie Curie .*: KeyError: 'no such thing'"),
        baseline("easyedit:MEMIT", model, tokenizer, hparams=FEW, statistics=statistics) as run,
    ):
        run.edit(REQUESTS)
    assert changed(model, before) == []
    assert _state(model) == state


def test_weights_that_are_not_finite_are_refused(model, tokenizer):
    with (
        pytest.raises(EditError, match="not finite"),
        baseline("easyedit:FT", model, tokenizer, hparams={"lr": float("inf")}) as run,
    ):
        run.edit(REQUESTS[:1])
    assert changed(model, weights(model_of())) == []


# ----------------------------------------------------------------------------------- methods that change the modules


@ONLY_HEAD
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_graces_codebook_answers_whatever_the_prompt_is_batched_with(architecture, tokenizer):
    model = model_of(architecture)
    before = score_pairs(model, tokenizer, PAIRS)
    with baseline("easyedit:GRACE", model, tokenizer, hparams={"edit_lr": 0.3}) as run:
        edited = run.edit(REQUESTS[:2])
        edited = run.edit(REQUESTS[2:])
        assert edited is not model
        together = score_pairs(edited, tokenizer, PAIRS).mean_log_probability
        alone = [score_pairs(edited, tokenizer, [pair]).mean_log_probability for pair in PAIRS]
        assert torch.allclose(together, torch.cat(alone), atol=1e-6)
        assert (together > before.mean_log_probability).all()
        far = score_pairs(edited, tokenizer, [("zzz ### 123", "Paris")]).mean_log_probability
        assert torch.equal(far, score_pairs(model, tokenizer, [("zzz ### 123", "Paris")]).mean_log_probability)
        assert len(Decoder(edited)) == 4


@ONLY_HEAD
def test_for_the_prompts_last_token_graces_adapter_and_ours_agree(model, tokenizer):
    with baseline("easyedit:GRACE", model, tokenizer) as run, torch.no_grad():
        edited = run.edit(REQUESTS)
        (adapter,) = (module for module in edited.modules() if type(module).__name__ == "GRACEAdapter")
        for text, _ in [*PAIRS, ("The river flows", "")]:
            ids = tokenizer(text, return_tensors="pt")["input_ids"]
            ours, look_up = edited(input_ids=ids).logits[0, -1], vars(adapter).pop("forward")
            adapter.key_id = -1  # as GRACE.generate sets it
            theirs = edited(input_ids=ids).logits[0, -1]
            adapter.forward = look_up
            assert torch.allclose(ours, theirs, atol=1e-5)


@ONLY_HEAD
def test_a_key_at_the_very_edge_of_its_radius_is_within_it_in_a_batch_of_any_size(model, tokenizer):
    """GRACE widens ε to the distance of a key that it is to cover: rounding must not put that key outside."""
    with baseline("easyedit:GRACE", model, tokenizer) as run, torch.no_grad():
        edited = run.edit(REQUESTS[:1])
        (adapter,) = (module for module in edited.modules() if type(module).__name__ == "GRACEAdapter")
        d = adapter.keys.shape[1]
        keys = 11 * torch.nn.functional.normalize(torch.randn(60, d, generator=torch.Generator().manual_seed(0)), dim=1)
        adapter.keys = keys[:20]
        adapter.values = torch.nn.Parameter(torch.arange(20.0)[:, None].repeat(1, adapter.values.shape[1]))
        near = keys[:20] + 1e-2 * keys[20:40]
        adapter.epsilons = torch.stack([torch.cdist(a[None], b[None])[0, 0] for a, b in zip(near, keys, strict=False)])
        queries = torch.stack([near, keys[:20], keys[40:]])
        answers = adapter(queries)
        for answer in answers[:2]:
            assert torch.equal(answer[:, 0], torch.arange(20.0))
        assert torch.equal(answers[2], adapter.layer(queries)[2])


@pytest.mark.skipif(not HEAD, reason="LoRA of the edition of PyPI needs an older peft: set EASYEDIT_HOME to a checkout")
@pytest.mark.parametrize("name", ["LoRA"])
def test_adapters_are_trained_in_a_copy(name, model, tokenizer):
    before, state = weights(model), _state(model)
    with baseline(f"easyedit:{name}", model, tokenizer, hparams=LORA) as run:
        first = score_pairs(run.edit(REQUESTS[:1]), tokenizer, PAIRS).mean_log_probability
        both = score_pairs(run.edit(REQUESTS[1:2]), tokenizer, PAIRS).mean_log_probability
    start = score_pairs(model, tokenizer, PAIRS).mean_log_probability
    assert first[0] > start[0] + 0.1
    assert both[1] > first[1] + 0.1
    assert changed(model, before) == []
    assert _state(model) == state


# -------------------------------------------------------------------------------------------- names, hyperparameters


@pytest.mark.parametrize(
    ("variant", "named"),
    [
        ("easyedit:MEMIT", Named("MEMIT")),
        (" EasyEdit:memit + P", Named("MEMIT", projected=True)),
        ("easyedit:lora", Named("LoRA")),
    ],
)
def test_names(variant, named):
    assert is_baseline(variant)
    assert parse_baseline(variant) == named
    assert parse_baseline(str(named)) == named


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ("easyedit:MEMITT", "this EasyEdit has ROME, MEMIT, .*LoRA"),
        ("easyedit:RECT", "there is no method 'easyedit:RECT'"),  # ours, not EasyEdit's
        ("easyedit:", "there is no method"),
        ("easyedit:MEMIT+prune", r"write easyedit:METHOD or easyedit:METHOD\+P"),
        ("memit", "write easyedit:METHOD"),
        ("easyedit:LoRA+P", "null_space does nothing for LoRA"),
        ("easyedit:MEND+P", "hypernetwork"),
        ("easyedit:SERAC", "cannot be compared: a second model"),
        ("easyedit:IKE", "cannot be compared: it edits the prompt"),
    ],
)
def test_names_that_are_refused(variant, message):
    with pytest.raises(HyperparameterError, match=message):
        parse_baseline(variant)


def test_the_older_edition_has_no_alphaedit_of_its_own():
    if HEAD:
        assert parse_baseline("easyedit:AlphaEdit+P") == Named("AlphaEdit", projected=True)
    else:
        with pytest.raises(HyperparameterError, match="there is no method 'easyedit:AlphaEdit'"):
            parse_baseline("easyedit:AlphaEdit")


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gptj", "opt", "gemma2"])
def test_derived_names_of_modules_are_the_models(architecture):
    model = model_of(architecture)
    settings = hyperparameters(Named("MEMIT"), model)
    parameters, modules = dict(model.named_parameters()), dict(model.named_modules())
    projections = Decoder(model).out_projections(settings.layers)
    assert [settings.rewrite_module_tmp.format(layer) for layer in settings.layers] == [
        projection.name for projection in projections.values()
    ]
    for template in (settings.layer_module_tmp, settings.mlp_module_tmp, settings.attn_module_tmp):
        assert template.format(0) in modules
    assert modules[settings.ln_f_module] is Decoder(model).final_norm
    assert parameters[f"{settings.lm_head_module}.weight"] is model.get_output_embeddings().weight
    assert settings.v_loss_layer == 3
    assert layers_of(settings) == list(settings.layers)


def test_a_file_of_easyedits_or_of_ours_is_read(model, tmp_path):
    ours = ROOT / "hparams" / "MEMIT" / "smollm2-135m.yaml"
    written = yaml.safe_load(ours.read_text("utf-8"))
    settings = hyperparameters(Named("MEMIT"), model, ours)
    assert settings.layers == written["layers"]
    assert settings.v_lr == 0.5  # "5e-1", which YAML reads as text
    assert settings.lm_head_module == written["lm_head_module"]
    assert settings.device == "cpu"


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("MEMIT", {"v_lrr": 1}, "the hyperparameters: MEMIT knows no v_lrr"),
        ("MEMIT", {"alg_name": "ROME"}, "the hyperparameters is for ROME, not for MEMIT"),
        ("LoRA", {}, "easyedit:LoRA needs .*target_modules.*: give EasyEdit's file"),
    ],
)
def test_hyperparameters_that_do_not_fit(name, values, message, model):
    with pytest.raises(HyperparameterError, match=message):
        hyperparameters(Named(name), model, values)


def test_a_file_that_cannot_be_read_is_named(model, tmp_path):
    with pytest.raises(HyperparameterError, match=r"cannot read .*nowhere\.yaml"):
        hyperparameters(Named("MEMIT"), model, tmp_path / "nowhere.yaml")


def test_mend_without_its_training_says_what_to_set(model):
    cls = TABLE["MEND"].__func__.__globals__["MENDHyperParams"]
    values = {name: 0 for name in cls.__dataclass_fields__ if name not in ("alg_name", "null_space")}
    with pytest.raises(
        HyperparameterError, match=r"set 'archive' in its hyperparameters to that file; 'gone\.pt' is none"
    ):
        hyperparameters(Named("MEND"), model, {**values, "archive": "gone.pt"})


def test_statistics_and_null_spaces_that_are_missing_are_named(model, tokenizer, statistics, null_spaces):
    with (
        pytest.raises(CompareError, match=r"easyedit:MEMIT needs the statistics of layers \[2\]"),
        baseline("easyedit:MEMIT", model, tokenizer, hparams=FEW, statistics=statistics.of_layers([0, 1])),
    ):
        pass
    with (
        pytest.raises(CompareError, match=r"easyedit:FT\+P needs the null spaces of layers \[1, 2\]"),
        baseline("easyedit:FT+P", model, tokenizer, hparams=GIVEN["FT"]),
    ):
        pass
    other = model_of()
    with torch.no_grad():
        other.get_parameter("model.layers.1.mlp.down_proj.weight").mul_(2)
    with (
        pytest.raises(WrongModelError),
        baseline("easyedit:FT+P", other, tokenizer, hparams=GIVEN["FT"], null_spaces=null_spaces) as run,
    ):
        run.edit(REQUESTS)


def test_identity_is_json_and_knows_what_decides_the_result(model, tokenizer, statistics):
    named = Named("MEMIT")
    settings = hyperparameters(named, model, FEW)
    found = identity(named, settings)
    assert json.loads(json.dumps(found)) == found
    with baseline(named, model, tokenizer, hparams=FEW, statistics=statistics) as run:
        assert run.identity == found  # no temporary folder in it
    assert identity(named, hyperparameters(named, model, {**FEW, "v_lr": 0.3})) != found
    assert identity(Named("MEMIT", projected=True), settings) != found


def test_an_archive_is_known_by_its_content(tmp_path):
    settings = make_dataclass("Settings", [("archive", str)])
    found = []
    for name, content in (("a.pt", b"one"), ("b.pt", b"one"), ("a.pt", b"two")):
        (tmp_path / name).write_bytes(content)
        found.append(identity(Named("MEND"), settings(str(tmp_path / name))))
    assert found[0] == found[1] != found[2]


# ------------------------------------------------------------------------------------------------------ no EasyEdit


@pytest.mark.parametrize("variant", ["easyedit:MEMIT", "easyedit:Anything"])
@pytest.mark.parametrize("hparams", [None, "MEMIT.yaml"])
def test_without_easyedit_the_error_says_how_to_get_it(variant, hparams, model, tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "easyeditor", None)  # as Python has it: this import fails
    named = parse_baseline(variant)
    with pytest.raises(CompareError) as caught, baseline(named, model, tokenizer, hparams=hparams):
        pass
    for remedy in ("git clone https://github.com/zjunlp/EasyEdit", "pip install easyeditor", "EASYEDIT_HOME"):
        assert remedy in str(caught.value)


def test_what_easyedit_itself_lacks_is_named(model, tokenizer, monkeypatch):
    monkeypatch.delitem(sys.modules, "easyeditor.util.alg_dict")
    monkeypatch.setitem(sys.modules, "easyeditor.models.rome", None)
    with (
        pytest.raises(CompareError, match=r"EasyEdit cannot be imported: .*easyeditor\.models\.rome"),
        baseline("easyedit:MEMIT", model, tokenizer),
    ):
        pass


# --------------------------------------------------------------------------------------------------------- comparing


def test_a_comparison_has_rows_of_easyedits_methods(model, tokenizer, statistics, tmp_path):
    """Beside ours, at every checkpoint; what a row says is what is found when the method is called by itself."""
    facts = [Fact((request,), paraphrases=(f"They said: {request.text}",)) for request in REQUESTS]
    names = ["easyedit:ROME", "easyedit:MEMIT+P", "memit"]
    values = Hyperparameters(layers=tuple(LAYERS), v_num_grad_steps=3, null_space=Criterion(nullity=12))
    options = {
        "batch_size": 2,
        "measures": [FactScores()],
        "every": 2,
        "baseline_hparams": {"easyedit:ROME": GIVEN["ROME"], "easyedit:MEMIT+P": FEW},
        "folder": tmp_path / "run",
        "hyperparameters": values,
        "statistics": statistics,
    }
    before = weights(model)
    found = compare(model, tokenizer, facts, names, **options)
    assert changed(model, before) == []
    assert [(row.variant, row.edits) for row in found.rows] == [
        ("before", 0),
        *((name, edits) for name in names for edits in (2, 3)),
    ]
    with baseline("easyedit:ROME", model, tokenizer, hparams=GIVEN["ROME"], statistics=statistics) as editor:
        editor.edit(REQUESTS[:2])
        edited = editor.edit(REQUESTS[2:])
        expected = score(edited, tokenizer, facts)
        change = (
            delta(edited, before, LAYERS[0]).norm() / before[f"model.layers.{LAYERS[0]}.mlp.down_proj.weight"].norm()
        )
    (row,) = (row for row in found.final if row.variant == "easyedit:ROME")
    assert row.metrics["efficacy"] == pytest.approx(expected.means()["efficacy"])
    assert row.drift == {LAYERS[0]: pytest.approx(float(change), rel=1e-5)}
    assert row.leakage.keys() == row.drift.keys()
    again = compare(model, tokenizer, facts, names, **options)
    assert again.rows == found.rows
    assert found.settings["hyperparameters"]["easyedit:ROME"]["easyedit"]
