"""The studio in Chromium."""

import json
import os
import signal
import struct
import time

import pytest
from PIL import Image
from workspace_files import free_port

from impasto.evaluation import votes
from impasto.sampling.png import save_png
from impasto.studio.queue import DONE, RUNNING, STOPPED

PageTimeout = pytest.importorskip("playwright.sync_api").TimeoutError
pytestmark = pytest.mark.browser
WAIT = 60_000  # milliseconds
TABS = ("Train", "Styles", "Generate", "Select", "Concepts", "Noise", "Compare", "Vote")


@pytest.fixture(scope="module")
def page(browser, studio):
    """The page of the shared studio, one for all tests that do not need their own."""
    opened = new_page(browser, studio[1])
    yield opened
    opened.close()


def new_page(browser, address, **options):
    opened = browser.new_page(**{"viewport": {"width": 1280, "height": 900}} | options)
    opened.set_default_timeout(WAIT)
    opened.goto(address)
    opened.wait_for_selector("#drop")
    return opened


def find_job(studio, command):
    """The job of a command, once it is in the queue."""
    return wait_until(lambda: next((job for job in studio[0].queue.jobs() if job.args[0] == command), None))


def open_tab(page, name):
    button, menu = page.get_by_role("tab", name=name, exact=True), page.locator(".overflow-menu > button")
    for _ in range(WAIT // 250):  # where the tabs are is decided after the page is drawn
        if button.is_visible():
            return button.click()
        if menu.is_visible():  # the tab is behind the three dots
            menu.click()
            return page.locator(".overflow-dropdown button", has_text=name).click()
        page.wait_for_timeout(250)
    raise AssertionError(f"no tab {name}")


def choose(page, field, option):
    """Choose from a list whose options may still be on their way."""
    box, found = page.locator(f"{field} input"), page.get_by_role("option", name=option)

    def is_open():
        box.click()
        try:
            found.first.wait_for(timeout=1000)
        except PageTimeout:
            box.blur()  # it opens again when it is clicked again
            return False
        return True

    wait_until(is_open)
    found.first.click()


def wait_until(what, seconds=240):
    ends = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < ends, "waited too long"
        time.sleep(0.1)
    return found


def test_train_survives_a_restart_stops_resumes_and_shows_previews(browser, tmp_path, picture):
    """A run of mini-sd3: begun in one studio, stopped and resumed in another on the same workspace, to the end. Its
    process is suspended while the studio restarts, so that a few steps are enough."""
    from impasto.studio.app import running

    folder = tmp_path / "w" / "styles" / "pixel"
    with running(tmp_path / "w", port=free_port()) as (first, address):
        page = new_page(browser, address)
        page.set_input_files("#drop input[type=file]", picture)
        page.fill(".caption textarea", "rocket in pixel art style")
        page.fill("#name textarea", "pixel")
        page.fill("#set-optim-steps input", "6")
        page.fill("#set-log-preview-every input", "0")
        page.get_by_text("More settings").click()
        page.fill("#set-log-preview-prompt textarea", "cat in pixel art style")
        page.click("#start")
        page.wait_for_selector("#jobs .running")
        page.close()
        wait_until(lambda: (folder / "metrics.jsonl").is_file() and "\n" in (folder / "metrics.jsonl").read_text())
        [job] = first.queue.jobs()
        os.kill(job.pid, signal.SIGSTOP)
    with running(tmp_path / "w", port=free_port()) as (again, address):
        [job] = again.queue.jobs()
        assert job.state == RUNNING and again.worker.is_alive(job)
        page = new_page(browser, address)
        page.wait_for_selector("#jobs progress")
        page.click("#stop")
        wait_until(lambda: again.queue.job(job.id).stopping)
        os.kill(job.pid, signal.SIGCONT)
        page.wait_for_selector("#jobs .stopped", timeout=240_000)
        assert again.queue.job(job.id).state == STOPPED
        page.click("#resume")
        result = wait_until(lambda: (now := again.queue.job(job.id)).state == DONE and now.result)
        assert 0 < result["resumed_from"] < result["steps"] == 6
        page.wait_for_selector("#details .thumbs img")
        page.wait_for_selector("#details svg")
        open_tab(page, "Styles")
        page.locator("#about-style h3").first.wait_for()
        page.click("#export")
        page.locator("#exported a").first.wait_for()
        page.close()
    assert (tmp_path / "w/exports/pixel-comfyui.safetensors").stat().st_size > 100_000
    rows = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rows == list(range(1, 7))


def test_start_without_a_reference_says_what_to_do(page):
    page.click("#start")
    page.get_by_text("no reference image: drop one first").wait_for()


def test_train_keeps_what_was_written_when_base_recipe_or_images_change(browser, studio, picture, tmp_path):
    Image.new("RGB", (64, 64), "olive").save(tmp_path / "olive.png")
    page = new_page(browser, studio[1])
    page.set_input_files("#drop input[type=file]", picture)
    page.fill(".caption textarea", "rocket in pixel art style")
    page.fill("#name textarea", "kept")
    page.fill("#set-optim-steps input", "77")
    page.wait_for_timeout(1000)  # a person takes longer
    choose(page, "#base", "mini-sd15")
    wait_until(lambda: page.input_value("#set-optim-lr input") == "0.0005", 60)
    assert page.input_value("#set-optim-steps input") == "77"
    choose(page, "#recipe", "instastyle-paper")
    wait_until(lambda: page.input_value("#set-optim-lr input") == "0.00001", 60)
    page.set_input_files("#drop input[type=file]", tmp_path / "olive.png")
    page.locator(".caption textarea").nth(1).wait_for()
    captions = [page.locator(".caption textarea").nth(i).input_value() for i in (0, 1)]
    assert captions[0] == "rocket in pixel art style" and captions[1].endswith("in ... style")
    assert page.input_value("#name textarea") == "kept"
    page.close()


def test_run_shows_loss_and_the_curve_of_its_scores(page, studio):
    studio[0].queue.add(["train"], "styles/ink", "ink")
    page.locator("#details .curves svg").nth(1).wait_for()
    assert "step 4 was chosen" in page.inner_text("#details .curves")


def test_upload_hostile_files_are_named_and_leave_nothing(page, studio, tmp_path):
    (tmp_path / "script.png").write_text("#!/bin/sh")
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + struct.pack(">II", 99_999, 99_999) + bytes(9)
    (tmp_path / "bomb.png").write_bytes(bomb)
    before = set((studio[0].workspace.root / "references").iterdir())
    page.set_input_files("#drop input[type=file]", [tmp_path / "script.png", tmp_path / "bomb.png"])
    page.get_by_text("'script.png' is not a picture").wait_for()
    page.get_by_text("'bomb.png' is not a picture").wait_for()
    assert page.locator(".caption").count() == 0
    assert set((studio[0].workspace.root / "references").iterdir()) == before
    assert str(studio[0].workspace.root) not in page.locator(".toast-body").first.inner_text()


def test_styles_shows_scores_advised_strength_and_curve(page):
    open_tab(page, "Styles")
    page.locator("#about-style svg").wait_for()
    text = page.inner_text("#about-style")
    assert "strength 0.7, style guidance 2 (advised: style 0.700, text 0.300)" in text
    assert "style accuracy\t75 %" in text and "CLIP-T\t.234" in text and "DINO" not in text


def test_compare_opens_an_earlier_page_without_scripts(page):
    open_tab(page, "Compare")
    page.frame_locator("iframe.page").get_by_text("2 methods on 1 reference").wait_for()
    assert page.get_attribute("iframe.page", "sandbox") == ""


def test_noise_measures_within_the_given_minutes(page, studio):
    open_tab(page, "Noise")
    page.locator("#noise-plot svg").wait_for()
    page.fill("#minutes input", "2")
    page.click("#measure")
    assert find_job(studio, "noise").args[3:5] == ("--size=quick", "--minutes=2")


def test_select_too_few_is_refused_and_five_queue_the_command(page, studio):
    open_tab(page, "Select")
    boxes = page.locator("#numbers input[type=checkbox]")
    boxes.nth(14).wait_for()
    page.locator("#candidates button img").nth(2).click()  # by the image
    page.locator("#numbers input:checked").wait_for()
    page.click("#go-on")
    page.get_by_text("1 candidates selected, and the run asks for 5").wait_for()
    for i in (0, 4, 6, 14):  # and by the list
        boxes.nth(i).check()
    page.click("#go-on")
    assert find_job(studio, "select").args == ("select", "styles/ink", "1", "3", "5", "7", "15")


def test_generate_shows_images_beside_the_base_and_a_png_fills_the_form(page, studio):
    open_tab(page, "Generate")
    page.fill("#prompt textarea", "a cactus in ink style")
    choose(page, "#style-1", "styles/ink")
    page.fill("#count input", "2")
    page.fill("#image-seed input", "41")
    page.click("#generate")
    page.locator("#images img").nth(1).wait_for()
    page.locator("#plain img").nth(1).wait_for()
    page.fill("#number-steps textarea", "4")
    page.click("#strength-sheet")
    sheet = find_job(studio, "sheet").args
    assert sheet[1:-1] == ("styles/ink", "--prompt=a cactus in ink style", "--strength", "0.25", "0.5", "0.75", "1.0",
                           "--seed=41", "--steps=4")  # fmt: skip
    page.click("#mix-sheet")
    mix = wait_until(lambda: next((job.args for job in studio[0].queue.jobs() if "--grid" in job.args), None))
    assert {"--base=mini-sd3", "--style=styles/ink:1", "--seed=41", "--steps=4"} < set(mix)
    file = next((studio[0].workspace.root / "images").glob("*/0001.png"))
    page.fill("#prompt textarea", "")
    page.set_input_files("#png input[type=file]", file)
    wait_until(lambda: page.input_value("#prompt textarea") == "a cactus in ink style", 60)
    assert page.input_value("#image-seed input") == "42" and page.input_value("#number-steps textarea") == "7"
    assert page.input_value("#style-1 input") == "styles/ink"


def test_concepts_edited_box_is_saved(page, studio):
    open_tab(page, "Concepts")
    page.locator("#overlay img").wait_for()
    cell = page.locator("#boxes [data-testid='cell-0-4']")
    file = studio[0].workspace.root / "concepts/sun/concepts.json"

    def edit_and_save():
        cell.dblclick()  # on a busy machine the table may still be drawn anew, which closes the editor
        page.keyboard.press("Control+a")
        page.keyboard.type("44")
        page.keyboard.press("Enter")
        page.wait_for_timeout(500)
        if cell.get_by_text("44", exact=True).is_visible():
            page.click("#save-concepts")
            page.wait_for_timeout(2000)
        return json.loads(file.read_text())["concepts"][0]["box"] != [0, 0, 40, 40]

    wait_until(edit_and_save, 60)
    assert json.loads(file.read_text())["concepts"][0]["box"] == [0, 0, 44, 40]


def test_vote_two_raters_at_once_by_keys(browser, studio, tmp_path):
    folders = {"a": tmp_path / "a", "b": tmp_path / "b"}
    for name, folder in folders.items():
        info = {"prompt": "thing", "seed": 0, "steps": 1, "guidance": 1.0, "width": 64, "height": 64}
        info |= {"base": "x", "base_hash": "0" * 64, "version": "0", "styles": [], "negative_prompt": ""}
        folder.mkdir(exist_ok=True)
        save_png(Image.new("RGB", (64, 64), "navy" if name == "a" else "red"), info, folder / "0000.png")
    root = studio[0].workspace.root
    votes.create_votes(root / "votes/set", folders, root / "references/sun.png")
    pages = {}
    for rater in ("Ada", "Ben"):
        page = pages[rater] = new_page(browser, studio[1])
        open_tab(page, "Vote")
        choose(page, "#vote-set", "votes/set")
        page.fill("#rater textarea", rater)
        page.click("#begin")
        page.locator("#pair img").nth(1).wait_for()
        page.locator("#pair h3").click()  # out of the fields
    for i in range(2):
        for rater, key in (("Ada", "1"), ("Ben", " ")):
            pages[rater].get_by_text(f"{i} of 2 answered").wait_for()
            pages[rater].keyboard.press(key)
    for page in pages.values():
        page.get_by_text("All 2 questions are answered").wait_for()
        page.close()
    rows = list(votes.export_rows(root / "votes/set"))
    assert len(rows) == 4 and {row["rater"] for row in rows if row["winner"] == "tie"} == {"Ben"}
    assert all(row["winner"] == row["left"] for row in rows if row["rater"] == "Ada")


def test_narrow_window_nothing_sticks_out_or_is_fetched_elsewhere(browser, studio):
    page = browser.new_page(viewport={"width": 400, "height": 800})
    page.set_default_timeout(WAIT)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(studio[1])
    page.wait_for_selector("#drop")
    for name in TABS:
        open_tab(page, name)
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth") <= 400, name
    assert paper(page) == "#faf8f4"
    assert all(url.startswith((studio[1], "data:", "blob:")) for url in asked), asked
    page.emulate_media(color_scheme="dark")
    page.reload()
    page.wait_for_selector("#drop")
    assert paper(page) == "#171613" and page.evaluate("document.documentElement.scrollWidth") <= 400
    page.close()


def paper(page):
    return page.evaluate("getComputedStyle(document.body).getPropertyValue('--paper')").strip()
