"""What EasyEdit's hyperparameter files call the parts of a model."""

from __future__ import annotations

from .decoder import Decoder


def module_names(decoder: Decoder) -> dict[str, str]:
    """EasyEdit's key → the module's name in this model, with "{}" in the place of the layer.

    Raises ModelStructureError if the first block has no out-projection that can be found.
    """
    model, blocks = decoder.model, decoder.blocks_name
    projection = decoder.out_projection(0).name.removeprefix(f"{decoder.block_name(0)}.")
    attention = next(
        (name for name, module in decoder.block(0).named_children() if "att" in type(module).__name__.lower()),
        "self_attn",
    )
    return {
        "rewrite_module_tmp": f"{blocks}.{{}}.{projection}",
        "layer_module_tmp": f"{blocks}.{{}}",
        "mlp_module_tmp": f"{blocks}.{{}}.{projection}".rpartition(".")[0],
        "attn_module_tmp": f"{blocks}.{{}}.{attention}",
        "ln_f_module": next((name for name, each in model.named_modules() if each is decoder.final_norm), ""),
        # As named_parameters calls it: of a tied pair that is the embedding.
        "lm_head_module": next(
            (name.removesuffix(".weight") for name, each in model.named_parameters() if each is decoder.head.weight),
            "lm_head",
        ),
    }
