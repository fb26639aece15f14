"""A whole SLURM on this machine: munged, slurmctld and slurmd in a folder of their own, on loopback, without systemd.

Two nodes are one here: it has more CPUs than the machine, and a GPU that is /dev/null, so that jobs queue for real.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
PATIENCE_S = 60.0
CONFIG = """
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmctldPort={controller}
SlurmdPort={node}
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
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=2
MinJobAge=30
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 RealMemory=16000 Gres=gpu:1 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


@dataclass(frozen=True)
class Slurm:
    """A running SLURM.

    environment : what commands (sbatch, squeue, scancel) need to find it.
    """

    folder: Path
    environment: dict[str, str]

    def command(self, *arguments: str) -> str:
        """What a command of SLURM prints."""
        environment = {**os.environ, **self.environment}
        return subprocess.run(arguments, env=environment, check=True, capture_output=True, text=True, timeout=PATIENCE_S).stdout

    def jobs(self, state: str = "R") -> list[str]:
        """Numbers of the jobs in a state, the oldest first."""
        return sorted(self.command("squeue", "-h", "-t", state, "-o", "%i").split(), key=int)


def missing() -> str:
    """Why there can be no SLURM here, or ""."""
    absent = [name for name in DAEMONS if _daemon(name) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (Debian: munge and slurm-wlm)"
    return "" if os.geteuid() == 0 else "slurmd needs root"


@contextmanager
def run_slurm(folder: Path) -> Iterator[Slurm]:
    """A SLURM that lives as long as the block, with one node of 8 CPUs and one GPU."""
    host = socket.gethostname().partition(".")[0]
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    folder.chmod(0o755)
    key = folder / "munge.key"
    key.touch(0o600)
    key.write_bytes(secrets.token_bytes(128))
    controller, node = _free_ports(2)
    config = folder / "slurm.conf"
    config.write_text(CONFIG.format(host=host, folder=folder, controller=controller, node=node))
    (folder / "gres.conf").write_text("Name=gpu File=/dev/null\n")
    slurm = Slurm(folder, {"SLURM_CONF": str(config)})
    started: list[subprocess.Popen[bytes]] = []
    try:
        files = [f"--{kind}-file={folder}/munge.{kind}" for kind in ("pid", "log", "seed", "key")]
        started.append(_start(slurm, "munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *files))
        _wait(lambda: (folder / "munge.socket").exists(), started, slurm)
        started.append(_start(slurm, "slurmctld", "-D", "-i"))
        started.append(_start(slurm, "slurmd", "-D", "-N", host))
        _wait(lambda: "idle" in _state(slurm), started, slurm)
        yield slurm
    finally:
        _end(slurm, started)


def _daemon(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _start(slurm: Slurm, name: str, *arguments: str) -> subprocess.Popen[bytes]:
    program = _daemon(name)
    assert program is not None
    with (slurm.folder / f"{name}.out").open("wb") as out:
        environment = {**os.environ, **slurm.environment}
        return subprocess.Popen([program, *arguments], env=environment, stdout=out, stderr=out, stdin=subprocess.DEVNULL)


def _state(slurm: Slurm) -> str:
    environment = {**os.environ, **slurm.environment}
    asked = subprocess.run(["sinfo", "-h", "-o", "%T"], env=environment, capture_output=True, text=True, timeout=PATIENCE_S)
    return asked.stdout


def wait_until(there: Callable[[], bool], otherwise: str) -> None:
    """Return as soon as `there` is true; an error that says `otherwise` if it does not become so."""
    until = time.monotonic() + PATIENCE_S
    while not there():
        if time.monotonic() > until:
            raise TimeoutError(otherwise)
        time.sleep(0.1)


def _wait(there: Callable[[], bool], started: list[subprocess.Popen[bytes]], slurm: Slurm) -> None:
    """`wait_until`, as long as the daemons live."""
    try:
        wait_until(lambda: there() or any(process.poll() is not None for process in started), "SLURM did not start")
        if any(process.poll() is not None for process in started):
            raise RuntimeError("SLURM ended")
    except (TimeoutError, RuntimeError) as error:
        logs = "\n".join(path.read_text(errors="replace")[-2000:] for path in sorted(slurm.folder.glob("*.out")))
        raise RuntimeError(f"{error}\n{logs}") from None


def _end(slurm: Slurm, started: list[subprocess.Popen[bytes]]) -> None:
    """End the jobs, then what was started here, the last one first."""
    try:
        if len(started) == len(DAEMONS) and slurm.jobs("PD,R,CG"):
            with suppress(subprocess.CalledProcessError):  # they may have ended by themselves meanwhile
                slurm.command("scancel", "-s", "KILL", *slurm.jobs("PD,R,CG"))
            wait_until(lambda: not slurm.jobs("PD,R,CG"), "jobs are left")
    finally:
        for process in reversed(started):
            process.terminate()
        for process in reversed(started):
            try:
                process.wait(3)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
