"""Reports in Chromium: the page shows what the records say, surfaces turn, and nothing is asked of a network."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from test_report import HOSTILE, valley, write_run

from sharpness import store
from sharpness.render import comparison_table
from sharpness.report import write_report
from sharpness.report.surfaces import CAMERA

webdriver = pytest.importorskip("selenium.webdriver", reason="no selenium: pip install selenium")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.wait import WebDriverWait  # noqa: E402

FLAGS = (
    "--headless", "--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--window-size=1000,650",
    "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",  # WebGL without a GPU
)  # fmt: skip
PATIENCE = 60  # seconds, on a machine that is busy
CENTRE = np.array(list(CAMERA["center"].values()))
EYE = "return arguments[0]._fullLayout.scene.camera.eye"


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Any]:
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in programs:
        pytest.skip("no browser: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(programs[1]))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """A report, and the records that it is made from."""
    folder = tmp_path_factory.mktemp("run")
    records = write_run(folder)
    return write_report(folder), records


@pytest.fixture
def page(browser, run) -> Any:
    """The browser with the report open, anew."""
    return opened(browser, run[0])


def opened(browser: Any, report: Path) -> Any:
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
    browser.get("about:blank")
    for log in ("browser", "performance"):  # of earlier pages
        browser.get_log(log)
    browser.get(report.as_uri())
    return browser


def until(browser: Any, condition: Callable[[], Any]) -> Any:
    """What the condition gives, as soon as it is true."""
    return WebDriverWait(browser, PATIENCE, poll_frequency=0.2).until(lambda _: condition())


def pixels(element: Any) -> np.ndarray:
    return matplotlib.image.imread(io.BytesIO(element.screenshot_as_png))[..., :3]


def colours(element: Any) -> int:
    return len(np.unique(pixels(element).reshape(-1, 3), axis=0))


def surfaces(browser: Any) -> list[Any]:
    """The places of the surfaces, drawn."""
    scenes = browser.find_elements(By.CLASS_NAME, "scene")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", scenes[0])
    for scene in scenes:
        until(browser, lambda scene=scene: scene.find_elements(By.TAG_NAME, "canvas") and colours(scene) > 200)
    return scenes


def eye(browser: Any, scene: Any) -> np.ndarray:
    return np.array([browser.execute_script(EYE, scene)[axis] for axis in "xyz"])


def distance(browser: Any, scene: Any) -> float:
    """From the eye to the point that it looks at, around which it turns."""
    return float(np.linalg.norm(eye(browser, scene) - CENTRE))


def drag(browser: Any, scene: Any, across: int, down: int) -> None:
    hand = webdriver.ActionChains(browser, duration=100).move_to_element(scene).click_and_hold()
    hand.move_by_offset(across // 2, down // 2).move_by_offset(
        across - across // 2, down - down // 2
    ).release().perform()


def style(browser: Any, selector: str, name: str) -> str:
    script = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
    return browser.execute_script(script, selector, name)


def rows(table: Any) -> list[list[str]]:
    script = "return [...arguments[0].rows].map(row => [...row.cells].map(cell => cell.textContent))"
    return table.parent.execute_script(script, table)


# Numbers


def test_tables_show_the_numbers_of_the_records(page, run):
    records = run[1]
    tables = {
        figure.find_element(By.TAG_NAME, "figcaption").get_property("textContent"): rows(
            figure.find_element(By.TAG_NAME, "table")
        )
        for figure in page.find_elements(By.CSS_SELECTOR, "figure.table")
    }
    compared = comparison_table(records["comparison.h5"])
    shown = tables[compared.title]
    assert [row[1:] for row in shown[1:] if len(row) > 1] == [row[1:] for row in compared.texts]
    by_minimizer = {
        row[0]: row for row in tables["every ε-sharpness, each a lower bound; spread over the starts of L-BFGS-B"]
    }
    for regime in ("SB", "LB"):
        record = records[f"seed-0/{regime}/sharpness.h5"]
        numbers = [record.sharpness, record.stronger, record.first_order, record.spread, record.gradient_norm]
        assert by_minimizer[f"seed-0/{regime}"][4:9] == [f"{number:.4g}" for number in numbers]


def test_a_record_unfolds_by_keyboard(page, run):
    folded = page.find_element(By.CSS_SELECTOR, "#records-seed-0-history details")
    assert not folded.find_element(By.TAG_NAME, "table").is_displayed()
    folded.find_element(By.TAG_NAME, "summary").send_keys(Keys.ENTER)
    table = folded.find_element(By.TAG_NAME, "table")
    assert table.is_displayed()
    history = run[1]["seed-0/SB/history.h5"]
    assert [row[1] for row in rows(table)[1:]] == [f"{loss:.4g}" for loss in history.loss[0]]


def test_contents_lead_to_every_section(page):
    for link in page.find_elements(By.CSS_SELECTOR, "nav a"):
        link.click()
        (section,) = page.find_elements(By.CSS_SELECTOR, ":target")
        assert section.find_element(By.TAG_NAME, "h2").text == link.text


# Surfaces


def test_surfaces_show_the_losses_and_holes(page, run):
    script = "return arguments[0]._fullData[0].z.map(row => [...row].map(z => Number.isFinite(z) ? z : null))"
    scenes = surfaces(page)
    seen = np.array(page.execute_script(script, scenes[0]), dtype=float)
    np.testing.assert_array_equal(seen, run[1]["seed-0/SB/plane.h5"].loss[0].T)
    assert np.isnan(seen).sum() == 2


def test_a_dragged_surface_turns_and_the_other_with_it(page):
    first, second = surfaces(page)
    before, looked = eye(page, first), pixels(second)
    drag(page, first, 160, 40)
    until(page, lambda: np.abs(eye(page, first) - before).max() > 0.2)
    until(page, lambda: np.allclose(eye(page, first), eye(page, second)))
    until(page, lambda: np.abs(pixels(second) - looked).max(axis=2).mean() > 0.01)
    assert distance(page, first) == pytest.approx(np.linalg.norm(before - CENTRE), rel=1e-3)


def test_keys_turn_it_bring_it_nearer_and_back(page):
    scene, _ = surfaces(page)
    start = eye(page, scene)
    far = distance(page, scene)
    scene.send_keys(Keys.ARROW_RIGHT)
    until(page, lambda: eye(page, scene)[0] > start[0] + 0.1)
    assert distance(page, scene) == pytest.approx(far)
    assert eye(page, scene)[2] == pytest.approx(start[2])
    scene.send_keys(Keys.ARROW_UP)
    until(page, lambda: eye(page, scene)[2] > start[2] + 0.1)
    assert distance(page, scene) == pytest.approx(far)
    scene.send_keys("+")
    until(page, lambda: distance(page, scene) < 0.9 * far)
    scene.send_keys("0")
    until(page, lambda: np.allclose(eye(page, scene), start))


def test_pointing_at_it_says_the_numbers(page, run):
    record = run[1]["seed-0/SB/plane.h5"]
    scene, _ = surfaces(page)

    def told() -> str | None:
        for across in range(-120, 121, 30):
            hand = webdriver.ActionChains(page, duration=100).move_to_element_with_offset(scene, across, 20)
            hand.move_by_offset(2, 1).pause(0.3).perform()
            for label in page.find_elements(By.CLASS_NAME, "hovertext"):
                if "accuracy" in label.text:
                    return label.text
        return None

    found = re.findall(r"[\d.−-]+", until(page, told).replace("−", "-"))
    alpha, beta, loss, accuracy = map(float, found)
    row, column = np.abs(record.alpha - alpha).argmin(), np.abs(record.beta - beta).argmin()
    assert record.alpha[row] == pytest.approx(alpha, rel=1e-3)
    assert loss == pytest.approx(record.loss[0, row, column], rel=1e-3)
    assert accuracy == pytest.approx(100 * record.accuracy[0, row, column], rel=1e-3)


def test_data_set_and_scale_can_be_chosen(page):
    scene, _ = surfaces(page)
    state = "const l = arguments[0]._fullLayout.scene, d = arguments[0]._fullData; "
    state += "return [d.find(t => t.visible === true).meta.split, l.zaxis.type]"
    assert page.execute_script(state, scene) == ["train", "log"]  # it spans more than two decades
    page.find_element(By.CSS_SELECTOR, "input[value=test]").click()
    until(page, lambda: page.execute_script(state, scene) == ["test", "log"])
    chosen = page.find_element(By.CSS_SELECTOR, "input[value=log]")
    chosen.send_keys(Keys.ARROW_RIGHT)
    until(page, lambda: page.execute_script(state, scene) == ["test", "linear"])


def test_out_of_sight_it_is_given_up_and_in_sight_it_is_as_it_was(page):
    scene, _ = surfaces(page)
    drag(page, scene, 100, 0)
    turned = eye(page, scene)
    page.execute_script("document.documentElement.style.paddingBottom = '9000px'; scrollTo(0, 1e6)")
    until(page, lambda: not scene.find_elements(By.TAG_NAME, "canvas"))
    scene, _ = surfaces(page)
    assert eye(page, scene) == pytest.approx(turned)


# Alone, and in every light


def test_it_asks_no_network_for_anything_and_has_nothing_to_complain_of(page, run):
    scene, _ = surfaces(page)
    drag(page, scene, 50, 10)
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    asked = {event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"}
    assert run[0].as_uri() in asked  # so requests are seen
    assert {url for url in asked if not url.startswith(("data:", "blob:"))} == {run[0].as_uri()}
    assert page.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_the_browser_would_refuse_to_ask(page):
    script = """const done = arguments[0];
    document.addEventListener("securitypolicyviolation", event => done(event.effectiveDirective));
    fetch("http://127.0.0.1:9/").catch(() => {});"""
    assert page.execute_async_script(script) == "connect-src"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_in_the_light_and_in_the_dark(page, scheme):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    paper, ink = (luminance(style(page, "body", name)) for name in ("backgroundColor", "color"))
    assert (paper > ink) == (scheme == "light")
    for selector in ("body", ".about", "nav a", ".numbers td", ".settings th", "code"):
        lighter, darker = sorted((luminance(style(page, selector, "color")), paper), reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) > 4.5, selector  # WCAG 2, level AA
    scene, _ = surfaces(page)
    axes = "return arguments[0]._fullLayout.scene.xaxis.color"
    until(page, lambda: (luminance(page.execute_script(axes, scene)) < 0.5) == (scheme == "light"))


def luminance(colour: str) -> float:
    """Relative luminance of ``rgb(…)`` or ``#rrggbb``, as WCAG defines it."""
    found = (
        re.findall(r"[\d.]+", colour)[:3] if "(" in colour else [int(part, 16) for part in re.findall("..", colour[1:])]
    )
    parts = np.array([float(part) / 255 for part in found])
    return float(np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])


def test_on_paper_and_without_javascript_surfaces_stand_still(page, run):
    assert style(page, ".still", "display") == "none"
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert style(page, ".surfaces", "display") == "none"
    assert style(page, ".still", "display") == "block"
    page.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        opened(page, run[0])
        still = page.find_element(By.CLASS_NAME, "still")
        page.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
        assert still.is_displayed()
        assert still.find_element(By.TAG_NAME, "svg").size["height"] > 100
    finally:
        page.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_a_narrow_screen_need_not_be_scrolled_sideways(page):
    sizes = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": False}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", sizes)
    try:
        page.execute_script("document.querySelectorAll('details').forEach(folded => { folded.open = true; })")
        width = page.execute_script("return document.documentElement.scrollWidth")
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert width <= 360


def test_hostile_names_do_nothing(browser, tmp_path):
    store.save(valley(mark=np.array([HOSTILE, "<img src=x onerror=hostile=1>"])), tmp_path / HOSTILE / "plane.h5")
    (tmp_path / "run.json").write_text(json.dumps({"recipe": HOSTILE, HOSTILE: {"</table>": "</script>"}}))
    page = opened(browser, write_report(tmp_path))
    assert len(surfaces(page)) == 1
    assert page.execute_script("return typeof hostile") == "undefined"
    assert HOSTILE in page.find_element(By.CLASS_NAME, "facts").text
    assert [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"] == []
