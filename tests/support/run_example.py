"""Run an example with the real EasyEdit lent what this machine lacks (see real_easyedit.py)."""

import runpy
import sys

from support import real_easyedit

real_easyedit.load()
sys.argv = sys.argv[1:]
with real_easyedit.on_cpu():
    runpy.run_path(sys.argv[0], run_name="__main__")
