"""The page in a real browser, headless Chromium: what a visitor sees, does, and gets.

Without Chromium these tests are skipped, which is a failure in CI.
"""

import io
import re
import shutil
import tempfile
import threading
import zipfile
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from PIL import Image
from tiny_checkpoint import NAMES

from mask2former.predictor import Predictor
from mask2former.web.server import listen, page_server
from mask2former.web.session import without_classes
from mask2former.web.visits import Visits

pytest.importorskip("gradio")
playwright = pytest.importorskip("playwright.sync_api")

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
HOSTILE = "${window.taken=1}<img src=x onerror=window.taken=1>"  # in place of "sand"
SIZE = (150, 200)
MEGABYTES = 1
PATIENCE = 30_000  # milliseconds
PANOPTIC = "figure[data-task=panoptic] img"
FITS = "document.documentElement.scrollWidth <= innerWidth"  # nothing has to be scrolled sideways


def random_image(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


class Site:
    """A served page: its model, address, folder of uploads, and the number of runs of the network."""

    def __init__(self, checkpoint, visits, address):
        self.checkpoint, self.visits, self.address = checkpoint, visits, address
        self.predictor = predictor = visits.predictor
        self.runs = 0
        network = predictor.model.network

        def counted(*args):
            self.runs += 1
            return network(*args)

        predictor.model.network = counted

    def uploads(self):
        return [path for path in Path(self.folder).rglob("upload*") if path.is_file()]


@pytest.fixture(scope="module")
def site(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    predictor = Predictor(checkpoint)
    predictor.class_names = [*NAMES[:3], HOSTILE]
    Image.fromarray(random_image()).save(folder / "example.png")
    visits = Visits(predictor, [folder / "example.png"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(folder))
        with listen("127.0.0.1", 0) as listener, page_server(visits, "tiny", megabytes=MEGABYTES) as server:
            site = Site(checkpoint, visits, f"http://127.0.0.1:{listener.getsockname()[1]}")
            (site.folder,) = folder.glob("mask2former-web-*")
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
            thread.start()
            yield site
            server.should_exit = True
            thread.join()
        assert not list(folder.glob("mask2former-web-*"))


@pytest.fixture(scope="module")
def context():
    if not CHROMIUM:
        pytest.skip("no Chromium")
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser.new_context(viewport={"width": 1280, "height": 900})
        browser.close()


@pytest.fixture
def page(site, context):
    """A page that shows the example."""
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.requests, page.errors = [], []
    page.on("request", lambda request: page.requests.append(request.url))
    page.on("pageerror", lambda error: page.errors.append(error))
    page.goto(site.address)
    page.wait_for_selector("figure[data-task=semantic] img")
    yield page
    assert not page.errors
    page.close()


def session_of(site):
    """The session of the one open page."""
    (session,) = site.visits.sessions._sessions.values()
    return session


def upload(page, content, name="upload.png"):
    """Drop a file, and wait until the page says something else."""
    before = page.inner_text(".message")
    page.set_input_files("input[type=file]", {"name": name, "mimeType": "image/png", "buffer": content})
    page.wait_for_function("text => document.querySelector('.message').innerText !== text", arg=before)


def png(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def downloaded(page, task, words):
    with page.expect_download() as waiting:
        page.locator(f"figure[data-task={task}] .file", has_text=words).click()
    return waiting.value.suggested_filename, waiting.value.path().read_bytes()


def test_an_example_is_shown_at_once_and_nothing_is_asked_of_others(site, page):
    assert page.locator(".message").inner_text().startswith("example.png, 200 × 150 pixels")
    figures = page.locator("figure").all()
    tasks = [figure.get_attribute("data-task") for figure in figures]
    assert tasks == ["original", "panoptic", "instance", "semantic"]
    hosts = {urlsplit(url).netloc for url in page.requests if url.startswith("http")}
    assert hosts == {urlsplit(site.address).netloc}
    assert len({round(figure.bounding_box()["y"]) for figure in figures}) == 1  # side by side
    assert page.evaluate(FITS)
    assert HOSTILE in page.locator(".legend .entry").all_inner_texts()  # a name is text, no code
    assert page.evaluate("window.taken") is None


def test_upload_toggle_slide_and_download(site, page):
    image = random_image(1)
    upload(page, png(image))
    assert page.locator(".message").inner_text().startswith("upload.png, 200 × 150 pixels")
    assert not site.uploads()
    result, runs = site.predictor(image), site.runs
    before = page.locator(PANOPTIC).get_attribute("src")
    circle = page.locator(".legend .entry", has_text="circle")
    circle.click()
    page.wait_for_function(f"url => document.querySelector('{PANOPTIC}').src !== url", arg=before)
    assert circle.get_attribute("aria-pressed") == "false"
    name, content = downloaded(page, "panoptic", "Overlay")
    assert name == "upload_panoptic.png"
    expected = without_classes(result, {0}).draw("panoptic", scale=2)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content))), expected)
    circle.click()

    note = "[data-task=instance] .note"
    assert page.locator(note).inner_text() == f"{result.count('instance')} instances"
    page.get_by_label("Instances: duplicates").locator("visible=true").first.fill("1")
    every = Predictor(site.checkpoint, duplicate_iou=1)(image).count("instance")
    assert every > result.count("instance")
    is_renewed = f"text => document.querySelector('{note}').innerText === text"
    page.wait_for_function(is_renewed, arg=f"{every} instances")
    assert site.runs == runs  # the network did not run again
    name, content = downloaded(page, "panoptic", "PNG and JSON")
    assert zipfile.ZipFile(io.BytesIO(content)).namelist() == ["upload.png", "upload.json"]


def test_hovering_names_the_region(site, page):
    ids, segments = session_of(site).shown.panoptic
    box = page.locator(PANOPTIC).bounding_box()
    names = {segment["id"]: site.predictor.class_names[segment["category_id"]] for segment in segments}
    tip = page.locator("figure[data-task=panoptic] .tip")
    for row, column in ((20, 30), (75, 100), (130, 180)):
        x, y = (column + 0.5) * box["width"] / SIZE[1], (row + 0.5) * box["height"] / SIZE[0]
        page.mouse.move(box["x"] + x, box["y"] + y)
        name = names.get(int(ids[row, column]))
        assert tip.is_visible() == bool(name)
        assert not name or re.match(rf"{re.escape(name)} \d+% · ", tip.inner_text())
    page.mouse.move(0, 0)
    assert tip.is_hidden()


def test_uploads_that_are_broken_or_too_large_are_one_line_and_leave_no_file(site, page):
    upload(page, b"\x89PNG broken", "upload-broken.png")
    message = page.locator(".message.error").inner_text()
    assert message == "upload-broken.png: is not an image that Pillow can read"
    assert page.locator(PANOPTIC).is_visible() and not site.uploads()
    runs = site.runs
    file = {"name": "upload.png", "mimeType": "image/png", "buffer": bytes(MEGABYTES * 1024 * 1024 + 1)}
    page.set_input_files("input[type=file]", file)
    page.get_by_text(re.compile("exceed", re.IGNORECASE)).first.wait_for()
    assert site.runs == runs and not site.uploads()


def test_visitors_cannot_have_other_files_opened(site, tmp_path):
    (tmp_path / "secret.png").write_bytes(png(random_image()))
    api = f"{site.address}/gradio_api"
    secret = {"path": str(tmp_path / "secret.png"), "meta": {"_type": "gradio.FileData"}}
    runs = site.runs
    for number, event in enumerate(httpx.get(f"{site.address}/config").json()["dependencies"]):
        data = {"data": [secret] * len(event["inputs"]), "fn_index": event["id"], "session_hash": str(number)}
        httpx.post(f"{api}/queue/join", json=data)
        httpx.get(f"{api}/queue/data", params={"session_hash": str(number)})  # until it is answered
    assert site.runs == runs
    assert not list(Path(site.folder).rglob("secret*"))
    for path in (tmp_path / "secret.png", Path(__file__), site.checkpoint):
        assert httpx.get(f"{api}/file={path}").status_code == 403


def test_a_page_that_is_closed_is_forgotten(site, context):
    page = context.new_page()
    page.goto(site.address)
    page.wait_for_selector("figure img")
    assert len(site.visits.sessions)
    page.close()
    for _ in range(100):
        if not len(site.visits.sessions):
            break
        threading.Event().wait(0.1)
    assert not len(site.visits.sessions)


def test_on_a_phone_the_page_is_one_column_and_a_tap_names_the_region(site, context):
    phone = context.browser.new_context(
        viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True
    )
    page = phone.new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(site.address)
    page.wait_for_selector("figure[data-task=semantic] img")
    assert page.evaluate(FITS)
    boxes = [figure.bounding_box() for figure in page.locator("figure").all()]
    assert len({round(box["x"]) for box in boxes}) == 1
    assert all(box["width"] > 300 for box in boxes)
    view = page.locator("figure[data-task=semantic] img")
    view.tap()
    tip = page.locator("figure[data-task=semantic] .tip")
    tip.wait_for()
    assert tip.inner_text().startswith((*site.predictor.class_names,))
    assert page.evaluate(FITS)
    phone.close()
