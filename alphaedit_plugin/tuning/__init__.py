"""Which layers and settings suit a model that has no file: causal tracing, and trials on a pilot of facts."""
