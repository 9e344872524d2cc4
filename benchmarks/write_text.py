"""Lets the demo model write the text that ships in `examples/text`, anew."""

import os
import tempfile
from pathlib import Path

from alphaedit_plugin.model import DEMO_MODEL
from alphaedit_plugin.model.decoder import Decoder
from alphaedit_plugin.model.loading import load
from alphaedit_plugin.nullspace.statistics import TOKENS_PER_DIMENSION, self_written
from alphaedit_plugin.storage.shipped import shipped
from alphaedit_plugin.storage.store import Store

model, tokenizer = load(DEMO_MODEL)
decoder = Decoder(model)
budget = TOKENS_PER_DIMENSION * decoder.out_projection(0).d_in
place = shipped("examples/text")
for earlier in place.glob("*.safetensors"):
    earlier.unlink()
with tempfile.TemporaryDirectory(dir=place.parent) as folder:
    self_written(decoder, tokenizer, budget, Store(folder), progress=True)
    (written,) = Path(folder).glob("text/*.safetensors")
    os.replace(written, place / written.name)
print(f"{budget} tokens: {place / written.name}")
