"""Processes that join on one machine listen there, and nowhere else."""

import contextlib
import ipaddress
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.test_launch import running
from tests.processes import started

linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc tells who listens")

JOINED = """
import os, time, jax
jax.config.update("jax_platforms", "cpu")
from jax.experimental.multihost_utils import process_allgather
from jaxdist.training import multihost
multihost.initialize()
assert process_allgather(jax.numpy.ones(3)).shape == (2, 3)
print("ready", os.getpid(), flush=True)
time.sleep(300)
"""


def listening(pid):
    """The addresses at which a process listens for TCP connections."""
    inodes = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            inodes |= set(re.findall(r"^socket:\[(\d+)\]", os.readlink(fd)))
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == "0A" and rest[5] in inodes:
                words = bytes.fromhex(local.partition(":")[0])
                packed = b"".join(words[i : i + 4][::-1] for i in range(0, len(words), 4))
                address = ipaddress.ip_address(packed)
                found.append(getattr(address, "ipv4_mapped", None) or address)
    return found


def elsewhere():
    """An address of this machine that others may reach; nothing is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no network")
        return probe.getsockname()[0]


@linux
def test_listening_is_seen():
    with socket.create_server(("0.0.0.0", 0)), socket.create_server(("127.0.0.1", 0)):
        assert {"0.0.0.0", "127.0.0.1"} <= set(map(str, listening(os.getpid())))
    if Path("/proc/net/if_inet6").exists():
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            assert ipaddress.ip_address("::1") in listening(os.getpid())


@linux
@pytest.mark.slow
@pytest.mark.parametrize("address", ["localhost", "::1"])
def test_launched_processes_listen_on_loopback_only(address):
    """The launcher, JAX's coordinator and the collectives of gloo."""
    if ":" in address and not Path("/proc/net/if_inet6").exists():
        pytest.skip("this machine has no IPv6")
    with running(2, JOINED, "--address", address) as (launcher, pids):
        each = [listening(pid) for pid in (launcher.pid, *pids)]
    assert not each[0]
    assert sorted(map(len, each[1:])) == [1, 2]  # gloo of each, and the coordinator
    assert all(found.is_loopback for addresses in each for found in addresses), each


@linux
@pytest.mark.slow
def test_loopback_whatever_the_host_is_called(tmp_path, monkeypatch):
    """By itself gloo listens at the address of the host's name, which others may reach."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    code = "#include <string.h>\nint gethostname(char *name, size_t size) {"
    code += f' strncpy(name, "{elsewhere()}", size); return 0; }}'
    (tmp_path / "name.c").write_text(code)
    library = tmp_path / "name.so"
    command = ["cc", "-shared", "-fPIC", "-o", library, tmp_path / "name.c"]
    subprocess.run(command, check=True)
    monkeypatch.setenv("LD_PRELOAD", str(library))
    with running(2, JOINED) as (_, pids):
        each = [listening(pid) for pid in pids]
    assert sorted(map(len, each)) == [1, 2]
    assert all(found.is_loopback for addresses in each for found in addresses), each


@linux
@pytest.mark.slow
def test_loopback_without_the_launcher():
    """An address of this machine in the environment is enough; JAX's own choice is every one."""
    with started(2, JOINED) as children:
        for child in children:
            while not child.stdout.readline().startswith("ready"):
                assert child.poll() is None
        each = [listening(child.pid) for child in children]
    assert sorted(map(len, each)) == [1, 2]
    assert all(found.is_loopback for addresses in each for found in addresses), each


@linux
@pytest.mark.slow
def test_another_address_if_told():
    """Then the coordinator listens there, and still not everywhere."""
    other = elsewhere()
    with running(2, JOINED, "--address", other) as (_, pids):
        found = [address for pid in pids for address in listening(pid)]
    assert ipaddress.ip_address(other) in found
    assert not any(address.is_unspecified for address in found)
