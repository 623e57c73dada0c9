"""Which image does a purl name?

    pkg:oci/app@sha256%3A…?repository_url=ghcr.io/team          ghcr.io/team/app@sha256:…
    pkg:oci/app@sha256%3A…?repository_url=ghcr.io/team/app      the same
    pkg:oci/ghcr.io/team/app@sha256%3A…                         the same, though the type has no namespaces
    pkg:docker/team/app@sha256%3A…?repository_url=ghcr.io       the same
    pkg:docker/nginx@sha256%3A…                                 docker.io/library/nginx@sha256:…

Both spellings of `repository_url` are in use (https://github.com/package-url/purl-spec, types/oci-definition.json
and docker-definition.json): the name is added unless the path ends with it, and so an image `ghcr.io/app/app` needs
both in it. An oci purl is "registry agnostic by default", and an image that is nowhere cannot be reported. A docker
purl is of Docker Hub by default.

Not promised: that a docker purl's version is the manifest's digest. The definition has it as the image's id, which
nobody can tell from a digest; those who write such purls mean the manifest's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from packageurl import PackageURL

_EXAMPLE = "pkg:oci/app@sha256%3A<64 hex digits>?repository_url=registry.example.com/team"

#: Definitions ask for none, people write them.
_URL_SCHEME = re.compile(r"(?:https?|oci|docker)://", re.IGNORECASE)

#: What docker's definition has as its default is the site; this is the registry.
_DOCKER_HUB_SITE, _DOCKER_HUB = "hub.docker.com", "docker.io"


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """An image's reference, not checked yet, and what the qualifiers say of its platform."""

    reference: str
    os: str | None
    architecture: str | None


def read_purl(text: str) -> Artifact:
    """Read a purl of an image by digest; else raise a `ValueError` that says what to write."""
    try:
        purl = PackageURL.from_string(text)
    except ValueError:
        raise ValueError(f"is not a purl: write {_EXAMPLE}") from None
    if purl.type not in ("oci", "docker"):
        raise ValueError(f"is a purl of the type {_shown(purl.type)}, and images are oci or docker")
    if not purl.version or ":" not in purl.version:
        raise ValueError(f"has no digest as its version, and a tag can move: write {_EXAMPLE}")
    return Artifact(
        reference=f"{_repository(purl)}@{purl.version}",
        os=purl.qualifiers.get("os"),
        architecture=purl.qualifiers.get("arch"),
    )


def _repository(purl: PackageURL) -> str:
    path = f"{purl.namespace}/{purl.name}" if purl.namespace else purl.name
    given = purl.qualifiers.get("repository_url")
    if purl.namespace and _names_registry(purl.namespace):
        return path
    if given is None and purl.type == "docker":
        return path
    if given is None:
        raise ValueError(f"has no repository_url, and so no registry: write {_EXAMPLE}")
    base = _URL_SCHEME.sub("", given, count=1).strip("/")
    if base.partition("/")[0] == _DOCKER_HUB_SITE:
        base = base.replace(_DOCKER_HUB_SITE, _DOCKER_HUB, 1)
    if not _names_registry(base):
        raise ValueError(f"has the repository_url {_shown(given)}, which starts with no registry: write {_EXAMPLE}")
    return base if base.endswith(f"/{path}") else f"{base}/{path}"


def _names_registry(path: str) -> bool:
    """Tell a host from the first part of a path, as Docker does."""
    first = path.partition("/")[0]
    return first == "localhost" or "." in first or ":" in first


def _shown(text: str) -> str:
    longest = 60
    return ascii(text if len(text) <= longest else f"{text[:longest]}...")
