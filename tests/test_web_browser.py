"""The status page in a real browser: what it shows is what the daemon says, and names of files do nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness import PART, Daemon, noise
from tests.wire import PATIENCE_SECONDS

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.wait import WebDriverWait  # noqa: E402

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="there is no chromium with chromedriver")

OPTIONS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
EVIL = '<script>document.title="hacked"</script>'
ALSO_EVIL = '"><img src=x onerror=document.title="hacked">'
FILES = 120

Browser = Any  # selenium may be missing where types are checked


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("page"), http="127.0.0.1:0", verify_every=0) as daemon:
        daemon.start()
        with daemon.connect() as wire:
            for name in [EVIL, ALSO_EVIL, "x" * 1000, *(f"file-{at:03}" for at in range(FILES - 4))]:
                quoted = name.replace('"', r"\"").encode()
                assert wire.last(b'put - name="%b" size=6\nhello\n' % quoted).startswith(b"OK")
        damaged = noise(PART * 2)
        (daemon.root / "damaged").write_bytes(damaged)
        before = set(daemon.packs())
        daemon.ask(b"put damaged name=<b>damaged</b>\n")
        (pack,) = set(daemon.packs()) - before
        os.chmod(pack, 0o600)
        with pack.open("r+b") as file:
            file.seek(-10, os.SEEK_END)
            file.write(bytes(10))
        assert daemon.ask(b"verify <b>damaged</b>\n")[-1].startswith(b"ERR corrupt")
        yield daemon


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for option in [*OPTIONS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture
def page(browser: Browser, daemon: Daemon) -> Iterator[Browser]:
    """The page, freshly loaded and drawn; it must not complain meanwhile, nor be changed by any name."""
    browser.get(f"http://127.0.0.1:{daemon.http_port}/")
    wait(browser, lambda: rows(browser, "file-list"))
    yield browser
    assert browser.title == "pfsd: ready"
    assert browser.get_log("browser") == []
    assert not browser.find_elements(By.CSS_SELECTOR, "main script, main img, main b b, td b")


def wait(browser: Browser, holds: Callable[[], Any]) -> Any:
    return WebDriverWait(browser, PATIENCE_SECONDS, poll_frequency=0.05).until(lambda _: holds())


def text(browser: Browser, element: str) -> str:
    """What an element says; asked for in one step, since it may be drawn anew at any time."""
    said: str = browser.execute_script("return document.getElementById(arguments[0]).textContent", element)
    return said


def rows(browser: Browser, table: str) -> list[list[str]]:
    script = (
        "return Array.from(document.querySelectorAll(`#${arguments[0]} tbody tr`),"
        " row => Array.from(row.cells, cell => cell.textContent))"
    )
    found: list[list[str]] = browser.execute_script(script, table)
    return found


def click(browser: Browser, button: str) -> None:
    browser.find_element(By.ID, button).click()


def test_the_numbers_are_those_of_stats(page: Browser, daemon: Daemon) -> None:
    stats = daemon.stats()
    assert text(page, "state") == stats["state"] and text(page, "version") == stats["version"]
    assert text(page, "files") == stats["files"] == str(FILES)
    assert text(page, "files-more").startswith(f"{stats['parts']} parts, ")
    assert text(page, "damage") == "1 file" and text(page, "damage-more") == "1 bad part"
    assert rows(page, "damaged") == [["<b>damaged</b>", str(FILES), "1", "128 KiB"]]
    assert text(page, "clients-more") == "at most 1,000"
    assert len(page.find_elements(By.CSS_SELECTOR, "#workers li")) == int(stats["processes"])
    assert text(page, "oldest-more") == "background checks are off"


def test_names_are_shown_and_do_nothing(page: Browser) -> None:
    names = [row[0] for row in rows(page, "file-list")]
    assert names[:2] == [EVIL, ALSO_EVIL]


def test_files_can_be_paged_and_searched(page: Browser) -> None:
    first = rows(page, "file-list")
    assert [row[1] for row in first] == [str(at) for at in range(1, 51)]
    click(page, "next")
    wait(page, lambda: rows(page, "file-list")[0][1] == "51")
    click(page, "next")
    wait(page, lambda: rows(page, "file-list")[0][1] == "101")
    assert len(rows(page, "file-list")) == FILES - 100
    assert page.find_element(By.ID, "next").get_property("disabled")
    click(page, "previous")
    wait(page, lambda: rows(page, "file-list")[0][1] == "51")
    click(page, "first")
    wait(page, lambda: rows(page, "file-list") == first)
    page.find_element(By.ID, "name").send_keys("FILE-007")
    wait(page, lambda: [row[0] for row in rows(page, "file-list")] == ["file-007"])
    page.find_element(By.ID, "name").send_keys("x")
    wait(page, lambda: text(page, "no-files") == "No file has this in its name.")


def test_a_running_command_appears_advances_and_goes(page: Browser, daemon: Daemon) -> None:
    run = 16 * PART  # parts are stored in runs of so many

    def progress() -> list[str]:
        return [row[2] for row in rows(page, "commands") if row[:2] == ["put", "moving"]]

    with daemon.connect() as wire:
        wire.send(b"put - name=moving size=%d\n" % (4 * run) + noise(run))
        wait(page, lambda: progress() == ["1.0 MiB of 4.0 MiB, 25 %"])
        before = page.execute_script("return document.querySelector('#commands progress').value")
        wire.send(noise(2 * run))
        wait(page, lambda: progress() == ["3.0 MiB of 4.0 MiB, 75 %"])
        assert page.execute_script("return document.querySelector('#commands progress').value") > before
        wire.send(noise(run))
        assert wire.reply()[-1].startswith(b"OK put")
    wait(page, lambda: not progress())
    wait(page, lambda: text(page, "files") == str(FILES + 1))
    assert page.find_elements(By.CSS_SELECTOR, "#chart polyline.in"), "the chart is drawn"
    daemon.ask(b"delete moving\n")


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_screen(page: Browser, width: int) -> None:
    size = {"width": width, "height": 740, "deviceScaleFactor": 1, "mobile": width < 500}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        wide = page.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
        assert wide[0] <= wide[1] == width
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_told_from_what_is_behind_it(page: Browser, scheme: str) -> None:
    """The contrast that WCAG 2 asks for, 4.5 to 1, of every colour that text has."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    script = (
        "const style = getComputedStyle(document.documentElement);"
        "return Object.fromEntries(arguments[0].map(name => [name, style.getPropertyValue('--' + name).trim()]))"
    )
    names = ["back", "panel", "text", "faint", "in", "out", "bad", "warn", "good", "on-badge"]
    colours = page.execute_script(script, names)
    for name in ("text", "faint", "in", "out", "bad", "warn"):
        assert contrast(colours[name], colours["panel"]) >= 4.5, name
    for name in ("text", "faint", "in"):
        assert contrast(colours[name], colours["back"]) >= 4.5, name
    for name in ("faint", "good", "warn", "bad"):
        assert contrast(colours["on-badge"], colours[name]) >= 4.5, name


def contrast(one: str, other: str) -> float:
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour: str) -> float:
    shares = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_it_says_so_when_the_daemon_is_gone(browser: Browser, tmp_path: Path) -> None:
    with Daemon(tmp_path, http="127.0.0.1:0", verify_every=0) as other:
        other.start()
        browser.get(f"http://127.0.0.1:{other.http_port}/")
        wait(browser, lambda: text(browser, "state") == "ready")
        other.stop()
    wait(browser, lambda: text(browser, "state") == "no answer")
    assert "does not answer" in text(browser, "trouble")
    browser.get("about:blank")
    browser.get_log("browser")
