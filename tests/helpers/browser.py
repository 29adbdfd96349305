"""A real browser on Dagster's UI: opens a page, waits for its texts, takes its picture."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

THEMES = ("Light", "Dark")
_PATIENCE = 60_000  # ms; a page of Dagster's UI takes seconds on a busy machine


@dataclass
class Viewer:
    """Somebody who looks at the UI in one theme."""

    page: Page
    address: str
    pictures: Path
    theme: str

    def open(self, name: str, path: str, texts: Sequence[str]) -> None:
        """Opens a page, waits until all of these are to be seen on it, and takes its picture."""
        self.page.goto(f"{self.address}{path}")
        for text in texts:
            expect(self.page.get_by_text(text).first).to_be_visible(timeout=_PATIENCE)
        self.picture(name)

    def click(self, name: str, target: str, text: str) -> None:
        """Clicks on the first such button, waits for a text, and takes the picture."""
        self.page.get_by_role("button", name=target).first.click()
        self.wait_for(name, text)

    def wait_for(self, name: str, text: str) -> None:
        """Waits for a text, and takes the picture."""
        expect(self.page.get_by_text(text).first).to_be_visible(timeout=_PATIENCE)
        self.picture(name)

    def open_charts(self, name: str, number: int) -> None:
        """Opens each of the page's charts and takes its picture; they are images that load."""
        links = self.page.get_by_text("[Show Markdown]")
        expect(links).to_have_count(number, timeout=_PATIENCE)
        for index in range(number):
            links.nth(index).click()
            image = self.page.locator("img[src^='data:image/png']")
            expect(image).to_be_visible(timeout=_PATIENCE)
            loaded = image.evaluate("image => [image.complete, image.naturalWidth]")
            assert loaded == [True, 960], f"chart {index} of {name} did not load"
            self.picture(f"{name}-chart-{index + 1}")
            self.page.get_by_role("button", name="Close").first.click()
            expect(image).to_be_hidden(timeout=_PATIENCE)

    def picture(self, name: str) -> None:
        """Saves what is to be seen."""
        path = self.pictures / f"{name}-{self.theme.lower()}.png"
        self.page.screenshot(path=path, animations="disabled")  # not of a dialog half faded in


@contextmanager
def browser() -> Iterator[Browser]:
    """Headless Chromium; the test is skipped where there is none."""
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("there is no chromium on PATH (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield running
        finally:
            running.close()


@contextmanager
def viewer(running: Browser, address: str, theme: str, folder: Path) -> Iterator[Viewer]:
    """A window in a theme; its pictures go to $DAGSTER_AMORO_SCREENSHOTS, or to `folder`."""
    pictures = Path(os.environ.get("DAGSTER_AMORO_SCREENSHOTS") or folder)
    pictures.mkdir(parents=True, exist_ok=True)
    context = running.new_context(viewport={"width": 1600, "height": 1100})
    # Where Dagster's UI keeps what was chosen in its settings.
    context.add_init_script(f"localStorage.setItem('dagster-theme', JSON.stringify('{theme}'))")
    try:
        yield Viewer(context.new_page(), address, pictures, theme)
    finally:
        context.close()
