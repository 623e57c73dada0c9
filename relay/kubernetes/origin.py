"""Names of images that are in no registry, because they were loaded into a node or built on it. Pure.

Container runtimes give such an image a digest, too (`NAME@sha256:…`), but it cannot be pulled by it. Only the name
distinguishes it, because a repository other than the specification's may be a mirror:

- `import-2026-10-05`: containerd's name of an image imported without a name (`ctr images import`, and so `kind
  load`): https://github.com/containerd/containerd/blob/main/cmd/ctr/commands/images/import.go;
- `localhost/…`, without a port: podman's and CRI-O's name of an image that they build or load;
- `kind.local`, `ko.local`, `dev.local`: ko's name of an image that it loads into a node, also recognised by Knative
  (https://ko.build/configuration/#local-publishing-options);
- `sha256:…@sha256:…` or `<none>@sha256:…`: an image without a name.

`localhost:5000/…` is a registry on the node, and counts as a registry.
"""

from __future__ import annotations

import re

#: Hosts in names of local images.
_LOCAL_HOSTS = frozenset({"localhost", "kind.local", "ko.local", "dev.local"})

_IMPORTED = re.compile(r"(?:.*/)?import-[0-9]{4}-[0-9]{2}-[0-9]{2}(?::[^/]*)?")
_NAMELESS = re.compile(r"<none>(?::.*)?|sha(?:256|512)(?::[0-9a-f]*)?")


def is_local(image: str) -> bool:
    """Return whether the name of an `image` or `imageID` is that of a local image."""
    name = _name(image)
    host, slash, _ = name.partition("/")
    return bool(slash and host in _LOCAL_HOSTS) or _IMPORTED.fullmatch(name) is not None


def is_nameless(image_id: str) -> bool:
    """Return whether the runtime has no name for an image."""
    return _NAMELESS.fullmatch(_name(image_id)) is not None


def _name(image: str) -> str:
    """Return the part before the digest, without the URL scheme that some runtimes add."""
    return image.rpartition("://")[2].partition("@")[0].strip().lower()
