"""The dashboard in a real browser, on the state of the told story."""

import shutil

import pytest
from playwright.sync_api import expect, sync_playwright
from tests.stories.projects import Up, state_of

pytestmark = [
    pytest.mark.browser, pytest.mark.services, pytest.mark.slow,
    pytest.mark.timeout(500),
]  # fmt: skip

PATIENCE_MS = 60_000
expect.set_options(timeout=PATIENCE_MS)
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
]


def chromium():
    for name in ("chromium", "chromium-browser", "google-chrome"):
        found = shutil.which(name)
        if found:
            return found
    raise AssertionError("The browser tests need Chromium: sudo apt-get install chromium")


@pytest.fixture(scope="module")
def up(told):
    with Up(told[0]) as running:
        yield running


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium(), args=ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture
def page(browser, up):
    opened = browser.new_page(viewport={"width": 1200, "height": 900}, base_url=up.dashboard)
    opened.set_default_timeout(PATIENCE_MS)
    troubles = []
    opened.on("console", lambda m: troubles.append(m.text) if m.type == "error" else None)
    opened.on("pageerror", lambda e: troubles.append(str(e)))
    opened.on(
        "request",
        lambda r: None if r.url.startswith((up.dashboard, "data:")) else troubles.append(r.url),
    )
    yield opened
    opened.close()
    assert troubles == []


def test_the_overview_shows_health_versions_and_money(page):
    page.goto("/")
    assert page.get_by_role("heading", name="flights").is_visible()
    assert page.get_by_text("earned against the baseline").is_visible()
    assert page.get_by_role("link", name="flight-delay/1").is_visible()
    assert page.locator("td.refused").count() >= 1


def test_a_release_shows_its_seven_steps_and_opens_its_signed_evidence(page):
    page.goto("/")
    page.locator("tr", has_text="boosting").locator('a[href^="/releases/"]').last.click()
    # A click does not wait for the page that it leads to.
    expect(page.locator("section.card")).to_have_count(7)
    expect(page.locator("h1")).to_contain_text("passed")
    page.locator('a[href^="/evidence/"]').first.click()
    expect(page.locator("main")).to_contain_text("the signature holds")


def test_the_endpoint_shows_what_served_when(page):
    page.goto("/endpoints/flight-delay")
    assert page.get_by_role("heading", name="What served when").is_visible()
    assert "v1 100%" in page.locator("main").inner_text()


def test_monitors_and_ledger_draw_their_series(page):
    page.goto("/monitors/flight-delay")
    assert page.locator("svg.chart").count() > 10
    assert page.locator("svg.chart circle").count() > 20
    page.goto("/ledger")
    assert page.locator("svg.chart polyline").count() == 1
    assert "USD" in page.locator("main").inner_text()
    assert "Nothing is priced" in page.locator("main").inner_text()


def test_the_audit_trail_verifies_on_demand(page):
    page.goto("/audit")
    page.get_by_role("link", name="Verify the chain").click()
    expect(page.get_by_text("Unbroken.")).to_be_visible()


def test_alerts_show_the_drill_that_was_delivered(page):
    page.goto("/alerts")
    assert "(drill)" in page.locator("main").inner_text()
    assert "delivered" in page.locator("main").inner_text()


def test_no_page_is_wider_than_a_phone(page):
    page.set_viewport_size({"width": 390, "height": 800})
    for path in (
        "/",
        "/endpoints/flight-delay",
        "/monitors/flight-delay",
        "/ledger",
        "/alerts",
        "/audit",
        "/models/flight-delay",
    ):
        page.goto(path)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, path


def test_links_can_be_reached_by_keyboard(page):
    page.goto("/")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.tagName") == "A"


def test_what_does_not_exist_is_said_as_a_page(page, browser, up):
    opened = browser.new_page(base_url=up.dashboard)
    opened.set_default_timeout(PATIENCE_MS)
    answer = opened.goto("/releases/nothing")
    assert answer is not None
    assert answer.status == 404
    assert "There is no release" in opened.locator("h1").inner_text()
    opened.close()


def test_the_control_api_answers_as_its_openapi_document_says(page, up, told):
    document = page.request.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    for path, operations in document["paths"].items():
        if "get" in operations:
            answer = page.request.get(path)
            assert answer.status == 200, path
            schema = operations["get"]["responses"]["200"]["content"]["application/json"]["schema"]
            kinds = {"array": list, "object": dict}
            allowed = schema.get("type", "object")
            allowed = [allowed] if isinstance(allowed, str) else allowed
            assert isinstance(answer.json(), tuple(kinds[kind] for kind in allowed)), path
        if "post" in operations:
            answer = page.request.post(path, data="{}")
            assert answer.status in {403, 422}, path
            assert set(answer.json()["error"]) == {"code", "what", "where", "todo"}
    assert page.request.get("/api/v1/versions?no_such=1").status == 422


def test_an_author_cannot_approve_through_the_api_either(page, told):
    body = {"model": "flight-delay", "version": 1, "reason": "mine"}
    answer = page.request.post("/api/v1/approvals", data=body, headers={"x-keepwell-user": "ana"})
    assert answer.status == 403
    assert "ana may not approve" in answer.json()["error"]["what"]
    assert state_of(told[0]).store.version() > 0
