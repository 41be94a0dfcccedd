"""The page as people use it: a real Chromium, a real server, scripted answers."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import (
    Visit,
    body_of,
    chromium,
    last_answer,
    say,
    tab_to,
    violations,
    visit,
    wait_done,
)
from fake_serving import (
    MODEL_NAME,
    ServerProcess,
    fake_arguments,
    ids,
    rule,
    serving,
    wait_for,
    write_byte_model,
    write_script,
)
from playwright.sync_api import Browser, expect

from hal.server.keys import digest_of

HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>"
CALL = json.dumps({"name": "weather", "arguments": {"city": HOSTILE}})
RULES = [  # a chat's prompt has all that was said: what comes later in one is first here
    rule("sunny", tokens=ids("Take a hat.")),
    rule("slow", tokens=ids("word " * 80), step_delay_s=0.02),
    rule("code", tokens=ids(f"So:\n```html\n{HOSTILE}\n```\nDone.")),
    rule("think", tokens=ids(f"<think>{HOSTILE}</think>Not far.")),
    rule("use", tokens=ids(f"<tool_call>{CALL}</tool_call>")),
    rule("broken", tokens=ids("abcdef"), error_at=3),
    rule("die", tokens=ids("abcdef"), crash_at=4),
]
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
LIGHT = "rgb(251, 250, 248)"
VIEWS = ("chat", "dashboard", "plan")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


def serve(folder: Path, *arguments: str) -> Any:
    model = write_byte_model(folder / "model")
    script = write_script(folder / "script.json", RULES)
    families = ["--tool-call-parser", "hermes", "--reasoning-parser", "qwen3"]
    return serving([*fake_arguments(model, script), *families, *arguments])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serve(tmp_path_factory.mktemp("page")) as process:
        yield process.wait_ready()


@pytest.fixture
def chat(browser: Browser, server: ServerProcess) -> Iterator[Visit]:
    with visit(browser, server.url) as found:
        expect(found.page.locator("#model")).to_contain_text(MODEL_NAME)
        yield found


def test_an_answer_streams_and_escape_stops_it(chat: Visit, server: ServerProcess) -> None:
    page = chat.page
    say(page, "slow")
    expect(last_answer(page)).to_contain_text("word word")
    assert last_answer(page).get_attribute("aria-busy") == "true"
    page.keyboard.press("Escape")
    wait_done(page)
    expect(last_answer(page)).to_contain_text("stopped")
    wait_for(lambda: server.metric("num_requests_running") == 0, server)
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    with page.expect_request("**/v1/chat/completions") as asked:
        say(page, "sunny")
    wait_done(page)
    expect(last_answer(page).locator(".text")).to_have_text("Take a hat.")
    said = body_of(asked.value)["messages"]
    assert [message["role"] for message in said] == ["user", "assistant", "user"]
    assert said[1]["content"].startswith("word word")
    page.get_by_role("button", name="New chat").click()
    expect(page.locator("#empty")).to_be_visible()
    assert page.locator(".message").count() == 0


def test_parameters_reach_the_server(chat: Visit) -> None:
    page = chat.page
    page.get_by_label("Temperature").fill("0.5")
    page.get_by_label("Max tokens").fill("3")
    page.get_by_label("Stop at").fill("zzz")
    page.get_by_label("System prompt").fill("Be brief.")
    with page.expect_request("**/v1/chat/completions") as asked:
        say(page, "hello")
    wait_done(page)
    expect(last_answer(page)).to_contain_text("cut at max tokens")
    body = body_of(asked.value)
    assert (body["temperature"], body["max_tokens"], body["stop"]) == (0.5, 3, ["zzz"])
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert "seed" not in body and "logprobs" not in body
    page.get_by_label("Tools (JSON)").fill("[{")
    say(page, "again")
    expect(page.locator("#params-error")).to_contain_text("Tools are not JSON")
    assert page.locator(".from-user").count() == 1
    page.get_by_role("button", name="Again").click()  # nor is the answer lost
    expect(last_answer(page)).to_contain_text("cut at max tokens")


def test_everything_works_by_keyboard(chat: Visit) -> None:
    page = chat.page
    expect(page.get_by_label("Message", exact=True)).to_be_focused()
    tab_to(page, "[name=logprobs]")
    page.keyboard.press("Space")
    page.keyboard.press("Shift+Tab")
    tab_to(page, ".skip")
    page.keyboard.press("Enter")
    tab_to(page, "#message")
    page.keyboard.type("sunny")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("day")
    page.keyboard.press("Enter")
    wait_done(page)
    expect(page.locator(".from-user")).to_contain_text("sunny\nday")
    page.evaluate("document.activeElement.blur()")
    tab_to(page, "button[aria-pressed=false]")
    page.keyboard.press("Enter")
    tab_to(page, ".token")
    for _ in range(2):
        page.keyboard.press("ArrowRight")
    expect(page.locator(".token-detail")).to_contain_text("Token 3")
    # The scripted engine gives the token -0.5 and the next ids -1.5, -2.5, ...
    expect(page.locator(".token-detail .is-chosen")).to_contain_text("61 %")
    assert page.locator(".token-detail li").count() == 5
    tab_to(page, ".inspector summary")
    page.keyboard.press("Enter")
    expect(page.locator(".inspector pre")).to_contain_text('"top_logprobs": 5')
    assert violations(page) == []


def test_calls_get_their_results_and_reasoning_is_folded(chat: Visit) -> None:
    page = chat.page
    page.get_by_label("Tools (JSON)").fill(json.dumps(TOOLS))
    say(page, "use it")
    wait_done(page)
    expect(page.locator(".call code")).to_have_text("weather")
    expect(page.locator(".call pre")).to_contain_text(HOSTILE)
    assert violations(page) == []
    page.get_by_label("Result of weather").last.fill("sunny")
    with page.expect_request("**/v1/chat/completions") as asked:
        page.get_by_role("button", name="Send results").click()
    expect(last_answer(page)).to_contain_text("Take a hat.")
    call, result = body_of(asked.value)["messages"][-2:]
    assert call["tool_calls"][0]["id"] == result["tool_call_id"]
    assert (result["role"], result["content"]) == ("tool", "sunny")
    page.get_by_role("button", name="New chat").click()
    say(page, "think")
    wait_done(page)
    expect(last_answer(page).locator(".text")).to_have_text("Not far.")
    expect(page.locator(".thought")).to_be_hidden()
    page.get_by_text("Reasoning · ").click()
    expect(page.locator(".thought")).to_have_text(HOSTILE)


def test_what_the_model_writes_is_text(chat: Visit) -> None:
    """Whatever it writes, in every place that shows it; alerts and refused scripts fail a visit."""
    page = chat.page
    page.get_by_label("Show tokens and probabilities").check()
    for text in (HOSTILE, f"code {HOSTILE}", f"</textarea><svg onload=alert(3)>{HOSTILE}"):
        say(page, text)
        wait_done(page)
    page.get_by_role("button", name="Tokens").last.click()
    assert page.locator("#log img, #log script, #log svg").count() == 0
    expect(last_answer(page)).to_contain_text("alert(2)")
    expect(page.locator(".text pre").first).to_have_text(HOSTILE)
    is_blocked = page.evaluate(
        "() => { try { document.body.innerHTML = '<b>'; return false } catch { return true } }"
    )
    assert is_blocked
    chat.strange.clear()  # the line above was refused, and said so


def test_errors_say_what_happened_and_offer_a_way_on(chat: Visit) -> None:
    page = chat.page
    say(page, "broken")
    wait_done(page)
    card = page.locator(".error-card")
    expect(card).to_contain_text("numerical_error")
    expect(last_answer(page)).to_contain_text("ab")
    page.get_by_role("button", name="Try again").click()
    wait_done(page)
    assert page.locator(".from-model").count() == 1
    page.get_by_label("Max tokens").fill("5000")
    say(page, "hello")
    expect(card.last).to_contain_text("context_length_exceeded · HTTP 400")


def test_an_engine_that_dies_ends_the_answer(browser: Browser, tmp_path: Path) -> None:
    with serve(tmp_path) as server, visit(browser, server.wait_ready().url) as chat:
        say(chat.page, "slow")
        expect(last_answer(chat.page)).to_contain_text("word")
        os.kill(server.engine_pid(), signal.SIGKILL)
        expect(chat.page.locator(".error-card")).to_be_visible()
        expect(chat.page.locator("#state")).to_have_text("unreachable")
        say(chat.page, "hello")
        expect(last_answer(chat.page)).to_contain_text("cannot be reached")


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Takes two keys: right-key, and slow-key for one request a minute."""
    folder = tmp_path_factory.mktemp("locked")
    keys = folder / "keys.toml"
    digests = [digest_of(key).hex() for key in (b"right-key", b"slow-key")]
    keys.write_text(
        f'[all]\nsha256 = "{digests[0]}"\n[few]\nsha256 = "{digests[1]}"\nrequests_per_minute = 1\n'
    )
    with serve(folder, "--api-keys", str(keys)) as process:
        yield process.wait_ready()


def test_the_key_is_asked_for_and_kept_out_of_addresses(
    browser: Browser, locked: ServerProcess
) -> None:
    with visit(browser, locked.url) as chat:
        page, dialog = chat.page, chat.page.locator("#key-dialog")
        for key in ("wrong-key", "right-key"):
            expect(dialog).to_be_visible()
            page.get_by_label("Key", exact=True).fill(key)
            page.keyboard.press("Enter")
            if key == "wrong-key":
                expect(dialog).to_contain_text("did not accept")
                assert violations(page) == []
        expect(page.locator("#model")).to_contain_text(MODEL_NAME)
        say(page, "sunny")
        expect(last_answer(page)).to_contain_text("hat")
        page.reload()
        expect(page.locator("#model")).to_contain_text(MODEL_NAME)
        assert page.evaluate("JSON.stringify(localStorage)").count("-key") == 0
        assert not [address for address in chat.addresses if "-key" in address]
        page.get_by_role("button", name="Forget key").click()
        say(page, "sunny")
        expect(dialog).to_be_visible()
        page.keyboard.press("Escape")
        expect(last_answer(page)).to_contain_text("invalid_api_key")


def test_a_closed_key_dialog_does_not_come_back(browser: Browser, locked: ServerProcess) -> None:
    with visit(browser, locked.url) as found:
        page, dialog = found.page, found.page.locator("#key-dialog")
        expect(dialog).to_be_visible()
        page.keyboard.press("Escape")
        page.clock.install()
        page.get_by_role("link", name="Dashboard").click()
        expect(dialog).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.locator("#board")).to_contain_text("invalid_api_key")
        num_asked = len(found.addresses)
        page.clock.run_for(10_000)
        expect(dialog).to_be_hidden()
        later = found.addresses[num_asked:]
        assert not [address for address in later if address.endswith("/metrics")]


def test_a_limit_says_how_long_to_wait(browser: Browser, locked: ServerProcess) -> None:
    with visit(browser, locked.url) as chat:
        page = chat.page
        page.get_by_label("Key", exact=True).fill("slow-key")
        page.keyboard.press("Enter")
        expect(page.locator("#model")).to_contain_text(MODEL_NAME)
        for _ in range(2):
            say(page, "sunny")
            wait_done(page)
        expect(page.locator(".error-card")).to_contain_text("rate_limit_exceeded · HTTP 429")
        again = page.get_by_role("button", name="Try again in")
        expect(again).to_be_disabled()


def test_the_chosen_theme_stays(chat: Visit) -> None:
    page, theme = chat.page, chat.page.get_by_role("button", name="Theme")
    background = "getComputedStyle(document.body).backgroundColor"
    for name in ("light", "dark"):
        theme.click()
        expect(theme).to_have_text(f"Theme: {name}")
    assert page.evaluate(background) != LIGHT
    page.reload()
    expect(theme).to_have_text("Theme: dark")
    assert page.evaluate(background) != LIGHT


def test_percentiles_out_of_buckets(chat: Visit) -> None:
    found = chat.page.evaluate(
        """async () => {
          const { Scrape, histogram, rate } = await import("/page/metrics.js");
          const lines = (a, b, c, n) => ["# HELP hal:t x", `hal:t_bucket{le="1.0",m="a\\"}"} ${a}`,
            `hal:t_bucket{le="2.0",m="a"} ${b}`, `hal:t_bucket{le="+Inf",m="a"} ${c}`,
            `hal:n_total{m="a"} ${n}`].join("\\n");
          const old = new Scrape(lines(0, 10, 10, 5), 1);
          const now = new Scrape(lines(5, 20, 21, 25), 3);
          const recent = histogram("t", now, old);
          return [recent.count, recent.at(0.5), recent.at(0.99), rate("n_total", old, now),
            Number.isNaN(histogram("t", old, old).at(0.5)), histogram("t", now).count];
        }"""
    )
    # 5 up to 1 s, 5 more up to 2 s, one above: the sixth of eleven is 0.1 into the second bucket.
    assert found == [11, pytest.approx(1.1), 2, 10, True, 21]


def test_the_dashboard_follows_the_server(chat: Visit) -> None:
    page = chat.page
    say(page, "sunny")
    wait_done(page)
    page.get_by_role("link", name="Dashboard").click()
    expect(page.get_by_role("img", name="KV blocks")).to_be_visible()
    row = page.get_by_role("row", name="First token")
    expect(row).to_contain_text("ms")
    expect(page.locator("#board")).to_contain_text("Answers ended by stop")
    scrapes = [address for address in chat.addresses if address.endswith("/metrics")]
    page.get_by_role("link", name="Chat").click()
    expect(last_answer(page)).to_contain_text("Take a hat.")
    assert scrapes


def test_an_answer_goes_on_while_the_reader_is_elsewhere(chat: Visit) -> None:
    page = chat.page
    page.set_viewport_size({"width": 600, "height": 300})
    say(page, "slow")
    expect(last_answer(page)).to_contain_text("word word")
    page.get_by_role("link", name="Dashboard").click()
    expect(page.get_by_role("img", name="KV blocks")).to_be_visible()
    assert page.evaluate("scrollY") == 0
    page.get_by_role("link", name="Chat").click()
    page.wait_for_function("scrollY + innerHeight > document.body.scrollHeight - 2 && scrollY > 0")
    page.keyboard.press("Escape")
    wait_done(page)


def test_the_plan_of_a_real_engine(browser: Browser) -> None:
    with serving(["--device", "cpu"]) as server:
        url = server.wait_ready().url
        plan = server.get("/hal/plan").json()
        with visit(browser, url, "#plan") as found:
            page = found.page
            expect(page.get_by_role("img", name="Memory: weights")).to_be_visible()
            expect(page.locator("#plan-body")).to_contain_text(plan["device"]["reason"])
            assert page.locator(".kernel").count() == len(plan["kernels"])
            for setting in plan["choices"]:
                expect(page.get_by_role("row", name=setting["name"]).first).to_be_visible()
            page.get_by_label("Filter kernels").fill("vocab")
            assert 0 < page.locator(".kernel:visible").count() < len(plan["kernels"])
            kernel = page.locator(".kernel", has=page.locator("code:text-is('vocab')"))
            kernel.locator("summary").focus()
            page.keyboard.press("Enter")
            (site,) = [site for site in plan["kernels"] if site["op"] == "vocab"]
            expect(kernel).to_contain_text(site["reason"])
            for other in site["rejected"]:
                expect(kernel).to_contain_text(other["reason"])
            assert violations(page) == []


def test_the_interactive_docs_send_what_they_show(browser: Browser, locked: ServerProcess) -> None:
    with visit(browser, locked.url, "docs") as found:
        page = found.page
        page.get_by_label("Key", exact=True).fill("right-key")
        page.keyboard.press("Enter")
        tokenize = page.locator(".route", has=page.locator("code:text-is('/tokenize')"))
        tokenize.locator("summary").first.press("Enter")
        tokenize.get_by_label("Body").fill('{"prompt": "<b>"}')
        tokenize.get_by_role("button", name="Send").click()
        expect(tokenize).to_contain_text('"count": 3')
        expect(tokenize).to_contain_text("HTTP 200")
        tokenize.get_by_label("Body").fill('{"prompt": 3}')
        tokenize.get_by_role("button", name="Send").click()
        expect(tokenize).to_contain_text("invalid_value · HTTP 400")
        model = page.locator(".route", has=page.locator("code:text-is('/v1/models/{name}')"))
        model.locator("summary").press("Enter")
        model.get_by_label("name").fill(MODEL_NAME)
        model.get_by_role("button", name="Send").click()
        expect(model).to_contain_text('"object": "model"')
        chat = page.locator(".route", has=page.locator("code:text-is('/v1/chat/completions')"))
        chat.locator("summary").first.press("Enter")
        chat.get_by_label("Body").fill(
            json.dumps({"messages": [{"role": "user", "content": "sunny"}], "stream": True})
        )
        chat.get_by_role("button", name="Send").click()
        expect(chat).to_contain_text("data: [DONE]")
        page.set_viewport_size({"width": 320, "height": 640})
        assert page.evaluate("document.scrollingElement.scrollWidth") <= 320
        assert violations(page) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_views_are_accessible_and_fit_a_small_screen(
    browser: Browser, server: ServerProcess, scheme: str
) -> None:
    small = {"width": 320, "height": 640}
    with visit(browser, server.url, color_scheme=scheme, viewport=small) as chat:
        page = chat.page
        say(page, "code")
        wait_done(page)
        say(page, "broken")
        wait_done(page)
        page.locator("#settings summary").click()
        for view in VIEWS:
            page.goto(f"{server.url}/#{view}")
            expect(page.locator(f"#{view}")).to_be_visible()
            if view == "dashboard":
                expect(page.get_by_role("img", name="KV blocks")).to_be_visible()
            assert page.evaluate("document.scrollingElement.scrollWidth") <= 320, view
            assert violations(page) == []
        is_dark = page.evaluate("getComputedStyle(document.body).backgroundColor") != LIGHT
        assert is_dark == (scheme == "dark")
