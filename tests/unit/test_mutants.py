"""Every mutant of the fault suite applies, and the tests that must kill it exist."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from faults.mutants import COPIED, MUTANTS, ROOT, Edit, EditError, Mutant

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_applies_to_its_files_and_its_tests_exist(mutant: Mutant, tmp_path: Path) -> None:
    for path in {edit.path for edit in mutant.edits}:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text((ROOT / path).read_text())
        assert path.partition("/")[0] in COPIED
    mutant.apply(tmp_path)
    for path in {edit.path for edit in mutant.edits if edit.path.endswith(".py")}:
        compile((tmp_path / path).read_text(), path, "exec")
    assert mutant.tests
    for test in mutant.tests:
        file, _, name = test.partition("::")
        assert f"def {name}(" in (ROOT / file).read_text()


def test_mutants_have_unique_names() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize("text", ["", "twice twice"])
def test_text_that_does_not_occur_exactly_once_is_an_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text(text)
    with pytest.raises(EditError):
        Edit("file", "twice", "once").apply(tmp_path)
    assert (tmp_path / "file").read_text() == text
