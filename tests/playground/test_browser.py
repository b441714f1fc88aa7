"""The page in a real browser: what a person does, with a mouse and with keys.

Waits are for what is to be seen, never for a time.
"""

import importlib.util
import re
import shutil
import socket

import pytest
from tests.playground import small

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
MISSING = [name for name in ("gradio", "playwright") if importlib.util.find_spec(name) is None]
MISSING += [] if CHROMIUM else ["chromium"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"the browser test needs {', '.join(MISSING)}"),
]
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
TEXT = ".pg-text[data-side='{}']"
DONE = ".pg-text[data-side='1'][aria-busy='false']"
GOOD, BAD = "\n".join(small.GOOD), "\n".join(small.BAD)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    from tests.evaluation.report import synthetic

    from odesteer.playground.app import serve
    from odesteer.playground.controller import Controller, runs_in

    folder = tmp_path_factory.mktemp("page")
    synthetic.toxicity_run(folder / "toxicity")
    shared, library = small.shared(), small.library()
    library["good"].get(shared, "odesteer", None)
    controller = Controller(shared, library, folder / "kept", runs_in(folder))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    page, address = serve(controller, "127.0.0.1", port)
    yield address
    page.close(verbose=False)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        running = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()


@pytest.fixture
def opened(browser, address):
    """Opens pages of people who share nothing; each must ask nobody but the server."""
    contexts, outside, broken = [], [], []

    def open_one(query="", **options):
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(30_000)
        page.on("request", lambda r: _is_outside(r.url, address) and outside.append(r.url))
        page.on("pageerror", lambda error: broken.append(str(error)))
        page.goto(address + query)
        page.get_by_role("button", name="Generate").wait_for()
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert not outside and not broken


def _is_outside(url, address):
    return not url.startswith((address.rstrip("/"), "data:", "blob:"))


def generate(page):
    # What stands there already is not what is waited for.
    page.evaluate("document.querySelectorAll('.pg-text').forEach(e => e.dataset.side = 'old')")
    page.get_by_role("button", name="Generate").click()
    page.locator(DONE).wait_for()


def words(page, side):
    return page.locator(TEXT.format(side)).inner_text()


def choose(page, expression):
    box = page.get_by_role("listbox", name="Steer towards").or_(page.get_by_label("Steer towards"))
    box.first.fill(expression)
    box.first.press("Enter")


def title(page, label):
    page.locator(".pg-side h3", has_text=label).wait_for()
    page.locator(DONE).wait_for()


def test_a_token_is_pointed_at_and_reached_by_keys(opened):
    page = opened()
    generate(page)
    assert page.locator(f"{TEXT.format(0)} .tok").count() > 3
    page.get_by_role("button", name="What happened inside the model").click()
    page.locator(".pg-figures svg").first.wait_for()
    token = page.locator(f"{TEXT.format(1)} .tok").nth(2)
    token.hover()
    tip = page.locator("#pg-tip")
    assert re.match(r"probability \d+% → \d+%; moved by", tip.inner_text())
    assert page.locator(".way.on").count() == 2  # in the flow and in the portrait
    page.locator(f"{TEXT.format(1)} .tok").first.focus()
    page.keyboard.press("ArrowRight")
    assert page.locator(".tok.on").get_attribute("data-i") == "1"
    assert page.locator(".way.on").first.get_attribute("data-way") == "1"
    assert "tokens moved" in page.locator(".pg-facts").first.inner_text()


def test_a_link_opens_its_state_and_a_moved_dose_is_seen_without_another_click(opened):
    page = opened(
        "?expression=curved&dose=angle&amount=0.4&also=good&temperature=0.1&prompt=the+cat"
    )
    page.get_by_text("press Generate for its texts").wait_for()
    assert page.locator("#pg-prompt textarea").input_value() == "the cat"
    generate(page)
    title(page, "curved, angle 0.4 and good")
    plain = words(page, 0)
    slider = page.locator("#pg-amount input[type=range]")
    slider.focus()
    slider.press("Home")
    title(page, "angle -0.6")
    assert words(page, 0) == plain
    page.get_by_role("button", name="Link, Python, save").click()
    assert "temperature=0.1" in page.locator(".pg-note a").get_attribute("href")
    page.get_by_text("import odesteer as ods").first.wait_for()


def test_a_wrong_name_is_told_of_in_one_line(opened):
    page = opened()
    generate(page)
    choose(page, "good & nobody")
    error = page.locator("#pg-error .pg-error")
    error.wait_for()
    assert error.inner_text().startswith("Unknown steering 'nobody'.")
    choose(page, "good & ~curved")
    title(page, "good & ~curved")


def test_pasted_examples_are_fitted_and_used_with_the_dose_reset(opened):
    page = opened()
    page.locator("#pg-amount input[type=number]").fill("-0.3")
    page.get_by_role("tab", name="Fit your own").click()
    page.locator("#pg-plus textarea").fill(GOOD)
    page.locator("#pg-minus textarea").fill(BAD)
    page.locator("#pg-fit").click()
    page.locator(".pg-verdict").get_by_text("mine").first.wait_for()
    title(page, "mine × ")
    assert float(page.locator("#pg-amount input[type=number]").input_value()) > 0


def test_markup_that_is_typed_is_shown_as_text(opened):
    page = opened("?expression=good&max_new_tokens=8")  # two turns of it fill the context
    page.get_by_text("press Generate for its texts").wait_for()
    evil = "<img src=x onerror=\"document.title='run'\"><script>document.title='run'</script>"
    page.get_by_role("button", name="Conversation and system prompt").click()
    page.get_by_label("Chat: keep what was said").check()
    for _ in range(2):  # the second turn shows the first
        page.locator("#pg-prompt textarea").fill(evil)
        generate(page)
    assert evil in page.locator(".pg-said").first.inner_text()
    choose(page, evil)
    page.locator("#pg-error .pg-error").wait_for()
    assert page.title() != "run" and page.locator("img[src=x]").count() == 0


def test_two_people_at_once_see_their_own(opened):
    one, other = opened(), opened()
    for page, prompt in ((one, "the cat"), (other, "the dog ran")):
        page.locator("#pg-prompt textarea").fill(prompt)
    choose(one, "~curved")
    one.get_by_role("button", name="Generate").click()
    other.get_by_role("button", name="Generate").click()
    for page in (one, other):
        page.locator(DONE).wait_for()
    title(one, "~curved")
    title(other, "good")
    first, second = words(one, 1), words(other, 1)
    generate(one)  # alone
    assert words(one, 1) == first
    generate(other)
    assert words(other, 1) == second != first


def test_a_run_is_read_in_a_frame(opened):
    page = opened()
    page.get_by_role("tab", name="Reports").click()
    page.locator("#pg-run input").click()
    page.get_by_role("option", name="toxicity").click()
    page.frame_locator("iframe.pg-report").locator("h1").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_a_phone(opened, scheme):
    page = opened(viewport={"width": 360, "height": 740}, color_scheme=scheme)
    generate(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate("document.body.classList.contains('dark')") == (scheme == "dark")
