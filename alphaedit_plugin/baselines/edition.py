"""EasyEdit itself: what it is called, and where it comes from."""

from __future__ import annotations

PACKAGE = "easyeditor"
MISSING = (
    "EasyEdit is neither installed nor on the path. Either edition will do: the current one, by `git clone "
    "https://github.com/zjunlp/EasyEdit` and the checkout on PYTHONPATH; or that of 2023, which has ROME and MEMIT, by "
    "`pip install easyeditor==0.0.1.dev0` (on a newer Python with --no-deps)"
)
