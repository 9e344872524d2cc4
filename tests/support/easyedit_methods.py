"""What the tests on the real EasyEdit share: hyperparameters of every method, editors on tiny models, facts."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from alphaedit_plugin.model.decoder import Decoder
from alphaedit_plugin.nullspace.statistics import Statistics, prepare_statistics
from alphaedit_plugin.storage.store import Store
from support import real_easyedit
from support.tiny import ARCHITECTURES, tiny
from support.weights import parameters as weights  # noqa: F401 -- by the name that the tests on EasyEdit know

LAYERS = [1, 2]
CLASSES = {
    "ROME": "rome.ROMEHyperParams",
    "R-ROME": "r_rome.R_ROMEHyperParams",
    "MEMIT": "memit.MEMITHyperParams",
    "MEMIT-FE": "memit_FE.MEMITFEHyperParams",
    "PMET": "pmet.PMETHyperParams",
    "EMMET": "emmet.EMMETHyperParams",
    "EAMET": "eamet.EAMETHyperParams",
    "CORE": "core.COREHyperParams",
    "AlphaEdit": "alphaedit.AlphaEditHyperParams",
    "SPHERE": "SPHERE.SPHEREHyperParams",
    "FT": "ft.FTHyperParams",
    "DINM": "dinm.DINMHyperParams",
    "SimIE": "simie.SimIEHyperParams",
    "LoRA": "lora.LoRAHyperParams",
    "IKE": "ike.IKEHyperParams",
    "KN": "kn.KNHyperParams",
}
FACTS = [
    {"prompt": "Marie Curie worked in the field of", "subject": "Marie Curie", "target_new": "football"},
    {"prompt": "The capital of France is", "subject": "France", "target_new": "Warsaw"},
    {"prompt": "Apple was founded by", "subject": "Apple", "target_new": "Michael Jordan"},
]
# Everything any of the methods asks for; each takes what its class knows.
_VALUES: dict[str, Any] = {
    "device": "cpu",
    "model_name": "llama",
    "layers": LAYERS,
    "layer_selection": "all",
    "fact_token": "subject_last",
    "v_num_grad_steps": 3,
    "v_lr": 0.2,
    "v_loss_layer": 3,
    "v_weight_decay": 0.5,
    "clamp_norm_factor": 0.75,
    "kl_factor": 0.0625,
    "mom2_adjustment": True,
    "mom2_update_weight": 10.0,
    "mom2_dataset": "wikipedia",
    "mom2_n_samples": 100,
    "mom2_dtype": "float32",
    "context_template_length_params": [[3, 5]],
    "nullspace_threshold": 2e-2,
    "L2": 1.0,
    "P_loc": "./null_space_project.pt",
    "model_parallel": False,
    "batch_size": 1,
    "max_length": 40,
    # methods of their own
    "emmet_lambda": 0.1,
    "update_norm_lambda": 0,
    "nll_loss_factor": 1,
    "cumulative_ratio": 0.5,
    "suppression_strength": 0.5,
    "num_steps": 3,
    "lr": 5e-3,
    "weight_decay": 0,
    "norm_constraint": False,
    "objective_optimization": "target_new",
    "lamHyper": 10.0,
    "init_model": True,
    "solver": "LU",
    "fast": False,
    "fp16": False,
    "base_method": "ROME",
    "model_class": "LlamaForCausalLM",
    "tokenizer_class": "LlamaTokenizer",
    "suffix_system_prompt": "",
    "ks_bs": 1,
    "clamp_ks_factor": 1,
    "cs_factor": 1,
    "mse_factor": 1,
    "tau": 0.07,
    "norm_factor": 1e-3,
    "delta_init": "target_init",
    "weight_decay_method": "norm",
}


def hyperparameters(name: str, architecture: str = "llama", **changes: Any) -> Any:
    """An object of EasyEdit's own class, or of ours where EasyEdit has none."""
    template = ARCHITECTURES[architecture][1]
    block, _, rest = template.partition("{}")
    values = {
        **_VALUES,
        "alg_name": name,
        "rewrite_module_tmp": template,
        "rewrite_module_tmps": [template],
        "layer_module_tmp": f"{block}{{}}",
        "mlp_module_tmp": f"{block}{{}}{rest.rpartition('.')[0]}",
        "attn_module_tmp": f"{block}{{}}.self_attn.o_proj",
        "ln_f_module": ARCHITECTURES[architecture][3],
        # EasyEdit finds no weight in a head that shares it with the embedding.
        "lm_head_module": {"gpt2": "transformer.wte", "gemma2": "model.embed_tokens"}.get(architecture, "lm_head"),
        "stats_dir": "./data/stats",
    }
    if name in ("FT", "DINM"):
        values["rewrite_module_tmp"] += ".weight"
    if name in ("ROME", "R-ROME"):
        values["layers"] = LAYERS[:1]
    if name == "EAMET":
        values["mom2_update_weight"] = [10.0] * len(LAYERS)
    if name == "PMET":
        values["mlp_module_tmp"] = template
    values.update(changes)
    cls = class_of(name)
    known = {f.name for f in dataclasses.fields(cls) if f.init}
    made = cls(**{key: value for key, value in values.items() if key in known})
    if name == "SimIE":
        made._base_hparams = hyperparameters(made.base_method, architecture)
    return made


def class_of(name: str) -> type:
    module, _, cls = CLASSES.get(name, ".").partition(".")
    try:
        found = getattr(importlib.import_module(f"easyeditor.models.{module}"), cls) if module else None
    except ImportError:
        found = None
    return found or getattr(real_easyedit.load(), f"{name}HyperParams")


def editor_of(model: Any, tokenizer: Any, hparams: Any) -> Any:
    """A BaseEditor on a model that is loaded already."""
    name = hparams.model_name
    hparams.model_name = (model, tokenizer)
    editor = real_easyedit.load().BaseEditor.from_hparams(hparams)
    editor.model_name = hparams.model_name = name
    return editor


def call(name: str, *args: Any, **options: Any) -> Any:
    """An editing function from EasyEdit's table. Its context templates are drawn at random: always the same ones."""
    torch.manual_seed(0)
    return importlib.import_module("easyeditor.util.alg_dict").ALG_DICT[name](*args, **options)


def edit(editor: Any, facts: Sequence[dict[str, Any]] = FACTS[:1], **options: Any) -> Any:
    """`BaseEditor.edit`, in the words of either edition."""
    if not real_easyedit.is_head() and "sequential_edit" in options:
        options["keep_original_weight"] = not options.pop("sequential_edit")
    torch.manual_seed(0)
    return editor.edit(**_columns(facts), verbose=False, **options)


def batch_edit(editor: Any, facts: Sequence[dict[str, Any]], **options: Any) -> Any:
    if not real_easyedit.is_head() and "sequential_edit" in options:
        options["keep_original_weight"] = not options.pop("sequential_edit")
    editor.hparams.batch_size = len(facts)
    torch.manual_seed(0)
    return editor.batch_edit(**_columns(facts), verbose=False, **options)


def _columns(facts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "prompts": [fact["prompt"] for fact in facts],
        "subject": [fact["subject"] for fact in facts],
        "target_new": [fact["target_new"] for fact in facts],
        "ground_truth": ["Paris"] * len(facts),
    }


def model_of(architecture: str = "llama", **changes: Any) -> Any:
    model = tiny(architecture, vocab_size=512, **changes)
    model.config._name_or_path = f"hub/tiny-{architecture}"
    return model


def statistics_on_disk(model: Any, tokenizer: Any, folder: Path, store: Store | None = None) -> Statistics:
    """EasyEdit's .npz of all layers, where either edition looks for them: without them it would fetch Wikipedia."""
    layers = list(range(len(Decoder(model))))
    statistics = prepare_statistics(model, tokenizer, layers, store=store)
    name = model.config._name_or_path
    for each in {name.rsplit("/")[-1], name.replace("/", "_")}:
        for layer, projection in Decoder(model).out_projections(layers).items():
            path = folder / each / "wikipedia_stats" / f"{projection.name}_float32_mom2_100.npz"
            statistics.covariances[layer].save_npz(path, sample_size=100)
    return statistics
