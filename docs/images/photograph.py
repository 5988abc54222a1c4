"""Take the pictures of the server's page for the README.

    pip install -e ".[cpu,serve]" playwright && playwright install chromium
    mlxchat quickstart && python docs/images/photograph.py docs/images

The page is opened in Chromium, as wide as a laptop's window and as a phone, and talks to the model
of quickstart.
"""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

import mlxchat

SIZES = {1280: 560, 360: 640}  # width and height in pixels
QUESTIONS = ("What does a cow say?", "Tell me a story.")
PATIENCE = 30_000  # milliseconds


def conversation(page: Page, address: str, questions: Sequence[str]) -> None:
    """Ask the questions, one after the other."""
    page.goto(address)
    for number, question in enumerate(questions, start=1):
        page.fill("#input", question)
        page.keyboard.press("Enter")
        page.locator("article.assistant").nth(number - 1).wait_for(timeout=PATIENCE)
        page.locator("#send").wait_for(timeout=PATIENCE)  # hidden until the answer is complete


def main() -> None:
    """Take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    own: dict[str, Any] = {"executable_path": found} if (found := shutil.which("chromium")) else {}
    model = mlxchat.load("quickstart-sft")
    with model.serve(port=0, temperature=0) as server, sync_playwright() as programs:
        browser = programs.chromium.launch(args=["--no-sandbox"], **own)
        for width, height in SIZES.items():
            page = browser.new_page(
                viewport={"width": width, "height": height}, device_scale_factor=2
            )
            conversation(page, server.url.removesuffix("/v1"), QUESTIONS)
            page.screenshot(path=folder / f"page-{width}.png")
            page.close()
        browser.close()


if __name__ == "__main__":
    main()
