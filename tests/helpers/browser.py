"""A real browser on Dagster's UI: opens a page, waits for its texts, takes its picture."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from playwright.sync_api import TimeoutError as PageTimeoutError

THEMES = ("Light", "Dark")
SIZES = ((1440, 900), (1920, 1080))  # px, of windows that people have
_REST = 3_000  # ms; longer than that pages that are there load nothing
_PATIENCE = 60_000  # ms; a page of Dagster's UI takes seconds on a busy machine


@dataclass
class Viewer:
    """Somebody who looks at the UI in one theme."""

    page: Page
    address: str
    pictures: Path
    theme: str

    def glance(self, address: str, about: str) -> str | None:
        """Opens a page; the text of the first part of it that is about something.

        Nothing is clicked on and nothing is moved. None: no part is, or it is not within sight.
        """
        self.page.goto(address)
        head = self.page.locator("strong", has_text=" live").first
        expect(head).to_be_visible(timeout=_PATIENCE)
        with suppress(PageTimeoutError):  # what is loading moves what is there
            self.page.wait_for_load_state("networkidle", timeout=_REST)
        found = self.page.locator("p").filter(has_text=about).first
        place = found.bounding_box() if found.count() else None
        window = self.page.viewport_size
        if place is None or window is None:
            return None
        is_in_sight = place["y"] + place["height"] <= window["height"]
        return found.inner_text() if is_in_sight else None

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

    def see_sketches(self, number: int) -> None:
        """So many small charts stand on the page itself, and have loaded."""
        images = self.page.locator("img[src^='data:image/svg']")
        expect(images).to_have_count(number, timeout=_PATIENCE)
        for index in range(number):
            expect(images.nth(index)).to_be_visible(timeout=_PATIENCE)
            loaded = images.nth(index).evaluate("image => [image.complete, image.naturalWidth]")
            assert loaded == [True, 600], f"sketch {index} did not load"

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
def viewer(
    running: Browser,
    address: str,
    theme: str,
    folder: Path,
    size: tuple[int, int] = (1600, 1100),
) -> Iterator[Viewer]:
    """A window in a theme, of so many pixels.

    Its pictures go to $DAGSTER_AMORO_SCREENSHOTS, or to `folder`.
    """
    pictures = Path(os.environ.get("DAGSTER_AMORO_SCREENSHOTS") or folder)
    pictures.mkdir(parents=True, exist_ok=True)
    context = running.new_context(viewport={"width": size[0], "height": size[1]})
    # Where Dagster's UI keeps what was chosen in its settings.
    context.add_init_script(f"localStorage.setItem('dagster-theme', JSON.stringify('{theme}'))")
    try:
        yield Viewer(context.new_page(), address, pictures, theme)
    finally:
        context.close()
