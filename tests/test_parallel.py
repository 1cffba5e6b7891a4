"""Which process this is, and what becomes of a run when one of its processes dies."""

from __future__ import annotations

import json
import queue
import socket
import threading
import time
from contextlib import suppress

import pytest

from parivox import watchdog
from parivox.errors import BackendError, ConfigError, DataError
from parivox.parallel import World, launched_world
from parivox.watchdog import Watchdog

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29500",
}
PATIENCE = 60
"""Seconds that a test waits for what must come."""


def without(*names: str) -> dict[str, str]:
    return {name: value for name, value in TORCHRUN.items() if name not in names}


def test_alone_unless_told_otherwise():
    for backend in ("jax", "torch"):
        world = launched_world(backend, environment={})
        assert world == World(0, 1, 0) and world.is_main


def test_torch_reads_its_launcher():
    world = launched_world("torch", environment=TORCHRUN)
    assert world == World(3, 4, 1, "10.0.0.1:29500") and not world.is_main
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    assert launched_world("torch", environment=alone) == World()


@pytest.mark.parametrize("name", TORCHRUN)
def test_torch_names_what_is_missing(name):
    with pytest.raises(ConfigError, match=f"but not {name};") as error:
        launched_world("torch", environment=without(name))
    assert "\n" not in str(error.value)


def test_torch_names_all_that_is_missing():
    with pytest.raises(
        ConfigError, match="has RANK but not WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT;"
    ):
        launched_world("torch", environment={"RANK": "0"})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("RANK", "4", "RANK is 4; with WORLD_SIZE 4 it must be 0 to 3"),
        ("RANK", "-1", "RANK is -1"),
        ("RANK", "three", "RANK is 'three'; it must be a whole number"),
        ("WORLD_SIZE", "0", "WORLD_SIZE is 0"),
        ("LOCAL_RANK", "7", "LOCAL_RANK is 7"),
        ("MASTER_PORT", "none", "'10.0.0.1:none'; give host:port"),
        ("MASTER_ADDR", "", "':29500'; give host:port"),
    ],
)
def test_torch_refuses_what_makes_no_sense(name, value, message):
    with pytest.raises(ConfigError, match=message):
        launched_world("torch", environment=TORCHRUN | {name: value})


def test_torch_refuses_the_flags_of_jax():
    with pytest.raises(ConfigError, match="--coordinator, --distributed: belong to JAX"):
        launched_world("torch", coordinator="a:1", distributed=True, environment=TORCHRUN)


FLAGS = {"coordinator": "node0:1234", "num_processes": 2, "process_id": 1}


def test_jax_reads_flags_or_the_cluster():
    assert launched_world("jax", **FLAGS, environment={}) == World(1, 2, 0, "node0:1234")
    assert launched_world("jax", distributed=True, environment={}).detect


@pytest.mark.parametrize("name", FLAGS)
def test_jax_names_the_missing_flag(name):
    flags = {key: value for key, value in FLAGS.items() if key != name}
    with pytest.raises(ConfigError, match=f"given without --{name.replace('_', '-')};"):
        launched_world("jax", **flags, environment={})


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (FLAGS | {"process_id": 2}, "--process-id is 2; with --num-processes 2 it must be 0 to 1"),
        (FLAGS | {"num_processes": 0}, "--num-processes is 0"),
        (FLAGS | {"coordinator": "node0"}, "--coordinator is 'node0'; give host:port"),
        (FLAGS | {"coordinator": "node0:70000"}, "--coordinator is 'node0:70000'"),
        (
            FLAGS | {"distributed": True},
            "--distributed finds out what --coordinator, --num-processes, --process-id",
        ),
    ],
)
def test_jax_refuses_what_makes_no_sense(flags, message):
    with pytest.raises(ConfigError, match=message):
        launched_world("jax", **flags, environment={})


def test_jax_refuses_a_launcher_of_torch():
    with pytest.raises(ConfigError, match="WORLD_SIZE is 4, as PyTorch's launchers set it"):
        launched_world("jax", environment=TORCHRUN)
    assert launched_world("jax", environment={"WORLD_SIZE": "1"}) == World()


class Party:
    """Watchdogs of one run, all in this process; `said[rank]` gets what would end a rank."""

    def __init__(self, size: int, **options):
        self.size, self.options = size, options
        self.place: queue.Queue[str] = queue.Queue()
        self.said: list[queue.Queue[str]] = [queue.Queue() for _ in range(size)]

    def share(self, text: str) -> str:
        if text:
            for _ in range(self.size - 1):
                self.place.put(text)
            return text
        return self.place.get(timeout=PATIENCE)

    def join(self, rank: int) -> Watchdog:
        world = World(rank, self.size, 0, "127.0.0.1:1")
        return Watchdog(world, self.share, end=self.said[rank].put, settle=1.0, **self.options)

    def heard(self, rank: int) -> str:
        return self.said[rank].get(timeout=PATIENCE)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(watchdog, "BEAT_SECONDS", 0.05)


def test_one_process_needs_no_watch():
    def never(text: str) -> str:
        raise AssertionError(text)

    with Watchdog(World(), never):
        pass


def test_who_ends_well_is_not_missed():
    party = Party(3)
    first, second, third = (party.join(rank) for rank in range(3))
    with first:
        with second, third:
            time.sleep(0.2)
        time.sleep(0.2)
    assert all(said.empty() for said in party.said)


def test_rank_0_may_end_before_the_others():
    party = Party(2)
    hub, other = party.join(0), party.join(1)
    with other:
        with hub:
            time.sleep(0.2)
        time.sleep(0.2)
    assert all(said.empty() for said in party.said)


def test_a_broken_connection_ends_all():
    party = Party(3)
    hub, first, second = (party.join(rank) for rank in range(3))
    second._peers[0].connection.shutdown(socket.SHUT_RDWR)  # what the system does to a killed process
    told = party.heard(0)
    assert told.startswith("rank 2 of 3 has died (its connection broke)") and "\n" not in told
    assert party.heard(1) == told
    assert hub.world.is_main and not first.world.is_main


def test_the_end_of_rank_0_ends_all(monkeypatch):
    party = Party(3)
    hub, *others = (party.join(rank) for rank in range(3))
    deadline = time.monotonic() + PATIENCE
    while sorted(peer.rank for peer in hub._peers) != [1, 2]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    peers = list(hub._peers)
    for peer in peers:
        monkeypatch.setattr(peer, "send", lambda **message: None)  # the dead do not tell of each other
    for peer in peers:
        with suppress(OSError):  # it closes the others itself when it has noticed the first
            peer.connection.shutdown(socket.SHUT_RDWR)
    for rank in range(1, len(others) + 1):
        assert party.heard(rank).startswith("rank 0 of 3 has died")


def test_silence_is_death():
    party = Party(2, silence=1.0)
    hub = party.join(0)
    host, port, token = json.loads(party.share(""))
    with socket.create_connection((host, port)) as mute:
        mute.sendall(json.dumps({"rank": 1, "token": token}).encode() + b"\n")
        assert party.heard(0).startswith("rank 1 of 2 has died (no sign of life for 1 s)")
    assert hub.world.size == 2


def test_who_never_comes_is_missed():
    party = Party(2, silence=0.5)
    party.join(0)
    assert party.heard(0).startswith("rank 1 of 2 has died (no sign of life")


def test_strangers_are_turned_away():
    party = Party(2)
    hub, place = party.join(0), party.place.get(timeout=PATIENCE)
    host, port, _ = json.loads(place)
    for text in (b"GET / HTTP/1.1\r\n\r\n", b'{"rank": 1, "token": "guess"}\n', b"[1]\n"):
        with socket.create_connection((host, port)) as stranger:
            stranger.sendall(text)
            stranger.settimeout(PATIENCE)
            assert text.startswith(b"GET") or stranger.recv(1000) is not None
    party.place.put(place)
    with hub, party.join(1):
        time.sleep(0.3)
    assert all(said.empty() for said in party.said)


def test_an_error_is_told_to_the_others():
    party = Party(2)
    hub, other = party.join(0), party.join(1)
    with pytest.raises(DataError), other:
        raise DataError("speech: nothing here decodes")
    assert party.heard(0) == "rank 1 of 2 stopped: speech: nothing here decodes"
    assert party.heard(1) == "speech: nothing here decodes"
    assert hub.world.is_main


def test_an_error_that_a_dead_peer_caused_waits_for_the_news(capsys):
    party = Party(2)
    hub, other = party.join(0), party.join(1)
    breaker = threading.Timer(0.3, other._peers[0].connection.shutdown, [socket.SHUT_RDWR])
    breaker.start()
    with pytest.raises(RuntimeError), hub:
        raise RuntimeError("connection closed by peer")
    assert party.heard(0).startswith("rank 1 of 2 has died")
    assert "connection closed by peer" in capsys.readouterr().err


def test_rank_0_out_of_reach():
    def share(text: str) -> str:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            return json.dumps(["127.0.0.1", unused.getsockname()[1], "token"])

    with pytest.raises(BackendError, match=r"rank 1 cannot reach rank 0 at 127\.0\.0\.1:"):
        Watchdog(World(1, 2), share)
