"""The deployments that the throughput benchmarks report: the same for the relay and for the plain design.

A rolling estate: each report brings its instance a digest that it never had, so none is a duplicate, and an
instance comes again only after all the others. Shares do not overlap, and each is a cluster of its own: with two,
one has the even environments and the other the odd ones.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ENVIRONMENTS = 12
REPOSITORIES = 2000

#: Producer processes, each with its share.
PRODUCERS = 2


def deployments(share: int, total: int) -> Iterator[tuple[str, str]]:
    """Yield the image and the environment of each deployment that one of `PRODUCERS` has to report."""
    for number in range(share, total, PRODUCERS):
        digest = hashlib.sha256(b"%d" % number).hexdigest()
        repository = number // ENVIRONMENTS % REPOSITORIES
        yield f"ghcr.io/acme/app-{repository}@sha256:{digest}", f"cluster-{number % ENVIRONMENTS}"
