"""The page in a real Chromium without a window, and what must be true of every visit to it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import (
    Browser,
    ConsoleMessage,
    Dialog,
    Locator,
    Page,
    Request,
    expect,
    sync_playwright,
)

_FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
)
TIMEOUT_MS = 20_000


@contextmanager
def chromium() -> Iterator[Browser]:
    """Skips where there is none. Its event loop is this thread's until it is closed."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    expect.set_options(timeout=TIMEOUT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=[*_FLAGS])
        yield browser
        browser.close()


@dataclass  # no slots: playwright adds to objects whose methods it calls
class Visit:
    """One tab of a browser of its own, and what it must not do."""

    page: Page
    origin: str
    strange: list[str] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)

    def heard(self, message: ConsoleMessage) -> None:
        # The browser itself logs each answer that is an error.
        is_answer = message.text.startswith("Failed to load resource")
        if message.type in ("error", "warning") and not is_answer:
            self.strange.append(message.text)

    def was_asked(self, dialog: Dialog) -> None:
        self.strange.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def asked(self, request: Request) -> None:
        self.addresses.append(request.url)
        if not request.url.startswith(self.origin + "/"):
            self.strange.append(f"asked {request.url}")


@contextmanager
def visit(browser: Browser, url: str, view: str = "", **settings: Any) -> Iterator[Visit]:
    """Fails on script errors, violations of the policy, dialogs, and other hosts that are asked."""
    context = browser.new_context(**settings)
    context.set_default_timeout(TIMEOUT_MS)
    page = context.new_page()
    found = Visit(page, url)
    page.on("console", found.heard)
    page.on("pageerror", lambda error: found.strange.append(str(error)))
    page.on("dialog", found.was_asked)
    page.on("request", found.asked)
    page.goto(f"{url}/{view}")
    yield found
    context.close()
    assert found.strange == []


def say(page: Page, text: str) -> None:
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def last_answer(page: Page) -> Locator:
    return page.locator(".from-model").last


def body_of(request: Request) -> dict[str, Any]:
    found = request.post_data_json
    assert isinstance(found, dict)
    return found


def wait_done(page: Page) -> None:
    expect(last_answer(page)).to_have_attribute("aria-busy", "false")


def tab_to(page: Page, selector: str) -> None:
    """By the keyboard alone."""
    for _ in range(60):
        if page.evaluate("(s) => document.activeElement.matches(s)", selector):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"Tab never comes to {selector}")


def violations(page: Page) -> list[str]:
    """What axe finds, as rule and element."""
    found = Axe().run(page).response["violations"]
    return [f"{rule['id']}: {node['target']}" for rule in found for node in rule["nodes"]]
