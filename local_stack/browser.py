"""Drives a browser as a person before an Airflow does: Debian's Chromium, headless, in a new profile."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from selenium.common.exceptions import (
    ElementClickInterceptedException,
    ElementNotInteractableException,
    JavascriptException,
    NoSuchElementException,
    NoSuchFrameException,
    StaleElementReferenceException,
)
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from tasks.errors import ConfigurationError

PAGES = "Feature index"
REPORT = "Feature report"
"""Titles of the frames in which Airflow shows our pages, and names of what leads to them."""

T = TypeVar("T")

_UNSETTLED = (
    ElementClickInterceptedException,
    ElementNotInteractableException,
    JavascriptException,
    NoSuchElementException,
    StaleElementReferenceException,
)
"""What comes of a page that is still being drawn."""
_WAIT_SECONDS = 60
"""How long a page may take on a machine that computes features meanwhile."""
_ARGUMENTS = (
    "--headless",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--lang=en-US",
)


def missing() -> str | None:
    """What has to be installed before a browser can be opened; None where all is there."""
    if all(shutil.which(program) for program in ("chromium", "chromedriver")):
        return None
    return "There is no Chromium to drive; on Debian: apt-get install chromium chromium-driver"


class Browser:
    """One window. What it looks for it waits for, since pages load and run while it looks."""

    def __init__(self, driver: Chrome, url: str) -> None:
        self.driver = driver
        self.url = url
        """Airflow's, without a slash at its end."""

    @classmethod
    @contextmanager
    def opened(cls, url: str, *, width: int = 1280, height: int = 900) -> Iterator["Browser"]:
        """A new browser that knows no cookies, closed in the end.

        Raises:
            ConfigurationError: Chromium or its driver is not installed.
        """
        if problem := missing():
            raise ConfigurationError(problem)
        options = ChromeOptions()
        options.binary_location = str(shutil.which("chromium"))
        options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
        with tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as profile:
            for argument in (*_ARGUMENTS, f"--user-data-dir={profile}"):
                options.add_argument(argument)
            if os.geteuid() == 0:
                options.add_argument("--no-sandbox")  # which refuses root; what it shows here is our own
            driver = Chrome(options, Service(shutil.which("chromedriver")))
            try:
                browser = cls(driver, url.rstrip("/"))
                browser.look(width, height)
                yield browser
            finally:
                driver.quit()

    def look(self, width: int, height: int, scheme: str = "light") -> None:
        """Make the window so large, and have it prefer `light` or `dark`."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)

    def open(self, path: str) -> None:
        """Go to a path of Airflow."""
        self.driver.get(self.url + path)

    def log_in(self, username: str, password: str) -> None:
        """Fill in the log-in page that is shown."""
        self.see("input[name=username]").send_keys(username)
        self.see("input[name=password]").send_keys(password)
        self.click("button", "Sign in")

    def wait(self, condition: Callable[[], T | None], what: str, seconds: float = _WAIT_SECONDS) -> T:
        """What `condition` gives as soon as that is true of anything."""
        waiting = WebDriverWait(self.driver, seconds, poll_frequency=0.1, ignored_exceptions=_UNSETTLED)
        return waiting.until(lambda _: condition(), f"not within {seconds:g} s: {what}")  # type: ignore[return-value]

    def see(self, selector: str, text: str = "") -> WebElement:
        """The first thing to be seen that a CSS selector finds and that has the text in it."""

        def seen() -> WebElement | None:
            for found in self.driver.find_elements(By.CSS_SELECTOR, selector):
                # What only screen readers are told is no part of `text`.
                if found.is_displayed() and text in str(found.get_attribute("textContent")):
                    return found
            return None

        return self.wait(seen, f"{selector} with {text!r} at {self.driver.current_url}")

    def click(self, selector: str, text: str = "") -> None:
        """Press it."""
        self.wait(lambda: self.see(selector, text).click() or True, f"{selector} with {text!r} takes a click")

    def focused(self) -> WebElement:
        """What has the keyboard."""
        return self.driver.switch_to.active_element

    @contextmanager
    def frame(self, title: str) -> Iterator[None]:
        """Look at what Airflow shows in its frame of this title, then at Airflow again."""

        def entered() -> bool:
            try:
                self.driver.switch_to.frame(self.see(f"iframe[title='{title}']"))
            except NoSuchFrameException:
                return False
            return True

        self.wait(entered, f"a frame {title}")
        try:
            yield
        finally:
            self.driver.switch_to.default_content()

    def run(self, script: str, *arguments: Any) -> Any:
        """What a line of JavaScript gives where we look."""
        return self.driver.execute_script(script, *arguments)

    def requested(self) -> set[str]:
        """The URLs that pages asked for since the last call."""
        asked = set()
        for entry in self.driver.get_log("performance"):  # type: ignore[no-untyped-call]
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                asked.add(message["params"]["request"]["url"])
        return asked
