"""The console's decisions: who is signed in, who may try, what a page shows, and how it is said."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("jinja2")

from relay.console import filters, session
from relay.console.attempts import ADDRESSES, AT_ONCE, PAUSE_SECONDS, Attempts
from relay.console.dead_letters import Selection, _indented
from relay.console.history import ENVIRONMENTS, STEP_SECONDS, STEPS, History
from relay.console.inventory import matching
from relay.console.overview import Search, destination_of, ordered, page_of
from relay.console.pages import Pages
from relay.console.sparkline import HEIGHT, WIDTH, draw
from relay.console.sse import event
from relay.console.status_cache import CachedStatus
from relay.errors import ConfigurationError
from relay.operations.diagnosis import Cause
from relay.operations.finding import Finding, Severity
from relay.operations.status import describe
from relay.queue.counters import Counters, EnvironmentCounts
from relay.queue.health import Health
from relay.queue.status import Status
from relay.settings import Settings

TOKEN = "operator-token-of-the-tests"
NOW = 1_750_000_000


def test_a_session_is_read_until_its_end() -> None:
    cookie = session.begin(TOKEN, NOW)
    known = session.read(cookie, TOKEN, NOW + session.SESSION_SECONDS - 1)
    assert known is not None
    assert known.ends_at == NOW + session.SESSION_SECONDS
    assert session.read(cookie, TOKEN, NOW + session.SESSION_SECONDS) is None


def test_a_changed_token_ends_all_sessions() -> None:
    assert session.read(session.begin(TOKEN, NOW), TOKEN + "2", NOW) is None


def test_without_a_token_there_is_no_session() -> None:
    assert session.read(session.begin("", NOW), "", NOW) is None


@pytest.mark.parametrize("place", ["nonce", "end", "mac"])
def test_a_tampered_cookie_is_no_session(place: str) -> None:
    nonce, end, mac = session.begin(TOKEN, NOW).split(".")
    touched = {
        "nonce": f"{'A' * 22}.{end}.{mac}",
        "end": f"{nonce}.{int(end) + 60}.{mac}",
        "mac": f"{nonce}.{end}.{'0' * 64}",
    }[place]
    assert session.read(touched, TOKEN, NOW) is None


@pytest.mark.parametrize("cookie", ["", "a.b.c", "é" * 22 + ".1." + "0" * 64, "." * 3, "x" * 10_000])
def test_a_malformed_cookie_is_no_session(cookie: str) -> None:
    assert session.read(cookie, TOKEN, NOW) is None


def test_a_csrf_token_belongs_to_one_session() -> None:
    one, other = (session.read(session.begin(TOKEN, NOW), TOKEN, NOW) for _ in range(2))
    assert one is not None
    assert other is not None
    assert one.allows(one.csrf)
    assert not one.allows(other.csrf)
    assert not one.allows("")
    assert not one.allows("é")


def test_the_operators_token_is_compared_whole() -> None:
    assert session.is_operator(TOKEN, TOKEN)
    for wrong in ("", TOKEN[:-1], TOKEN + " ", "é", "\ud800"):
        assert not session.is_operator(wrong, TOKEN)


def test_a_few_wrong_tokens_at_once_then_one_each_pause() -> None:
    attempts = Attempts()
    for _ in range(AT_ONCE):
        assert attempts.wait_seconds("a", 100.0) == 0
        attempts.failed("a", 100.0)
    assert attempts.wait_seconds("a", 100.0) == pytest.approx(PAUSE_SECONDS)
    assert attempts.wait_seconds("b", 100.0) == 0
    assert attempts.wait_seconds("a", 100.0 + PAUSE_SECONDS) == 0
    attempts.failed("a", 100.0 + PAUSE_SECONDS)
    assert attempts.wait_seconds("a", 100.0 + PAUSE_SECONDS) == pytest.approx(PAUSE_SECONDS)


def test_addresses_are_remembered_within_bounds() -> None:
    attempts = Attempts()
    for number in range(ADDRESSES + 10):
        attempts.failed(str(number), 0.0)
    assert len(attempts._until) == ADDRESSES
    assert "0" not in attempts._until


def test_rates_are_the_deliveries_of_each_step() -> None:
    history = History()
    history.note({"a": 100, "b": 0}, 0.0)
    assert history.rates("a") == []
    history.note({"a": 150, "b": 0}, STEP_SECONDS)
    history.note({"a": 999, "b": 0}, STEP_SECONDS + 0.1)  # too early to count
    history.note({"a": 150, "b": 20}, 2 * STEP_SECONDS)
    assert history.rates("a") == [50 / STEP_SECONDS, 0]
    assert history.rates("b") == [0, 20 / STEP_SECONDS]
    assert history.rates("unknown") == [0, 0]
    assert history.span_seconds(2 * STEP_SECONDS) == 2 * STEP_SECONDS


def test_a_counter_that_was_reset_is_no_rate() -> None:
    history = History()
    history.note({"a": 100}, 0.0)
    history.note({"a": 3}, STEP_SECONDS)
    assert history.rates("a") == [0]


def test_deliveries_before_the_first_reading_are_no_rate() -> None:
    history = History()
    history.note({"a": 5}, 0.0)
    history.note({"a": 5, "old": 1000}, STEP_SECONDS)
    assert history.rates("old") == [0]
    history.note({"a": 5, "old": 1000, "new": 10}, 2 * STEP_SECONDS)
    assert history.rates("new") == [0, 10 / STEP_SECONDS]


def test_history_is_bounded() -> None:
    history = History()
    for step in range(STEPS + 7):
        history.note({"a": step}, step * STEP_SECONDS)
    assert len(history.rates("a")) == STEPS
    assert history.span_seconds((STEPS + 6) * STEP_SECONDS) == STEPS * STEP_SECONDS
    history.note({str(number): 0 for number in range(ENVIRONMENTS + 1)}, 10_000.0)
    assert len(history._rates) == ENVIRONMENTS


def test_a_chart_stays_in_its_box() -> None:
    drawn = draw([0.0, 5.0, 10.0])
    assert drawn is not None
    points = [tuple(map(float, point.split(","))) for point in drawn.points.split()]
    assert points[-1] == (WIDTH, 1)
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in points)
    assert (drawn.now, drawn.most) == (10, 10)
    assert draw([]) is draw([1.0]) is draw([0.0, 0.0]) is None


def test_any_time_can_be_formatted() -> None:
    assert filters.moment(1_750_000_000_000) == "2025-06-15 15:06:40 UTC"
    assert filters.moment(10**16 - 1) == "?"


def test_a_digest_is_shortened_and_other_text_is_not() -> None:
    assert filters.short_digest("sha256:" + "ab" * 32) == "sha256:abababababab…"
    assert filters.short_digest("latest") == "latest"


def test_text_between_backticks_is_code_and_all_is_escaped() -> None:
    said = filters.with_code("<b> is paused; `relay resume <b>` when it is time, ` or `")
    assert said == "&lt;b&gt; is paused; <code>relay resume &lt;b&gt;</code> when it is time, <code> or </code>"
    assert filters.with_code("one ` alone") == "one ` alone"


NOTHING = Counters(
    added=0, redriven=0, waiting=0, accepted=0, delivered=0, duplicate=0, stale=0, superseded=0, dead=0, dropped=0,
    dead_waiting=0, retries=0, ignored=0,
)  # fmt: skip
WELL = Status(
    destination="default",
    now=NOW * 1000,
    counters=NOTHING,
    health=Health(successes=1),
    workers={"relay@host": NOW * 1000},
)


def environment(name: str, waiting: int = 0, delivered: int = 0) -> EnvironmentCounts:
    return EnvironmentCounts(name, waiting, 0, None, delivered, 0, 0, 0, 0)


def first_page(*findings: Finding, **seen: Any) -> str:
    """The first page as it is sent, of a relay that is well but for this."""
    known = session.read(session.begin(TOKEN, NOW), TOKEN, NOW)
    cached = CachedStatus(status=replace(WELL, **seen), findings=list(findings), began=0.0, took_seconds=0.0)
    shown = page_of(cached, History(), Search())
    return bytes(Pages(Settings.load()).page("overview", known, shown=shown, at="/console/").body).decode()


def test_nothing_needs_attention_when_all_is_well() -> None:
    page = first_page()
    assert "Nothing needs attention." in page
    assert "none alive" not in page


@pytest.mark.parametrize("level", list(Severity)[1:])
@pytest.mark.parametrize("cause", list(Cause))
def test_each_finding_is_on_the_page_with_its_advice(cause: Cause, level: Severity) -> None:
    other = Finding(check=Cause.PAUSED, severity=Severity.NOTE, what="another thing", do="wait")
    page = first_page(Finding(check=cause, severity=level, what=f"<b>{cause}", do="`do` this"), other)
    assert f'<li class="{level}"' in page
    assert f"&lt;b&gt;{cause}; <code>do</code> this</li>" in page
    assert page.index(f"{cause}; ") < page.index("another thing; wait</li>")
    assert "Nothing needs attention." not in page


HEALTH = [
    (Health(), "healthy", "good"),
    (Health(failures=3), "healthy", "warn"),
    (Health(until=3000, reason="throttled"), "throttled", "warn"),
    (Health(until=1000, reason="throttled"), "healthy", "good"),
    (Health(until=3000, reason="of_later"), "unavailable", "warn"),
    (Health(until=3000, openings=2, circuit="unauthorized"), "unauthorized", "bad"),
    (Health(until=500, openings=2, circuit="unavailable", probe_until=2000), "unavailable", "bad"),
]


@pytest.mark.parametrize(("health", "state", "level"), HEALTH)
def test_health_has_the_words_of_relay_status(health: Health, state: str, level: str) -> None:
    assert destination_of(health, 1000) == (state, level, describe(health, 1000))
    page = first_page(now=1000, health=health, environments=[environment("production", waiting=1)])
    assert f'<span class="badge {level}" id="destination-state">{state}</span>' in page
    assert f'<p class="description">{describe(health, 1000)}</p>' in page
    assert f">{'delivering' if state == 'healthy' else state}</span>" in page.partition('id="environments"')[2]


def test_environments_with_the_most_waiting_events_come_first() -> None:
    some = [environment("a", 0, 5), environment("b", 7), environment("Prod-B", 3), environment("prod-a", 3)]
    assert [each.environment for each in ordered(some, "")] == ["b", "Prod-B", "prod-a", "a"]
    assert [each.environment for each in ordered(some, "PROD")] == ["Prod-B", "prod-a"]


def test_an_environments_whole_name_matches_it_alone() -> None:
    assert matching(["prod", "prod-eu", "qa"], "prod") == ["prod"]
    assert matching(["prod", "prod-eu", "qa"], "pro") == ["prod", "prod-eu"]
    assert matching(["prod", "qa"], "") == ["prod", "qa"]


def test_an_unreadable_filter_is_a_fault() -> None:
    selection = Selection.of({"newer": "soon", "older": "2h", "reason": "bored", "until": "12"})
    assert selection.faults == ("'soon' is no duration: write 90s, 12h or 30d", "there is no reason 'bored'")
    assert (selection.filters.older_than_seconds, selection.filters.dead_until) == (7200, 12)


def test_an_event_of_many_lines_stays_one_event() -> None:
    assert event("page", "<p>\r\n\n</p>") == b"event: page\ndata: <p>\ndata: \ndata: </p>\n\n"
    assert event("away", "") == b"event: away\ndata: \n\n"


@pytest.mark.parametrize(
    ("gateway", "fault"),
    [
        ({"operator_token": "short"}, "at least 16 characters"),
        ({"operator_token": "the-same-token-for-all", "token": "the-same-token-for-all"}, "must differ from token"),
    ],
)
def test_operator_tokens_that_are_refused(gateway: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigurationError, match=fault) as refused:
        Settings.load(gateway=gateway)
    assert gateway["operator_token"] not in str(refused.value)


def test_a_deeply_nested_letter_is_formatted_as_far_as_it_is_shown() -> None:
    body = json.loads("[" * 900 + ",".join("0" * 20_000) + "]" * 900)
    assert len(_indented(body)) < 60_000
    assert _indented({"a": [1, "ä"]}) == '{\n  "a": [\n    1,\n    "ä"\n  ]\n}'
