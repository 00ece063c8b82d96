"""Joining a run of several processes: found by what launchers tell, refused in one line."""

import socket
import subprocess
import sys

import jax
import pytest

from jaxformer.config import DistributedConfig
from jaxformer.errors import TRY_AGAIN, UserError
from jaxformer.runtime import distributed
from tests.processes import Process, ends, free_port, start

JOIN = """
import sys
from jaxformer.cli.arguments import run_command
from jaxformer.config import DistributedConfig
from jaxformer.runtime import distributed
def main():
    distributed.join(DistributedConfig({}))
    import jax
    print(jax.process_index(), jax.process_count(), jax.distributed.is_initialized())
    distributed.assert_same_on_all_processes("value")
    distributed.shutdown(0)
run_command("prog", main)
"""


def joining(arguments: str, **environment: object) -> Process:
    """A process that joins a run by the arguments of its config."""
    variables = {name: str(value) for name, value in environment.items()}
    words = [sys.executable, "-W", "error", "-c", JOIN.format(arguments)]
    return start(words, devices=1, environment=variables)


def explicit(port: int, process: int, processes: int = 2) -> str:
    return f"coordinator='127.0.0.1:{port}', processes={processes}, process={process}, timeout=1"


def test_without_flags_a_process_is_alone():
    assert not DistributedConfig().wanted
    distributed.join(DistributedConfig())
    distributed.assert_same_on_all_processes("anything")
    distributed.shutdown(1)
    assert not jax.distributed.is_initialized()
    assert distributed.is_first()


@pytest.mark.parametrize("launcher", ["flags", "slurm", "open mpi"])
def test_a_process_is_found_by_flags_and_by_what_launchers_tell(launcher):
    port = free_port()
    variables = {"JAX_COORDINATOR_PORT": port, "JAX_COORDINATOR_BIND_ADDRESS": f"127.0.0.1:{port}"}
    arguments = "auto=True"
    if launcher == "flags":
        arguments = explicit(port, process=0, processes=1)
    elif launcher == "slurm":
        variables |= {"SLURM_JOB_ID": 7, "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": 1}
        variables |= {"SLURM_PROCID": 0, "SLURM_LOCALID": 0}
    else:
        variables |= {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://127.0.0.1:34911"}
        variables |= {"OMPI_COMM_WORLD_SIZE": 1, "OMPI_COMM_WORLD_RANK": 0}
        variables |= {"OMPI_COMM_WORLD_LOCAL_RANK": 0}
    assert ends([joining(arguments, **variables)]) == [(0, "0 1 True\n", "")]


def test_processes_meet_without_the_proxy_of_the_web():
    proxy = f"http://127.0.0.1:{free_port()}"
    process = joining(explicit(free_port(), process=0, processes=1), http_proxy=proxy)
    assert ends([process]) == [(0, "0 1 True\n", "")]


def test_what_does_not_come_about_is_reported_in_one_line():
    processes = {
        "process 1 could not reach 2 processes at 127.0.0.1": joining(explicit(free_port(), 1)),
        "not all 2 processes connected to 127.0.0.1": joining(explicit(free_port(), 0)),
        "not all 2 processes connected to 192.0.2.1": joining(
            f"coordinator='192.0.2.1:{free_port()}', processes=2, process=0, timeout=1"
        ),
        "found no SLURM, Open MPI or Kubernetes job": joining("auto=True"),
    }
    statuses = (TRY_AGAIN, TRY_AGAIN, TRY_AGAIN, 2)  # the others may come yet; a launcher will not
    ended = ends(processes.values())
    for expected, right, end in zip(processes, statuses, ended, strict=True):
        status, output, complaint = end
        assert (status, output, complaint.count("\n")) == (right, "", 1), complaint
        assert expected in complaint


def test_an_aborted_process_ends_with_its_status_even_if_it_cannot_say_why():
    script = """
import os
from jaxformer.runtime import distributed
distributed._exit_when_aborted(lambda: ("lost", 75))
os.abort()
"""
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", script], stderr=full)
    assert done.returncode == TRY_AGAIN


@pytest.mark.parametrize("host", ["127.0.0.1", "host.of.the.run"])
def test_a_port_that_is_taken_is_refused_even_if_its_owner_would_share_it(host):
    with socket.socket() as owner:
        owner.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        owner.bind(("127.0.0.1", 0))
        owner.listen()
        address = f"{host}:{owner.getsockname()[1]}"
        config = DistributedConfig(coordinator=address, processes=2, process=0, timeout=1)
        with pytest.raises(UserError, match=f"cannot listen at {address}: Address already in use"):
            distributed.join(config)


def test_the_first_process_is_reached_at_addresses_that_its_own_host_does_not_know():
    port = free_port()
    named = f"coordinator='{socket.gethostname()}:{port}', processes=2, process=0"
    others = f"coordinator='127.0.0.2:{port}', processes=2, process=1"
    for index, end in enumerate(ends([joining(named), joining(others)])):
        assert end == (0, f"{index} 2 True\n", "")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"coordinator": "host:1234"}, "belong together"),
        ({"processes": 2, "process": 0}, "belong together"),
        ({"auto": True, "process": 0}, "leave out the other flags"),
        ({"coordinator": "host", "processes": 2, "process": 0}, "give HOST:PORT"),
        ({"coordinator": "host:70000", "processes": 2, "process": 0}, "give HOST:PORT"),
        ({"coordinator": "host:1234", "processes": 0, "process": 0}, r"distributed\.processes 0 "),
        ({"coordinator": "host:1234", "processes": 2, "process": 2}, "choose one from 0 to 1"),
        ({"coordinator": "host:1234", "processes": 2, "process": -1}, "choose one from 0 to 1"),
        ({"timeout": 0}, r"distributed\.timeout 0 "),
    ],
)
def test_flags_that_do_not_go_together_are_refused(arguments, complaint):
    with pytest.raises(UserError, match=complaint):
        DistributedConfig(**arguments)


FAIL = """
import sys, time
from jaxformer.cli.arguments import run_command
from jaxformer.config import DistributedConfig
from jaxformer.errors import UserError
from jaxformer.runtime import distributed
def main():
    process, address = int(sys.argv[1]), sys.argv[2]
    distributed.join(DistributedConfig(coordinator=address, processes=2, process=process))
    distributed.assert_same_on_all_processes("ready")
    time.sleep(process / 2)
    raise UserError("the same everywhere")
run_command("prog", main)
"""


def test_processes_that_fail_alike_all_end_with_the_same_status():
    words = [sys.executable, "-c", FAIL]
    address = f"127.0.0.1:{free_port()}"
    for end in ends([start([*words, str(process), address], devices=1) for process in (0, 1)]):
        assert end == (2, "", "prog: error: the same everywhere\n")


def test_threads_that_abort_together_have_one_last_word():
    script = """
import os, threading, time
from jaxformer.runtime import distributed
def words():
    time.sleep(0.5)
    return "lost", 75
distributed._exit_when_aborted(words)
threads = [threading.Thread(target=os.abort) for _ in range(4)]
for thread in threads:
    thread.start()
time.sleep(60)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (TRY_AGAIN, "error: lost\n")


PART = """
import os, sys, time
from jaxformer.config import DistributedConfig
from jaxformer.runtime import distributed
process, address = int(sys.argv[1]), sys.argv[2]
distributed.join(DistributedConfig(coordinator=address, processes=3, process=process))
distributed.assert_same_on_all_processes("ready")
if process == 2:
    time.sleep(7)  # longer than SILENT
    os._exit(0)
if process == 1:
    time.sleep(60)
distributed.shutdown(0)
"""


@pytest.mark.slow
def test_who_waits_for_the_others_to_part_is_not_taken_for_dead():
    words = [sys.executable, "-c", PART]
    address = f"127.0.0.1:{free_port()}"
    processes = [start([*words, str(i), address], devices=1) for i in range(3)]
    for index, (status, _, complaint) in enumerate(ends(processes)[:2]):
        assert status == TRY_AGAIN, complaint
        last = complaint.splitlines()[-1]
        assert f"process {index} of 3 had to end: process 2 (" in last
        assert "process 0" not in last.partition("end:")[2]
        assert "process 1" not in last.partition("end:")[2]


ABORT = """
import os, sys, time
from jaxformer.config import DistributedConfig
from jaxformer.runtime import distributed, heartbeat
process, address = int(sys.argv[1]), sys.argv[2]
if process == 2:
    heartbeat.INTERVAL = 1.6  # it looks after process 0 has looked
distributed.join(DistributedConfig(coordinator=address, processes=3, process=process))
distributed.assert_same_on_all_processes("ready")
time.sleep(2)
if process == 1:
    os._exit(0)
os.abort()  # as Gloo does when a connection breaks
"""


@pytest.mark.slow
def test_who_is_aborted_before_a_silence_is_noticed_names_the_lost_one():
    words = [sys.executable, "-c", ABORT]
    address = f"127.0.0.1:{free_port()}"
    processes = [start([*words, str(i), address], devices=1) for i in range(3)]
    first, _, last = ends(processes)
    for index, (status, _, complaint) in ((0, first), (2, last)):
        assert status == TRY_AGAIN, complaint
        assert f"process {index} of 3 had to end: process 1 (" in complaint
        assert "), process" not in complaint
