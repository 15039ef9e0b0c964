"""Explorers in a real browser: live in JupyterLab, and as frames in a page without network."""

import inspect
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager, suppress

import nbformat
import pytest

from retina_lab.widgets import bilinear, lesions
from tests.chromium import CHROMIUM, FLAGS, NEEDS_CHROMIUM
from tests.untrained import untrained

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

pytestmark = [pytest.mark.browser, pytest.mark.slow, NEEDS_CHROMIUM]


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


# ------------------------------------------------------------------------ JupyterLab

PREPARE = f"""
import numpy as np
import pandas as pd
import torch
from retina_lab import results, widgets
from retina_lab.datasets import make_phantom
from retina_lab.sampling import draw_trees, random_codes

{inspect.getsource(untrained)}

samples = [make_phantom(seed, 128) for seed in (0, 1)]
noise = np.random.default_rng(0).random(samples[0].size)
probability = (0.6 * samples[0].vessels + 0.4 * noise).astype("float32")
autoencoder, painter = untrained("aae"), untrained("pix2pix-grade", grades=("0", "3"))
codes = random_codes(autoencoder, 9)
tree = draw_trees(autoencoder, codes[:1])
painters = {{"mi-gan": untrained("mi-gan")}}
trees = draw_trees(autoencoder, codes[:4])
rows = results.scored("equal-budget")
drive = [row for row in rows if row.dataset == "drive"]
"""
LIVE = {
    "phantom": "widgets.explore_phantom(1)",
    "augmentation": "widgets.explore_augmentation(samples)",
    "bilinear": "widgets.explore_bilinear()",
    "threshold": "widgets.explore_threshold(samples[0], probability)",
    "dilation": "widgets.explore_dilation(samples[0], (30, 32))",
    "discriminator": "widgets.explore_discriminator(samples[0])",
    "noise": "widgets.explore_noise(painters, trees)",
    "interpolation": "widgets.explore_interpolation(autoencoder, codes[:2])",
    "latent-walk": "widgets.explore_latent_walk(autoencoder, codes)",
    "lesions": "widgets.explore_lesions(painter, tree)",
    "table": "widgets.explore_table(rows)",
    "common-threshold": "widgets.explore_common_threshold(drive)",
    "dropblock": "widgets.explore_dropblock({'green': samples[0].image[32:96, 32:96, 1] / 255})",
}
# This one carries HTML too, as it would in the book: Lab must prefer the live widget.
BOTH = "threshold"
AS_IN_THE_BOOK = "import os\nos.environ['RETINA_LAB_STATIC'] = '1'\n"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A JupyterLab server with settings and workspaces of its own; gives its address and token."""
    home = tmp_path_factory.mktemp("lab")
    for name, cell in LIVE.items():
        cell = AS_IN_THE_BOOK + cell if name == BOTH else cell
        notebook = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(source.strip()) for source in (PREPARE, cell)],
            metadata={
                "kernelspec": {
                    "name": "python3",
                    "display_name": "Python 3",
                    "language": "python",
                }
            },
        )
        nbformat.write(notebook, home / f"{name}.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    environment = os.environ | {
        "JUPYTER_CONFIG_DIR": str(home / ".config"),
        "JUPYTER_DATA_DIR": str(home / ".data"),
        "JUPYTER_RUNTIME_DIR": str(home / ".runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(home / ".settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / ".workspaces"),
        "IPYTHONDIR": str(home / ".ipython"),
    }
    environment.pop("RETINA_LAB_STATIC", None)
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
        f"--ServerApp.root_dir={home}",
        f"--IdentityProvider.token={token}",
        "--LabApp.news_url=",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]
    with (home / "server.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=home)
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while True:
            with suppress(OSError):
                ask(f"{address}/api", token)
                break
            if server.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"JupyterLab did not start:\n{(home / 'server.log').read_text()}")
            time.sleep(0.2)
        yield address, token
    finally:
        server.terminate()
        try:
            server.wait(15)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def ask(address, token):
    request = urllib.request.Request(address, headers={"Authorization": f"token {token}"})
    with urllib.request.urlopen(request, timeout=5) as answer:
        return json.load(answer)


def wait_for(page, condition, seconds, what):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain for {what}"
        page.wait_for_timeout(100)  # the page's own timer keeps its events flowing


@contextmanager
def running(name, lab, browser):
    """The notebook of an explorer in JupyterLab, run; gives its page and the picture in it."""
    address, token = lab
    page = browser.new_page(viewport={"width": 1300, "height": 1500})
    try:
        page.goto(f"{address}/lab/workspaces/{name}/tree/{name}.ipynb?token={token}&reset")
        page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=60_000)

        def kernel_is_ready():
            sessions = ask(f"{address}/api/sessions", token)
            kernels = [s["kernel"] for s in sessions if s["path"].endswith(f"{name}.ipynb")]
            return any(k["execution_state"] == "idle" and k["connections"] for k in kernels)

        wait_for(page, kernel_is_ready, 60, "a kernel")
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.locator('[data-command="runmenu:run-all"]').click()
        picture = page.locator(".jp-OutputArea .widget-html img")
        picture.wait_for(timeout=120_000)

        def both_cells_are_done():
            prompts = page.locator(".jp-InputPrompt").all_inner_texts()
            return sum(bool(re.fullmatch(r"\[\d+\]:", prompt)) for prompt in prompts) == 2

        wait_for(page, both_cells_are_done, 60, "the end of the cell")
        yield page, picture
        errors = page.locator('[data-mime-type="application/vnd.jupyter.error"]')
        assert not errors.count(), errors.all_inner_texts()
        if folder := os.environ.get("RETINA_LAB_SCREENSHOTS"):
            page.screenshot(path=f"{folder}/lab_{name}.png")
    finally:
        page.close()


@pytest.mark.parametrize("name", LIVE)
def test_a_control_in_jupyterlab_changes_the_picture(name, lab, browser):
    with running(name, lab, browser) as (page, picture):
        assert not page.locator(".retina-explorer").count()  # the widget, not the book's HTML

        source, alt = picture.get_attribute("src"), picture.get_attribute("alt")
        caption = page.locator('.widget-html [role="status"]')
        words = caption.inner_text()
        handles, menus = page.locator(".noUi-handle"), page.locator(".widget-dropdown select")
        if handles.count():
            handles.first.focus()
            page.keyboard.press("ArrowRight")
        else:  # the table has menus only
            menus.first.select_option(index=1)
        wait_for(page, lambda: picture.get_attribute("src") != source, 30, "another picture")
        assert picture.get_attribute("alt") != alt
        wait_for(page, lambda: caption.inner_text() != words, 5, "other words")
        assert picture.evaluate("image => image.complete && image.naturalWidth > 500")


def drag(page, picture, start, end, panel=bilinear.PANEL, side=bilinear.LAST + 1):
    """Press in an explorer's square of ``side`` pixels at a point (x, y), let go at another."""
    box = picture.bounding_box()
    left, bottom, width, height = panel

    def place(point):
        across, down = ((value + 0.5) / side for value in point)
        return (
            box["x"] + box["width"] * (left + width * across),
            box["y"] + box["height"] * (1 - bottom - height + height * down),
        )

    page.mouse.move(*place(start))
    page.mouse.down()
    page.mouse.move(*place(end), steps=8)
    page.mouse.up()


def test_the_point_can_be_dragged_in_jupyterlab(lab, browser):
    with running("bilinear", lab, browser) as (page, picture):
        caption = page.locator('.widget-html [role="status"]')
        words = "At x = 2.00, y = 2.50"
        for patience in (10, 10, 30):  # on a busy machine the page may still move under the pointer
            drag(page, picture, (0.7, 0.3), (2, 2.5))
            with suppress(AssertionError):
                wait_for(page, lambda: words in caption.inner_text(), patience, words)
                break
        assert words in picture.get_attribute("alt")
        assert page.locator(".widget-readout").all_inner_texts() == ["2.00", "2.50"]
        page.locator(".noUi-handle").first.focus()
        page.keyboard.press("ArrowRight")
        wait_for(page, lambda: "x = 2.10" in caption.inner_text(), 30, "the slider to answer")


# ----------------------------------------------------------------- the page of the book


@pytest.fixture(scope="module", params=LIVE)
def page_file(request, tmp_path_factory):
    """The explorer of the same cells as above, as the book would have it."""
    path = tmp_path_factory.mktemp("book") / f"{request.param}.html"
    names = {}
    exec(PREPARE, names)
    fragment = eval(LIVE[request.param], names).static_html()
    path.write_text(f"<!doctype html><meta charset='utf-8'><body>{fragment}", encoding="utf-8")
    return path


def test_the_static_slider_works_by_keyboard_and_asks_nobody(page_file, browser):
    context = browser.new_context(offline=True, viewport={"width": 1000, "height": 700})
    page = context.new_page()
    requests, errors = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(page_file.as_uri())
    picture, caption = page.locator("img"), page.locator("p[role=status]")
    assert picture.get_attribute("alt") == caption.inner_text()
    for control in page.locator(".controls input, .controls select").all():
        assert page.locator(f"label[for='{control.get_attribute('id')}']").is_visible()
        source, alt = picture.get_attribute("src"), picture.get_attribute("alt")
        control.focus()
        page.keyboard.press("ArrowUp" if control.evaluate("c => c.selectedIndex > 1") else "Home")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        assert picture.get_attribute("src") != source
        assert picture.get_attribute("alt") != alt
        assert caption.inner_text() == picture.get_attribute("alt")
        assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") > 500
    if page.locator("output").count():
        slider, readout = page.locator("input").first, page.locator("output").first
        assert slider.get_attribute("aria-valuetext") == readout.inner_text()
    assert [url for url in requests if not url.startswith(("data:", "file:"))] == []
    assert not errors
    if folder := os.environ.get("RETINA_LAB_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/static_{page_file.stem}.png")
    context.close()


@pytest.mark.parametrize("page_file", ["bilinear"], indirect=True)
def test_the_point_of_a_static_page_follows_mouse_and_arrows(page_file, browser):
    page = browser.new_page(viewport={"width": 1000, "height": 700})
    page.goto(page_file.as_uri())
    picture, caption = page.locator("img"), page.locator("p[role=status]")
    drag(page, picture, (0.7, 0.3), (2.05, 1.02))
    assert caption.inner_text().startswith("At x = 2.00, y = 1.00")
    assert page.locator("output").all_inner_texts() == ["2.00", "1.00"]
    page.mouse.move(10, 10)  # let go: the point stays
    assert caption.inner_text().startswith("At x = 2.00, y = 1.00")
    for key in ("ArrowLeft", "ArrowDown"):
        page.keyboard.press(key)
    assert caption.inner_text().startswith("At x = 1.70, y = 1.30")
    page.close()


@pytest.mark.parametrize("page_file", ["lesions"], indirect=True)
def test_a_lesion_of_a_static_page_goes_where_one_clicks(page_file, browser):
    page = browser.new_page(viewport={"width": 1000, "height": 700})
    page.goto(page_file.as_uri())
    picture, caption = page.locator("img"), page.locator("p[role=status]")
    drag(page, picture, (9, 9), (16.4, 21.7), lesions.PANEL, side=32)
    assert "at column 16, row 22." in caption.inner_text()
    assert page.locator("output").all_inner_texts() == ["16", "22"]
    page.close()


def test_print_and_pages_without_scripts_show_a_still(page_file, browser):
    context = browser.new_context(offline=True)
    page = context.new_page()
    page.goto(page_file.as_uri())
    assert page.locator(".controls").is_visible()
    assert not page.locator(".still").is_visible()
    page.emulate_media(media="print")
    assert not page.locator(".controls").is_visible()
    assert page.locator("img").is_visible()
    context.close()

    context = browser.new_context(offline=True, java_script_enabled=False)
    page = context.new_page()
    page.goto(page_file.as_uri())
    assert not page.locator(".controls").is_visible()
    assert page.locator("img").is_visible()
    assert page.locator(".still").is_visible()
    context.close()
