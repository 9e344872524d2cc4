"""Threads that spin while they wait for each other against threads that sleep, alone and beside one busy process.

SmolLM2's forward pass with all cores; `alphaedit` asks for the second (OMP_WAIT_POLICY=PASSIVE), torch has the first.
"""

import os
import subprocess
import sys
import time

PASSES = 3


def forward() -> None:
    """In a process of its own: prints the seconds of a forward pass over 8 × 40 tokens, the first one not counted."""
    import torch

    from alphaedit_plugin.model import DEMO_MODEL
    from alphaedit_plugin.model.loading import load

    model, _ = load(DEMO_MODEL)
    tokens = torch.arange(320).reshape(8, 40)
    with torch.no_grad():
        model(tokens)
        started = time.perf_counter()
        for _ in range(PASSES):
            model(tokens)
    print((time.perf_counter() - started) / PASSES)


def seconds(policy: str | None) -> float:
    environment = {key: value for key, value in os.environ.items() if key not in ("OMP_WAIT_POLICY", "OMP_NUM_THREADS")}
    if policy:
        environment["OMP_WAIT_POLICY"] = policy
    command = [sys.executable, __file__, "forward"]
    return float(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)


def compare(name: str) -> None:
    spinning, sleeping = seconds(None), seconds("PASSIVE")
    print(f"{name}: spinning {spinning:6.2f} s, sleeping {sleeping:6.2f} s: {spinning / sleeping:.1f} ×", flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["forward"]:
        forward()
    else:
        compare("alone")
        busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        try:
            compare("beside one busy process")
        finally:
            busy.kill()
