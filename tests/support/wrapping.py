"""What users put around a model, and around its matrices."""

from __future__ import annotations

from collections.abc import Callable

import peft
import torch
from torch import nn
from transformers import PreTrainedModel


def lora(model: PreTrainedModel, *modules: str, trained: bool = False, **options) -> nn.Module:
    """LoRA adapters around `modules`: as they begin, they do nothing; trained, they do."""
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=list(modules), r=2, **options))
    if trained:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in wrapped.named_parameters():
                if "lora_" in name and parameter.dim() == 2:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return wrapped.eval().requires_grad_(False)


def compiled_inside(model: PreTrainedModel) -> nn.Module:
    """Every block compiled by itself, and run once, so that what is compiled knows of no hook."""
    for i, block in enumerate(model.model.layers):
        model.model.layers[i] = torch.compile(block, backend="eager")
    with torch.no_grad():
        model(input_ids=torch.tensor([[5, 9, 11]]), use_cache=False)
    return model


def compiled_in_place(model: PreTrainedModel) -> nn.Module:
    model.compile(backend="eager")
    with torch.no_grad():
        model(input_ids=torch.tensor([[5, 9, 11]]), use_cache=False)
    return model


WRAPPERS: dict[str, Callable[[PreTrainedModel], nn.Module]] = {
    "lora on attention": lambda model: lora(model, "q_proj"),
    "lora everywhere": lambda model: lora(model, "q_proj", "gate_proj", "up_proj", "down_proj"),
    "torch.compile": lambda model: torch.compile(model, backend="eager"),
    "torch.compile of lora": lambda model: torch.compile(lora(model, "v_proj"), backend="eager"),
    "DataParallel": nn.DataParallel,
    "compiled blocks": compiled_inside,
    "compiled in place": compiled_in_place,
}
"""None of these changes what the model says."""
