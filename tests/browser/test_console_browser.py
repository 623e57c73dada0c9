"""The console as operators use it: with a browser, a keyboard, a phone, and without scripts."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING

import pytest
import requests
from browsing import OPERATOR_TOKEN, PATIENCE_MILLISECONDS
from letters import body, bury, refused

from relay.queue import pausing
from relay.settings import DEFAULT_DESTINATION

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
expect = sync_api.expect

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from playwright.sync_api import Page
    from rig import Estate

    OpenPage = Callable[..., Page]

pytestmark = pytest.mark.timeout(240)

#: A browser's window: name, width, height, colours.
WINDOWS = {
    "desktop-dark": (1280, 900, "dark"),
    "desktop-light": (1280, 900, "light"),
    "phone-dark": (375, 740, "dark"),
    "phone-light": (375, 740, "light"),
}

LONG = "a_rather_long_name_of_a_cluster_and_its_namespace_" + "x" * 60


@pytest.fixture(autouse=True)
def patience() -> None:
    expect.set_options(timeout=PATIENCE_MILLISECONDS)


def report(estate: Estate, *versions: str, environment: str = "production") -> None:
    """Report as producers do, to the same gateway."""
    lines = "\n".join(body(version, environment) for version in versions)
    with requests.Session() as session:
        session.trust_env = False
        headers = {"Content-Type": "application/x-ndjson"}
        answer = session.post(estate.stack.gateway_url, data=lines, headers=headers, timeout=30)
    assert answer.status_code == 202, answer.text


def sign_in(page: Page, path: str = "/console/") -> None:
    page.goto(path)
    page.get_by_label("Operator token").fill(OPERATOR_TOKEN)
    page.keyboard.press("Enter")
    page.wait_for_url(lambda url: "sign-in" not in url)


def paused(estate: Estate) -> list[str]:
    return list(pausing.paused(estate.client, estate.keys, DEFAULT_DESTINATION))


def test_a_live_page_follows_the_events(estate: Estate, open_page: OpenPage) -> None:
    page = open_page(estate.stack.gateway_url)
    sign_in(page)
    expect(page.get_by_role("status")).to_have_text("Live")
    expect(page.get_by_label("What needs attention")).to_contain_text("no worker is alive")
    page.evaluate("window.loadedOnce = true")
    report(estate, *(f"v{number}" for number in range(40)))
    expect(page.locator("#waiting")).to_have_text("40")
    estate.start_worker()
    expect(page.locator("#counters-delivered")).to_have_text("40")
    expect(page.locator("#waiting")).to_have_text("0")
    expect(page.get_by_role("rowheader", name="production")).to_be_visible()
    expect(page.get_by_text("no worker is alive")).to_have_count(0)
    report(estate, "later", environment="staging")
    expect(page.locator("#counters-delivered")).to_have_text("41")
    expect(page.get_by_role("rowheader", name="staging")).to_be_visible()
    assert page.evaluate("window.loadedOnce") is True


def test_the_cause_of_an_outage_is_on_the_overview(estate: Estate, open_page: OpenPage) -> None:
    estate.start_worker()
    estate.api.faults = [{"kind": "status", "status": 401}]
    page = open_page(estate.stack.gateway_url)
    sign_in(page)
    report(estate, "1")
    expect(page.get_by_label("What needs attention")).to_contain_text("the destination refuses the token")
    expect(page.locator("#destination-state")).to_have_text("unauthorized")
    expect(page.get_by_role("row", name="production")).to_contain_text("unauthorized")
    estate.api.faults = []
    expect(page.get_by_label("What needs attention")).to_have_text("Nothing needs attention.", use_inner_text=True)
    expect(page.locator("#destination-state")).to_have_text("healthy")


def test_a_dead_letter_is_redriven_and_arrives(estate: Estate, open_page: OpenPage) -> None:
    estate.start_worker()
    estate.api.faults = [{"kind": "status", "status": 422, "count": 1}]
    page = open_page(estate.stack.gateway_url)
    sign_in(page, "/console/dead")
    expect(page.get_by_text("No dead letters.")).to_be_visible()
    report(estate, "1")
    page.get_by_role("rowheader").get_by_role("link").click()
    expect(page.get_by_role("heading", name="The destination's response")).to_be_visible()
    expect(page.locator("pre").first).to_contain_text("HTTP 422")
    page.get_by_role("button", name="Redrive", exact=True).click()
    expect(page.get_by_text("1 dead letter redriven.")).to_be_visible()
    expect(page.get_by_text("No dead letters.")).to_be_visible()
    counters = estate.wait_until_done(1)
    assert (counters.delivered, counters.redriven, counters.dead_waiting) == (1, 1, 0)
    arrived = estate.api.wait_for(1, accepted=True)[-1]
    assert arrived.status == 202
    assert arrived.event["image"]["url"] == json.loads(body("1"))["image"]["url"]


def test_a_set_is_dropped_after_a_confirmation(estate: Estate, open_page: OpenPage) -> None:
    bury(estate.client, *(refused(str(number)) for number in range(7)), refused("kept", environment="staging"))
    page = open_page(estate.stack.gateway_url)
    sign_in(page, "/console/dead")
    page.get_by_label("Environment").fill("prod*")
    page.get_by_role("button", name="Filter").click()
    page.get_by_role("link", name="Drop all that match…").click()
    expect(page.get_by_role("heading", name="Drop 7 dead letters?")).to_be_visible()
    page.get_by_role("link", name="Cancel").click()
    assert estate.client.xlen(estate.keys.dead) == 8
    page.get_by_role("link", name="Drop all that match…").click()
    page.get_by_role("button", name="Drop").click()
    expect(page.get_by_text("7 dead letters dropped.")).to_be_visible()
    assert estate.client.xlen(estate.keys.dead) == 1


def test_a_tampered_form_is_refused(estate: Estate, open_page: OpenPage, complaints: list[str]) -> None:
    report(estate, "1")
    pausing.pause(estate.client, estate.keys, DEFAULT_DESTINATION, ["production"])
    page = open_page(estate.stack.gateway_url)
    sign_in(page)
    button = page.get_by_role("button", name="Resume production")
    button.hover()
    button.evaluate("button => button.form.elements.csrf.value = 'x'.repeat(64)")
    report(estate, "2")
    expect(page.locator("#waiting")).to_have_text("2")  # the page was swapped, but not what is aimed at
    with page.expect_response("**/console/resume") as answer:
        button.click()
    assert answer.value.status == 403
    expect(page.get_by_role("alert")).to_contain_text("nothing was done")
    assert "403 (Forbidden)" in complaints.pop()
    assert paused(estate) == ["production"]


def test_another_site_can_link_here_but_send_no_form(estate: Estate, open_page: OpenPage) -> None:
    gateway = f"{estate.stack.gateway_url}/console"
    page = open_page(estate.stack.gateway_url)
    sign_in(page)
    elsewhere = (
        f'<title>Elsewhere</title><a href="{gateway}/dead?reason=refused">runbook</a>'
        f'<form method="post" action="{gateway}/pause"><input name="environment" value="production">'
        "<button>Win a prize</button></form>"
    )
    page.route("http://elsewhere.example/**", lambda route: route.fulfill(body=elsewhere, content_type="text/html"))
    page.goto("http://elsewhere.example/")
    page.get_by_role("button").click()
    expect(page.get_by_role("heading", name="Refused").or_(page.get_by_label("Operator token"))).to_be_visible()
    assert paused(estate) == []
    page.goto("http://elsewhere.example/")
    page.get_by_role("link").click()
    expect(page.get_by_role("heading", name="Dead letters")).to_be_visible()
    expect(page.get_by_label("Reason")).to_have_value("refused")


def test_everything_works_without_scripts(estate: Estate, open_page: OpenPage) -> None:
    estate.start_worker()
    report(estate, "1")
    estate.wait_until_done(1)
    (letter,) = bury(estate.client, refused("2"))
    page = open_page(estate.stack.gateway_url, java_script_enabled=False)
    sign_in(page)
    expect(page.locator("#counters-delivered")).to_have_text("1")
    page.get_by_role("button", name="Pause production").click()
    expect(page.get_by_role("button", name="Resume production")).to_be_visible()
    assert paused(estate) == ["production"]
    page.get_by_role("button", name="Resume production").click()
    expect(page.get_by_role("button", name="Pause production")).to_be_visible()
    page.get_by_role("navigation", name="Console").get_by_role("link", name="Inventory").click()
    expect(page.get_by_role("row", name="docker.io/library/nginx")).to_contain_text("delivered")
    page.get_by_role("navigation", name="Console").get_by_role("link", name="Dead letters").click()
    page.locator(f'a[href$="id={letter}"]').click()
    page.get_by_text("Fields in Redis").click()
    expect(page.get_by_text("job-2", exact=True).last).to_be_visible()
    page.get_by_role("link", name="Drop…").click()
    page.get_by_role("button", name="Drop").click()
    expect(page.get_by_text("1 dead letter dropped.")).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("Operator token")).to_be_visible()


def test_everything_works_with_the_keyboard(estate: Estate, open_page: OpenPage) -> None:
    estate.start_worker()
    report(estate, "1")
    estate.wait_until_done(1)
    pausing.pause(estate.client, estate.keys, DEFAULT_DESTINATION, ["production"])
    page = open_page(estate.stack.gateway_url)
    page.goto("/console/")
    expect(page.get_by_label("Operator token")).to_be_focused()
    page.keyboard.type(OPERATOR_TOKEN)
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_have_text("Live")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_in_viewport()
    page.keyboard.press("Enter")
    walk_to(page, "Resume production")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.evaluate("document.activeElement.dataset.old = 'yes'")
    expect(page.locator("[data-old]")).to_have_count(0)  # swapped, and the focus went along
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Resume production"
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Pause production")).to_be_visible()
    assert paused(estate) == []


def walk_to(page: Page, label: str) -> None:
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.getAttribute('aria-label')") == label:
            return
    pytest.fail(f"{label} is not reached with Tab")


def test_every_page_is_readable_in_every_window(estate: Estate, open_page: OpenPage, shots: Path) -> None:
    estate.start_worker()
    report(estate, *(f"v{number}" for number in range(5)))
    report(estate, "1", environment=LONG)
    estate.wait_until_done(6)
    pausing.pause(estate.client, estate.keys, DEFAULT_DESTINATION, ["production"])
    report(estate, *(f"w{number}" for number in range(30)))
    detail = "HTTP 422: " + json.dumps({"error": "x" * 300})
    (*_, letter) = bury(
        estate.client,
        *(refused(str(number), reason=reason) for number, reason in enumerate(["exhausted", "forbidden", "expired"])),
        refused("1", environment=LONG, repository=f"registry.example.com/{LONG}", detail=detail),
    )
    for name, (width, height, colours) in WINDOWS.items():
        page = open_page(estate.stack.gateway_url, viewport={"width": width, "height": height}, color_scheme=colours)
        check_readable(page, letter, name, width, shots)
        page.close()


def check_readable(page: Page, letter: str, name: str, width: int, shots: Path) -> None:
    page.goto("/console/")
    pages = {
        "sign-in": None,
        "overview": "",
        "dead": "dead",
        "letter": f"dead/letter?id={letter}",
        "confirm": "dead/drop",
        "inventory": "inventory",
    }
    for shown, path in pages.items():
        if path is not None:
            if "sign-in" in page.url:
                sign_in(page)
            page.goto(f"/console/{path}")
        if shown == "overview":
            expect(page.get_by_role("status")).to_have_text("Live")
            expect(page.locator("#waiting")).to_have_text("30")
            page.get_by_role("img").first.wait_for()  # a rate was drawn
        page.screenshot(path=shots / f"{name}-{shown}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, f"{name} {shown}"
        assert page.evaluate(PALE) == [], f"{name} {shown}"
    assert page.locator("html").get_attribute("lang") == "en"


#: Texts whose contrast with what is behind them is below what WCAG's level AA asks for.
PALE = """() => {
  const numbers = (colour) => (colour.match(/[\\d.]+/g) || []).map(Number);
  const luminance = (colour) => {
    const linear = (c) => (c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4);
    const [r, g, b] = numbers(colour).map((c) => linear(c / 255));
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const ground = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const [, , , alpha = 1] = numbers(getComputedStyle(e).backgroundColor);
      if (alpha) return getComputedStyle(e).backgroundColor;
    }
    return "rgb(255, 255, 255)";
  };
  const pale = [];
  for (const element of document.body.querySelectorAll("*")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || element.closest(".unseen, :disabled")) continue;
    const [a, b] = [luminance(getComputedStyle(element).color), luminance(ground(element))].sort((x, y) => y - x);
    const contrast = (a + .05) / (b + .05);
    if (contrast < 4.5) pale.push(`${element.tagName} ${element.className} ${contrast.toFixed(2)}`);
  }
  return pale;
}"""


def test_a_page_shows_when_redis_is_unavailable_and_when_it_returns(estate: Estate, open_page: OpenPage) -> None:
    redis = estate.stack._embedded
    assert redis is not None
    report(estate, "1")
    page = open_page(estate.stack.gateway_url)
    sign_in(page)
    expect(page.get_by_role("status")).to_have_text("Live")
    os.kill(redis.pid, signal.SIGSTOP)
    try:
        expect(page.get_by_role("status")).to_have_text("Redis is unavailable")
        expect(page.locator("#waiting")).to_have_text("1")
    finally:
        os.kill(redis.pid, signal.SIGCONT)
    expect(page.get_by_role("status")).to_have_text("Live")
