"""What this machine offers to a sweep, as `${surm.<name>:}` in conf/hydra/launcher."""

import joblib
import torch


def gpus() -> int:
    return torch.cuda.device_count()


def workers() -> int:
    """How many runs go on at once: one for each GPU, or one for each core where there is none."""
    return gpus() or int(joblib.cpu_count())


def gpus_each() -> int:
    return min(1, gpus())


def cores_each() -> int:
    return max(1, int(joblib.cpu_count()) // workers())
