"""What the tests share: models, tokenizers, oracles, the real EasyEdit."""
