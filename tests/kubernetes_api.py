"""An API server of Kubernetes, as far as listing and watching go, on a real socket.

Speaks what https://kubernetes.io/docs/reference/using-api/api-concepts/ says of lists in chunks (`limit`,
`continue`), resource versions, watches, bookmarks and 410 Gone, for pods, nodes and namespaces. Objects are stored
as they are given; their resource versions are the server's, and count all changes of all kinds, as etcd's do.

It can be told to fail, to forget, to cut its streams off and to fall silent, and it survives its own restart.
"""

from __future__ import annotations

import base64
import copy
import json
import select
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, NamedTuple, Self
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

KINDS = {"pods": "Pod", "nodes": "Node", "namespaces": "Namespace"}
_RESOURCES = {kind: resource for resource, kind in KINDS.items()}

#: Makes close() send RST instead of FIN.
_RESET = struct.pack("ii", 1, 0)

_POLL_SECONDS = 0.02


class Asked(NamedTuple):
    """A request that came: `get`, `list` or `watch`, of what, where, with which parameters and which answer."""

    verb: str
    resource: str
    namespace: str
    query: Mapping[str, str]
    user_agent: str


class Change(NamedTuple):
    """An entry of the history; `before` is None for what was not there, `after` for what is not there any more."""

    version: int
    resource: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None


@dataclass
class Failure:
    """An answer that comes instead of the right one, so many times."""

    status: int
    times: int
    verb: str
    resource: str
    retry_after: int | None
    message: str
    continued: bool

    def befalls(self, asked: Asked) -> bool:
        """Whether it is this request's turn."""
        of_its_kind = self.resource == asked.resource and self.verb in {"", asked.verb}
        return self.times > 0 and of_its_kind and (not self.continued or "continue" in asked.query)


@dataclass(eq=False)
class _Stream:
    """An open watch."""

    asked: Asked
    connection: socket.socket
    #: Up to where it was told.
    version: int
    #: Lines to be sent beside the changes.
    extra: list[bytes] = field(default_factory=list)
    is_mute: bool = False
    is_cut: bool = False

    @property
    def wants_bookmarks(self) -> bool:
        return self.asked.query.get("allowWatchBookmarks") == "true"


class _Refused(Exception):  # noqa: N818 - an answer, no mistake
    def __init__(self, status: int, reason: str, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after
        self.body = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": reason,
            "code": status,
        }


class KubernetesApi:
    """The server and what it stores; a context manager. Thread-safe."""

    def __init__(self, *, tls: ssl.SSLContext | None = None) -> None:
        #: The bearer token that it takes.
        self.token = "kubernetes-token-of-the-tests"
        #: How it says that a watch's resource version is too old: an "event" of the stream, or the "status".
        self.says_gone_by = "event"
        self.asked: list[Asked] = []
        self.forbidden: set[tuple[str, str]] = set()
        self._failures: list[Failure] = []
        self._changed = threading.Condition(threading.RLock())
        self._version = 1000
        #: Changes up to this version are not told any more.
        self._forgotten = 1000
        self._objects: dict[tuple[str, str, str], dict[str, Any]] = {}
        self._history: list[Change] = []
        self._moments: dict[int, list[dict[str, Any]]] = {}
        self._streams: set[_Stream] = set()
        self._connections: set[socket.socket] = set()
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None
        self._port = 0
        self._tls = tls
        self.is_closing = False

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # The server.

    @property
    def port(self) -> int:
        return self._port

    @property
    def url(self) -> str:
        return f"http{'s' if self._tls else ''}://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Listen, on the same port as before."""
        self.is_closing = False
        self._server = _Server(("127.0.0.1", self._port), self)
        if self._tls:  # the handshake is the connection's own thread's
            self._server.socket = self._tls.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(_POLL_SECONDS,))
        self._thread.start()

    def stop(self) -> None:
        """Reset all connections and stop listening; objects are kept."""
        if self._server is None or self._thread is None:
            return
        self._server.shutdown()
        self._thread.join()
        with self._changed:
            self.is_closing = True
            for connection in self._connections:
                _reset(connection)
            self._changed.notify_all()
        self._server.server_close()
        self._server = None

    def kubeconfig(self, path: Path, *, token: str | None = None) -> Path:
        """Write a kubeconfig for it."""
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": self.url}}],
            "users": [{"name": "test", "user": {"token": token or self.token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        }
        path.write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
        return path

    # What it stores.

    @property
    def version(self) -> str:
        """The current resource version."""
        return str(self._version)

    def put(self, given: Mapping[str, Any]) -> None:
        """Create or update an object."""
        stored = copy.deepcopy(dict(given))
        stored.setdefault("kind", "Pod")
        stored.setdefault("apiVersion", "v1")
        self._change(_key(stored), stored)

    def delete(self, given: Mapping[str, Any]) -> None:
        """Delete an object."""
        self._change(_key(given), None)

    def _change(self, key: tuple[str, str, str], after: dict[str, Any] | None) -> None:
        with self._changed:
            before = self._objects.pop(key, None)
            self._version += 1
            if after is not None:
                after["metadata"]["resourceVersion"] = str(self._version)
                self._objects[key] = after
            self._history.append(Change(self._version, key[0], before, after))
            self._changed.notify_all()

    # What it can be told.

    def bookmark(self) -> None:
        """Send a bookmark to all who asked for them."""
        with self._changed:
            self._tell(_line("BOOKMARK", _bookmark(self._version)))

    def say(self, line: bytes) -> None:
        """Send bytes to all open watches, whatever they are."""
        with self._changed:
            self._tell(line)

    def _tell(self, line: bytes) -> None:
        for stream in self._streams:
            stream.extra.append(line)
        self._changed.notify_all()

    def forget(self) -> None:
        """Forget all changes up to now, and the moments of listings that are under way."""
        with self._changed:
            self._forgotten = self._version
            self._history.clear()
            self._moments.clear()

    def cut(self) -> None:
        """Reset all open watches."""
        with self._changed:
            for stream in self._streams:
                stream.is_cut = True
            self._changed.notify_all()

    def mute(self) -> None:
        """Say nothing any more to those who watch now, as on a dead link."""
        with self._changed:
            for stream in self._streams:
                stream.is_mute = True

    def fail(
        self, status: int, *, times: int = 1, verb: str = "", resource: str = "pods",
        retry_after: int | None = None, message: str = "told to fail", continued: bool = False,
    ) -> None:  # fmt: skip
        """Answer so the next requests; any verb unless one is given, and if `continued` later pages only."""
        with self._changed:
            self._failures.append(Failure(status, times, verb, resource, retry_after, message, continued))

    # What it was asked.

    @property
    def watches(self) -> int:
        """The number of watches that are open and told something."""
        with self._changed:
            return sum(not stream.is_mute for stream in self._streams)

    def count(self, verb: str, resource: str = "pods") -> int:
        """Count the requests so far."""
        return Counter((each.verb, each.resource) for each in list(self.asked))[verb, resource]

    def last(self, verb: str, resource: str = "pods") -> Asked:
        """Return the last such request."""
        return [each for each in list(self.asked) if (each.verb, each.resource) == (verb, resource)][-1]

    # How it answers.

    def check(self, asked: Asked, authorization: str) -> None:
        """Refuse what is not to be answered."""
        with self._changed:
            for failure in self._failures:
                if failure.befalls(asked):
                    failure.times -= 1
                    raise _Refused(failure.status, "Failure", failure.message, failure.retry_after)
            token = self.token
        scheme, _, given = authorization.partition(" ")
        if (scheme.lower(), given) != ("bearer", token):  # in a cluster the client writes it small
            raise _Refused(401, "Unauthorized", "Unauthorized")
        if (asked.verb, asked.resource) in self.forbidden:
            raise _Refused(
                403, "Forbidden",
                f'{asked.resource} is forbidden: User "system:serviceaccount:relay:watcher" cannot {asked.verb} '
                f'resource "{asked.resource}" in API group "" at the cluster scope',
            )  # fmt: skip

    def get(self, asked: Asked, name: str) -> dict[str, Any]:
        """Return one object."""
        with self._changed:
            found = self._objects.get((asked.resource, asked.namespace, name))
        if found is None:
            raise _Refused(404, "NotFound", f'{asked.resource} "{name}" not found')
        return found

    def list(self, asked: Asked) -> dict[str, Any]:
        """Return a page of a listing, of the moment at which its first page was asked for."""
        version, start = self._moment(asked)
        with self._changed:
            items = self._moments[version]
        chosen = [each for each in items if _is_chosen(each, asked)]
        limit = int(asked.query.get("limit", 0)) or len(chosen)
        metadata: dict[str, Any] = {"resourceVersion": str(version)}
        if left := max(0, len(chosen) - start - limit):
            token = json.dumps({"rv": version, "start": start + limit}).encode()
            metadata |= {"continue": base64.urlsafe_b64encode(token).decode(), "remainingItemCount": left}
        page = [{**each} for each in chosen[start : start + limit]]
        for each in page:  # items of a list do not repeat what its kind says
            del each["kind"], each["apiVersion"]
        return {"kind": f"{KINDS[asked.resource]}List", "apiVersion": "v1", "metadata": metadata, "items": page}

    def _moment(self, asked: Asked) -> tuple[int, int]:
        with self._changed:
            if not (token := asked.query.get("continue")):
                self._moments[self._version] = [self._objects[key] for key in sorted(self._objects)]
                return self._version, 0
            try:
                decoded = json.loads(base64.urlsafe_b64decode(token))
            except ValueError:
                raise _Refused(400, "BadRequest", "continue key is not valid") from None
            if decoded["rv"] not in self._moments:
                raise _Refused(410, "Expired", "The provided continue parameter is too old to display a consistent "
                               "list result. You can start a new list without the continue parameter.")  # fmt: skip
            return decoded["rv"], decoded["start"]

    def watch(self, asked: Asked, connection: socket.socket, send: Callable[[bytes], None]) -> None:
        """Send what happens, until its time is over."""
        until = time.monotonic() + float(asked.query.get("timeoutSeconds", 1800))
        stream = self._open(asked, connection)
        try:
            send(b"")  # the head of the answer comes before anything happens
            while time.monotonic() < until:
                if stream.is_cut or self.is_closing or _is_closed(connection):
                    _reset(connection)
                    return
                for line in self._news(stream):
                    send(line)
            if stream.wants_bookmarks:
                send(_line("BOOKMARK", _bookmark(stream.version)))
        except _Refused as refused:
            send(_line("ERROR", refused.body))
        finally:
            with self._changed:
                self._streams.discard(stream)

    def _open(self, asked: Asked, connection: socket.socket) -> _Stream:
        """Begin a watch, if its resource version is one that changes are known from."""
        stream = _Stream(asked=asked, connection=connection, version=int(asked.query["resourceVersion"]))
        with self._changed:
            if stream.version < self._forgotten and self.says_gone_by == "status":
                raise self._gone(stream)
            if stream.version > self._version:
                raise _Refused(504, "Timeout", f"Timeout: Too large resource version: {stream.version}, "
                               f"current: {self._version}")  # fmt: skip
            self._streams.add(stream)
        return stream

    def _news(self, stream: _Stream) -> list[bytes]:
        """Return what is to be sent, after a short wait if there is nothing."""
        with self._changed:
            if stream.is_mute or not (stream.extra or stream.version < self._version):
                self._changed.wait(_POLL_SECONDS)
                return []
            if stream.version < self._forgotten:
                raise self._gone(stream)
            told = [_told(each, stream.asked) for each in self._history if each.version > stream.version]
            extra, stream.extra = stream.extra, []
            stream.version = self._version
        wanted = [line for line in extra if stream.wants_bookmarks or b"BOOKMARK" not in line]
        return [line for line in told if line] + wanted

    def _gone(self, stream: _Stream) -> _Refused:
        return _Refused(410, "Expired", f"too old resource version: {stream.version} ({self._forgotten})")

    def opened(self, connection: socket.socket) -> None:
        """Take note of a connection."""
        with self._changed:
            self._connections.add(connection)

    def closed(self, connection: socket.socket) -> None:
        """Take note of its end."""
        with self._changed:
            self._connections.discard(connection)


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # so that closing waits for them
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], api: KubernetesApi) -> None:
        self.api = api
        super().__init__(address, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: connections are reset on purpose here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.api.opened(self.connection)
        if isinstance(self.connection, ssl.SSLSocket):
            self.connection.do_handshake()

    def finish(self) -> None:
        self.server.api.closed(self.connection)
        with suppress(OSError):
            super().finish()

    def log_message(self, *_: object) -> None:
        """Keep quiet."""

    def do_GET(self) -> None:
        api = self.server.api
        asked, name = self._asked()
        api.asked.append(asked)
        self._has_begun = False
        try:
            api.check(asked, self.headers.get("Authorization", ""))
            if asked.verb == "watch":
                api.watch(asked, self.connection, self._send_chunk)
                if self._has_begun:
                    self.wfile.write(b"0\r\n\r\n")
            else:
                self._answer(200, api.get(asked, name) if name else api.list(asked))
        except _Refused as refused:
            self._answer(refused.status, refused.body, refused.retry_after)
        except OSError:
            self.close_connection = True

    def _asked(self) -> tuple[Asked, str]:
        parts = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        steps = parts.path.removeprefix("/api/v1/").split("/")
        namespace = steps[1] if len(steps) > 2 else ""
        resource, *names = steps[2:] if namespace else steps
        verb = "get" if names else "watch" if query.get("watch") in {"true", "True", "1"} else "list"
        agent = self.headers.get("User-Agent", "")
        return Asked(verb, resource, namespace, query, agent), "".join(names)

    def _answer(self, status: int, body: Mapping[str, Any], retry_after: int | None = None) -> None:
        encoded = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(encoded)))
        if retry_after is not None:
            self.send_header("Retry-After", str(retry_after))
        self.end_headers()
        self.wfile.write(encoded)

    def _send_chunk(self, chunk: bytes) -> None:
        if not self._has_begun:
            self._has_begun = True
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
        if chunk:
            self.wfile.write(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")


def _key(given: Mapping[str, Any]) -> tuple[str, str, str]:
    metadata = given["metadata"]
    return _RESOURCES[given.get("kind", "Pod")], metadata.get("namespace", ""), metadata["name"]


def _is_chosen(given: Mapping[str, Any] | None, asked: Asked) -> bool:
    """Return whether a watch or listing is about this object; selectors are of the form `name=value,…`."""
    if given is None or _RESOURCES[given["kind"]] != asked.resource:
        return False
    labels = given["metadata"].get("labels", {})
    selector = asked.query.get("labelSelector", "")
    pairs = [each.partition("=")[::2] for each in selector.split(",") if each]
    in_place = asked.namespace in {"", given["metadata"].get("namespace", "")}
    return in_place and all(labels.get(name) == value for name, value in pairs)


def _told(change: Change, asked: Asked) -> bytes | None:
    was, is_now = _is_chosen(change.before, asked), _is_chosen(change.after, asked)
    if is_now:
        return _line("MODIFIED" if was else "ADDED", change.after or {})
    if not was:
        return None
    last = copy.deepcopy(change.before or {})
    last["metadata"]["resourceVersion"] = str(change.version)  # of the deletion, as the real one has it
    return _line("DELETED", last)


def _line(kind: str, given: Mapping[str, Any]) -> bytes:
    return json.dumps({"type": kind, "object": given}).encode() + b"\n"


def _bookmark(version: int) -> Mapping[str, Any]:
    metadata = {"resourceVersion": str(version), "creationTimestamp": None}
    return {"kind": "Pod", "apiVersion": "v1", "metadata": metadata, "spec": {"containers": None}, "status": {}}


def _is_closed(connection: socket.socket) -> bool:
    readable, _, _ = select.select([connection], [], [], 0)
    if isinstance(connection, ssl.SSLSocket):
        return bool(readable)  # during a watch a client sends nothing but its end
    try:
        return bool(readable) and not connection.recv(1, socket.MSG_PEEK)
    except OSError:
        return True


def _reset(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        connection.shutdown(socket.SHUT_RDWR)
