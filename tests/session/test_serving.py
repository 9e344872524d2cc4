"""Adapters are what servers load: the rules of vLLM, SGLang and llama.cpp, as their sources state them, on our files.

None of the three runs here. What each does with a folder is written down below, in our words: what it refuses, and
which ΔW it serves for what it takes. vllm/lora/{peft_helper,lora_model,utils}.py and vllm/config/lora.py (0.33.0),
sglang/srt/lora/{lora_config,mem_pool,utils}.py (0.5.23), llama.cpp's src/llama-adapter.h.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from support.sessions import edited
from torch import Tensor, nn

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
SGLANG_MODULES = {"qkv_proj", "o_proj", "gate_up_proj", "down_proj", "up_proj", "embed_tokens", "lm_head"}
NAME = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")


def read(folder: Path) -> tuple[dict, dict[str, Tensor]]:
    return json.loads((folder / "adapter_config.json").read_text()), load_file(folder / "adapter_model.safetensors")


def pairs(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """module → its two factors. A name that is another raises, as servers do."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        module, side = NAME.fullmatch(name).groups()
        found.setdefault(module, {})[side] = tensor
    return found


def vllm(folder: Path, model: nn.Module, max_lora_rank: int) -> dict[str, Tensor]:
    """It reads r, alpha, bias, modules_to_save and use_dora; patterns of ranks in late versions only, so none should be
    there. A slot has room for the maximal rank, and a thinner layer fills a part of it.
    """
    config, tensors = read(folder)
    assert max_lora_rank in VLLM_RANKS
    assert config["r"] <= max_lora_rank
    assert config["bias"] == "none"
    assert not config.get("modules_to_save")
    assert not config.get("use_dora")
    assert not config.get("rank_pattern")
    assert not config.get("alpha_pattern")
    linear = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    served = {}
    for module, sides in pairs(tensors).items():
        assert module.rpartition(".")[2] in linear
        assert len(sides["A"]) <= max_lora_rank
        served[module] = config["lora_alpha"] / config["r"] * (sides["B"] @ sides["A"])
    return served


def sglang(folder: Path, model: nn.Module, max_lora_rank: int) -> dict[str, Tensor]:
    """It refuses patterns, and copies every layer into a buffer of exactly r rows."""
    config, tensors = read(folder)
    assert config["peft_type"].lower() == "lora"
    assert config["r"] <= max_lora_rank
    assert not {*(config.get("rank_pattern") or {}).values()} - {config["r"]}
    assert not {*(config.get("alpha_pattern") or {}).values()} - {config["lora_alpha"]}
    assert {name.split(".")[-1] for name in config["target_modules"]} <= SGLANG_MODULES
    assert not (folder / "added_tokens.json").exists()
    served = {}
    for module, sides in pairs(tensors).items():
        assert re.search(r"layers\.(\d+)\.", module)
        assert len(sides["A"]) == sides["B"].shape[1] == config["r"]
        served[module] = config["lora_alpha"] / config["r"] * (sides["B"] @ sides["A"])
    return served


def llama_cpp(folder: Path, model: nn.Module, max_lora_rank: int) -> dict[str, Tensor]:
    """One alpha for the file, divided by each layer's own rank. (Ollama's `ADAPTER` does the same.)"""
    config, tensors = read(folder)
    return {
        module: config["lora_alpha"] / len(sides["A"]) * (sides["B"] @ sides["A"])
        for module, sides in pairs(tensors).items()
    }


@pytest.fixture(scope="module")
def session(tokenizer):
    """Five facts in three batches, so that ΔW has rank 5."""
    return edited("wide llama", tokenizer, "alphaedit", 0, 1, 3)


@pytest.mark.parametrize("server", [vllm, sglang, llama_cpp], ids=lambda server: server.__name__)
@pytest.mark.parametrize("asked", [{}, {"rank": 8}, {"rank": 16}, {"rank": 1}, {"energy": 0.9}], ids=str)
def test_every_server_takes_the_adapter_and_serves_the_edit(server, asked, session, tmp_path):
    adapter = session.to_lora(tmp_path, **asked)
    served = server(tmp_path, session.model, 16)
    assert len(served) == len(session.projections)
    for layer, projection in session.projections.items():
        change = projection.matrix.double() - session.base[layer].double()
        missing = (served[projection.name].double() - change).norm() ** 2 / change.norm() ** 2
        assert float(missing) == pytest.approx(1 - adapter.kept[layer], abs=1e-9)
        assert float(missing) < (1e-9 if asked.get("rank", 1 if "energy" in asked else 8) >= 8 else 1)


def test_a_rank_that_is_above_the_servers_is_refused_there(session, tmp_path):
    session.to_lora(tmp_path, rank=32)
    for server in (vllm, sglang):
        with pytest.raises(AssertionError):
            server(tmp_path, session.model, 16)


def test_layers_of_several_ranks_have_one_in_the_file(session, tmp_path):
    """Which no server but PEFT would read otherwise."""
    adapter = session.to_lora(tmp_path, energy=0.9)
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as file:
        ranks = {len(file.get_tensor(name)) for name in file.keys() if "lora_A" in name}  # noqa: SIM118
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float32}  # noqa: SIM118
    assert ranks == {adapter.rank} == {max(adapter.values())}
