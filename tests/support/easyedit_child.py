"""A script as a user of EasyEdit would write it, with arguments: before, after (imports the plug-in), flagged."""

import hashlib
import json
import sys
from pathlib import Path

import torch

if "before" in sys.argv:
    import alphaedit_plugin.easyedit

from support import real_easyedit

easyeditor = real_easyedit.load()
if "after" in sys.argv:
    import alphaedit_plugin.easyedit  # noqa: F401

from alphaedit_plugin.model.decoder import Decoder
from alphaedit_plugin.nullspace.null_spaces import null_spaces_of
from alphaedit_plugin.nullspace.projection import Criterion
from alphaedit_plugin.storage.store import Store
from support.easyedit_methods import FACTS, LAYERS, edit, editor_of, hyperparameters, model_of, statistics_on_disk
from support.tokenizer import make_tokenizer

torch.set_num_threads(1)
tokenizer, model = make_tokenizer(bos=False), model_of()
store = Store("cache")
statistics = statistics_on_disk(model, tokenizer, Path("data/stats"), store)
null_spaces = null_spaces_of(statistics.of_layers(LAYERS), Criterion(nullity=12), store=store)
hparams = hyperparameters("MEMIT")
if "flagged" in sys.argv:
    hparams.null_space = {"nullity": 12, "progress": False, "cache_dir": "cache"}
projections = Decoder(model).out_projections(LAYERS)
before = {layer: projection.matrix.clone() for layer, projection in projections.items()}
with real_easyedit.on_cpu():
    metrics, _, _ = edit(editor_of(model, tokenizer, hparams), FACTS, sequential_edit=True)

outside, digest = {}, hashlib.sha256()
for layer, projection in projections.items():
    delta = (projection.matrix - before[layer]).double()
    outside[layer] = float((delta - delta @ null_spaces[layer].dense()).norm() / delta.norm())
    digest.update(projection.matrix.contiguous().numpy().tobytes())
for metric in metrics:
    metric.pop("time", None)
print()
print(
    json.dumps(
        {
            "installed": "null_space" in easyeditor.MEMITHyperParams.__dataclass_fields__,
            "weights": digest.hexdigest(),
            "metrics": repr(metrics),
            "outside": outside,
        }
    )
)
