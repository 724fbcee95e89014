"""A cluster on one machine: a head with Slurm's controller, and nodes that jobs and ssh reach over a network of their own.

Every daemon is real (slurmctld, slurmd, munged, sshd). The head has its own network, mounts, host name, processes and shared
memory; each node has a network, mounts and a host name below it. Nothing of the machine is changed and nothing is left over:
everything ends with the head's first process, which ends with the process that created it, however that one ended.

    python tests/helpers/cluster.py                       a shell on the head; `exit` takes the cluster down
    python tests/helpers/cluster.py sinfo                 one command on the head; then the cluster goes down
    python tests/helpers/cluster.py --in PID --node 1 CMD a command in a running cluster, which prints its PID
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parents[2]  # not from helpers.paths: this file is also a script
PROGRAMS = ("slurmctld", "slurmd", "munged", "/usr/sbin/sshd", "pdsh", "unshare", "nsenter", "ip")
ADDRESS = "10.99.0.{}"
HEAD = 100  # last part of the head's address; node i has i
HOME = Path("/run/cluster")  # inside: a file system in memory that nobody else sees

SLURM_CONF = """\
ClusterName=test
SlurmctldHost=head({head})
SlurmUser=root
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool-%n
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd-%n.pid
SlurmctldLogFile={home}/log/slurmctld
SlurmdLogFile={home}/log/slurmd-%n
# Processes are followed by their parents: cgroups belong to the machine.
ProctrackType=proctrack/linuxproc
# The nodes have as many CPUs as configured, even if the machine has fewer.
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
# Jobs start at once, not at the next round.
SchedulerParameters=batch_sched_delay=0,bf_interval=1,sched_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
# A job that can never run is refused; otherwise it would wait forever.
EnforcePartLimits=ALL
SlurmdTimeout=10
ReturnToService=2
MinJobAge=3600
GresTypes=gpu
{nodes}
PartitionName=batch Nodes=ALL Default=YES PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL PriorityTier=2 PreemptMode=OFF
"""
SSH_CONFIG = """\
IdentityFile /etc/ssh/user_key
StrictHostKeyChecking no
UserKnownHostsFile /dev/null
LogLevel ERROR
BatchMode yes
ConnectTimeout 5
"""
SSHD_CONFIG = """\
HostKey /etc/ssh/host_key
AuthorizedKeysFile /etc/ssh/user_key.pub
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
StrictModes no
PidFile {home}/sshd-{name}.pid
ListenAddress {address}
"""
HEAD_UP = """
hostname head
ip link set lo up
ip link add lan type bridge
ip address add {head}/24 dev lan
ip link set lan up
mount --bind {home}/hosts /etc/hosts
mount --bind {home}/slurm /etc/slurm
mount --bind {home}/ssh /etc/ssh
if [ -d ~/.ssh ]; then mount -t tmpfs none ~/.ssh; fi
ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/user_key
ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/host_key
head -c 1024 /dev/urandom > {home}/munge.key
chmod 400 {home}/munge.key
mkdir -p /run/munge
munged --force --key-file={home}/munge.key --pid-file={home}/munged.pid --seed-file={home}/munge.seed \
    --log-file={home}/log/munged
slurmctld
"""
NODE_UP = """
ip link add {name} type veth peer name eth0 netns {pid}
ip link set {name} master lan up
"""
DAEMONS_UP = """
hostname {name}
mount -t tmpfs none /dev/shm
ip link set lo up
ip address add {address}/24 dev eth0
ip link set eth0 up
/usr/sbin/sshd -f /etc/ssh/sshd_config.{name}
slurmd -N {name}
"""


class Process(NamedTuple):
    """A process that runs in the cluster."""

    pid: int  # outside of the cluster, for `os.kill`
    name: int  # its number inside
    host: str
    command: list[str]
    environment: dict[str, str]  # that it was started with


class Cluster:
    """A cluster that is up within `with Cluster() as cluster:`. Node 0 is the head."""

    def __init__(self, nodes: int = 2, cpus: int = 4, gpus: int = 2):
        """`cpus` and `gpus` are those of each node; Slurm counts and assigns the GPUs, but they do not exist."""
        self.nodes, self.cpus, self.gpus = nodes, cpus, gpus
        self.pid = 0  # of the head's first process, as seen from outside
        self._outer: list[subprocess.Popen] = []  # ours that hold the namespaces open

    @classmethod
    def running(cls, pid: int) -> Cluster:
        """Return a cluster that another process has created."""
        cluster = cls()
        cluster.pid = pid
        return cluster

    def __enter__(self) -> Cluster:
        # The shell waits for the end of its input, which comes when this process is gone. Its end ends everything.
        spaces = ["--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"]
        first = "mount -t tmpfs none /run; mount -t tmpfs none /dev/shm; echo $$; read end"
        self.pid, _ = self._hold(["unshare", *spaces, "bash", "-c", first])
        try:
            self._write_files()
            self._shell(HEAD_UP.format(home=HOME, head=ADDRESS.format(HEAD)))
            for i in range(1, self.nodes + 1):
                spaces = ["--net", "--uts", "--mount"]
                hold = ["unshare", *spaces, "sh", "-c", "echo $$; exec sleep infinity"]
                pid, inner = self._hold(self._inside(self.pid, hold))
                (self._home / f"node{i}.pid").write_text(str(pid))
                names = {"name": f"node{i}", "pid": inner, "address": ADDRESS.format(i)}
                self._shell(NODE_UP.format(**names))
                self._shell(DAEMONS_UP.format(**names), node=i)
            self.wait_until_idle()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        self._outer[0].stdin.close()
        for process in self._outer:
            process.wait()

    def _hold(self, command: list[str]) -> tuple[int, str]:
        """Start a command that keeps namespaces open; return the PID of its only child from outside and from inside."""
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._outer.append(process)
        if not (inner := process.stdout.readline().strip()):
            raise RuntimeError("no namespaces can be made here: this needs real root")
        return int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()), inner

    @staticmethod
    def _inside(pid: int, command: list[str]) -> list[str]:
        return ["nsenter", "--target", str(pid), "--net", "--mount", "--uts", "--ipc", "--pid", "--", *command]

    @property
    def _home(self) -> Path:
        """`HOME`, as seen from outside."""
        return Path(f"/proc/{self.pid}/root") / HOME.relative_to("/")

    def _write_files(self) -> None:
        head, nodes = ADDRESS.format(HEAD), range(1, self.nodes + 1)
        about = f"CPUs={self.cpus} RealMemory=64000 Gres=gpu:{self.gpus}"
        lines = [f"NodeName=node{i} NodeAddr={ADDRESS.format(i)} {about}" for i in nodes]
        hosts = ["127.0.0.1 localhost", f"{head} head", *(f"{ADDRESS.format(i)} node{i}" for i in nodes)]
        files = {
            "hosts": "\n".join(hosts) + "\n",
            "slurm/slurm.conf": SLURM_CONF.format(home=HOME, head=head, nodes="\n".join(lines)),
            "slurm/gres.conf": f"Name=gpu File={HOME}/gpus/nvidia[0-{self.gpus - 1}] Flags=nvidia_gpu_env\n",
            "ssh/ssh_config": SSH_CONFIG,
            **{
                f"ssh/sshd_config.node{i}": SSHD_CONFIG.format(home=HOME, name=f"node{i}", address=ADDRESS.format(i))
                for i in nodes
            },
        }
        home = self._home
        for folder in ("state", "log", "gpus", "../sshd", *(f"spool-node{i}" for i in nodes)):
            (home / folder).mkdir(parents=True)
        for name, text in files.items():
            (home / name).parent.mkdir(exist_ok=True)
            (home / name).write_text(text)
        for i in range(self.gpus):
            (home / f"gpus/nvidia{i}").symlink_to("/dev/null")

    def _shell(self, script: str, node: int = 0) -> None:
        done = self.run(["bash", "-ec", script], node=node)
        if done.returncode:
            raise RuntimeError(f"the cluster did not come up on node {node}:\n{done.stdout}\n{self.logs()}")

    def logs(self) -> str:
        """The ends of the daemons' logs."""
        files = sorted((self._home / "log").glob("*"))
        return "\n".join(f"--- {file.name}\n{file.read_text()[-2000:]}" for file in files)

    # Commands.

    def start(self, command: list[str], node: int = 0, **how) -> subprocess.Popen:
        """Start a command on the head or a node; `how` as for Popen. Without more it gets a process group of its own."""
        pid = int((self._home / f"node{node}.pid").read_text()) if node else self.pid
        # Entering a namespace of mounts leads to its root: back to the folder.
        command = ["env", f"--chdir={how.pop('cwd', REPOSITORY)}", *map(str, command)]
        how.setdefault("start_new_session", True)
        return subprocess.Popen(self._inside(pid, command), **how)

    def run(self, command: list[str], node: int = 0, timeout: float = 60, **how) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; its output and errors together are in `stdout`. Killed after `timeout` seconds."""
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        process = self.start(command, node, text=True, **pipes, **how)
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired as error:
            os.killpg(process.pid, signal.SIGKILL)
            output = process.communicate()[0]
            raise AssertionError(f"{command} took more than {timeout} s\n{output[-4000:]}") from error
        return subprocess.CompletedProcess(command, process.returncode, output)

    def output(self, *command: object, node: int = 0) -> str:
        """What a command prints; it has to succeed."""
        done = self.run([str(part) for part in command], node)
        assert done.returncode == 0, f"{command}: {done.stdout}"
        return done.stdout.strip()

    def processes(self, folder: Path) -> list[Process]:
        """Return the processes on any host that were started in a folder."""
        pids = {i: (self._home / f"node{i}.pid").read_text() for i in range(1, self.nodes + 1)}
        hosts = {Path(f"/proc/{pid}/ns/uts").readlink(): f"node{i}" for i, pid in pids.items()}
        found = []
        for proc in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has just ended
                if (proc / "cwd").readlink() != folder or not (command := (proc / "cmdline").read_text()):
                    continue
                name = (proc / "status").read_text().partition("NSpid:")[2].split("\n")[0].split()[-1]
                host = hosts.get((proc / "ns/uts").readlink(), "head")
                variables = dict(v.partition("=")[::2] for v in (proc / "environ").read_text().split("\0"))
                found.append(Process(int(proc.name), int(name), host, command.rstrip("\0").split("\0"), variables))
        return found

    # Hosts.

    def wait_until_idle(self, timeout: float = 30) -> None:
        """Wait until Slurm has every node and no job on one."""
        self._poll(
            lambda: self.output("sinfo", "-hN", "-p", "batch", "-o", "%t").split() == ["idle"] * self.nodes,
            timeout,
            "the nodes are not idle",
        )

    def cut(self, node: int) -> None:
        """Take a node off the network: packets from it and to it are lost."""
        self.output("ip", "link", "set", f"node{node}", "down")

    def mend(self, node: int) -> None:
        """Put a node back on the network."""
        self.output("ip", "link", "set", f"node{node}", "up")

    @contextlib.contextmanager
    def hidden(self, folder: Path, node: int):
        """Make a folder empty on one node within the block."""
        self.output("mount", "-t", "tmpfs", "none", folder, node=node)
        try:
            yield
        finally:
            self.output("umount", "--lazy", folder, node=node)

    @contextlib.contextmanager
    def without_ssh(self, node: int):
        """Let a node refuse ssh connections within the block."""
        pid = (self._home / f"sshd-node{node}.pid").read_text().strip()
        self.output("kill", pid)
        try:
            yield
        finally:
            self.output("/usr/sbin/sshd", "-f", f"/etc/ssh/sshd_config.node{node}", node=node)

    # Jobs.

    def sbatch(self, *arguments: object, **how) -> int:
        """Submit; returns the job's id. `how` as for Popen."""
        done = self.run(["sbatch", "--parsable", *map(str, arguments)], **how)
        assert done.returncode == 0, done.stdout
        return int(done.stdout.split()[-1])

    def job(self, id: int) -> dict[str, str]:
        """What scontrol shows of a job: JobState, Restarts, ExitCode, StdOut, …"""
        fields = self.output("scontrol", "--oneliner", "show", "job", id).split()
        return dict(field.split("=", 1) for field in fields if "=" in field)

    def wait_for_state(self, id: int, *states: str, timeout: float = 60) -> dict[str, str]:
        """Wait until a job is in one of the states; returns what scontrol shows of it then."""
        return self._poll(
            lambda: job if (job := self.job(id))["JobState"] in states else None,
            timeout,
            f"job {id} is not {' or '.join(states)}",
        )

    def wait_for_end(self, id: int, timeout: float = 300) -> dict[str, str]:
        """Wait until a job has ended for good. Slurm lets a requeued one wait for two minutes; here it starts soon."""

        def ended() -> dict[str, str] | None:
            job = self.job(id)
            if job["JobState"] == "PENDING" and int(job["Restarts"]) > 0:
                self.start_now(id)
            return None if job["JobState"] in ("PENDING", "RUNNING", "CONFIGURING", "COMPLETING") else job

        return self._poll(ended, timeout, f"job {id} has not ended")

    def start_now(self, id: int) -> None:
        """Let a requeued job wait no more than three seconds: in the second in which its last start was ended its node would
        refuse the next one, and the job would fail."""
        eligible = self.job(id)["EligibleTime"]
        soon = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + 10))
        if eligible > soon:
            self.run(["scontrol", "update", f"jobid={id}", "StartTime=now+3"])

    def _poll(self, done, timeout: float, complaint: str):
        end = time.monotonic() + timeout
        while not (value := done()):
            if time.monotonic() > end:
                raise AssertionError(f"{complaint} after {timeout} s\n{self.output('squeue')}\n{self.logs()}")
            time.sleep(0.2)
        return value


def missing() -> str:
    """Return why no cluster can be started here; empty if it can."""
    if os.geteuid() != 0:
        return "the test cluster needs root"
    absent = [
        program for program in PROGRAMS if not shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    ]
    packages = "apt-get install slurm-wlm munge pdsh openssh-server iproute2"
    return f"the test cluster needs {', '.join(absent)}: {packages}" if absent else ""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--in", dest="pid", type=int, help="a cluster that is up, by the PID that it said")
    parser.add_argument("--node", type=int, default=0, help="where the command runs; 0 is the head")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    command = options.command or [os.environ.get("SHELL", "bash")]
    if reason := missing():
        sys.exit(reason)
    with contextlib.ExitStack() as stack:
        cluster = Cluster.running(options.pid) if options.pid else stack.enter_context(Cluster(options.nodes))
        if not options.pid:
            print(f"the cluster is up; its PID is {cluster.pid}", file=sys.stderr)
        process = cluster.start(command, options.node, cwd=Path.cwd(), start_new_session=False)  # at this terminal
        process.wait()
    sys.exit(process.returncode)
