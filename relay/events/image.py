"""Image references: parsed into one canonical form.

The grammar and the fully qualified form are those of distribution/reference
(https://github.com/distribution/reference: `regexp.go`, `reference.go`, `normalize.go`), which Docker,
containerd and Kubernetes use: `nginx`, `docker.io/nginx` and `index.docker.io/library/nginx` are all
`docker.io/library/nginx`, and a tag beside a digest is dropped, as its `ParseDockerRef` does.

Stricter than that source, each time so that one image has one spelling:

- the host is in lower case (RFC 4343), and so `Foo/app`, where the source takes `Foo` for a host, is refused;
- a port is 1 to 65535 without leading zeros, an IPv6 host is an address, a host has at most 253 characters;
- a digest is sha256 or sha512 in lower-case hex, as the OCI image specification registers them
  (https://github.com/opencontainers/image-spec/blob/main/descriptor.md#registered-algorithms).

Not promised: that two spellings of one IPv6 address, or a host with and without `:443`, are one repository.

docker-image-py 0.2, a library that follows the same source, is not used: it is untyped, does not lower-case hosts,
and reports most faults as "invalid reference format", where users need to read what to do.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv6Address

from relay.errors import InvalidImage

#: Maximum characters of a reference: the longest host, port, path, tag and digest have less than 850.
MAX_REFERENCE_CHARACTERS = 1024

#: Maximum characters of a repository's path, without its host: `RepositoryNameTotalLengthMax` in
#: distribution/reference.
MAX_PATH_CHARACTERS = 255

#: Maximum characters of a registry host, without its port (RFC 1035, section 2.3.4, without the final dot).
MAX_HOST_CHARACTERS = 253

#: References cached by each process: about 5 MB; a miss costs a few microseconds.
REFERENCES_REMEMBERED = 8_192

#: Hex digits of a digest, by its algorithm.
HEX_DIGITS = {"sha256": 64, "sha512": 128}

_DOCKER_HUB = "docker.io"
_DOCKER_HUB_LEGACY = "index.docker.io"
_OFFICIAL_NAMESPACE = "library/"
#: Prefix of Kubernetes' `imageID` on nodes with dockershim.
_PULLABLE = "docker-pullable://"
_EXAMPLE = "registry.example.com/team/app@sha256:<64 hex digits>"

_NOT_VISIBLE_ASCII = re.compile(r"[^\x21-\x7e]")
_LABEL = r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?"
_HOST = re.compile(rf"({_LABEL}(?:\.{_LABEL})*|\[([a-f0-9:]+)\])(?::([1-9][0-9]{{0,4}}))?")
_PATH_COMPONENT = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_PATH_COMPONENT}(?:/{_PATH_COMPONENT})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_LOWER_HEX = re.compile(r"[0-9a-f]+")

#: Beginning of a digest that is not unset; checked first because it is cheap.
_BEGINS_WHOLE = re.compile(r"sha(?:256|512):[0-9a-f]{32}")
#: Beginning of a digest, alone or before a placeholder of its digits.
_ALGORITHM = re.compile(r"sha(?:256|512)(?::|$)")
#: Values that shells, JavaScript, Go, Python, Ruby and Helm write for no value, in lower case.
_NOTHING = frozenset(
    {
        *("", "null", "undefined", "none", "nil", "false", "n/a", "~", "-"),
        *("(null)", "<nil>", "<no value>", "<none>", "<null>", "[object object]"),
    }
)
#: Beginnings of variables that were not replaced: shell, Tekton, Argo, GitHub, Helm, Octopus, Windows, placeholders,
#: Harness, Concourse, Go templates with other delimiters, Azure's replacement task.
_VARIABLE = re.compile(r"\$|\{\{|#\{|%[A-Za-z_{]|<\+?[A-Za-z]|\(\(|\[\[|__[A-Za-z]")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageReference:
    """A repository and the digest of a manifest in it."""

    #: Fully qualified, without tag: `docker.io/library/nginx`, `registry.example.com:5000/team/app`.
    repository: str
    #: `sha256:<64 hex>` or `sha512:<128 hex>`.
    digest: str

    @property
    def url(self) -> str:
        """The canonical form, `repository@digest`."""
        return f"{self.repository}@{self.digest}"


def parse_image(text: str) -> ImageReference:
    """Parse a reference by digest, familiar (`nginx@sha256:…`) or fully qualified, or raise `InvalidImage`.

    White space around it, such as a line break, and a leading `docker-pullable://` are ignored.
    """
    reference = text.strip()
    if len(reference) > MAX_REFERENCE_CHARACTERS:
        raise InvalidImage(f"has {len(reference)} characters, more than the {MAX_REFERENCE_CHARACTERS} allowed")
    return _parsed(reference)


@lru_cache(maxsize=REFERENCES_REMEMBERED)
def _parsed(text: str) -> ImageReference:
    reference = text.removeprefix(_PULLABLE)
    name, at, digest = reference.partition("@")
    if at and name and not _BEGINS_WHOLE.match(digest) and is_unset(digest):
        raise InvalidImage(unset_digest(digest))
    _refuse_unwritable(reference)
    _refuse_without_digest(reference)
    return ImageReference(repository=_repository(name), digest=_digest(digest))


def is_unset(digest: str) -> bool:
    """Return whether a digest is missing because the variable that it comes from had no value.

    That is the empty string, a value that programs write for no value (`null`, `<no value>`), or the variable itself
    (`$(tasks.build.results.DIGEST)`, `${DIGEST}`, `{{ .Digest }}`), each with or without `sha256:` before it.
    """
    value = _ALGORITHM.sub("", digest.strip().strip("\"'"), count=1).strip().strip("\"'")
    return value.lower() in _NOTHING or bool(_VARIABLE.match(value))


def unset_digest(digest: str) -> str:
    """Return the message for a digest that `is_unset`."""
    written = f" It reads {_shown(digest.strip())}" if digest.strip() else ""
    return f"the digest is empty: was the output it comes from set?{written}"


def _refuse_unwritable(reference: str) -> None:
    if not reference:
        raise InvalidImage(f"is empty: write {_EXAMPLE}")
    if found := _NOT_VISIBLE_ASCII.search(reference):
        character = found[0]
        if character.isspace():
            raise InvalidImage("has white space inside")
        if character < " " or "\x7f" <= character <= "\x9f":
            raise InvalidImage(f"has a control character ({character!a})")
        raise InvalidImage(f"has the character {character!a}, and a reference is plain ASCII")
    scheme, separator, rest = reference.partition("://")
    if separator and rest.startswith(("sha256:", "sha512:")):
        raise InvalidImage(f"is an image id of the node, not a manifest's digest: write {_EXAMPLE}")
    if separator:
        raise InvalidImage(f"starts with the URL scheme {_shown(scheme + separator)}: leave it out")


def _refuse_without_digest(reference: str) -> None:
    name, at, digest = reference.partition("@")
    if "@" in digest:
        raise InvalidImage("has more than one '@': a reference has one digest and no user name")
    if at and name:
        return
    if at:
        raise InvalidImage(f"names no repository before its digest: write {_EXAMPLE}")
    if name.startswith(("sha256:", "sha512:")) or (len(name) == HEX_DIGITS["sha256"] and _LOWER_HEX.fullmatch(name)):
        raise InvalidImage(f"is a digest without a repository: write {_EXAMPLE}")
    if ":" in name.rpartition("/")[2]:
        raise InvalidImage(f"has a tag but no digest, and a tag can move: write {_EXAMPLE}")
    raise InvalidImage(f"has no digest: write {_EXAMPLE}")


@lru_cache(maxsize=REFERENCES_REMEMBERED)
def _repository(name: str) -> str:
    """Return the qualified name, as `splitDockerDomain` in `normalize.go` does, with its parts checked."""
    host, slash, path = name.partition("/")
    host = host.lower()
    if not slash or not (host == "localhost" or "." in host or ":" in host):
        host, path = _DOCKER_HUB, name
    if host == _DOCKER_HUB_LEGACY:
        host = _DOCKER_HUB
    path, colon, tag = path.partition(":")
    if colon and not _TAG.fullmatch(tag):
        raise InvalidImage(f"has a malformed tag {_shown(tag)}")
    if host == _DOCKER_HUB and "/" not in path:
        path = f"{_OFFICIAL_NAMESPACE}{path}"
    _refuse_malformed_host(host)
    _refuse_malformed_path(path)
    return f"{host}/{path}"


def _refuse_malformed_host(host: str) -> None:
    parts = _HOST.fullmatch(host)
    if parts is None:
        raise InvalidImage(f"has a malformed registry host or port {_shown(host)}: write host or host:port")
    domain, ipv6, port = parts.groups()
    if len(domain) > MAX_HOST_CHARACTERS:
        raise InvalidImage(f"has a registry host of {len(domain)} characters, more than {MAX_HOST_CHARACTERS}")
    if ipv6 is not None and not _is_ipv6(ipv6):
        raise InvalidImage(f"has a malformed IPv6 registry host {_shown(domain)}")
    if port is not None and int(port) > 65_535:  # noqa: PLR2004 - the highest port
        raise InvalidImage(f"has the port {port}, and the highest is 65535")


def _is_ipv6(text: str) -> bool:
    try:
        IPv6Address(text)
    except ValueError:
        return False
    return True


def _refuse_malformed_path(path: str) -> None:
    if len(path) > MAX_PATH_CHARACTERS:
        raise InvalidImage(f"has a repository path of {len(path)} characters, more than {MAX_PATH_CHARACTERS}")
    if _PATH.fullmatch(path):
        return
    if path != path.lower():
        raise InvalidImage(f"has upper-case letters in its repository path {_shown(path)}: write it in lower case")
    if not all(path.removeprefix(_OFFICIAL_NAMESPACE).split("/")):
        raise InvalidImage(f"has an empty component in its repository path {_shown(path)}")
    raise InvalidImage(
        f"has a malformed repository path {_shown(path)}: "
        "lower-case letters and digits, with single '.' or '_', '__' or dashes between them"
    )


def _digest(text: str) -> str:
    algorithm, _, encoded = text.partition(":")
    digits = HEX_DIGITS.get(algorithm)
    if digits is None:
        raise InvalidImage(f"has a digest of the algorithm {_shown(algorithm)}: only sha256 and sha512 are accepted")
    if len(encoded) != digits:
        raise InvalidImage(f"has a {algorithm} digest of {len(encoded)} hex digits, not {digits}")
    if not _LOWER_HEX.fullmatch(encoded):
        if _LOWER_HEX.fullmatch(encoded.lower()):
            raise InvalidImage("has a digest in upper-case hex: write it in lower case")
        raise InvalidImage(f"has a {algorithm} digest with other characters than hex digits")
    return text


def _shown(text: str) -> str:
    """Return a part quoted for a message on one line, shortened."""
    longest = 60
    return ascii(text if len(text) <= longest else f"{text[:longest]}...")
