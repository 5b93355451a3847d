"""SLURM: the task that `srun` has started, from its environment variables.

Only variables of a job *step* are read: srun sets them, a batch script alone has none.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

FIRST_PORT, PORTS = 15_000, 15_000  # below the ports that systems hand out by themselves


@dataclass(frozen=True)
class Task:
    """Task `number` of `total`, the `local`-th of `per_node` on its node; all meet at `url`."""

    number: int
    total: int
    local: int
    per_node: int
    url: str

    def variables(self) -> dict[str, str]:
        """Return the environment variables that torchrun would set."""
        host, _, port = self.url.removeprefix("tcp://").rpartition(":")
        return {
            "RANK": str(self.number),
            "WORLD_SIZE": str(self.total),
            "LOCAL_RANK": str(self.local),
            "LOCAL_WORLD_SIZE": str(self.per_node),
            "MASTER_ADDR": host,
            "MASTER_PORT": port,
        }


def slurm_task(environ: Mapping[str, str], dist_url: str = "auto") -> Task | None:
    """Return the task that srun started; None without srun or with a single task.

    The tasks meet at `dist_url`; "auto" takes a port of the first node, computed from the job id.
    """
    total = int(environ.get("SLURM_STEP_NUM_TASKS", 1))
    if total == 1:
        return None
    number = int(environ["SLURM_JOB_ID"]) + 7 * int(environ["SLURM_STEP_ID"])
    # The number of tasks of each node: `4(x2),3` -> 4, 4, 3.
    counts = re.findall(r"(\d+)(?:\(x(\d+)\))?", environ["SLURM_STEP_TASKS_PER_NODE"])
    per_node = [int(count) for count, times in counts for _ in range(int(times or 1))]
    url = f"tcp://{first_host(environ['SLURM_STEP_NODELIST'])}:{FIRST_PORT + number % PORTS}"
    return Task(
        number=int(environ["SLURM_PROCID"]),
        total=total,
        local=int(environ["SLURM_LOCALID"]),
        per_node=per_node[int(environ["SLURM_NODEID"])],
        url=url if dist_url == "auto" else dist_url,
    )


def first_host(nodes: str) -> str:
    """Return the first host of a node list: `rack[2-3]node[07-09,12],login1` -> `rack2node07`."""
    return re.sub(r"\[([^],-]+)[^]]*\]", r"\1", nodes).split(",")[0]
