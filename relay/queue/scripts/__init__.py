"""The Lua scripts beside this file, and how they are run: by digest, one or many in a round trip.

A script's text is the shared prelude.lua, then names for its keys and arguments, then `<name>.lua`. `declare` is the
one place that gives the names, and `Script.call` takes the values by them:

    _COMMIT = scripts.declare(
        "commit",
        keys=("lease", "inbox"),            # local lease_key, inbox_key
        arguments=("token", "lease_ms"),    # local token, lease_ms
        lists={"ids": (), "states": ("instance", "state")},
    )
    call = _COMMIT.call(
        {"lease": …, "inbox": …}, {"token": …, "lease_ms": …}, {"ids": [id, …], "states": [instance, state, …]}
    )

A list is flat: the values of one record follow those of the one before. In Lua `states_n` is how many records it has,
`states_first` and `states_last` are the positions of its first and its last argument in ARGV (the last is before the
first if there are none), and a record with several columns has `STATES_SIZE` and the offset of each, so that

    for at = states_first, states_last, STATES_SIZE do … ARGV[at + STATES_STATE] … end

goes over it. Keys after the declared ones are the script's to count, from `KEYS_DECLARED + 1` on. Positional
arguments cost Redis less than msgpack documents: docs/decisions/0022-script-arguments-are-positional.md.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import chain
from typing import TYPE_CHECKING, Any

from redis.exceptions import NoScriptError

from relay import failpoints

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from redis import Redis
    from redis.asyncio import Redis as AsyncRedis

Argument = str | bytes | int | float


@dataclass(frozen=True, slots=True)
class Script:
    """A script's name and text, the digest that Redis knows it by, and its names for keys and arguments."""

    name: str
    text: str
    sha: str
    keys: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    lists: tuple[tuple[str, int], ...] = ()

    def call(
        self,
        keys: Mapping[str, str],
        arguments: Mapping[str, Argument] | None = None,
        lists: Mapping[str, Sequence[Argument]] | None = None,
        *,
        more_keys: Sequence[str] = (),
    ) -> Call:
        """Return a run of the script with these values."""
        arguments, lists = arguments or {}, lists or {}
        args = [arguments[name] for name in self.arguments]
        for name, columns in self.lists:
            values = lists[name]
            args.append(len(values) // columns)
            args += values
        return Call(self, [*(keys[name] for name in self.keys), *more_keys], args)


#: All scripts that were declared in this process, by name.
DECLARED: dict[str, Script] = {}


@dataclass(frozen=True, slots=True)
class Call:
    """One run of a script: with these keys and arguments."""

    script: Script
    keys: Sequence[str]
    args: Sequence[Argument]


@cache
def load(name: str) -> Script:
    """Return the script of the file `<name>.lua`, which declares no names."""
    return declare(name)


def declare(
    name: str,
    *,
    keys: tuple[str, ...] = (),
    arguments: tuple[str, ...] = (),
    lists: Mapping[str, tuple[str, ...]] | None = None,
    text_before: str = "",
) -> Script:
    """Return the script of the file `<name>.lua` with these names; a list without columns has one.

    `text_before` is Lua that the script needs and Python generates.
    """
    lists = lists or {}
    text = "\n".join((_text("prelude"), *_names(keys, arguments, lists), text_before, _text(name)))
    sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
    sizes = tuple((each, max(1, len(columns))) for each, columns in lists.items())
    DECLARED[name] = Script(name, text, sha, keys, arguments, sizes)
    return DECLARED[name]


def _text(name: str) -> str:
    return files(__package__).joinpath(f"{name}.lua").read_text(encoding="utf-8")


def _names(keys: tuple[str, ...], arguments: tuple[str, ...], lists: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    """Yield the Lua statements that give keys, arguments and lists their names."""
    if keys:
        yield f"local KEYS_DECLARED = {len(keys)}"
    yield from (f"local {name}_key = KEYS[{position}]" for position, name in enumerate(keys, 1))
    yield from (f"local {name} = ARGV[{position}]" for position, name in enumerate(arguments, 1))
    before = str(len(arguments))
    for name, columns in lists.items():
        size = max(1, len(columns))
        yield f"local {name}_n, {name}_first = tonumber(ARGV[{before} + 1]), {before} + 2"
        yield f"local {name}_last = {name}_first + {name}_n * {size} - 1"
        if columns:
            offsets = ((f"{name}_{column}".upper(), offset) for offset, column in enumerate(columns))
            for constant, value in chain([(f"{name}_size".upper(), size)], offsets):
                yield f"local {constant} = {value}"
        before = f"{name}_last"


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
