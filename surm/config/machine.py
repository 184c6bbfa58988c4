"""What this machine offers to a sweep, as `${surm.<name>:}` in conf/hydra/launcher."""

import joblib
import torch


def gpus() -> int:
    """How many GPUs CUDA shows."""
    return torch.cuda.device_count()


def workers() -> int:
    """How many runs go on at once: one for each GPU, or one for each core where there is none."""
    return gpus() or int(joblib.cpu_count())


def gpus_each() -> int:
    """How many GPUs one run takes."""
    return min(1, gpus())


def cores_each() -> int:
    """How many cores one run takes, where the machine is full of runs."""
    return max(1, int(joblib.cpu_count()) // workers())
