"""The page in a real browser: Chromium, headless, on loopback."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from helpers.rating_server import SYSTEMS, Server
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from cromic_ds.tools.rating.judgments import RATING_FILE, Judgments
from cromic_ds.tools.rating.rate import RateSettings
from cromic_ds.tools.rating.report import summarize_rating

pytestmark = pytest.mark.slow

CHROMIUM = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--lang=en", "--window-size=1280,800"),
]


class Rater:
    """A browser with the rating page, and what a person does there."""

    def __init__(self, profile: Path):
        chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
        if not chromium or not driver:
            reason = "no chromium with chromedriver on the PATH (Debian: chromium, chromium-driver)"
            if os.environ.get("CI") == "true":
                pytest.fail(reason)
            pytest.skip(reason)
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        for argument in [*CHROMIUM, f"--user-data-dir={profile}"]:
            options.add_argument(argument)
        self.browser = webdriver.Chrome(options=options, service=Service(driver))

    def join(self, url: str, name: str) -> None:
        self.browser.get(url)
        self.wait(lambda: self.find("name").is_displayed())
        assert self.browser.switch_to.active_element == self.find("name")
        self.keys(name + Keys.ENTER)
        self.wait_for("Answer 1 of ")

    def find(self, id: str):
        return self.browser.find_element(By.ID, id)

    def click(self, selector: str) -> None:
        self.browser.find_element(By.CSS_SELECTOR, selector).click()

    def keys(self, keys: str) -> None:
        self.browser.switch_to.active_element.send_keys(keys)

    def judge(self, keys: str, then: str) -> None:
        """Press keys, and wait until the page shows `then`."""
        self.keys(keys)
        self.wait_for(then)

    def wait_for(self, text: str) -> None:
        self.wait(lambda: text in self.text())

    def wait(self, condition: Callable[[], object]) -> None:
        WebDriverWait(self.browser, 20, 0.02).until(lambda _: condition(), f"the page shows: {self.text()}")

    def text(self) -> str:
        return self.browser.find_element(By.TAG_NAME, "body").text

    def pressed(self) -> list[str]:
        buttons = self.browser.find_elements(By.CSS_SELECTOR, "[aria-pressed=true]")
        return [button.get_attribute("data-value") for button in buttons]

    def crash(self) -> None:
        """End the browser at once, all its processes."""
        driver = psutil.Process(self.browser.service.process.pid)
        for process in [*driver.children(recursive=True), driver]:
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def close(self) -> None:
        if self.browser.service.is_connectable():
            self.browser.quit()


@pytest.fixture
def open_browser(tmp_path: Path) -> Iterator[Callable[[], Rater]]:
    """open_browser(): one with a fresh profile; closed at the end of the test."""
    opened: list[Rater] = []

    def start() -> Rater:
        opened.append(Rater(tmp_path / f"profile{len(opened)}"))
        return opened[-1]

    yield start
    for rater in opened:
        rater.close()


def judged(settings: RateSettings) -> list[tuple]:
    made = Judgments(Path(settings.out) / RATING_FILE).valid()
    return [(one.rater, one.position, one.passed, one.quality) for one in made]


def test_judging_by_keyboard(settings, open_browser):
    with Server(settings) as server:
        rater = open_browser()
        rater.join(server.url, "小明")
        assert "?rater=" in rater.browser.current_url and "小明" in rater.text()
        items = [Judgments(Path(settings.out) / RATING_FILE).item(i) for i in range(12)]
        expected = []
        for i, item in enumerate(items):
            rater.wait(
                lambda: rater.browser.execute_script("return document.getElementById('picture').naturalWidth") == 64
            )
            assert (rater.find("question").text, rater.find("answer").text) == (item.question, item.answer)
            assert not any(name in rater.browser.page_source for name in SYSTEMS)
            passed, quality = i % 3 != 0, i % 3
            keys = ["p" if passed else "f", str(quality)]
            first, second = keys if i % 2 else reversed(keys)  # in either order
            rater.keys(first)
            assert len(rater.pressed()) == 1
            rater.judge(second, "Thank you!" if i == 11 else f"Answer {i + 2} of 12")
            expected.append(("小明", i, passed, quality))
            assert judged(settings) == expected  # stored by the time the page shows the next one
        rater.judge("z", "Answer 12 of 12")
        assert judged(settings) == expected[:-1] and rater.pressed() == []
        rater.keys("pf")  # a change of mind before the second key
        assert rater.pressed() == ["false"]
        rater.judge("0", "Thank you!")
        assert judged(settings) == [*expected[:-1], ("小明", 11, False, 0)]
        rater.keys("p1")  # nothing is left
        assert len(judged(settings)) == 12
        assert [entry for entry in rater.browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_by_mouse_on_a_phone_in_chinese_and_from_this_server_alone(settings, open_browser):
    with Server(settings) as server:
        rater = open_browser()
        size = {"width": 360, "height": 640, "deviceScaleFactor": 2, "mobile": True}
        rater.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        rater.join(server.url, "Anna")
        rater.click("#language")
        rater.wait_for("第 1 个回答，共 12 个")
        assert rater.browser.execute_script("return document.documentElement.scrollWidth") == 360
        targets = rater.browser.find_elements(By.CSS_SELECTOR, "#controls button")
        assert len(targets) == 6 and min(target.rect["height"] for target in targets) >= 24
        assert min(target.rect["height"] for target in targets[:5]) >= 44  # a finger's width
        rater.click("[data-choice=quality][data-value='2']")
        rater.click("[data-choice=passed][data-value=true]")
        rater.wait_for("第 2 个回答，共 12 个")
        assert judged(settings) == [("Anna", 0, True, 2)]
        rater.click("#controls .undo")
        rater.wait_for("第 1 个回答，共 12 个")
        assert judged(settings) == []
        loaded = rater.browser.execute_script("return performance.getEntriesByType('resource').map((e) => e.name)")
        assert len(loaded) >= 5 and all(name.startswith((server.url, "data:")) for name in loaded)


def test_resuming_after_a_crash_of_server_and_browser(settings, open_browser):
    with Server(settings) as server:
        rater = open_browser()
        rater.join(server.url, "Anna")
        rater.judge("p2", "Answer 2 of 12")
        rater.judge("f0", "Answer 3 of 12")
        server.kill()  # SIGKILL: no chance to save anything
        assert judged(settings) == [("Anna", 0, True, 2), ("Anna", 1, False, 0)]
        rater.judge("p1", "No connection to the server")
        assert rater.pressed() == ["true", "1"]
        rater.keys("f0z")  # waits for what is on its way
        assert rater.pressed() == ["true", "1"]
        with Server(RateSettings(out=settings.out, port=server.port)):
            rater.wait_for("Answer 4 of 12")
            assert "No connection" not in rater.text()
            assert judged(settings)[2:] == [("Anna", 2, True, 1)]
            rater.keys("p")  # half a judgment is none
            rater.crash()
            again = open_browser()
            again.browser.get(f"{server.url}?rater=anna")  # another browser, the same person
            again.wait_for("Answer 4 of 12")
            assert again.pressed() == []
            again.judge("f1", "Answer 5 of 12")
            assert [position for _, position, _, _ in judged(settings)] == [0, 1, 2, 3]


def test_two_raters_at_once(settings, open_browser):
    with Server(replace(settings, count=10)) as server:
        raters = {"Anna": open_browser(), "Bo": open_browser()}
        failures = []

        def judge_all(name: str) -> None:
            try:
                rater = raters[name]
                rater.join(server.url, name)
                for i in range(30):
                    passed = i % 3 == 0 or (name == "Bo" and i % 5 == 0)
                    rater.judge(("p" if passed else "f") + "2", "Thank you!" if i == 29 else f"Answer {i + 2} of 30")
            except BaseException as failure:
                failures.append(failure)

        threads = [threading.Thread(target=judge_all, args=[name]) for name in raters]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
    result = summarize_rating(Judgments(Path(settings.out) / RATING_FILE))
    assert {name: of["judgments"] for name, of in result["raters"].items()} == {"Anna": 30, "Bo": 30}
    assert [name for name, *_ in judged(settings)] == ["Anna"] * 30 + ["Bo"] * 30
    # Anna passes 10 of 30, Bo these and 4 more: agreed 26/30, by chance (10·14 + 20·16) / 900.
    (pair,) = result["agreement"]
    assert pair["passed"] == {"agreed": 26, "kappa": pytest.approx((26 / 30 - 460 / 900) / (1 - 460 / 900))}


def test_two_windows_of_one_rater(settings, open_browser):
    with Server(settings) as server:
        first, second = open_browser(), open_browser()
        first.join(server.url, "Anna")
        second.join(server.url, "Anna")
        first.judge("p2", "Answer 2 of 12")
        second.judge("f0", "Answer 2 of 12")  # the same answer again: refused, and the page catches up
        assert "position 0 is already judged by Anna" in second.text()
        assert judged(settings) == [("Anna", 0, True, 2)]
        second.judge("f0", "Answer 3 of 12")
        assert "already judged" not in second.text()
