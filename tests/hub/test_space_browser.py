"""The Space's page in a real browser; `make test-space` installs what that takes."""

import io
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.client import IncompleteRead
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, UnidentifiedImageError

from examples.space.studio import enlarge, shrink
from transformers_mage import MagePipeline

from .conftest import CARDS

pytest.importorskip("gradio", reason="the page needs gradio, see `make test-space`")
pytest.importorskip("selenium", reason="driving a browser needs selenium, see `make test-space`")
BROWSER, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
if not BROWSER or not DRIVER:
    pytest.skip("needs Debian's packages chromium and chromium-driver", allow_module_level=True)

from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

MODEL = CARDS / "mage-fashion-conditional"
APP = Path(__file__).parents[2] / "examples" / "space" / "app.py"
SIDE = 28
SECONDS = 180


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the app runs, as a visitor's command starts it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("space") / "log.txt"
    command = [sys.executable, str(APP), "--model", str(MODEL), "--port", str(port)]
    with log.open("w") as out, subprocess.Popen(command, stdout=out, stderr=out) as app:
        try:
            wait_for(lambda: app.poll() is not None or "Running on" in log.read_text(), "the app to start")
            assert app.poll() is None, log.read_text()
            yield f"http://127.0.0.1:{port}/"
        finally:
            app.terminate()


@pytest.fixture(scope="module")
def chrome(address: str) -> Iterator[webdriver.Chrome]:
    os.environ["SE_OFFLINE"] = "true"
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    flags = (
        "headless=new",
        "no-sandbox",
        "disable-dev-shm-usage",
        "window-size=1280,1280",
        "enable-unsafe-swiftshader",
    )
    for flag in flags:
        options.add_argument(f"--{flag}")
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        chrome.get(address)
        find(chrome, "#generate")
        yield chrome
    finally:
        chrome.quit()


def wait_for(condition: Callable[[], object], what: str):
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, f"Waited in vain for {what}."
        time.sleep(0.2)


def find(chrome: webdriver.Chrome, selector: str):
    return WebDriverWait(chrome, SECONDS).until(lambda page: page.find_element(By.CSS_SELECTOR, selector))


def picture(chrome: webdriver.Chrome, selector: str) -> np.ndarray | None:
    """The pixels that are shown, which are others from one step to the next; None where they are not there yet."""
    shown = chrome.find_elements(By.CSS_SELECTOR, f"{selector} img")
    if not shown:
        return None
    try:
        with urllib.request.urlopen(shown[0].get_attribute("src")) as answer:
            file = io.BytesIO(answer.read())
        return np.asarray(Image.open(file).convert("RGB"))
    except (IncompleteRead, UnidentifiedImageError):
        return None


def open_tab(chrome: webdriver.Chrome, name: str):
    tabs = chrome.find_elements(By.CSS_SELECTOR, "button[role=tab]")
    next(tab for tab in tabs if tab.text == name).click()


def test_generate(chrome: webdriver.Chrome, record_testsuite_property):
    pipe = MagePipeline.from_pretrained(MODEL)
    pipe.set_progress_bar_config(disable=True)
    expected = np.asarray(enlarge(pipe("t-shirt", generator=torch.Generator().manual_seed(7)).images[0]))
    seed = find(chrome, "#generate-seed input")
    seed.send_keys(Keys.CONTROL, "a")
    seed.send_keys("7", Keys.TAB)

    start = time.perf_counter()
    find(chrome, "#generate").click()
    wait_for(lambda: picture(chrome, "#generated") is not None, "the first picture")
    record_testsuite_property("seconds_to_first_picture", time.perf_counter() - start)
    wait_for(lambda: np.array_equal(picture(chrome, "#generated"), expected), "the pipeline's own image")
    record_testsuite_property("seconds_to_image", time.perf_counter() - start)


def test_painting(chrome: webdriver.Chrome):
    """What is painted over is made anew, and everything else is kept to the pixel."""
    open_tab(chrome, "Edit")
    canvas = find(chrome, "#editor canvas")
    wait_for(lambda: canvas.size["width"] > 0, "the editor")
    button = find(chrome, "#edit")
    button.click()
    wait_for(lambda: "Paint over" in chrome.page_source, "a toast")
    time.sleep(1)

    right = canvas.size["width"] // 12
    stroke = ActionChains(chrome).move_to_element_with_offset(canvas, right, -40).click_and_hold()
    for _ in range(8):
        stroke = stroke.move_by_offset(4, 10)
    stroke.release().perform()
    time.sleep(1)
    button.click()

    example = Image.open(MODEL / "pictures" / "sample-0.png").convert("RGB")
    original = np.asarray(enlarge(shrink(example, SIDE)))
    wait_for(lambda: picture(chrome, "#edited") is not None, "the edited picture")

    def shows_what_is_kept() -> bool:
        shown = picture(chrome, "#edited")
        return shown is not None and np.array_equal(shown[:, :96], original[:, :96])

    wait_for(shows_what_is_kept, "what is kept")
    edited = picture(chrome, "#edited")
    assert edited.shape == original.shape
    assert (edited != original).any()
    if "MAGE_SCREENSHOT" in os.environ:
        chrome.execute_script("document.querySelectorAll('.toast-wrap').forEach(toast => toast.remove())")
        chrome.save_screenshot(os.environ["MAGE_SCREENSHOT"])


def test_looking(chrome: webdriver.Chrome):
    open_tab(chrome, "What does it see?")
    wait_for(lambda: visible(chrome, ".gallery-item"), "the examples")
    visible(chrome, ".gallery-item")[2].click()
    wait_for(lambda: picture(chrome, "#looked-at") is not None, "the chosen example")
    find(chrome, "#look").click()

    wait_for(lambda: len(chrome.find_elements(By.CSS_SELECTOR, "#nearest img")) == 4, "its neighbours")
    assert "1.00" in chrome.find_element(By.CSS_SELECTOR, "#nearest").text


def visible(chrome: webdriver.Chrome, selector: str) -> list:
    return [element for element in chrome.find_elements(By.CSS_SELECTOR, selector) if element.is_displayed()]
