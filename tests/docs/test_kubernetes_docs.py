"""What docs/kubernetes.md says of pods is what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from relay.kubernetes.skip_reason import SkipReason

PAGE = (Path(__file__).parents[2] / "docs" / "kubernetes.md").read_text(encoding="utf-8")


def test_every_reason_for_not_reporting_is_explained() -> None:
    section = PAGE.partition("## What is not reported")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `([a-z_]+)` \|", section, re.MULTILINE)) == set(SkipReason)
