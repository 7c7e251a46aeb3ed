"""The gallery in a real Chromium: what a person sees, does and hears, and what cannot happen."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llava_ollama.batch.thumbnails import Thumbnails
from llava_ollama.gallery import build
from tests import chromium
from tests.chromium import Chromium
from tests.galleries import HOSTS, endless, gallery, jpeg, many, picture, row

TILES = "document.querySelectorAll('.tile').length"
NAMES = "[...document.querySelectorAll('.tile')].sort((a, b) => a.ariaPosInSet - b.ariaPosInSet)"
NAMES += ".map((tile) => tile.querySelector('small').textContent)"
COUNT = "document.getElementById('count').textContent"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    program = chromium.find()
    if program is None:
        assert not os.environ.get("CI"), "CI has no Chromium: `.ci/run` installs it"
        pytest.skip("no Chromium on this machine: the gallery's page is not tested")
    with Chromium(program, tmp_path_factory.mktemp("chromium")) as started:
        yield started


@pytest.fixture
def page(browser: Chromium) -> Iterator[Chromium]:
    """Return the browser as a person finds it, and look afterwards whether anything went wrong."""
    browser.size(1280, 860)
    browser.media(prefers_color_scheme="light")
    yield browser
    browser.run("1")  # what has happened until now has been told then
    wrong = {"Log.entryAdded", "Runtime.exceptionThrown", "Page.javascriptDialogOpening"}
    told = [event for event in browser.events if event.get("method") in wrong]
    assert [event for event in told if not is_missing_original(event)] == []


def is_missing_original(event: dict[str, Any]) -> bool:
    entry = event["params"].get("entry", {})
    return "ERR_FILE_NOT_FOUND" in entry.get("text", "") and "/nowhere/" in entry.get("url", "")


def shown(page: Chromium, path: Path, count: str) -> None:
    """Open a gallery and wait until all is loaded."""
    page.open(path)
    page.wait(f"document.readyState === 'complete' && {COUNT} === {json.dumps(count)}")


def choose(page: Chromium, name: str, value: str) -> None:
    page.run(f"document.getElementById('{name}').value = {json.dumps(value)}")
    page.run(f"document.getElementById('{name}').dispatchEvent(new Event('change'))")


def chip(page: Chromium, text: str) -> None:
    chips = "[...document.querySelectorAll('#states button')]"
    page.run(f"{chips}.find((chip) => chip.textContent.startsWith('{text}')).click()")


def mixed(folder: Path) -> Path:
    """Write a gallery with something of everything: two questions, errors, hosts, originals."""
    digest = picture(folder / "originals" / "red %23 1?.jpg", "red", (640, 480))
    failed = {"state": "failed", "error_kind": "picture", "error": "it is cut off"}
    rows = [
        row(1, path=str(folder / "originals" / "red %23 1?.jpg"), sha256=digest, seconds=3),
        row(2, text="A blue circle on snow", host=HOSTS[1], width=4000, height=3000),
        row(3, **failed),
        row(4, text="Green, and more of it " * 90, finish="length", seconds=9),
        row(5, path="/nowhere/notes.txt", state="skipped", error="no picture extension"),
        row(6, **{**failed, "error_kind": "timeout", "error": "no answer in time"}),
        row(10, path="/nowhere/1.jpg", text="Ten"),
    ]
    colours = [
        replace(one, ask=2, prompt="Which colours?", structured=True, text='{"colours": ["red"]}')
        for one in rows
        if one.state == "done"
    ]
    both = sorted([*rows, *colours], key=lambda one: (one.item, one.ask))
    return gallery(folder, *both).page


def test_hostile_texts_are_shown_as_texts(page, tmp_path):
    evil = [
        '<img src=x onerror="window.hit = 1">',
        "</script><script>window.hit = 1</script>",
        "<!--<script>",
        "\u2028window.hit = 1\u2029",
        "${window.hit = 1}`'\"\\",
        "javascript:window.hit=1",
        "&lt;b&gt; \u202e gpj.exe",
        "{{constructor.constructor('window.hit=1')()}}",
    ]
    rows = [
        row(n + 1, text=text, path=f"/nowhere/{text}.jpg", prompt=evil[0], host=text)
        for n, text in enumerate(evil)
    ]
    failed = {"state": "failed", "error_kind": "daemon"}
    failed |= {"prompt": evil[0]}
    rows += [row(n + 20, path=text, error=text, **failed) for n, text in enumerate(evil)]
    shown(page, gallery(tmp_path, *rows, title=evil[1]).page, "16 pictures")
    for number, one in enumerate(rows):
        page.run(f"document.getElementById('tile-{number}').click()")
        text, title, path = page.run("""[
            document.querySelector('article > p:last-of-type').textContent,
            document.querySelector('article h3').textContent,
            document.querySelector('#path').firstChild.textContent,
        ]""")
        assert (text, title, path) == (one.text or one.error, one.prompt, one.path)
        links = page.run("[...document.links].map((link) => link.protocol)")
        assert set(links) <= {"file:"}
    assert page.run("document.title") == evil[1]
    assert page.run("document.querySelectorAll('article *, .caption *').length") > 0
    assert page.run("window.hit") is None
    assert page.run("[...document.scripts].length") == 2


def test_a_script_that_gets_in_does_not_run(page, tmp_path):
    shown(page, gallery(tmp_path, row(1)).page, "1 picture")
    refused = page.run("""new Promise((done) => {
        document.addEventListener('securitypolicyviolation', (e) => done(e.effectiveDirective));
        const script = document.createElement('script');
        script.textContent = 'window.hit = 1';
        document.body.append(script);
    })""")
    assert refused == "script-src-elem"
    assert page.run("window.hit") is None
    sent = page.run("fetch('data/index.js').then(() => 'sent', () => 'refused')")
    assert sent == "refused"
    page.events.clear()  # it is told of both


def test_nothing_is_loaded_but_the_folder_and_the_original(page, tmp_path):
    shown(page, mixed(tmp_path), "7 pictures")
    page.run("document.getElementById('tile-0').click()")
    page.wait("document.getElementById('picture').naturalWidth === 640")
    asked = [e["params"]["request"]["url"] for e in page.events if "WillBeSent" in e["method"]]
    original = (tmp_path / "originals" / "red %23 1?.jpg").as_uri()
    folder = (tmp_path / "gallery").as_uri()
    assert original in asked
    for url in asked:
        assert url.startswith((folder, "data:image/")) or url == original
    assert page.run("document.querySelector('#path a').href") == original


def test_the_search_finds_words_in_answers_names_and_errors(page, tmp_path):
    shown(page, mixed(tmp_path), "7 pictures")
    for words, names in {
        "SNOW": ["0002.jpg"],
        "blue snow": ["0002.jpg"],
        "blue green": [],
        "originals": ["red %23 1?.jpg"],
        "cut off": ["0003.jpg"],
        '{"colours': ["red %23 1?.jpg", "0002.jpg", "0004.jpg", "1.jpg"],
    }.items():
        page.run("document.getElementById('search').select()")
        page.type(words)
        page.wait(f"JSON.stringify({NAMES}) === JSON.stringify({json.dumps(names)})")
        assert page.run(COUNT) == f"{len(names)} of 7 pictures"
    page.run("document.getElementById('search').select()")
    page.type("snow")
    page.wait(f"{COUNT} === '1 of 7 pictures'")
    assert page.run("document.querySelector('.tile mark').textContent") == "snow"
    page.type("flake")
    page.wait("!document.getElementById('nothing').hidden")
    page.click("#all")
    page.wait(f"{COUNT} === '7 pictures'")
    assert page.run("document.getElementById('search').value") == ""


def test_filters_by_state_error_host_and_flag(page, tmp_path):
    shown(page, mixed(tmp_path), "7 pictures")
    chips = page.run("[...document.querySelectorAll('#states button')].map((c) => c.textContent)")
    assert chips == ["All7", "Done4", "Failed2", "Skipped1", "Cut off1"]
    for state, names in {
        "Failed": ["0003.jpg", "0006.jpg"],
        "Skipped": ["notes.txt"],
        "Cut off": ["0004.jpg"],
    }.items():
        chip(page, state)
        assert page.run(NAMES) == names
    chip(page, "All")
    choose(page, "kind", "timeout")
    assert page.run(NAMES) == ["0006.jpg"]
    choose(page, "kind", "")
    choose(page, "host", HOSTS[1])
    assert page.run(NAMES) == ["0002.jpg"]
    chip(page, "Failed")
    assert page.run(NAMES) == []


def test_orders(page, tmp_path):
    shown(page, mixed(tmp_path), "7 pictures")
    begin = {
        "name": ["1.jpg", "0002.jpg"],
        "long": ["0004.jpg", "0002.jpg"],
        "short": ["0003.jpg", "notes.txt"],
        "slow": ["0004.jpg", "red %23 1?.jpg"],
        "large": ["0002.jpg"],
        "run": ["red %23 1?.jpg", "0002.jpg"],
    }
    for order, names in begin.items():
        choose(page, "order", order)
        assert page.run(NAMES)[: len(names)] == names, order


def test_the_answers_to_another_question(page, tmp_path):
    shown(page, mixed(tmp_path), "7 pictures")
    choose(page, "ask", "1")
    assert page.run("document.querySelector('#tile-0 p').textContent") == '{"colours": ["red"]}'
    page.run("document.getElementById('tile-0').click()")
    assert page.run("[...document.querySelectorAll('h3')].map((h) => h.textContent)") == [
        "Describe this image",
        "Which colours?",
    ]
    assert page.run("document.querySelector('article pre').textContent").count("\n") == 4


def test_it_can_be_used_by_keyboard_alone(page, tmp_path):
    shown(page, gallery(tmp_path, *many(400)).page, "400 pictures")
    page.key("/")
    assert page.run("document.activeElement.id") == "search"
    page.type("thing 39")
    page.wait(f"{COUNT} === '14 of 400 pictures'")
    page.key("Escape")
    page.wait(f"{COUNT} === '400 pictures'")
    at = "Number(document.activeElement.getAttribute('aria-activedescendant').slice(5))"
    assert page.run("document.activeElement.id") == "grid"
    columns = page.run(
        "new Set([...document.querySelectorAll('.tile')]"
        ".map((tile) => tile.getBoundingClientRect().left)).size"
    )
    for key, place in [
        ("ArrowRight", 1),
        ("ArrowDown", 1 + columns),
        ("ArrowLeft", columns),
        ("ArrowUp", 0),
        ("ArrowUp", 0),
        ("End", 399),
        ("ArrowRight", 399),
        ("Home", 0),
    ]:
        page.key(key)
        assert page.run(at) == place, key
    page.key("PageDown")
    assert page.run(at) >= 2 * columns
    selected = "document.querySelector('.tile[aria-selected=true]').getBoundingClientRect()"
    inside = page.run(f"[{selected}.top >= 0, {selected}.bottom <= innerHeight]")
    assert inside == [True, True]
    place = page.run(at)
    page.key("Enter")
    assert page.run("document.getElementById('large').open")
    page.key("ArrowRight")
    page.key("ArrowRight")
    page.key("ArrowLeft")
    said = page.run("document.getElementById('place').textContent")
    assert said == f"{place + 2} of 400"
    page.key("Escape")
    assert not page.run("document.getElementById('large').open")
    assert page.run("document.activeElement.id") == "grid"
    assert page.run(at) == place + 1


def test_the_focus_stays_in_the_large_view(page, tmp_path):
    shown(page, mixed(tmp_path), "7 pictures")
    page.run("document.getElementById('tile-1').click()")
    assert page.run("document.activeElement.id") == "name"
    for shift in (False, True):
        been = []
        for _ in range(9):
            page.key("Tab", shift=shift)
            been.append(page.run("document.activeElement.id || document.activeElement.tagName"))
        assert set(been) == {"previous", "next", "close", "A"}
        assert been[:4] == been[4:8]


def test_an_original_that_is_gone_is_said_to_be(page, tmp_path):
    with Thumbnails(tmp_path) as small:
        small.put("a" * 64, jpeg("teal"))
        page_ = build([row(1, sha256="a" * 64), row(2)], small, tmp_path / "gallery").page
    shown(page, page_, "2 pictures")
    page.wait("document.querySelectorAll('.thumb img').length === 1")
    page.run("document.getElementById('tile-0').click()")
    page.wait("!document.getElementById('missing').hidden")
    assert page.run("document.getElementById('picture').naturalWidth") == 224
    page.key("ArrowRight")
    page.wait("document.getElementById('missing').textContent === 'No picture to show'")


def test_dark_follows_the_system_until_a_person_chooses(page, tmp_path):
    background = "getComputedStyle(document.body).backgroundColor"
    shown(page, mixed(tmp_path), "7 pictures")
    light = page.run(background)
    page.media(prefers_color_scheme="dark")
    page.wait(f"{background} !== '{light}'")
    page.click("#theme")
    assert page.run(background) == light
    shown(page, tmp_path / "gallery/index.html", "7 pictures")
    assert page.run(background) == light
    page.click("#theme")
    assert page.run(background) != light
    page.click("#theme")
    assert page.run("document.getElementById('theme').ariaLabel") == "Colours: as the system"


# The contrast of every text with what is behind it, by WCAG 2.2; a picture behind it has its own.
CONTRASTS = """(() => {
    const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
        .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
        .reduce((sum, c, n) => sum + c * [0.2126, 0.7152, 0.0722][n], 0);
    const behind = (element) => {
        for (let one = element; one; one = one.parentElement) {
            const colour = parse(getComputedStyle(one).backgroundColor);
            if (colour.length === 3 || colour[3] > 0.7) return colour;
        }
        return [255, 255, 255];
    };
    const found = {};
    for (const element of document.querySelectorAll('body *')) {
        const text = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
        if (!(text || element.matches('input, svg')) || !element.checkVisibility()) continue;
        const [a, b] = [parse(getComputedStyle(element).color), behind(element)].map(light);
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        found[`${element.tagName} ${element.getAttribute('class')} ${element.id}`] = ratio;
    }
    return found;
})()"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_have_enough_contrast(page, tmp_path, scheme):
    page.media(prefers_color_scheme=scheme)
    shown(page, mixed(tmp_path), "7 pictures")
    page.run("document.getElementById('search').value = 'cut'")
    page.run("document.getElementById('search').dispatchEvent(new Event('input'))")
    page.wait("document.querySelector('.tile mark')")
    found = page.run(CONTRASTS)
    page.run("document.getElementById('tile-0').click()")
    found |= page.run(CONTRASTS)
    assert len(found) > 15
    assert {name: ratio for name, ratio in found.items() if ratio < 4.5} == {}


def test_everything_that_acts_has_a_name(page, tmp_path):
    shown(page, mixed(tmp_path), "7 pictures")
    page.run("document.getElementById('tile-1').click()")
    acting = ("button", "combobox", "searchbox", "option", "listbox", "dialog", "link")
    seen = []
    for _ in range(2):
        for node in page.send("Accessibility.getFullAXTree")["nodes"]:
            role = node.get("role", {}).get("value")
            if not node.get("ignored") and role in acting:
                assert node["name"]["value"].strip(), node
                seen.append(role)
        page.run("document.getElementById('large').close()")
    assert set(seen) == set(acting)
    tile = page.run("document.getElementById('tile-2').ariaLabel")
    assert tile == "0003.jpg, Failed: it is cut off"


def test_less_motion(page, tmp_path):
    with Thumbnails(tmp_path) as small:
        small.put("a" * 64, jpeg("teal"))
        made = build([row(1, sha256="a" * 64)], small, tmp_path / "gallery")
    moving = "getComputedStyle(document.querySelector('.thumb img')).animationName"
    for wanted, name in {"no-preference": "appear", "reduce": "none"}.items():
        page.media(prefers_reduced_motion=wanted)
        shown(page, made.page, "1 picture")
        page.wait("document.querySelector('.thumb img')")
        assert page.run(moving) == name


@pytest.mark.parametrize("width", [320, 390, 820])
def test_a_telephone_scrolls_only_down(page, tmp_path, width):
    page.size(width, 700, phone=True)
    shown(page, mixed(tmp_path), "7 pictures")
    wide = "document.documentElement.scrollWidth <= innerWidth"
    assert page.run(wide)
    assert page.run("grid.scrollWidth <= grid.clientWidth && grid.clientHeight > 400")
    page.run("document.getElementById('tile-0').click()")
    assert page.run(wide)
    boxes = "[...document.querySelectorAll('dialog, dialog h2, dialog article')]"
    assert page.run(f"{boxes}.every((b) => b.getBoundingClientRect().right <= innerWidth)")


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a gallery of 20,000 pictures."""
    return gallery(tmp_path_factory.mktemp("long"), *many(20_000)).page


# How many places are looked at: without a graphics card a frame of 8K takes half a second.
@pytest.mark.parametrize(
    ("size", "places"), [((1280, 860), 40), ((390, 844), 40), ((3840, 2160), 8), ((7680, 4320), 3)]
)
def test_never_more_than_200_tiles(page, long, size, places):
    page.size(*size)
    shown(page, long, "20,000 pictures")
    most = page.run(
        """(async () => {
        let most = 0;
        const frame = () => new Promise(requestAnimationFrame);
        for (let n = 0; n <= PLACES; n++) {
            grid.scrollTop = grid.scrollHeight * n / PLACES;
            await frame();
            const tiles = [...document.querySelectorAll('.tile')];
            most = Math.max(most, tiles.length);
            const box = grid.getBoundingClientRect();
            // No hole in what is seen.
            for (const y of [box.top + 30, box.top + box.height / 2]) {
                const hit = tiles.some((tile) => {
                    const at = tile.getBoundingClientRect();
                    return at.top <= y + 20 && at.bottom >= y - 20;
                });
                if (!hit) throw new Error(`nothing at ${n} ${y}`);
            }
        }
        return most;
    })()""".replace("PLACES", str(places))
    )
    assert 10 < most <= 200


def test_the_first_and_the_last_of_a_million_pictures_are_reached(page, tmp_path):
    shown(page, endless(tmp_path, 1_000_000), "1,000,000 pictures")
    assert page.run("grid.scrollHeight") < 16_700_000
    last = "document.getElementById('tile-999999')?.getBoundingClientRect().bottom"
    page.run("grid.scrollTop = grid.scrollHeight")
    page.wait(f"{last} <= innerHeight")
    page.run("grid.scrollTop = 0")
    page.wait("document.getElementById('tile-0')?.getBoundingClientRect().top > 0")
    page.run("grid.focus()")
    page.key("End")
    page.wait(f"{last} <= innerHeight")
    page.key("ArrowUp")
    page.key("Home")
    page.wait("document.getElementById('tile-0')?.getBoundingClientRect().top > 0")
    # In the middle a small movement is as large as it is made: no picture is passed over.
    page.run("grid.scrollTop = grid.scrollHeight / 2")
    middle = (
        "Math.min(...[...document.querySelectorAll('.tile')].map((t) => Number(t.id.slice(5))))"
    )
    before = page.wait(f"{middle} > 400000 && {middle}")
    page.run("grid.scrollTop += 300")
    page.wait(f"{middle} > {before}")
    assert page.run(middle) < before + 30
    assert page.run(TILES) <= 200


def test_on_paper_are_the_pictures_with_whole_answers(page, tmp_path):
    shown(page, mixed(tmp_path), "7 pictures")
    page.run("""window.addEventListener('beforeprint', () => window.printed = [
        document.querySelectorAll('#printed > div').length,
        document.querySelectorAll('.tile').length,
        document.getElementById('printed').textContent])""")
    paper = base64.b64decode(page.send("Page.printToPDF")["data"])
    assert paper.startswith(b"%PDF")
    entries, tiles, text = page.run("window.printed")
    assert (entries, tiles) == (7, 0)
    assert "Green, and more of it " * 90 in text
    assert "Pictures 1 to 7 of 7" in text
    page.wait(f"{TILES} === 7")
    page.media("print")
    assert page.run("getComputedStyle(document.querySelector('header')).display") == "none"
    assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
