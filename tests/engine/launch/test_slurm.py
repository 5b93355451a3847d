"""Tasks of srun, from the variables that SLURM's manual describes."""

import pytest
from process_runs import slurm_variables

from mask2former.engine.launch.slurm import first_host, slurm_task

STEP = slurm_variables(JOB_ID=40017, STEP_ID=2, STEP_NUM_TASKS=11, PROCID=9, LOCALID=1, NODEID=2)
STEP |= slurm_variables(STEP_NODELIST="rack[2-3]node[07-09,12],login1", STEP_TASKS_PER_NODE="4(x2),3")


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("login1", "login1"),
        ("a,b", "a"),
        ("tux[3-5]", "tux3"),
        ("tux[08,10-11]", "tux08"),
        ("tux[5]-ib,login1", "tux5-ib"),
        ("rack[2-3]node[07-09,12],login1", "rack2node07"),
    ],
)
def test_first_host(nodes, host):
    assert first_host(nodes) == host


def test_a_task_gets_the_variables_of_torchrun():
    task = slurm_task(STEP)
    variables = task.variables()
    port = int(variables.pop("MASTER_PORT"))
    assert variables == {
        "RANK": "9",
        "WORLD_SIZE": "11",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "3",
        "MASTER_ADDR": "rack2node07",
    }
    assert 1024 < port < 32768  # neither reserved nor handed out by Linux
    others = [slurm_task({**STEP, "SLURM_PROCID": str(number)}).url for number in range(11)]
    assert others == [task.url] * 11
    assert slurm_task({**STEP, "SLURM_STEP_ID": "3"}).url != task.url  # a step may run beside another


def test_dist_url_sets_the_rendezvous():
    variables = slurm_task(STEP, "tcp://head:29500").variables()
    assert (variables["MASTER_ADDR"], variables["MASTER_PORT"]) == ("head", "29500")


BATCH_SCRIPT = slurm_variables(JOB_ID=7, PROCID=0, NTASKS=16)


@pytest.mark.parametrize("environ", [{}, BATCH_SCRIPT, {**STEP, "SLURM_STEP_NUM_TASKS": "1"}])
def test_a_batch_script_or_a_single_task_is_not_distributed(environ):
    assert slurm_task(environ) is None
