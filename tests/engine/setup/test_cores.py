"""Cores of a job and threads of a process: made-up environments and cgroup files, and a real quota."""

import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from mask2former.engine.setup.cores import affinity, job_cores, thread_share, usable_cores


def files(root, cgroup, **contents):
    """Write `proc/self/cgroup`, and files below `sys/fs/cgroup` with "__" for "/" and "_dot_" for "."."""
    written = {"proc/self/cgroup": cgroup}
    for name, text in contents.items():
        written["sys/fs/cgroup/" + name.replace("__", "/").replace("_dot_", ".")] = text
    for name, text in written.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_without_cgroups_all_processors_are_usable(tmp_path):
    assert job_cores(8, {}, tmp_path) == (8, "all processors")


def test_a_quota_of_version_2_may_be_a_fraction(tmp_path):
    files(tmp_path, "0::/\n", cpu_dot_max="150000 100000\n")
    found = job_cores(8, {}, tmp_path)
    assert found == (1.5, f"a quota of 1.5 CPUs in {tmp_path}/sys/fs/cgroup/cpu.max")


def test_the_least_quota_of_all_groups_above_counts(tmp_path):
    files(
        tmp_path,
        "0::/pod/container\n",
        pod__cpu_dot_max="200000 100000\n",
        pod__container__cpu_dot_max="max 100000\n",
    )
    assert job_cores(8, {}, tmp_path).number == 2
    assert job_cores(1, {}, tmp_path).number == 1


def test_a_quota_of_version_1(tmp_path):
    files(
        tmp_path,
        "5:memory:/job\n3:cpu,cpuacct:/job\n0::/\n",
        cpu__job__cpu_dot_cfs_quota_us="50000\n",
        cpu__job__cpu_dot_cfs_period_us="100000\n",
        cpu__cpu_dot_cfs_quota_us="-1\n",
        cpu__cpu_dot_cfs_period_us="100000\n",
    )
    assert job_cores(8, {}, tmp_path).number == 0.5
    assert thread_share(8, {}, tmp_path).number == 1


@pytest.mark.parametrize("path", ["/docker/0123abc", "/../../other"])
def test_the_path_in_a_container_may_be_the_hosts(tmp_path, path):
    files(tmp_path, f"0::{path}\n", cpu_dot_max="300000 100000\n")
    assert job_cores(8, {}, tmp_path).number == 3


@pytest.mark.parametrize("text", ["", "max\n", "150000 0\n", "150000\n", "many 100000\n", "-1 100000\n"])
def test_broken_quotas_are_none(tmp_path, text):
    assert job_cores(8, {}, files(tmp_path, "0::/\n", cpu_dot_max=text)).number == 8


@pytest.mark.parametrize(("quota", "threads"), [(1.5, 2), (1.0, 1), (0.2, 1), (7.2, 8), (64, 8)])
def test_a_part_of_a_core_gets_a_thread(tmp_path, quota, threads):
    files(tmp_path, "0::/\n", cpu_dot_max=f"{quota * 100000:.0f} 100000\n")
    assert thread_share(8, {}, tmp_path).number == threads


@pytest.mark.parametrize(
    ("environ", "threads", "reason"),
    [
        ({}, 8, "torch's own choice"),
        ({"OMP_NUM_THREADS": "16"}, 8, "OMP_NUM_THREADS is set"),
        ({"MKL_NUM_THREADS": "8", "LOCAL_WORLD_SIZE": "4"}, 8, "MKL_NUM_THREADS is set"),
        ({"LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "2"}, 4, "all processors, shared by 2 processes"),
        ({"LOCAL_WORLD_SIZE": "3", "WORLD_SIZE": "6"}, 2, "all processors, shared by 3 processes"),
        ({"LOCAL_WORLD_SIZE": "16", "WORLD_SIZE": "16"}, 1, "all processors, shared by 16 processes"),
        ({"SLURM_CPUS_ON_NODE": "6"}, 6, "SLURM_CPUS_ON_NODE=6"),
    ],
)
def test_the_threads_of_a_process(tmp_path, environ, threads, reason):
    assert thread_share(8, environ, tmp_path) == (threads, reason)


@pytest.mark.parametrize(("own", "processors"), [(True, 8), (False, 32), (False, 64)])
def test_tasks_of_srun_do_not_divide_their_own_processors(tmp_path, own, processors):
    """Four tasks on 32 cores; each is bound to eight, or none is, perhaps on a larger machine."""
    environ = {"SLURM_STEP_NUM_TASKS": "4", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"}
    assert thread_share(processors, {**environ, "SLURM_CPUS_ON_NODE": "32"}, tmp_path).number == 8


def test_processes_of_a_task_divide_its_processors(tmp_path):
    environ = {"SLURM_STEP_NUM_TASKS": "2", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}
    assert thread_share(16, {**environ, "SLURM_CPUS_ON_NODE": "16"}, tmp_path).number == 4


def test_quota_and_processes_together(tmp_path):
    files(tmp_path, "0::/\n", cpu_dot_max="400000 100000\n")
    found = thread_share(8, {"LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "2"}, tmp_path)
    assert found.number == 2
    assert found.reason.startswith("a quota of 4 CPUs in ") and found.reason.endswith("shared by 2 processes")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no affinity")
def test_the_affinity_of_the_process_counts():
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert affinity() == usable_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_a_real_quota():
    """A process moves into a cgroup of its own, which the kernel makes where this is allowed."""
    folder = Path("/sys/fs/cgroup/cpu", f"mask2former_{uuid.uuid4().hex}")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this process may not make cgroups (version 1)")
    try:
        (folder / "cpu.cfs_quota_us").write_text("30000")
        program = (
            "import os; open(os.sys.argv[1] + '/cgroup.procs', 'w').write(str(os.getpid()))\n"
            "from mask2former.engine.setup.cores import job_cores; print(*job_cores(2, {}))"
        )
        run = [sys.executable, "-c", program, str(folder)]
        printed = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    finally:
        folder.rmdir()
    assert printed == f"0.3 a quota of 0.3 CPUs in {folder}/cpu.cfs_quota_us\n"
