"""The fields of stream entries: declared here, used by Python and by the scripts."""

from __future__ import annotations

from typing import Final, NamedTuple

#: Fields of an inbox entry: the contract with every producer. The event's JSON, and the optional envelope beside it.
EVENT: Final = b"event"
ID: Final = b"id"
SOURCE: Final = b"source"
TIME: Final = b"time"
#: Present if a receipt is asked for.
RECEIPT: Final = b"receipt"
#: In place of an event: why a message could not be parsed.
UNREADABLE: Final = b"unreadable"
#: Internal fields, which only a redrive and a resync may write.
REDRIVEN: Final = b"redriven"
RESYNC: Final = b"resync"
INTERNAL: Final = frozenset({REDRIVEN, RESYNC})


class AcceptedEntry(NamedTuple):
    """An outbox entry as intake writes it: the stream's fields by name, in their order."""

    event: bytes
    id: str
    source: str
    #: When the deployment happened, in milliseconds, or "".
    time: int | str
    digest: str
    instance: str
    #: When the event was added to the inbox, in milliseconds, and its place among those of that millisecond.
    arrived: int
    sequence: int
    #: Fields that few entries have, as `optional_fields` writes them.
    optional: str = ""


def optional_fields(*, newest: int | None = None, receipt: bool = False, redriven: str = "", resync: str = "") -> str:
    """Return the rare fields of an outbox entry, those that are set, as lines of name and value.

    `newest` is the newest time known of the instance if that is not the entry's own. `resync` is the place of the
    event that is repeated.
    """
    given = {
        "receipt": "1" if receipt else "",
        "newest": "" if newest is None else newest,
        "redriven": redriven,
        "resync": resync,
    }
    return "\n".join(f"{name}\n{value}" for name, value in given.items() if value != "")


def add_function() -> str:
    """Return the Lua function that adds an accepted entry, given as arguments from a position on, to an outbox."""
    names = AcceptedEntry._fields[:-1]
    values = ", ".join(f"'{name}', ARGV[at + {offset}]" for offset, name in enumerate(names))
    return f"""
local function add_entry(outbox_key, at)
  local optional = ARGV[at + {len(names)}]
  if optional == '' then
    return call('XADD', outbox_key, '*', {values})
  end
  local fields = {{{values}}}
  for value in string.gmatch(optional, '[^\\n]+') do
    fields[#fields + 1] = value
  end
  return call('XADD', outbox_key, '*', unpack(fields))
end
"""
