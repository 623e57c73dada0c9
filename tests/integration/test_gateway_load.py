"""The gateway as a process, beside clients that are many, slow or greedy: the others get their answers."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import threading
from typing import TYPE_CHECKING

import pytest
import requests
from gateways import BODY, Running, process
from rig import wait_for

from relay.queue.keys import Keys

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from redis import Redis

    from relay.processes.embedded_redis import EmbeddedRedis
    from relay.processes.supervisor import Child

IDLE = 10_000
HEAD = b"POST / HTTP/1.1\r\nHost: relay\r\nContent-Type: application/json\r\n"

#: Descriptors that this process needs beside the connections.
SPARE_DESCRIPTORS = 500


@pytest.fixture(scope="module")
def gateway(redis_server: EmbeddedRedis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, Child]]:
    with process(redis_server.url, tmp_path_factory.mktemp("gateway") / "gateway.log") as started:
        yield started


@contextlib.contextmanager
def many_descriptors() -> Iterator[int]:
    """Let this process open as many as it may; yields how many connections that allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield hard - SPARE_DESCRIPTORS
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def is_taken(gateway: Running) -> bool:
    with requests.Session() as session:
        session.trust_env = False
        return session.post(gateway.url, json=json.loads(BODY), timeout=30).status_code == 202


def test_ten_thousand_idle_connections_do_not_block_it(gateway: tuple[Running, Child], client: Redis) -> None:
    running, child = gateway
    with many_descriptors() as most, contextlib.ExitStack() as exits:
        if most < IDLE:
            pytest.skip(f"this process may open only {most} connections: raise the hard limit of descriptors")
        for _ in range(IDLE):
            exits.enter_context(running.connect())
        wait_for(lambda: len(os.listdir(f"/proc/{child.pid}/fd")) > IDLE, 60)  # noqa: PTH208 - names suffice
        assert all(is_taken(running) for _ in range(20))
    assert client.xlen(Keys().inbox) == 20
    wait_for(lambda: len(os.listdir(f"/proc/{child.pid}/fd")) < 100, 60)  # noqa: PTH208 - the same


def test_slow_clients_do_not_block_it(gateway: tuple[Running, Child], client: Redis) -> None:
    """A hundred in the middle of their request lines, headers and bodies, each a byte now and then."""
    running, _ = gateway
    starts = [b"PO", HEAD[:40], HEAD + b"Content-Length: 100\r\n\r\n{"]
    over = threading.Event()
    with contextlib.ExitStack() as exits:
        slow = [exits.enter_context(running.connect()) for _ in range(102)]
        for number, connection in enumerate(slow):
            connection.sendall(starts[number % len(starts)])
        dripping = threading.Thread(target=drip, args=(slow[2::3], over))
        dripping.start()
        try:
            assert all(is_taken(running) for _ in range(20))
        finally:
            over.set()
            dripping.join()
    assert client.xlen(Keys().inbox) == 20


def drip(connections: list[socket.socket], over: threading.Event) -> None:
    while not over.wait(0.05):
        for connection in connections:
            connection.sendall(b" ")


def test_huge_bodies_neither_block_it_nor_fill_its_memory(gateway: tuple[Running, Child], client: Redis) -> None:
    running, child = gateway
    before = megabytes(child.pid)
    over = threading.Event()
    greedy = [threading.Thread(target=flood, args=(running, over)) for _ in range(8)]
    for each in greedy:
        each.start()
    try:
        assert all(is_taken(running) for _ in range(20))
        assert megabytes(child.pid) - before < 100
    finally:
        over.set()
        for each in greedy:
            each.join()
    assert client.xlen(Keys().inbox) == 20


def flood(gateway: Running, over: threading.Event) -> None:
    """Send what says to be a gigabyte, again and again."""
    chunk = b"[" + b" " * 65_535
    while not over.is_set():
        with gateway.connect() as connection, contextlib.suppress(OSError):
            connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
            for _ in range(16_384):
                connection.sendall(b"10000\r\n" + chunk + b"\r\n")


def megabytes(pid: int) -> float:
    with open(f"/proc/{pid}/status") as status:  # noqa: PTH123 - shorter
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024
