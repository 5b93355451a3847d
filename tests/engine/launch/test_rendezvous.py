"""Machines wait for each other with a message, a timeout and Ctrl-C."""

import os
import signal
import socket
import threading

import pytest
from process_runs import free_port, until

from mask2former.engine.errors import ProcessError
from mask2former.engine.launch.rendezvous import wait_for_machines


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (0, r"waited 0.3 s \(--timeout\) at tcp://127.0.0.1:\d+; missing: machine 1, machine 2"),
        (2, r"waited 0.3 s \(--timeout\) for the first machine; nobody answers at tcp://127.0.0.1"),
    ],
)
def test_a_single_machine_times_out(number, message):
    with pytest.raises(ProcessError, match=message):
        wait_for_machines(f"tcp://127.0.0.1:{free_port()}", number, 3, 0.3)


def test_machines_wait_for_the_last():
    url, order, stores = f"tcp://127.0.0.1:{free_port()}", [], []

    def arrive(number):
        stores.append(wait_for_machines(url, number, 3, 30))
        order.append("all")

    early = [threading.Thread(target=arrive, args=(number,)) for number in (1, 0)]
    for thread in early:
        thread.start()
    order.append("last")
    arrive(2)
    for thread in early:
        thread.join()
    assert order == ["last", "all", "all", "all"]


def test_a_port_in_use_is_named():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        url = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ValueError, match=f"--dist-url {url} cannot be used"):
            wait_for_machines(url, 0, 2, 5)


def test_ctrl_c_ends_the_wait(server, tmp_path):
    [command] = server.start_two_machines(tmp_path, "--timeout", "60", order=[0])
    until(lambda: "waiting for the other machines at tcp://127.0.0.2" in command.printed())
    os.kill(command.pid, signal.SIGINT)
    log = command.finish(1)
    assert log.splitlines()[-1] == "stopped; --resume continues from the last checkpoint"
