"""Names of images that are in no registry: they were loaded into a node, or built on it. Pure.

Container runtimes give such an image a digest too, `NAME@sha256:…`, but nothing can be pulled by it. Only its name
tells it apart, because a repository that differs from the specification's may be a mirror:

- `import-2026-10-05`: what containerd calls an image that is imported without a name (`ctr images import`, and so
  `kind load`): https://github.com/containerd/containerd/blob/main/cmd/ctr/commands/images/import.go;
- `localhost/…`, without a port: what podman and CRI-O call an image that they build or load;
- `kind.local`, `ko.local`, `dev.local`: what ko calls an image that it loads into a node, and what Knative takes for
  one (https://ko.build/configuration/#local-publishing-options);
- `sha256:…@sha256:…` or `<none>@sha256:…`: an image without a name.

`localhost:5000/…` is a registry on the node, and counts as one.
"""

from __future__ import annotations

import re

#: Hosts of names that nothing is pulled from.
_LOCAL_HOSTS = frozenset({"localhost", "kind.local", "ko.local", "dev.local"})

_IMPORTED = re.compile(r"(?:.*/)?import-[0-9]{4}-[0-9]{2}-[0-9]{2}(?::[^/]*)?")
_NAMELESS = re.compile(r"<none>(?::.*)?|sha(?:256|512)(?::[0-9a-f]*)?")


def is_local(image: str) -> bool:
    """Return whether the name of an `image` or `imageID` says that it is in no registry."""
    name = _name(image)
    host, slash, _ = name.partition("/")
    return bool(slash and host in _LOCAL_HOSTS) or _IMPORTED.fullmatch(name) is not None


def is_nameless(image_id: str) -> bool:
    """Return whether the runtime has no name for an image: what stands in its place says so."""
    return _NAMELESS.fullmatch(_name(image_id)) is not None


def _name(image: str) -> str:
    """Return what stands before the digest, without the scheme that some runtimes put before it."""
    return image.rpartition("://")[2].partition("@")[0].strip().lower()
