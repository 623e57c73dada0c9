"""The Lua scripts beside this file, and how they are run: by digest, one or many in a round trip."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from redis.exceptions import NoScriptError

from relay import failpoints

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis import Redis
    from redis.asyncio import Redis as AsyncRedis

Argument = str | bytes | int | float


@dataclass(frozen=True, slots=True)
class Script:
    """A script's name and text, and the digest that Redis knows it by."""

    name: str
    text: str
    sha: str


@dataclass(frozen=True, slots=True)
class Call:
    """One run of a script: with these keys and arguments."""

    script: Script
    keys: Sequence[str]
    args: Sequence[Argument]


@cache
def load(name: str) -> Script:
    """Return the script of the file `<name>.lua`."""
    text = files(__package__).joinpath(f"{name}.lua").read_text(encoding="utf-8")
    return Script(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


def run(client: Redis, call: Call) -> Any:
    """Run one script and return its reply; Redis learns it on the way if it does not know it."""
    failpoints.passing(f"before:{call.script.name}")
    try:
        reply = client.evalsha(call.script.sha, len(call.keys), *call.keys, *call.args)
    except NoScriptError:
        reply = client.eval(call.script.text, len(call.keys), *call.keys, *call.args)
    failpoints.passing(f"after:{call.script.name}")
    return reply


async def run_async(client: AsyncRedis, call: Call) -> Any:
    """`run`, for asyncio."""
    try:
        return await client.evalsha(call.script.sha, len(call.keys), *call.keys, *call.args)
    except NoScriptError:
        return await client.eval(call.script.text, len(call.keys), *call.keys, *call.args)


def run_all(client: Redis, calls: Sequence[Call]) -> list[Any]:
    """Run scripts in order in one round trip and return their replies; the first error is raised.

    The scripts are not one transaction, and must not depend on each other's success: one that Redis did not
    know (after a restart or SCRIPT FLUSH) runs after the rest.
    """
    if not calls:
        return []
    failpoints.passing(f"before:{calls[0].script.name}")
    pipeline = client.pipeline(transaction=False)
    for call in calls:
        pipeline.evalsha(call.script.sha, len(call.keys), *call.keys, *call.args)
    replies = pipeline.execute(raise_on_error=False)
    failpoints.passing(f"after:{calls[0].script.name}")
    for position, reply in enumerate(replies):
        if isinstance(reply, NoScriptError):
            replies[position] = run(client, calls[position])
        elif isinstance(reply, Exception):
            raise reply
    return replies
