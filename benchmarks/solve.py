"""AlphaEdit's Δ of one layer, batch 100 after 2,000 earlier edits: ours against the dense formula of the authors' code.

Each runs in a process of its own, turn by turn, so that peak memory counts all that a method needs beyond the weight
itself: P, KpKᵀ and the system to solve, against the factor of P, the earlier keys and a Cholesky factor. What the
libraries need for themselves (their code, which is read at its first use, and their buffers) is not counted: each
method solves something small before.
`python benchmarks/solve.py THREADS D_IN…`.
"""

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from alphaedit_plugin.editors.ridge import Ridge
from alphaedit_plugin.nullspace.projection import NullSpace

D_OUT, BATCH, EARLIER, LAMBDA = 4096, 100, 2000, 10.0
ROWS = 512


def batch(d: int, number: int) -> Tensor:
    """Keys, d × 100."""
    return torch.randn(d, BATCH, generator=torch.Generator().manual_seed(number)) * 0.1


def dense(factor: Tensor, residual: Tensor, weight: Tensor) -> Callable[[], None]:
    """(P(KpKpᵀ + K1K1ᵀ) + λI)⁻¹ P K1 Rᵀ, in float32, as published."""
    d = len(factor)
    projection = torch.eye(d).sub_(factor @ factor.T)
    del factor
    earlier = torch.zeros(d, d)
    for number in range(EARLIER // BATCH):
        earlier.addmm_(batch(d, number), batch(d, number).T)
    new = batch(d, EARLIER)

    def run() -> None:
        system = projection @ (new @ new.T + earlier) + LAMBDA * torch.eye(d)
        weight.add_(torch.linalg.solve(system, projection @ new @ residual.T).T)

    return run


def ours(factor: Tensor, residual: Tensor, weight: Tensor) -> Callable[[], None]:
    """Projecting the batch's keys, solving, remembering them, and writing Δ."""
    space = NullSpace(factor, "range", torch.empty(0))
    ridge = Ridge(LAMBDA, len(factor))
    for number in range(EARLIER // BATCH):
        ridge = ridge.add(space.project(batch(len(factor), number).T).T.contiguous())[1]
    new = batch(len(factor), EARLIER)

    def run() -> None:
        projected = space.project(new.T).T
        right = ridge.add(projected)[0].float().T
        for row in range(0, D_OUT, ROWS):
            weight[row : row + ROWS].addmm_(residual[row : row + ROWS], right)

    return run


def measure(name: str, path: str, rounds: int) -> None:
    """In a process of its own: the best time, peak memory beyond the weight's, and some rows of Δ into a file."""
    methods = {"dense": dense, "ours": ours}
    small = torch.linalg.qr(torch.randn(256, 100)).Q.contiguous()
    methods[name](small, torch.randn(D_OUT, BATCH), torch.zeros(D_OUT, 256))()
    factor = torch.load(path)
    residual = torch.randn(D_OUT, BATCH, generator=torch.Generator().manual_seed(-1))
    weight = torch.zeros(D_OUT, len(factor)).fill_(0.0)
    idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - factor.numel() * 4 / 1024
    run = methods[name](factor, residual, weight)
    del factor
    times = []
    for _ in range(rounds):
        weight.zero_()
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    torch.save(weight[:64].clone(), f"{path}.{name}")
    print(min(times), (peak - idle) / 1e6)


def compare(d: int, threads: int) -> None:
    """A null space of six tenths of the dimensions; prints times, memory and ratios."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/factor.pt"
        torch.save(torch.linalg.qr(torch.randn(d, int(0.4 * d))).Q.contiguous(), path)
        found: dict[str, list[list[float]]] = {"dense": [], "ours": []}
        for _ in range(2 if d < 10_000 else 1):
            for name, rounds in (("dense", 2 if d < 10_000 else 1), ("ours", 3)):
                command = [sys.executable, __file__, str(threads), name, path, str(rounds)]
                line = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                found[name].append([float(number) for number in line.split()])
        theirs, mine = (min(found[name]) for name in ("dense", "ours"))
        a, b = (torch.load(Path(f"{path}.{name}")) for name in ("dense", "ours"))
    print(f"d_in {d}, {threads} thread(s)")
    print(f"  dense formula  {theirs[0]:8.2f} s  {theirs[1]:6.2f} GB")
    print(f"  ours           {mine[0]:8.2f} s  {mine[1]:6.2f} GB   (Δ differs by {(a - b).norm() / a.norm():.0e})")
    print(f"  ratio          {theirs[0] / mine[0]:8.1f} ×  {theirs[1] / mine[1]:6.1f} ×", flush=True)


if __name__ == "__main__":
    threads, *rest = sys.argv[1:] or ["1"]
    torch.set_num_threads(int(threads))
    if rest and not rest[0].isdigit():
        measure(rest[0], rest[1], int(rest[2]))
    else:
        for d in map(int, rest or ["4096", "14336"]):
            compare(d, int(threads))
