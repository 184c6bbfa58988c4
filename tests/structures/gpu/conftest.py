"""Nothing here is collected where the kernels do not run: the interpreter must be on before torch loads Triton."""

from surm.structures import gpu
from tests.structures.gpu import DEVICE

collect_ignore_glob = [] if gpu.available(DEVICE) else ["test_*.py"]
