"""Times and errors of the kernels for small parameters on a GPU, beside plain torch; a trial of block sizes.

    PYTHONPATH=. python3 benchmarks/gpu_small.py [--only form,sums,blocks,kronecker,pair] [--widths 768,4096]
    TRITON_INTERPRET=1 PYTHONPATH=. python benchmarks/gpu_small.py --tiny      a rehearsal without a GPU

Of each variant: microseconds of the kernels (replay of a CUDA graph), microseconds that the host takes to launch them,
the relative error against float64. Processes beside this one fill Triton's cache first, since compiling takes longest.
"""

import argparse
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from statistics import median
from typing import Any

import torch
from torch import Tensor

from surm.structures import functional
from surm.structures.gpu import blocks, factors, form
from surm.structures.kernels import KERNELS
from surm.structures.kernels.shifts import diagonal_sums, with_room
from surm.structures.kronecker import best_factor_shape

Run = Callable[[], Any]
Changes = dict[Any, dict[str, Any]]
Case = tuple[str, str, Changes, Callable[[], tuple[Run, Callable[[Any], float]]]]  # group, variant, constants, set-up
TILES = [((16, 128), 4), ((32, 64), 4), ((64, 64), 4), ((64, 128), 8), ((16, 256), 4), ((32, 256), 8)]
STRIPS = [(16, 128, 4), (64, 64, 4), (64, 128, 8), (32, 256, 8), (16, 256, 4)]
BLOCKS = [
    (64, 32, 8, 3, "tf32x3"),
    (128, 32, 8, 3, "tf32x3"),
    (128, 16, 8, 3, "tf32x3"),
    (64, 64, 4, 2, "tf32x3"),
    (128, 32, 4, 2, "tf32x3"),
    (64, 32, 4, 3, "bf16x3"),
    (128, 32, 8, 3, "bf16x3"),
    (128, 32, 8, 3, "bf16x6"),
]
KRONECKER = [(2048, 4, 528), (4096, 4, 264), (4096, 4, 528), (4096, 8, 264), (8192, 8, 264), (16384, 8, 132)]
KRONECKER_GRADIENTS = [(1024, 2, 1056), (1024, 4, 528), (2048, 4, 528), (2048, 2, 792), (4096, 4, 264), (8192, 8, 132)]
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16"}
MANY = 20  # runs that are timed together
OURS, FLOAT32 = "ours", blocks.FLOAT32
CHECKED = 256  # tokens that the error of a product is taken over


@contextmanager
def settings(changed: Changes) -> Iterator[None]:
    """Constants of modules, for as long as a trial takes."""
    before = [(module, name, getattr(module, name)) for module, named in changed.items() for name in named]
    try:
        for module, named in changed.items():
            for name, value in named.items():
                setattr(module, name, value)
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def circulant(c: Tensor, n: int) -> Tensor:
    i = torch.arange(n, device=c.device)
    return c[(i[:, None] - i) % n]


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, device=DEVICE).to(dtype)


def form_cases(n: int, dtype: torch.dtype, trials: bool) -> Iterator[Case]:
    r1, r2, weight = draw(1, n), draw(1, n), draw(n, n, dtype=dtype)

    def check(total: Tensor) -> float:
        return error(total, weight.double() + 0.5 * circulant((r1 * r2)[0].double(), n))

    def plain() -> Tensor:
        D = functional.dense_toeplitz(functional.circulant_diagonals((r1 * r2).sum(dim=0), n, n), n)
        return torch.add(weight, D, alpha=0.5).to(dtype)

    label = f"form W + D {n} {NAMES[dtype]}"
    yield label, "torch", {}, lambda: (plain, check)

    def run() -> Tensor:
        return form.form("circulant", [[r1, r2]], n, n, 0.5, weight, dtype)

    yield label, OURS, {}, lambda: (run, check)
    for tile, warps in TILES if trials else []:
        yield label, f"{tile} {warps} warps", {form: {"TILE": tile, "WARPS": warps}}, lambda: (run, check)


def sums_cases(n: int, dtype: torch.dtype, trials: bool) -> Iterator[Case]:
    r1, r2, H = draw(1, n), draw(1, n), draw(n, n, dtype=dtype)

    def check(gradients: Any) -> float:
        i = torch.arange(n, device=DEVICE)
        along = torch.zeros(n, dtype=torch.float64, device=DEVICE)
        along.index_add_(0, ((i[:, None] - i) % n).flatten(), H.double().flatten())
        return max(error(gradients[0][0][0], along * r2[0]), error(gradients[0][1][0], along * r1[0]))

    roomy = with_room((1, n), n, H)
    roomy.copy_(H[None])

    def plain() -> list[list[Tensor]]:
        d = diagonal_sums(roomy, n).float()[0]
        c = d[n - 1 :].clone()
        c[1:] += d[: n - 1]
        return [[c * r2, c * r1]]

    label = f"sums of H {n} {NAMES[dtype]}"
    if n % 16 == 0:
        yield label, "torch", {}, lambda: (plain, check)

    def run() -> list[list[Tensor]]:
        return form.diagonal_gradients("circulant", [[r1, r2]], H, n, n)

    yield label, OURS, {}, lambda: (run, check)
    for strip, columns, warps in STRIPS if trials else []:
        changed = {form: {"STRIP": strip, "COLUMNS": columns, "SUM_WARPS": warps}}
        yield label, f"{strip} x {columns} {warps} warps", changed, lambda: (run, check)


def blocks_cases(n: int, tokens: int, dtype: torch.dtype, trials: bool) -> Iterator[Case]:
    c, g, x = draw(1, n), draw(tokens, n, dtype=dtype), draw(tokens, n, dtype=dtype)

    def check(gradients: Any) -> float:
        i = torch.arange(n, device=DEVICE)
        along = torch.zeros(n, dtype=torch.float64, device=DEVICE)
        along.index_add_(0, ((i[:, None] - i) % n).flatten(), (g.double().T @ x.double()).flatten())
        return error(gradients[0][0][0], along)

    label = f"gradient {n} x {tokens} {NAMES[dtype]}"

    def by_product() -> list[list[Tensor]]:
        return form.diagonal_gradients("circulant", [[c]], g.mT @ x, n, n)

    yield label, "g^T x, sums", {}, lambda: (by_product, check)
    if dtype != torch.float32 and DEVICE.type == "cuda":

        def wide() -> list[list[Tensor]]:
            return form.diagonal_gradients("circulant", [[c]], torch.mm(g.mT, x, out_dtype=torch.float32), n, n)

        yield label, "g^T x in fp32, sums", {}, lambda: (wide, check)

    def run() -> list[list[Tensor]]:
        return blocks.gradients_by_blocks("circulant", [[c]], g, x, n)

    yield label, "blocks", {}, lambda: (run, check)
    for block, length, warps, stages, precision in BLOCKS if trials else []:
        if dtype != torch.float32 and precision != FLOAT32:
            continue  # the same kernel
        named = {"BLOCK": block, "TOKENS": length, "WARPS": warps, "STAGES": stages, "FLOAT32": precision}
        yield (
            label,
            f"blocks {block} x {length} {warps} warps {stages} stages {precision}",
            {blocks: named},
            lambda: (run, check),
        )


def kronecker_cases(n: int, tokens: int, dtype: torch.dtype, trials: bool) -> Iterator[Case]:
    m1, n1 = best_factor_shape(n, n)
    m2, n2 = n // m1, n // n1
    A, B = draw(m1, n1), draw(m2, n2)
    x, g, y, dx = (draw(tokens, n, dtype=dtype) for _ in range(4))
    if not factors.supports(m1, n1, m2, n2, 1, 1, dtype):
        return

    def check_product(_: Any) -> float:
        factors.kronecker_product([(A, B)], x, 0.5, y.zero_())
        D = torch.kron(A.double(), B.double())
        return error(y[:CHECKED], 0.5 * x[:CHECKED].double() @ D.T)

    def check_gradients(_: Any) -> float:
        [(dA, dB)] = factors.kronecker_gradients([(A, B)], g, x, 0.5, dx.zero_())
        D = torch.kron(A.double(), B.double())
        H = 0.5 * (g.double().T @ x.double()).view(m1, -1, n1, B.shape[1])
        return max(
            error(dA, torch.einsum("ikjl,kl->ij", H, B.double())),
            error(dB, torch.einsum("ikjl,ij->kl", H, A.double())),
            error(dx[:CHECKED], 0.5 * g[:CHECKED].double() @ D),
        )

    def dense_product() -> Tensor:
        return y.addmm_(x, torch.kron(A, B).to(dtype).mT, alpha=0.5)

    def dense_gradients() -> Any:
        dx.addmm_(g, torch.kron(A, B).to(dtype), alpha=0.5)
        H = (g.mT @ x).float().view(m1, -1, n1, B.shape[1])
        return torch.einsum("ikjl,kl->ij", H, B), torch.einsum("ikjl,ij->kl", H, A)

    label = f"kronecker {n} x {tokens} {NAMES[dtype]}"
    yield label, "product dense", {}, lambda: (dense_product, lambda _: 0.0)
    yield label, "gradients dense", {}, lambda: (dense_gradients, lambda _: 0.0)

    def run() -> Tensor:
        return factors.kronecker_product([(A, B)], x, 0.5, y)

    def back() -> Any:
        return factors.kronecker_gradients([(A, B)], g, x, 0.5, dx)

    yield label, "product", {}, lambda: (run, check_product)
    yield label, "gradients", {}, lambda: (back, check_gradients)
    for size in KRONECKER if trials else []:
        named = "{} entries {} warps {} programs".format(*size)
        yield label, f"product {named}", {factors: {"PRODUCT": (size, size)}}, lambda: (run, check_product)
    for size in KRONECKER_GRADIENTS if trials else []:
        named = "{} entries {} warps {} programs".format(*size)
        yield label, f"gradients {named}", {factors: {"GRADIENTS": (size, size)}}, lambda: (back, check_gradients)


def pair_cases(n: int, tokens: int, dtype: torch.dtype, trials: bool) -> Iterator[Case]:
    G, H = draw(1, n), draw(1, n) / n**0.5
    x, g, y, dx = (draw(tokens, n, dtype=dtype) for _ in range(4))
    pair = [[G, H]]

    def matrix() -> Tensor:
        i = torch.arange(n, device=DEVICE)
        skew = circulant(H[0].double(), n) * (1 - 2.0 * (i[:, None] < i))
        return circulant(G[0].double(), n) @ skew

    label = f"ldr {n} x {tokens} {NAMES[dtype]}"

    def plain() -> Tensor:
        return KERNELS["ldr"].dense([G[None], H[None]], n, n)[0].to(dtype)

    def formed() -> Tensor:
        return form.form("ldr", pair, n, n, 1.0, None, dtype)

    yield label, "D torch", {}, lambda: (plain, lambda found: error(found, matrix()))
    yield label, "D", {}, lambda: (formed, lambda found: error(found, matrix()))

    def forward() -> Tensor:
        return form.pair_forward("ldr", pair, x, n)

    yield (
        label,
        "product by factors",
        {},
        lambda: (forward, lambda y: error(y[:CHECKED], x[:CHECKED].double() @ matrix().T)),
    )

    def backward() -> Any:
        return form.pair_backward("ldr", pair, g, x, n, 1.0, dx)

    def dense_backward() -> Any:
        dx.addmm_(g, formed())
        return form.diagonal_gradients("ldr", pair, g.mT @ x, n, n)

    def check(gradients: Any) -> float:
        with torch.enable_grad():
            leaves = [G.double().requires_grad_(), H.double().requires_grad_()]
            i = torch.arange(n, device=DEVICE)
            skew = circulant(leaves[1][0], n) * (1 - 2.0 * (i[:, None] < i))
            made = circulant(leaves[0][0], n) @ skew
            expected = torch.autograd.grad(made, leaves, g.double().T @ x.double())
        return max(map(error, gradients[0], expected))

    yield label, "backward by factors", {}, lambda: (backward, check)
    yield label, "backward by D", {}, lambda: (dense_backward, check)

    def dense_forward() -> Tensor:
        return y.addmm_(x, formed().mT)

    yield label, "product by D", {}, lambda: (dense_forward, lambda _: 0.0)


def cases(asked: argparse.Namespace) -> Iterator[Case]:
    only = asked.only.split(",")
    for n, dtype in product(asked.widths, NAMES):
        trials = n in (768, 4096)
        if "form" in only:
            yield from form_cases(n, dtype, trials)
        if "sums" in only:
            yield from sums_cases(n, dtype, trials)
        for tokens in asked.tokens:
            tried = trials and tokens == asked.tokens[-1]
            if "blocks" in only:
                yield from blocks_cases(n, tokens, dtype, tried)
            if "kronecker" in only:
                yield from kronecker_cases(n, tokens, dtype, tried)
            if "pair" in only and (n >= 768 or asked.tiny):
                yield from pair_cases(n, tokens, dtype, tried)


def microseconds(run: Run) -> tuple[float, float]:
    """Of one run in the replay of a CUDA graph of many, and of the host."""
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(MANY):
        run()
    host = (time.perf_counter() - start) / MANY
    torch.cuda.synchronize()
    graph, taken = torch.cuda.CUDAGraph(), []
    with torch.cuda.graph(graph):
        for _ in range(MANY):
            run()
    for _ in range(7):
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        before.record()
        graph.replay()
        after.record()
        torch.cuda.synchronize()
        taken.append(before.elapsed_time(after))
    return 1e3 * median(taken) / MANY, 1e6 * host


def summary(results: dict[str, dict[str, str]], times: dict[str, dict[str, float]]) -> None:
    """A line a group: what is no trial, and the fastest trial."""
    print("\ngroup: variant kernels us / host us / error | ... | fastest trial")
    for group, variants in results.items():
        listed = [f"{variant} {text}" for variant, text in variants.items() if "warps" not in variant]
        for kind in ("product", "gradients", ""):
            trials = {name: us for name, us in times[group].items() if "warps" in name and name.startswith(kind)}
            if trials and (kind or not any(name.startswith("product") for name in trials)):
                best = min(trials, key=lambda name: trials[name])
                listed.append(f"best: {best} {variants[best]}")
        print(f"{group}: " + " | ".join(listed))


def main() -> None:
    started = time.perf_counter()
    parser = argparse.ArgumentParser(description="Kernels for small parameters on a GPU.")
    parser.add_argument("--only", default="form,sums,blocks,kronecker,pair")
    parser.add_argument("--widths", type=lambda text: [int(n) for n in text.split(",")], default=[384, 768, 1024, 4096])
    parser.add_argument("--tokens", type=lambda text: [int(n) for n in text.split(",")], default=[2048, 16384])
    parser.add_argument("--warm", default="", help="k/n: compile each n-th case from the k-th on, and time nothing")
    parser.add_argument("--workers", type=int, default=12, help="processes that compile")
    parser.add_argument("--tiny", action="store_true", help="small sizes, errors alone")
    asked = parser.parse_args()
    if asked.tiny:
        asked.widths, asked.tokens = [64], [48]
    if asked.warm:
        first, step = map(int, asked.warm.split("/"))
        asked.tokens = asked.tokens[-1:]
    elif not asked.tiny and asked.workers:
        given = sys.argv[1:]
        workers = [
            subprocess.Popen([sys.executable, __file__, *given, "--warm", f"{k}/{asked.workers}"])
            for k in range(asked.workers)
        ]
        for worker in workers:
            worker.wait()
        print(f"compiled after {time.perf_counter() - started:.0f} s", flush=True)
    torch.manual_seed(0)
    results: dict[str, dict[str, str]] = defaultdict(dict)
    times: dict[str, dict[str, float]] = defaultdict(dict)
    for index, (group, variant, changed, setup) in enumerate(cases(asked)):
        if asked.warm and index % step != first:
            continue
        try:
            with settings(changed), torch.no_grad():
                run, check = setup()
                if asked.warm:
                    run()
                    continue
                found = check(run())
                kernel, host = (0.0, 0.0) if asked.tiny else microseconds(run)
            times[group][variant] = kernel
            results[group][variant] = f"{kernel:.1f}/{host:.0f}/{found:.0e}"
        except Exception as problem:  # a trial that does not fit the card is a line, not the end
            results[group][variant] = f"{type(problem).__name__}: {(str(problem).splitlines() or [''])[0][:60]}"
        if not asked.warm:
            print(f"{group} {variant}: {results[group][variant]}", flush=True)
    if not asked.warm:
        summary(results, times)
    if not asked.warm:
        print(f"done after {time.perf_counter() - started:.0f} s")


DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

if __name__ == "__main__":
    main()
