"""Products by a transform on a GPU: right numbers, and times beside products with a dense D.

    python -m benchmarks.gpu_transform [--seconds 60] [--tiny]

Checks and compilations run in several processes, for at most so many seconds; what was not compiled then has no time.
Times are medians of replays of a CUDA graph, in microseconds a call; "host" is the time that a call takes to launch.
"""

import argparse
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

SIZES, TOKENS = (384, 768, 1024, 4096), (2048, 16384)
USUAL: list[Any] = []  # how the kernels choose, before a candidate takes its place
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class Case(NamedTuple):
    """What is compiled; `warps` and `stages` are a candidate, 0: as the kernels choose."""

    K: int
    kind: str
    dtype: str
    warps: int = 0
    stages: int = 0

    def __str__(self) -> str:
        candidate = f" warps {self.warps} stages {self.stages}" if self.warps else ""
        return f"{self.K:5d} {self.kind[:9]:9s} {self.dtype}{candidate}"


CASES = [Case(K, kind, "bf16") for K in reversed(SIZES) for kind in ("circulant", "toeplitz")]
CASES += [Case(K, "circulant", "fp32") for K in reversed(SIZES)]
CASES += [Case(4096, "circulant", "bf16", 4, 2), Case(4096, "circulant", "bf16", 8, 1)]
CASES += [Case(1024, "circulant", "bf16", 1, 1), Case(1024, "circulant", "bf16", 2, 2)]
CASES += [Case(K, kind, dtype) for K in SIZES for kind in ("skew_circulant",) for dtype in ("bf16", "fp16")]
CASES += [Case(K, "symmetric_toeplitz", "bf16") for K in SIZES] + [Case(4096, "toeplitz", "fp32")]


def members(case: Case, tokens: int, device: torch.device) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """Factors, x, g and D, which is dense, in float64."""
    K = case.K
    torch.manual_seed(K)
    size = 2 * K - 1 if case.kind == "toeplitz" else K
    factors = [torch.randn(1, size, device=device) for _ in range(2)]
    x, g = (torch.randn(tokens, K, device=device).to(DTYPES[case.dtype]) for _ in range(2))
    c = factors[0][0].double() * factors[1][0].double()
    k = torch.arange(K, device=device).unsqueeze(1) - torch.arange(K, device=device)
    place = {"toeplitz": k + K - 1, "symmetric_toeplitz": k.abs()}.get(case.kind, k % K)
    D = c[place]
    return factors, x, g, torch.where(k < 0, -D, D) if case.kind == "skew_circulant" else D


def choose(case: Case, programs: int = 0) -> None:
    """Lets the kernels take the candidate."""
    from surm.structures.gpu import transform

    if not USUAL:
        USUAL.append(transform.launch)
    (usual,) = USUAL

    def launch(P: int) -> tuple[int, int, int]:
        how = usual(P)
        return how._replace(  # type: ignore[no-any-return]
            warps=case.warps or how.warps, stages=case.stages or how.stages, programs=programs or how.programs
        )

    transform.launch = launch  # type: ignore[assignment]


def check(case: Case, device: torch.device) -> tuple[Case, list[float], bool, float]:
    """Errors of y, dx and the factors' gradients, whether they repeat to the last bit, and the seconds it took."""
    from surm.structures.gpu import transform

    start = time.perf_counter()
    choose(case)
    tokens = 7 if device.type == "cpu" else 1001
    factors, x, g, D = members(case, tokens, device)
    K, results = case.K, []
    for _ in range(2):
        y, dx = torch.zeros(2, tokens, K, device=device, dtype=x.dtype)
        transform.convolve(case.kind, factors, x, K, K, 0.5, out=y)
        results.append([y, dx, *transform.backward(case.kind, factors, g, x, K, K, 0.5, dx=dx)])
    x, g = x.double(), g.double()
    H, k = 0.5 * g.T @ x, torch.arange(K, device=device).unsqueeze(1) - torch.arange(K, device=device)
    H = torch.where(k < 0, -H, H) if case.kind == "skew_circulant" else H
    place = {"toeplitz": k + K - 1, "symmetric_toeplitz": k.abs()}.get(case.kind, k % K)
    c = torch.zeros(factors[0].shape[1], dtype=H.dtype, device=device)
    c.index_add_(0, place.flatten(), H.flatten())
    wanted = [0.5 * x @ D.T, 0.5 * g @ D, c * factors[1].double(), c * factors[0].double()]
    errors = [float((a.double() - b).norm() / b.norm()) for a, b in zip(results[0], wanted, strict=True)]
    repeats = all(map(torch.equal, *results))
    return case, errors, repeats, time.perf_counter() - start


def result(case: Case, errors: list[float], repeats: bool, seconds: float) -> str:
    """A line; y and dx in bfloat16, which interpreters cut and GPUs round, are as exact as that dtype is."""
    bound = {"fp32": 1e-5, "fp16": 1e-3, "bf16": 6e-3}[case.dtype]
    right = repeats and max(errors[:2]) < bound and max(errors[2:]) < min(bound, 1e-3)
    numbers = " ".join(f"{one:.1e}" for one in errors)
    return f"{case} {'ok' if right else 'WRONG'} {numbers} repeats {repeats} {seconds:.0f} s"


def microseconds(call: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Of the GPU and of the host."""
    call()
    if device.type == "cpu":
        return 0.0, 0.0
    torch.cuda.synchronize()
    host = []
    for _ in range(20):
        start = time.perf_counter()
        call()
        host.append(time.perf_counter() - start)
        torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(5):
            call()
    times = []
    for _ in range(9):
        start_event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        stop_event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        start_event.record()
        graph.replay()
        stop_event.record()
        stop_event.synchronize()
        times.append(start_event.elapsed_time(stop_event) / 5)
    return 1e3 * median(times), 1e6 * median(host)


def timed(case: Case, tokens: int, programs: int, device: torch.device) -> str:
    """A row of the table: spectrum, product and backward pass, and what products with a dense D take."""
    from surm.structures.gpu import transform

    choose(case, programs)
    factors, x, g, D = members(case, tokens, device)
    K, kind, dense = case.K, case.kind, D.to(x.dtype)
    y, dx = torch.zeros_like(x), torch.zeros_like(x)
    known = transform.spectrum(kind, factors, K, K)
    calls: list[Callable[[], object]] = [
        lambda: transform.spectrum(kind, factors, K, K),
        lambda: transform.convolve(kind, factors, x, K, K, 0.5, out=y, known=known),
        lambda: transform.backward(kind, factors, g, x, K, K, 0.5, dx=dx, known=known),
    ]
    if not case.warps and not programs:
        calls += [lambda: y.addmm_(x, dense.T), lambda: (dx.addmm_(g, dense), g.T @ x)]
    times = [microseconds(call, device) for call in calls]
    gpu = " ".join(f"{one[0]:8.1f}" for one in times)
    extra = f" programs {programs}" if programs else ""
    return f"{case}{extra} T {tokens:5d} | {gpu} | host {' '.join(f'{one[1]:.0f}' for one in times[:3])}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="for checks and compilations")
    parser.add_argument("--tiny", action="store_true", help="two small sizes in Triton's interpreter, without times")
    options = parser.parse_args()
    if options.tiny:
        os.environ["TRITON_INTERPRET"] = "1"
        device, cases = (
            torch.device("cpu"),
            [Case(64, kind, dtype) for kind in ("circulant", "toeplitz") for dtype in DTYPES],
        )
        for case in cases:
            print(result(*check(case, device)))
        print(timed(cases[0], 6, 2, device))
        print(timed(cases[0], 6, 0, device))
        return
    device, compiled, start = torch.device("cuda"), set(), time.perf_counter()
    pool = ProcessPoolExecutor(max_workers=min(14, os.cpu_count() or 1), mp_context=get_context("spawn"))
    futures = {pool.submit(check, case, device): case for case in CASES}
    try:
        for future in as_completed(futures, timeout=options.seconds):
            if future.exception():
                print(f"{futures[future]} FAILED: {str(future.exception())[-300:]}", flush=True)
                continue
            compiled.add(futures[future])
            print(result(*future.result()), flush=True)
    except TimeoutError:
        print("not compiled in time:", *(f"[{case}]" for case in CASES if case not in compiled))
    for process in list(pool._processes.values()):  # those that still compile
        process.terminate()
    pool.shutdown(wait=False, cancel_futures=True)
    print(f"checks took {time.perf_counter() - start:.0f} s on {torch.cuda.get_device_name()}")
    print("K kind dtype T | spectrum, y += D x, backward; dense: y += D x, dx and H | microseconds")
    for case in [case for case in CASES if case in compiled and case.dtype != "fp16"]:
        tuned = case.K in (1024, 4096) and case.kind == "circulant" and case.dtype == "bf16"
        for tokens in TOKENS:
            for programs in (0, 1, 2, 4, 8) if tuned and tokens == TOKENS[-1] else (0,):
                print(timed(case, tokens, programs, device), flush=True)
    print(f"all took {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
