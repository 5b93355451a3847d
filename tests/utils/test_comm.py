"""Agreement on an attempt in a store that keeps keys of dead processes."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from mask2former.utils.comm import _agree_on_attempt

TIMEOUT = timedelta(seconds=20)


def agree(store, processes):
    with ThreadPoolExecutor(processes) as pool:
        numbers = reversed(range(processes))  # rank 0 comes last
        return set(pool.map(lambda number: _agree_on_attempt(store, number, processes, TIMEOUT), numbers))


def test_each_attempt_has_an_id_that_all_its_processes_share():
    store = dist.HashStore()
    names = [agree(store, 3) for _ in range(3)]
    assert all(len(name) == 1 for name in names)
    assert len(set.union(*names)) == 3


def test_a_request_of_a_dead_process_is_not_an_answer():
    store = dist.HashStore()
    store.set("request 1", "of a killed process")
    assert len(agree(store, 2)) == 1


def test_rank_0_names_the_missing_ranks():
    with pytest.raises(TimeoutError, match=r"^missing: 1, 2$"):
        _agree_on_attempt(dist.HashStore(), 0, 3, timedelta(seconds=0.1))
