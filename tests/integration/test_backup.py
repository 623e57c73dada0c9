"""What docs/operating.md says of backups, done with a real Redis."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import redis
from rig import wait_for
from runs import KEYS

from relay import Producer
from relay.processes.embedded_redis import EmbeddedRedis

if TYPE_CHECKING:
    from pathlib import Path

IMAGE = f"ghcr.io/acme/api@sha256:{'0' * 64}"


def waiting(directory: Path, *, append_only: bool) -> int:
    """Start Redis in a directory as it is, and count what waits; if not `append_only`, then turn it so."""
    with EmbeddedRedis(directory, append_only=append_only) as server, redis.Redis.from_url(server.url) as client:
        number = client.xlen(KEYS.inbox)
        if not append_only:
            client.config_set("appendonly", "yes")
            wait_for(lambda: not client.info("persistence")["aof_rewrite_scheduled"], 30)
            wait_for(lambda: not client.info("persistence")["aof_rewrite_in_progress"], 30)
        return number


def test_an_rdb_is_restored_as_the_page_says(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path / "before") as server, Producer(server.url) as producer:
        producer.report_many([{"image": {"url": IMAGE}} for _ in range(3)])
        with redis.Redis.from_url(server.url) as client:
            client.save()
    for name in ("at once", "in two steps"):
        (tmp_path / name).mkdir()
        shutil.copy(tmp_path / "before" / "dump.rdb", tmp_path / name)

    assert waiting(tmp_path / "at once", append_only=True) == 0  # which is why the page says more
    assert waiting(tmp_path / "in two steps", append_only=False) == 3
    assert waiting(tmp_path / "in two steps", append_only=True) == 3
