"""Purls (package URLs) of images by digest.

    pkg:oci/app@sha256%3A…?repository_url=ghcr.io/team          ghcr.io/team/app@sha256:…
    pkg:oci/app@sha256%3A…?repository_url=ghcr.io/team/app      the same
    pkg:oci/ghcr.io/team/app@sha256%3A…                         the same, though the type has no namespaces
    pkg:docker/team/app@sha256%3A…?repository_url=ghcr.io       the same
    pkg:docker/nginx@sha256%3A…                                 docker.io/library/nginx@sha256:…
    pkg:docker/ghcr.io/team/app@v2?digest=sha256:…&platform=linux%2Farm64    as BuildKit writes it

Both spellings of `repository_url` are in use (https://github.com/package-url/purl-spec, types/oci-definition.json
and docker-definition.json): the name is appended unless the path ends with it, so `ghcr.io/app/app` must be spelled
out. An oci purl is "registry agnostic by default"; its registry is then the gateway's default, and without a default
the purl is refused. A docker purl is of Docker Hub by default.

The digest is the version, or the qualifier `digest` beside a tag. The platform is `platform`, or `os`, `arch` and
`variant`. A purl with two different values for one of them is refused. Other qualifiers, such as `tag`, are ignored.

Not promised: that a docker purl's version is the manifest's digest. By the definition it is the image's id, which
cannot be distinguished from a digest; in practice it is the manifest's digest.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from packageurl import PackageURL

from relay.errors import InvalidEvent
from relay.events.image import is_unset, unset_digest
from relay.events.platform import normalise

_EXAMPLE = "pkg:oci/app@sha256%3A<64 hex digits>?repository_url=registry.example.com/team"

#: URL schemes, which the definitions exclude and senders use.
_URL_SCHEME = re.compile(r"(?:https?|oci|docker)://", re.IGNORECASE)

#: Docker Hub's registry, and its other hosts in purls: the site, which is the default of docker's definition, and
#: the hosts of its API.
_DOCKER_HUB = "docker.io"
_DOCKER_HUB_HOSTS = frozenset(
    {"hub.docker.com", "registry.hub.docker.com", "index.docker.io", "registry-1.docker.io"}
)

#: The path of a repository at the site and the API: `hub.docker.com/r/team/app`, `hub.docker.com/_/nginx`, `…/v1/`.
_DOCKER_HUB_PATH = re.compile(r"^(?:r|v[12]|(_))(?:/|$)")

#: Parts of a platform: operating system, architecture, variant.
_Platform = tuple[str | None, str | None, str | None]


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """An image's reference, not validated yet, and the platform of the qualifiers."""

    reference: str
    os: str | None
    architecture: str | None
    variant: str | None


def parse_purl(text: str, *, registry: str = "") -> Artifact:
    """Parse a purl of an image by digest; a `ValueError` names the correct form.

    `registry` (`ghcr.io/team`) is that of an oci purl that names none; without either the purl is refused.
    """
    try:
        purl = PackageURL.from_string(text)
    except ValueError:
        raise ValueError(f"is not a purl: write {_EXAMPLE}") from None
    if purl.type not in ("oci", "docker"):
        raise ValueError(f"is a purl of the type {_shown(purl.type)}, and images are oci or docker")
    digest = _digest(text, purl)
    os, architecture, variant = _platform(purl)
    repository = _repository(purl, registry)
    return Artifact(reference=f"{repository}@{digest}", os=os, architecture=architecture, variant=variant)


def _digest(text: str, purl: PackageURL) -> str:
    """Return the manifest's digest, from the version or the qualifier."""
    version, qualifier = purl.version or "", purl.qualifiers.get("digest") or ""
    if ":" in version and qualifier and version != qualifier:
        raise ValueError("has one digest as its version and another as its qualifier digest: leave one out")
    found = qualifier or (version if ":" in version else "")
    path, _, qualifiers = text.partition("?")
    is_unset_digest = is_unset(found) if found else "digest=" in qualifiers or ("@" in path and is_unset(version))
    if is_unset_digest:
        raise ValueError(unset_digest(found or version))
    if not found:
        raise ValueError(f"has no digest as its version, and a tag can move: write {_EXAMPLE}")
    return found


def _platform(purl: PackageURL) -> _Platform:
    """Return the platform of the qualifiers: `platform=linux/arm/v7`, or a qualifier for each part."""
    qualifiers = purl.qualifiers
    apart = qualifiers.get("os"), qualifiers.get("arch"), qualifiers.get("variant")
    whole = qualifiers.get("platform")
    if not whole:
        return apart
    parts = whole.split("/")
    if len(parts) not in (2, 3) or not all(parts):
        raise ValueError(f"has the platform {_shown(whole)}: write os/architecture or os/architecture/variant")
    together = parts[0], parts[1], parts[2] if len(parts) > 2 else None  # noqa: PLR2004 - with a variant
    if any(one and one != other for one, other in zip(_normal(apart), _normal(together), strict=True)):
        raise ValueError("has a platform and another os, arch or variant: leave one out")
    return together


def _normal(platform: _Platform) -> _Platform:
    """Return a platform in containerd's spelling, for comparison."""
    try:
        return normalise(*platform)
    except InvalidEvent as error:
        raise ValueError(f"has a platform that {error.reason}") from None


def _repository(purl: PackageURL, registry: str) -> str:
    path = f"{purl.namespace}/{purl.name}" if purl.namespace else purl.name
    given = purl.qualifiers.get("repository_url")
    if purl.namespace and _names_registry(purl.namespace):
        return path
    if given is None and purl.type == "docker":
        return path
    if given is None and registry:
        return f"{registry}/{path}"
    if given is None:
        raise ValueError(
            f"has no repository_url, and so no registry: write {_EXAMPLE}, or set gateway.default_registry"
        )
    base = _URL_SCHEME.sub("", given, count=1).strip("/")
    host, _, rest = base.partition("/")
    if host.lower() in _DOCKER_HUB_HOSTS:
        rest = _DOCKER_HUB_PATH.sub(lambda found: "library/" if found[1] else "", rest)
        base = f"{_DOCKER_HUB}/{rest}".rstrip("/")
    if not _names_registry(base):
        raise ValueError(f"has the repository_url {_shown(given)}, which starts with no registry: write {_EXAMPLE}")
    return base if base.endswith(f"/{path}") else f"{base}/{path}"


def _names_registry(path: str) -> bool:
    """Return whether the first part of a path is a host, by Docker's rule."""
    first = path.partition("/")[0]
    return first == "localhost" or "." in first or ":" in first


def _shown(text: str) -> str:
    longest = 60
    return ascii(text if len(text) <= longest else f"{text[:longest]}...")
