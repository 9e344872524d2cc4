"""A Hugging Face decoder: its parts, what runs through it, and which one it is."""
