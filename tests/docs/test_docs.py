"""What the documents say is so."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import pytest
import typer

from relay.cli import COMMANDS
from relay.cli.report import report
from relay.settings import SHORT_NAMES, Settings

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")]
PAGES += [ROOT / "benchmarks" / "README.md", *(ROOT / "config").rglob("*.md")]


def test_the_settings_page_and_the_example_are_fresh() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "make_settings.py"))
    assert made["PAGE"].read_text(encoding="utf-8") == made["page"](), "run: make docs"
    assert made["EXAMPLE"].read_text(encoding="utf-8") == made["example"](), "run: make docs"


def test_a_default_of_the_settings_page_may_be_written_as_it_stands_there() -> None:
    """`900ms` for nine tenths may not."""
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    shown: dict[str, dict[str, str]] = {}
    for section, table in re.findall(r"^## `\[(\w+)\]`\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL):
        shown[section] = dict(re.findall(r"^\| `(\w+)` \| `(.+?)` \|", table, re.MULTILINE))
    assert {"redis", "queue", "delivery", "kubernetes"} <= set(shown)
    written = {section: {key: _toml(text) for key, text in keys.items()} for section, keys in shown.items()}
    assert Settings(**written) == Settings()  # type: ignore[arg-type]


def _toml(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text


def test_the_page_of_the_command_line_is_fresh() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "make_cli.py"))["page"]()
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == page, (
        "run: python docs/make_cli.py > docs/cli.md"
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_readme_names_only_commands_that_exist() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^    (?:[A-Z_]+=\S+ )*relay ([a-z]+)", readme, re.MULTILINE))
    assert named
    assert named <= set(COMMANDS)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"`?make ([a-z-]+)`?", readme)) <= targets


def test_the_pages_for_pipelines_name_only_options_and_variables_that_exist() -> None:
    """Those of `relay report`: other programs' commands are passed over."""
    pages = [ROOT / "docs" / "reporting.md", ROOT / "config" / "pipelines" / "README.md"]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    command = typer.main.get_command(report_alone())
    options = {option for parameter in command.params for option in parameter.opts}
    named = {option for line in re.findall(r"relay report .*", text) for option in re.findall(r" (--?[a-z-]+)", line)}
    assert named > {"--wait", "--timeout", "--dry-run", "--no-fail", "-e"}
    assert named <= options
    variables = set(re.findall(r"RELAY_[A-Z]+_[A-Z_]+", text))
    settings = {f"RELAY_{section}__{key}".upper() for section, model in Settings.model_fields.items()
                for key in getattr(model.annotation, "model_fields", {})}  # fmt: skip
    assert variables <= settings | set(SHORT_NAMES)


def report_alone() -> typer.Typer:
    app = typer.Typer()
    app.command()(report)
    return app


def test_every_decision_is_listed() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = re.findall(r"\]\((\d{4}-[a-z0-9-]+\.md)\)", (folder / "README.md").read_text(encoding="utf-8"))
    assert listed == sorted(path.name for path in folder.glob("0*.md"))
