"""The page in a real browser, headless, over a live server: it chats, streams, and sees the tree grow."""

import json
import re
import shutil
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
playwright = pytest.importorskip(
    "playwright.sync_api", reason="the page's test needs playwright: pip install playwright"
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="the page's test needs a browser: apt-get install chromium"
)
LONG = {"context_length": 100_000, "max_total_tokens": 400_000}
SYSTEM = "You are a guide. " * 6


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        # root, as in a container, has no sandbox
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def url(start: Any) -> str:
    return str(start(LONG).url)


def fresh_state(url: str) -> Any:
    """What the page will be shown next; looks less than half a second apart see the same."""
    time.sleep(0.6)
    return httpx.get(url + "/engine_state").json()


class Page:
    """A page of the server at `url`. `close` fails if it asked elsewhere or complained."""

    def __init__(self, browser: Any, url: str, **options: Any) -> None:
        self.url = url
        self.context = browser.new_context(**{"viewport": {"width": 1300, "height": 800}, **options})
        self.tab = self.context.new_page()
        self.tab.set_default_timeout(20_000)
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self.keys: list[str | None] = []
        self.tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.tab.on("console", lambda line: self.complaints.append(line.text) if line.type == "error" else 0)
        self.tab.on("request", self._see)

    def _see(self, request: Any) -> None:
        self.asked.append(request.url)
        self.keys.append(request.headers.get("authorization"))

    def open(self) -> "Page":
        self.tab.goto(self.url + "/")
        return self

    def ask(self, text: str, **fields: object) -> None:
        """Send a message with these settings."""
        for name, value in fields.items():
            self.tab.eval_on_selector(f"#{name}", "(field, value) => field.value = value", str(value))
        self.tab.fill("#prompt", text)
        self.tab.press("#prompt", "Enter")

    def reply(self, number: int) -> str:
        """The text of a whole reply."""
        self.tab.locator("article.assistant .note").nth(number).wait_for()
        return str(self.tab.locator("article.assistant > .text").nth(number).evaluate("it => it.textContent"))

    def until(self, expression: str) -> None:
        """Wait for JavaScript to be true. The page's policy lets no evaluation of text wait inside it."""
        deadline = time.monotonic() + 20
        while not self.tab.evaluate(expression):
            assert time.monotonic() < deadline, expression
            time.sleep(0.02)

    def close(self) -> None:
        self.context.close()
        assert {re.sub(r"^(data:).*|(?<=\d)/.*", r"\1", each) for each in self.asked} <= {self.url, "data:"}
        assert self.complaints == []


def expected(url: str, *texts: str) -> str:
    """What the server answers, whole and without a page, to these messages of user and assistant."""
    roles = ("user", "assistant") * len(texts)
    said = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    body = {
        "messages": [{"role": "system", "content": SYSTEM.strip()}, *said],
        "temperature": 0,
        "max_tokens": 40,
    }
    choice = httpx.post(url + "/v1/chat/completions", json=body).json()["choices"][0]
    return str(choice["message"]["content"])


def test_it_chats_and_sees_the_tree_grow(browser: Any, url: str) -> None:
    page = Page(browser, url).open()
    tab = page.tab
    tab.get_by_text("Nothing is cached yet").wait_for()
    assert tab.locator("#model").inner_text() == "fake"
    page.ask("First question?", system=SYSTEM, temperature=0, max_tokens=40)
    first = page.reply(0)
    assert first == expected(url, "First question?")
    page.ask("Second question?")
    assert page.reply(1) == expected(url, "First question?", first, "Second question?")
    assert re.match(
        r"40 tokens · first after .* cached( · length)?$", tab.locator(".note").first.inner_text()
    )

    tab.locator(".node").nth(1).wait_for()
    tab.click("#new-chat")
    page.ask("Something else entirely, after the same beginning.")
    assert page.reply(0) == expected(url, "Something else entirely, after the same beginning.")
    page.until("document.querySelectorAll('.node').length >= 4")
    tab.wait_for_timeout(1500)
    nodes = fresh_state(url)["groups"][0]["nodes"]
    assert tab.locator(".node").count() == len(nodes)
    trunk = next(node for node in nodes if node["parent"] == 0)
    assert trunk["hits"] >= 2 and "You are a guide." in trunk["text"]
    tab.locator(".node", has_text="You are a guide.").first.hover()
    assert f"found by {trunk['hits']} requests" in tab.locator("#tip").inner_text()
    page.close()


def test_tokens_tell_their_alternatives(browser: Any, url: str) -> None:
    page = Page(browser, url).open()
    page.ask("Which tokens?", temperature=0, max_tokens=12)
    text = page.reply(0)
    tokens = page.tab.locator("article.assistant .token")
    assert "".join(tokens.all_text_contents()) == text and 6 <= tokens.count() <= 12
    assert tokens.first.get_attribute("class") == "token t1"  # the fake's are all exp(-0.5) = 61% likely
    tokens.filter(has_text=re.compile("[!-~]")).first.hover()
    rows = page.tab.locator("#tip tr")
    assert rows.count() == 5 and rows.first.get_attribute("class") == "chosen"
    assert [rows.nth(index).locator("td").last.inner_text() for index in (0, 1)] == ["61%", "22%"]
    page.tab.keyboard.press("Escape")
    assert page.tab.locator("#tip").is_hidden()
    page.close()


def endless(route: Any) -> None:
    """Pass a request on that no end of text may end."""
    route.continue_(post_data=json.dumps({**route.request.post_data_json, "ignore_eos": True}))


def test_an_answer_streams_and_can_be_stopped(browser: Any, url: str) -> None:
    aborted = httpx.get(url + "/server_info").json()["stats"]["aborted"]
    page = Page(browser, url).open()
    page.tab.route("**/v1/chat/completions", endless)
    page.ask("Go on.", max_tokens=90_000)
    length = "document.querySelector('article.assistant .text').textContent.length"
    page.until(f"{length} > 100")
    seen = page.tab.evaluate(length)
    page.until(f"{length} > {seen}")  # more came while it was not over
    page.tab.locator(".cell.decode").wait_for()
    assert page.tab.locator(".node.locked").count() >= 1
    page.tab.click("#stop")
    page.tab.get_by_text("stopped", exact=False).wait_for()
    page.until("!document.querySelector('.cell.decode')")
    (group,) = fresh_state(url)["groups"]
    stats = group["stats"]
    assert stats["aborted"] == aborted + 1 and stats["num_running"] == 0
    page.close()


def test_a_refusal_is_told_and_the_question_kept(browser: Any, url: str) -> None:
    page = Page(browser, url).open()
    page.ask("Too hot?", temperature=-1)
    page.tab.get_by_text("temperature is -1").wait_for()
    assert page.tab.input_value("#prompt") == "Too hot?"
    assert "400" in page.complaints.pop()  # the browser's own line
    page.close()


def chunk(delta: dict[str, str], *tokens: bytes) -> bytes:
    """An event with text, and the tokens that came meanwhile."""
    content = [
        {"token": each.decode(errors="replace"), "bytes": list(each), "logprob": -1.0, "top_logprobs": []}
        for each in tokens
    ]
    choice = {"delta": delta, "logprobs": {"content": content}, "finish_reason": None}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


def test_thoughts_are_folded_and_text_finds_its_tokens(browser: Any, url: str) -> None:
    """A character of several tokens, marks without text, text that is held back, and a first word trimmed."""
    sun = "☀".encode()
    usage = {"prompt_tokens": 1, "completion_tokens": 9, "prompt_tokens_details": {"cached_tokens": 0}}
    events = [
        chunk({"reasoning_content": "Hm"}, b"<think>", b"Hm"),
        chunk({"reasoning_content": "."}, b".", b"</think>"),
        chunk({"content": "Sun"}, b" Sun", b" ", sun[:2]),
        chunk({"content": " ☀ is"}, sun[2:], b" is"),
        chunk({"content": ""}, b" out"),
        chunk({"content": " out"}),
        b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\ndata: [DONE]\n\n",
    ]
    page = Page(browser, url)
    page.tab.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(body=b"".join(events), content_type="text/event-stream"),
    )
    page.open().ask("How is the weather?")
    assert page.reply(0) == "Sun ☀ is out"
    tokens = page.tab.locator("article.assistant > .text > .token")
    assert tokens.all_text_contents() == ["Sun", " ", "☀", " is", " out"]
    thoughts = page.tab.locator(".thoughts")
    assert thoughts.get_attribute("open") is None and thoughts.locator(".token").count() == 2
    assert thoughts.locator(".text").evaluate("it => it.textContent") == "Hm."
    page.close()


def test_groups_stand_beside_each_other(browser: Any, url: str) -> None:
    state = httpx.get(url + "/engine_state").json()
    state["groups"] *= 2
    page = Page(browser, url)
    page.tab.route("**/engine_state", lambda route: route.fulfill(json=state))
    page.open()
    page.tab.get_by_text("Group 1").wait_for()
    first, second = (page.tab.locator(".group").nth(index).bounding_box() for index in (0, 1))
    assert page.tab.locator(".group").count() == 2
    assert first["y"] == second["y"] or first["x"] == second["x"]
    assert page.tab.locator(".node").count() == 2 * len(state["groups"][0]["nodes"])
    page.close()


def test_keys_open_the_door_and_stay_in_the_tab(browser: Any, start: Any) -> None:
    server = start(options={"api_key": ("sesame",), "admin_api_key": "simsim"})
    page = Page(browser, server.url).open()
    tab = page.tab
    tab.locator("#keys[open]").wait_for()  # it asks by itself
    tab.fill("#api-key", "sesame")
    tab.click("#close-keys")
    page.ask("Open.", max_tokens=20)
    page.reply(0)
    tab.get_by_text("open Keys above").wait_for()  # for the engine is not for everyone
    tab.click("#open-keys")
    tab.fill("#admin-key", "simsim")
    tab.press("#admin-key", "Enter")
    tab.locator(".node").first.wait_for()
    assert {key for key in page.keys if key} == {"Bearer sesame", "Bearer simsim"}
    assert tab.evaluate("[localStorage.length, document.cookie]") == [0, ""]
    assert not [line for line in page.complaints if "401" not in line and "403" not in line]
    page.complaints.clear()  # those are the browser's own lines
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(browser: Any, url: str, scheme: str) -> None:
    page = Page(browser, url, viewport={"width": 360, "height": 740}, color_scheme=scheme).open()
    page.ask("A message that is long enough to need more than a line on a phone.", max_tokens=30)
    page.reply(0)
    assert page.tab.locator("#engine").is_hidden()
    page.tab.get_by_role("button", name="Engine").click()
    page.tab.locator(".node").first.wait_for()
    assert page.tab.locator("#chat").is_hidden()
    for tab in ("Engine", "Chat"):
        page.tab.get_by_role("button", name=tab).click()
        assert page.tab.evaluate("document.documentElement.scrollWidth") <= 360
        edges = page.tab.evaluate(
            "[...document.querySelectorAll('main :not(.words)')]"
            ".map(it => [it.id || it.className, it.getBoundingClientRect().right])"
        )
        assert len(edges) > 20 and [edge for edge in edges if edge[1] > 361] == []
    brightness = page.tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(re.findall(r"\d+", brightness)[0]) > 128) == (scheme == "light")
    page.close()
