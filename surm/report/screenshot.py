"""A picture of the page's top, for a README."""

import shutil
import subprocess
import tempfile
from pathlib import Path

from surm.shared.errors import StorageError

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SIZE = 1200, 1180  # pixels


def take_picture(page: Path, path: Path) -> None:
    """Photograph the top of a page as a PNG, in light colours.

    Raises:
        FileNotFoundError: no Chromium to photograph with.
    """
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise FileNotFoundError(f"no browser for the picture: install one of {', '.join(BROWSERS)}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as profile:
        done = subprocess.run(
            [
                browser,
                "--headless",
                "--no-sandbox",  # which root needs; the page is our own and loads nothing
                "--hide-scrollbars",
                "--disable-gpu",
                f"--user-data-dir={profile}",
                f"--window-size={SIZE[0]},{SIZE[1]}",
                f"--screenshot={path.absolute()}",
                page.absolute().as_uri(),
            ],
            capture_output=True,
        )
    if done.returncode or not path.is_file():
        raise StorageError(f"{path} cannot be made: {browser} ended with exit code {done.returncode}.")
