"""How processes find each other where others, which are gone, have left their words."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from mask2former.utils.comm import _agree_on_attempt

TIMEOUT = timedelta(seconds=20)


def agree(store: dist.Store, processes: int) -> set[str]:
    with ThreadPoolExecutor(processes) as pool:
        numbers = reversed(range(processes))  # the main process comes last
        return set(pool.map(lambda number: _agree_on_attempt(store, number, processes, TIMEOUT), numbers))


def test_each_attempt_has_a_name_that_all_its_processes_share() -> None:
    store = dist.HashStore()
    names = [agree(store, 3) for _ in range(3)]
    assert all(len(name) == 1 for name in names)
    assert len(set.union(*names)) == 3


def test_what_a_dead_process_asked_is_not_taken_for_an_answer() -> None:
    store = dist.HashStore()
    store.set("request 1", "of one that was killed before it was answered")
    assert len(agree(store, 2)) == 1


def test_the_main_process_names_who_is_missing() -> None:
    with pytest.raises(TimeoutError, match=r"^missing: 1, 2$"):
        _agree_on_attempt(dist.HashStore(), 0, 3, timedelta(seconds=0.1))
