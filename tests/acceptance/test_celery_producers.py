"""Producers that use Celery: the snippets of docs/celery-producers.md, with no more packages than they need."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from rig import event_of

if TYPE_CHECKING:
    from rig import Estate

PAGE = (Path(__file__).parents[2] / "docs" / "celery-producers.md").read_text(encoding="utf-8")
WITH_CELERY, WITH_KOMBU = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)

#: The packages that `pip install 'kombu[redis]'` installs.
KOMBU = {"amqp", "kombu", "packaging", "redis", "vine"}

#: The packages that `pip install celery` adds.
CELERY = {
    "billiard", "celery", "click", "click-didyoumean", "click-plugins", "click-repl", "prompt-toolkit",
    "python-dateutil", "six", "tzlocal", "wcwidth",
}  # fmt: skip


def site_with(folder: Path, packages: set[str]) -> Path:
    """Return a directory with these installed packages and no others."""
    folder.mkdir()
    for package in map(distribution, packages):
        for top in {file.parts[0] for file in package.files or ()} - {"..", "__pycache__"}:
            (folder / top).symlink_to(Path(str(package.locate_file(top))))
    return folder


def run(site: Path, snippet: str, broker_url: str, absent: tuple[str, ...]) -> None:
    """Run a snippet with the standard library and the directory; check which packages are absent."""
    code = f"""import sys
sys.path.append({str(site)!r})
{snippet.replace("redis://127.0.0.1:6379/0", broker_url)}
from importlib.util import find_spec
assert not set({absent!r}) & set(sys.modules), "was imported"
assert not any(find_spec(name) for name in {absent!r}), "could be imported"
"""
    command = [sys.executable, "-I", "-S", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def only_kombu(tmp_path: Path) -> Path:
    return site_with(tmp_path / "only-kombu", KOMBU)


@pytest.fixture
def only_celery(tmp_path: Path) -> Path:
    return site_with(tmp_path / "only-celery", KOMBU | CELERY)


def test_snippets_report_events_and_a_repeat_with_the_same_id_is_a_duplicate(
    estate: Estate, only_kombu: Path, only_celery: Path
) -> None:
    """The repeat follows another digest: without its id it would be a rollback, and so a change."""
    url = estate.stack.redis_url
    estate.start_worker()
    run(only_kombu, WITH_KOMBU, url, absent=("celery", "relay", "workers"))
    estate.wait_until_done(1)
    run(only_celery, WITH_CELERY, url, absent=("relay", "workers"))
    estate.wait_until_done(2)
    run(only_kombu, WITH_KOMBU, url, absent=("celery", "relay", "workers"))
    counters = estate.wait_until_done(3)
    assert (counters.delivered, counters.duplicate, counters.dead) == (2, 1, 0)
    assert [
        (event_of(request.idempotency_key), request.event["image"]["url"][-1]) for request in estate.api.requests
    ] == [
        ("deploy-1042", "b"),
        ("deploy-1041", "a"),
    ]
    assert {request.environment for request in estate.api.requests} == {"production"}


def test_default_id_is_the_messages_own(estate: Estate, only_kombu: Path) -> None:
    snippet = WITH_KOMBU.replace('"id": "deploy-1042", ', "").replace("str(uuid.uuid4())", '"message-7"')
    assert snippet.count("deploy-1042") == 0
    assert snippet.count("message-7") == 1
    run(only_kombu, snippet, estate.stack.redis_url, absent=("celery", "relay", "workers"))
    estate.start_worker()
    estate.wait_until_done(1)
    assert [event_of(request.idempotency_key) for request in estate.api.requests] == ["message-7"]
