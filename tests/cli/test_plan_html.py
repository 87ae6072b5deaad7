"""`enginekit plan --html`: one page that stands alone, in the structure and in a real browser."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import threading
import zlib
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from enginekit.cli import _charts, _plan_html, main
from enginekit.cli._charts import Line, Part
from enginekit.hardware import preset
from enginekit.kit import planning

CASES = {
    "one GPU": ("llama3.1", {"hardware": "rtx4090"}),
    "two GPUs and host": ("qwen2.5-72b", {"hardware": "2xrtx4090", "context": 8192}),
    "pool": ("qwen3-32b", {"hardware": "4xrtx4090", "engine": "vllm"}),
    "does not fit": ("deepseek-v3", {"hardware": "rtx4090"}),
    "no GPU": ("llama3.2-1b", {"hardware": "raspberry-pi-5"}),
    "encoder": ("bge-m3", {"hardware": "rtx4090"}),
    "images": ("gemma3-12b", {"hardware": "rtx3060-12", "engine": "llamacpp", "context": 40960}),
}
CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))),
    None,
)  # fmt: skip


def page_of(case: str) -> str:
    model, settings = CASES[case]
    made = planning.plan(model, **settings)
    spec = planning.model_of(model)
    others = [
        planning.plan(model, **settings | {"context": context}).to_dict()
        for context in _plan_html.contexts(spec.context_length, made.context)
    ]
    # Through JSON: a saved plan can be drawn as well as a fresh one.
    return _plan_html.page(json.loads(json.dumps(made.to_dict())), others)


class Structure(HTMLParser):
    """Open tags, text, and every attribute that could fetch something."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.counts: dict[str, int] = {}
        self.text = ""
        self.fetched: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.counts[tag] = self.counts.get(tag, 0) + 1
        names = dict(attrs)
        self.fetched += [
            names[key] for key in ("src", "href", "xlink:href", "data") if key in names
        ]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag != "meta":
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("case", sorted(CASES))
def test_the_page_is_whole_and_fetches_nothing(case: str) -> None:
    page = page_of(case)
    seen = Structure()
    seen.feed(page)
    assert seen.open == []
    assert seen.fetched == []
    assert "script" not in seen.counts
    assert "url(" not in page
    assert "@import" not in page
    assert "http" not in page.replace("http://127.0.0.1", "")
    assert "prefers-color-scheme:dark" in page
    assert not re.search(r"[\",\s](nan|inf)[\",\s]", page)


@pytest.mark.parametrize("case", sorted(CASES))
def test_every_picture_is_well_formed_and_inside_its_frame(case: str) -> None:
    pictures = re.findall(r"<svg .*?</svg>", page_of(case), re.DOTALL)
    assert pictures
    for picture in pictures:
        root = ElementTree.fromstring(picture)
        left, top, width, height = map(float, root.attrib["viewBox"].split())
        assert root.attrib["aria-label"]
        for element in root.iter():
            for name in ("x", "x1", "x2", "cx"):
                if name in element.attrib:
                    assert left - 1 <= float(element.attrib[name]) <= left + width + 1
            for name in ("y", "y1", "y2", "cy"):
                if name in element.attrib:
                    assert top - 1 <= float(element.attrib[name]) <= top + height + 1


def test_a_bar_per_device_whose_parts_fill_it() -> None:
    made = planning.plan("qwen2.5-72b", hardware="2xrtx4090", context=8192)
    page = _plan_html.page(made.to_dict())
    pictures = [ElementTree.fromstring(each) for each in re.findall(r"<svg .*?</svg>", page)]
    assert len(pictures) == len(made.devices) == 3
    for picture, device in zip(pictures, made.devices, strict=True):
        parts = picture.findall("rect")
        shown = {part.attrib["class"]: float(part.attrib["width"]) for part in parts}
        weights = device.terms["weights"].expected / device.limit * _charts.WIDTH
        assert shown["weights"] == pytest.approx(weights, abs=1.1)
        assert sum(shown.values()) + len(shown) == pytest.approx(_charts.WIDTH, abs=3)


def test_what_is_too_large_is_said_and_marked() -> None:
    page = page_of("does not fit")
    assert "does not fit on rtx4090" in page
    assert "more than it has" in page
    assert 'class="limit"' in page
    assert "tokens/s, short" not in page


def test_two_curves_with_a_point_per_context() -> None:
    page = page_of("one GPU")
    for size in ("wide", "narrow"):
        pictures = re.findall(rf'<svg class="{size}".*?</svg>', page)
        assert len(pictures) == 2
        assert "".join(pictures).count('class="curve ') == 4
        assert "".join(pictures).count('class="dot cache"') == 7
    assert "svg.narrow{display:none}" in page
    assert "2k" in page
    assert "128k" in page


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("gemma4-e4b", {"hardware": "rtx4060"}),  # much of it stays in host memory
        ("qwen2.5-72b", {"hardware": "2xrtx4090", "quantization": "Q4_K_M"}),
        ("llama3.2-1b", {"hardware": "raspberry-pi-5", "context": 8192}),
        ("deepseek-v3", {"hardware": "rtx4090"}),
    ],
)
def test_the_curve_of_memory_says_what_the_verdict_says(model: str, settings) -> None:
    """The devices that decide are drawn, and each against its own limit."""
    made = planning.plan(model, **settings)
    other = planning.plan(model, **settings | {"context": made.context // 2})
    page = _plan_html.page(made.to_dict(), [other.to_dict()])
    picture = re.findall(r'<svg class="wide".*?</svg>', page)[0]
    limit = float(re.findall(r'class="limit"[^>]* y1="([0-9.]+)"', picture)[0])
    dots = [float(y) for y in re.findall(r'class="dot cache"[^>]* cy="([0-9.]+)"', picture)]
    deciding = [each for each in made.devices if each.index >= 0] or list(made.devices)
    over = max(each.used.expected - each.limit for each in deciding)
    assert (min(dots) < limit) == (over > 0)
    assert f"{deciding[0].limit / 2**30:.1f} GiB" in picture


@pytest.mark.parametrize(
    ("model", "hardware", "said"),
    [
        ("llama3.1-70b", "raspberry-pi-5", False),  # the chart is of host memory itself
        ("qwen2.5-72b", "2xrtx4090", True),
    ],
)
def test_host_memory_is_not_counted_on_charts_of_gpus_alone(model, hardware, said) -> None:
    settings = {"hardware": hardware, "quantization": "Q4_K_M"}
    made, other = (planning.plan(model, **settings, context=size) for size in (32768, 65536))
    assert made.host_layers
    page = _plan_html.page(made.to_dict(), [other.to_dict()])
    assert "What is above the red line" in page
    assert ("not counted here" in page) == said


def test_unequal_gpus_have_a_chart_each() -> None:
    machine = preset("rtx4090")
    small = preset("rtx3060-12").gpus[0]
    both = replace(machine, gpus=(*machine.gpus, replace(small, index=1)))
    settings = {"hardware": both, "context": 8192}
    made = planning.plan("qwen2.5-32b", **settings, quantization="Q6_K")
    other = planning.plan("qwen2.5-32b", **settings | {"context": 4096}, quantization="Q6_K")
    page = _plan_html.page(made.to_dict(), [other.to_dict()])
    assert page.count('aria-label="Memory on GPU by context length"') == 4


def test_a_single_context_has_no_curves() -> None:
    made = planning.plan("llama3.1", hardware="rtx4090").to_dict()
    assert "Context length against" not in _plan_html.page(made)


def test_names_are_escaped() -> None:
    made = planning.plan("llama3.1", hardware="rtx4090").to_dict()
    page = _plan_html.page(made | {"model": "<script>alert(1)</script>", "notes": ["a < b & c"]})
    assert "<script" not in page
    assert "a &lt; b &amp; c" in page


@pytest.mark.parametrize(
    ("highest", "expected"),
    [(24, [0, 5, 10, 15, 20, 25]), (0, [0, 1]), (100, [0, 20, 40, 60, 80, 100]), (0.3, 0.3)],
)
def test_ticks_are_round_and_reach_the_top(highest, expected) -> None:
    marks = _charts.ticks(highest)
    if isinstance(expected, list):
        assert marks == pytest.approx(expected)
    else:
        assert marks[-1] >= expected


def test_a_part_of_no_size_is_not_drawn() -> None:
    parts = [Part(css="weights", label="a", size=0), Part(css="cache", label="b", size=5)]
    assert _charts.bar(parts, 10, 10, str).count("<rect") == 1


def test_a_curve_of_one_point_can_be_drawn() -> None:
    line = Line(css="cache", label="a", points=[(4096, 1.0)])
    assert "<circle" in _charts.curves([line], label="x", unit="GiB")


def test_the_command_writes_the_page_and_still_prints(tmp_path: Path, capsys) -> None:
    target = tmp_path / "plan.html"
    assert main(["plan", "llama3.1", "--hardware", "rtx4090", "--html", str(target)]) == 0
    assert target.read_text("utf-8").startswith("<!doctype html>")
    assert "llama3.1-8b" in capsys.readouterr().out


def test_a_folder_that_is_missing_is_an_error_that_names_it(tmp_path: Path, capsys) -> None:
    target = tmp_path / "missing" / "plan.html"
    assert main(["plan", "llama3.1", "--hardware", "rtx4090", "--html", str(target)]) != 0
    assert str(target) in capsys.readouterr().err


def _pixels(png: bytes) -> tuple[int, int, set[bytes]]:
    """Width, height and the colours of an 8-bit RGB or RGBA picture without interlacing."""
    width, height, depth, kind = struct.unpack(">IIBB", png[16:26])
    assert depth == 8
    size = {2: 3, 6: 4}[kind]
    data, at = b"", 8
    while at < len(png):
        length, name = struct.unpack(">I4s", png[at : at + 8])
        if name == b"IDAT":
            data += png[at + 8 : at + 8 + length]
        at += 12 + length
    raw, row = zlib.decompress(data), bytearray(width * size)
    colours: set[bytes] = set()
    for y in range(height):
        start = y * (width * size + 1)
        method, line = raw[start], bytearray(raw[start + 1 : start + 1 + width * size])
        for x in range(len(line)):
            left = line[x - size] if x >= size else 0
            up, corner = row[x], row[x - size] if x >= size else 0
            near = left + up - corner
            best = min(
                (abs(near - left), 0, left),
                (abs(near - up), 1, up),
                (abs(near - corner), 2, corner),
            )[2]
            line[x] = (line[x] + (0, left, up, (left + up) // 2, best)[method]) & 255
        row = line
        colours |= {bytes(line[x : x + 3]) for x in range(0, len(line), size * 7)}
    return width, height, colours


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_chromium_draws_it_in_both_schemes(scheme: str, tmp_path: Path) -> None:
    """The browser shows the bars' own colours on the scheme's ground: style and SVG were taken."""
    target, shot = tmp_path / "plan.html", tmp_path / "shot.png"
    target.write_text(page_of("one GPU"), encoding="utf-8")
    done = subprocess.run(
        [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            f"--user-data-dir={tmp_path / 'profile'}", "--window-size=500,700",
            f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}",
            f"--screenshot={shot}", target.as_uri(),
        ],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert shot.exists(), done.stderr[-1000:]
    width, height, colours = _pixels(shot.read_bytes())
    assert (width, height) == (500, 700)
    ground, weights, cache = {
        "light": ("ffffff", "3565c4", "d9822b"),
        "dark": ("14181f", "7ba2f0", "eda75a"),
    }[scheme]
    assert {bytes.fromhex(each) for each in (ground, weights, cache)} <= colours


def test_the_projector_is_a_part_of_its_own() -> None:
    page = page_of("images")
    assert "var(--projector)" in page
    assert "--no-mmproj" in page
    assert "projector" not in re.sub(r"<style>.*?</style>", "", page_of("one GPU"), flags=re.S)


def test_the_page_may_go_to_stdout_alone(capsys) -> None:
    assert main(["plan", "llama3.1", "--hardware", "rtx4090", "--html", "-"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("<!doctype html>")
    assert shown.endswith("</html>\n")
    assert main(["plan", "llama3.1", "--hardware", "rtx4090", "--html", "-", "--json"]) == 2
    assert "both want stdout" in capsys.readouterr().err
    assert main(["plan", "llama3.1", "--hardware", "rtx4090", "--html", "--json"]) == 2
    assert "not '--json'" in capsys.readouterr().err


def test_an_existing_page_is_replaced_and_what_cannot_be_written_is_named(tmp_path: Path, capsys):
    page = tmp_path / "plan.html"
    page.write_text("x" * 99_999)
    assert main(["plan", "llama3.1", "--hardware", "rtx4090", "--html", str(page)]) == 0
    assert page.read_text().endswith("</html>\n")
    assert main(["plan", "llama3.1", "--hardware", "rtx4090", "--html", str(tmp_path)]) == 2
    shown = capsys.readouterr().err
    assert f"cannot write {tmp_path}: Is a directory" in shown
    assert "hint: give --html a file that can be written" in shown


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_model_and_machine_are_looked_at_once_for_all_of_a_page(tmp_path: Path) -> None:
    """A pipe can be read only once; a server or the Hub need not be asked twice."""
    pipe, page = tmp_path / "pipe.json", tmp_path / "plan.html"
    os.mkfifo(pipe)
    content = json.dumps(preset("rtx4090").to_dict())
    writer = threading.Thread(target=pipe.write_text, args=(content,), daemon=True)
    writer.start()
    assert main(["plan", "llama3.1", "--hardware", str(pipe), "--html", str(page)]) == 0
    writer.join()
    assert "Context length against memory" in page.read_text()


def test_an_encoder_reads_and_writes_no_tokens() -> None:
    page = page_of("encoder")
    assert "tokens/s read" in page
    assert "full context" not in page
    assert "Context length against speed" not in page


def test_what_is_not_known_is_a_range_on_the_page_too() -> None:
    """The curve of an unknown layout may not be narrower than what is known of its cache."""
    spec = planning.model_of("llama3.2-1b")
    layers = tuple(replace(layer, attention="unknown") for layer in spec.layers)
    odd = replace(spec, layers=layers, known_layout=False, architecture="odd")
    made = planning.plan(odd, hardware="rtx4090", context=131072)
    speed = made.speed
    assert speed.decode is not None
    assert speed.decode_full is not None
    assert speed.decode_full.high == speed.decode.high
    assert speed.decode_full.low < speed.decode_full.expected / 2
    page = _plan_html.page(made.to_dict())
    assert re.search(r"full context</span><b>\d+ \(\d+ to \d+\)</b>", page)
    assert "unknown attention layout" in page


def test_contexts_that_are_close_are_not_written_over_each_other() -> None:
    line = Line(css="cache", label="x", points=[(2**n, n) for n in range(11, 18)] + [(35072, 15)])
    drawn = _charts.curves([line], label="x", unit="GiB", here=35072)
    assert ">34.2k<" in drawn
    assert ">32k<" not in drawn
    assert ">16k<" in drawn


def test_words_of_the_command_stay_whole() -> None:
    assert "<span>-np</span> <span>1</span>" in page_of("one GPU")
