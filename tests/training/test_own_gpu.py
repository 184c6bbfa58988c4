"""Each worker of a machine takes a GPU of its own."""

import multiprocessing
import os
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from surm.training.device import own_gpu

REPOSITORY = Path(__file__).resolve().parents[2]


def take(folder: Path, visible: str, answer: Connection) -> None:
    """A worker: takes its GPU, says which, and lives until it is killed."""
    os.environ["CUDA_VISIBLE_DEVICES"] = visible
    own_gpu(folder)
    own_gpu(folder)  # for its next run: it keeps the one that it has
    answer.send(os.environ["CUDA_VISIBLE_DEVICES"])
    time.sleep(600)


def start(folder: Path, visible: str) -> tuple[BaseProcess, str]:
    fork = multiprocessing.get_context("fork")  # of a process that has not taken one
    here, there = fork.Pipe()
    process = fork.Process(target=take, args=(folder, visible, there), daemon=True)
    process.start()
    return process, here.recv()


def test_each_process_takes_a_gpu_of_its_own_and_gives_it_back(tmp_path: Path) -> None:
    workers = [start(tmp_path, "0,1,5") for _ in range(6)]
    assert sorted(name for _, name in workers) == ["0", "0", "1", "1", "5", "5"]  # six share three evenly
    process, name = workers[2]
    process.kill()  # gives it back without a word
    process.join()
    workers += [start(tmp_path, "0,1,5"), start(tmp_path, "1")]
    assert [name for _, name in workers[6:]] == [name, "1"]  # the free one; and the only one
    for process, _ in workers:
        process.kill()
        process.join()


def test_a_job_takes_its_gpu_before_anything_asks_cuda() -> None:
    """CUDA reads CUDA_VISIBLE_DEVICES when it is first asked, which an import must not do."""
    program = """
import torch
def asked(*_): raise SystemExit("CUDA was asked")
torch._C._cuda_getDeviceCount = asked
import surm.experiments.launch
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
