"""A Slurm cluster of this machine alone, for tests of what is sent to a cluster and comes back."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "sinfo", "scontrol")

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_min_interval=100000,requeue_delay=1
KillWait=30
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory=1000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


@contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Start a controller and a node of this machine in `folder`; gives the environment in which `sbatch` finds them.

    Skips the test where Slurm is not installed or does not start.
    """
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])  # where Debian puts the daemons
    programs = {name: shutil.which(name, path=path) for name in PROGRAMS}
    if missing := [name for name, program in programs.items() if program is None]:
        pytest.skip(f"Slurm is not installed: no {', '.join(missing)}")
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    text = CONFIGURATION.format(
        host=socket.gethostname().split(".")[0],
        user=os.environ.get("USER", "root") if os.getuid() else "root",
        controller_port=free_port(),
        node_port=free_port(),
        folder=folder,
        cores=os.cpu_count(),
    )
    (folder / "slurm.conf").write_text(text.lstrip())
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": path}
    daemons = []
    try:
        for name in ("slurmctld", "slurmd"):
            output = (folder / f"{name}.out").open("w")
            daemons.append(
                subprocess.Popen([str(programs[name]), "-D"], env=environment, stdout=output, stderr=subprocess.STDOUT)
            )
        for _ in range(60):
            states = subprocess.run(["sinfo", "-h", "-o", "%t"], env=environment, capture_output=True, text=True).stdout
            if states.strip() == "idle":
                break
            time.sleep(0.5)
        else:
            logs = [(folder / f"{name}.out").read_text().strip()[-300:] for name in ("slurmctld", "slurmd")]
            pytest.skip(f"Slurm does not start here: {' | '.join(logs)}")
        yield environment
        subprocess.run(["scancel", "--user", str(os.getuid())], env=environment, capture_output=True)
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(timeout=30)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])
