"""A sequence of edits on one model: written, undone, saved, exported."""
