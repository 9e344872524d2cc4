"""EasyEdit's methods as contenders and the flag are two houses: only importing `alphaedit_plugin.easyedit` installs."""

from __future__ import annotations

import json
import subprocess
import sys

from support.paths import ROOT

EVERYTHING = """
import importlib, json, sys
before = list(sys.meta_path)
names = json.loads(sys.argv[1])
for name in names:
    importlib.import_module(name)
added = [finder for finder in sys.meta_path if finder not in before]
kinds = [finder if isinstance(finder, type) else type(finder) for finder in added]
print(json.dumps({
    "ours": [str(kind) for kind in kinds if kind.__module__.partition(".")[0] == "alphaedit_plugin"],
    "gone": [str(finder) for finder in before if finder not in sys.meta_path],
    "flag": [name for name in sys.modules if name.startswith("alphaedit_plugin.easyedit")],
    "easyeditor": [name for name in sys.modules if name.partition(".")[0] == "easyeditor"],
}))
"""


def test_importing_all_but_the_flag_leaves_pythons_import_system_alone():
    """What others add to it (six does) is theirs."""
    paths = [path.relative_to(ROOT).with_suffix("") for path in (ROOT / "alphaedit_plugin").rglob("*.py")]
    names = [".".join(path.parts).removesuffix(".__init__") for path in sorted(paths)]
    names = [name for name in names if not name.startswith("alphaedit_plugin.easyedit") and "__main__" not in name]
    assert {"alphaedit_plugin", "alphaedit_plugin.baselines.baseline", "alphaedit_plugin.comparison.cell"} <= set(names)
    command = [sys.executable, "-c", EVERYTHING, json.dumps(names)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["ours"] == found["gone"] == found["flag"] == found["easyeditor"] == []
