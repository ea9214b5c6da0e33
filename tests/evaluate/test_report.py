"""One HTML file that holds up with any names and gives nothing away."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
import warnings
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from handlens.evaluate import Scores, figures, report
from handlens.evaluate.nearest import Nearest
from handlens.evaluate.sections import Section
from handlens.figures import drawable
from handlens.photos import Photos

CLASSES = ("<script>alert(1)</script>", "花朵", "🌼 $x_1^", "a & b")
SECRET = "Taken at home 52.5200 N"


class Page(HTMLParser):
    """Collects tags with their attributes and the text outside of style."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data

    def images(self) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == "img"]


def picture(attributes: dict[str, str | None]) -> Image.Image:
    kind, data = re.fullmatch(r"data:image/(\w+);base64,(.*)", attributes["src"] or "").groups()  # type: ignore[union-attr]
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert image.format == kind.upper()
    return image


@pytest.fixture
def photos(tmp_path: Path) -> Photos:
    """Eight photos, two a class, each with a GPS position, a comment and a profile; orange ones."""
    exif = Image.Exif()
    exif[0x010E] = SECRET
    exif.get_ifd(0x8825)[1] = "N"
    paths = []
    for index in range(8):
        path = tmp_path / "photos" / f"花 & {index}.jpg"
        path.parent.mkdir(exist_ok=True)
        image = Image.new("RGB", (400, 200 + index), (250, 120, 10))
        image.save(path, exif=exif, comment=SECRET.encode(), icc_profile=SECRET.encode())
        paths.append(path.name)
    return Photos(tmp_path / "photos", tuple(paths), np.repeat(np.arange(4), 2), CLASSES)


def score(photos: Photos, predicted: list[int]) -> Scores:
    table = np.eye(4, dtype=np.float32)[predicted] * np.linspace(0.5, 0.9, 8, dtype=np.float32)[:, None]
    return Scores(
        probabilities=table + (1 - table.sum(1, keepdims=True)) / 4,
        labels=photos.labels,
        classes=CLASSES,
        paths=photos.paths,
        left_out=(("broken <b>.jpg", "is damaged"),),
    )


def written(tmp_path: Path, photos: Photos, predicted: list[int]) -> tuple[str, Page]:
    path = tmp_path / "out" / "report 🌼.html"
    curves = figures.confusion(np.eye(2, dtype=int), ("a", "b"))
    report.write(
        path,
        score(photos, predicted),
        photos,
        title="mobilenet <b> & co",
        split="10 % of each class, seed 0",
        facts={"Recipe": {"epochs": 3, "lr": 0.001, "mean": [0.5, 0.25]}, "Versions": {"torch <x>": "2.14"}},
        pictures={"Training": curves},
    )
    html = path.read_text(encoding="utf-8")
    return html, Page(html)


def test_the_file_needs_nothing_else(tmp_path: Path, photos: Photos) -> None:
    html, page = written(tmp_path, photos, [0, 1, 1, 1, 2, 3, 3, 3])
    assert not re.search(r"https?://|//cdn|@import|url\(", html)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object"})
    assert all((image["src"] or "").startswith("data:image/") for image in page.images())
    assert "prefers-color-scheme: dark" in html
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in page.tags


def test_what_it_says(tmp_path: Path, photos: Photos) -> None:
    _, page = written(tmp_path, photos, [0, 1, 1, 1, 2, 3, 3, 3])
    words = " ".join(page.words.split())
    scores = score(photos, [0, 1, 1, 1, 2, 3, 3, 3])
    assert "75.0 % of 8 photos are classified correctly" in words
    low, high = scores.top1_ci95
    assert f"interval {100 * low:.1f} % to {100 * high:.1f} %" in words
    for expected in ("mobilenet <b> & co", "10 % of each class, seed 0", "broken <b>.jpg", "torch <x>", "0.5, 0.25"):
        assert expected in words
    for name in CLASSES:
        assert name in words
    assert "2 wrong answers" in words
    assert words.index("花 & 5.jpg") < words.index("花 & 1.jpg")  # the surest mistake first


def test_a_figure_that_nothing_defines_is_a_dash(tmp_path: Path, photos: Photos) -> None:
    some = photos.select(np.arange(6))  # none of the last class, nor one that is taken for it
    table = np.eye(4, dtype=np.float32)[[0, 0, 0, 0, 2, 2]]
    scores = Scores(probabilities=table, labels=some.labels, classes=CLASSES, paths=some.paths)
    report.write(tmp_path / "r.html", scores, some, title="")
    html = (tmp_path / "r.html").read_text(encoding="utf-8")
    rows = [re.findall(r"<td[^>]*>(?:<bdi>)?([^<]*)", row) for row in re.findall(r"<tr><td.*</tr>", html)]
    assert rows[3] == ["4", "a &amp; b", *"–" * 5, "0"]
    assert (rows[1][2:4], rows[1][4], rows[1][6]) == (["–", "–"], "0.0 %", "0.0 %")  # two photos, both mistaken


def test_pictures_have_words_for_those_who_cannot_see_them(tmp_path: Path, photos: Photos) -> None:
    _, page = written(tmp_path, photos, [0, 1, 1, 1, 2, 3, 3, 3])
    confusion, reliability, *thumbnails, curves = page.images()
    assert "6 of 8 photos" in (confusion["alt"] or "")
    assert "how often answers of each probability are right" in (reliability["alt"] or "")
    assert curves["alt"] == "Training"
    assert thumbnails[0]["alt"] == "Photo of 🌼 $x_1^, taken for a & b"
    assert len(thumbnails) == 2


def test_thumbnails_hold_pixels_and_nothing_else(tmp_path: Path, photos: Photos) -> None:
    _, page = written(tmp_path, photos, [0, 1, 1, 1, 2, 3, 3, 3])
    assert len(page.images()) == 5
    for attributes in page.images()[2:-1]:
        image = picture(attributes)
        assert max(image.size) == report.THUMBNAIL_PX
        assert dict(image.getexif()) == {}
        assert set(image.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
        assert SECRET.encode() not in base64.b64decode((attributes["src"] or "").split(",")[1])
        red, green, blue = image.resize((1, 1)).getpixel((0, 0))  # type: ignore[misc]
        assert red > green > blue


def test_no_mistakes_and_no_extras(tmp_path: Path, photos: Photos) -> None:
    report.write(tmp_path / "r.html", score(photos, [0, 0, 1, 1, 2, 2, 3, 3]), photos, title="t")
    page = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert "Worst mistakes None." in " ".join(page.words.split())
    assert "Mixed up most" not in page.words
    assert len(page.images()) == 2


def test_a_photo_that_is_gone_leaves_its_words(tmp_path: Path, photos: Photos) -> None:
    photos.path(5).unlink()
    _, page = written(tmp_path, photos, [0, 0, 1, 1, 2, 3, 3, 3])
    assert "花 & 5.jpg" in page.words
    assert len(page.images()) == 3


def test_what_speaks_for_the_mistakes(tmp_path: Path, photos: Photos) -> None:
    asked: list[tuple[tuple[int, ...], int]] = []

    def saliency(photo: np.ndarray, class_index: int) -> np.ndarray:
        asked.append((photo.shape, class_index))
        heat = np.zeros(photo.shape[:2], np.float32)
        heat[: len(heat) // 2, : heat.shape[1] // 2] = 1  # the top left quarter
        heat[-len(heat) // 4 :] = np.nan
        return heat

    photos.path(1).unlink()
    scores = score(photos, [0, 1, 1, 1, 2, 3, 3, 3])
    report.write(tmp_path / "r.html", scores, photos, title="t", saliency=saliency)
    page = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert asked == [((205, 400, 3), 3)]  # the whole photo, and the wrong answer; the other photo is gone
    _, _, thumbnail, looks = page.images()
    assert looks["alt"] == "What speaks for a & b in this photo"
    assert picture(looks).size == picture(thumbnail).size
    pixels = np.asarray(picture(looks).convert("RGB")).astype(int)
    height, width = pixels.shape[:2]
    quarter, rest = pixels[: height // 3, : width // 3].mean((0, 1)), pixels[: height // 3, -width // 3 :].mean((0, 1))
    assert quarter[0] > quarter[1] + 30  # red
    assert abs(rest - rest.mean()).max() < 6  # grey
    assert pixels[-height // 8 :].mean() < 0.5 * rest.mean()  # not seen
    assert "what speaks for the wrong answer" in " ".join(page.words.split())


def test_the_training_photos_that_are_most_like_a_mistake(tmp_path: Path, photos: Photos) -> None:
    asked: list[tuple[str, ...]] = []

    def embed(mistakes: Photos) -> np.ndarray:
        asked.append(mistakes.paths)
        return np.eye(4, dtype=np.float32)[[3] * len(mistakes)]

    train = photos.select([0, 2, 4, 6, 7])
    nearest = Nearest(train, np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 3]], embed)
    photos.path(1).unlink()
    photos.path(6).unlink()
    scores = score(photos, [0, 1, 1, 1, 2, 3, 3, 3])
    report.write(tmp_path / "r.html", scores, photos, title="t", nearest=nearest)
    page = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert asked == [("花 & 5.jpg",)]  # the photo of the other mistake is gone
    words = " ".join(page.words.split())
    assert "2 of 3 are a & b, 1 of 3 is <script>alert(1)</script>; none is 🌼 $x_1^." in words
    _, _, _, *neighbours = page.images()
    assert [image["alt"] for image in neighbours] == [  # one of the three is gone, too
        "Training photo of a & b",
        "Training photo of <script>alert(1)</script>",
    ]
    for attributes in neighbours:
        assert max(picture(attributes).size) == report.NEIGHBOUR_PX
        assert SECRET.encode() not in base64.b64decode((attributes["src"] or "").split(",")[1])


def test_confidence_and_what_is_mixed_up_in_words(tmp_path: Path, photos: Photos) -> None:
    scores = score(photos, [0, 0, 1, 2, 2, 2, 3, 3])
    section = Section(heading="A <b> part", text="It says", header=("what", "share"), rows=[("花 & co", "1 %")])
    report.write(tmp_path / "r.html", scores, photos, title="t", sections=[section])
    page = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    words = " ".join(page.words.split())
    assert "Mixed up most: 花朵, taken for 🌼 $x_1^ in 1 of 2 photos (50.0 %; 9.5 % to 90.5 %)." in words
    assert f"Expected calibration error {100 * scores.calibration['ece']:.1f} %" in words
    assert "without calibration" not in words
    assert "A <b> part It says whatshare 花 & co1 %" in words
    logits = np.log(scores.probabilities) * 3
    calibrated = dataclasses.replace(scores, logits=logits)
    report.write(tmp_path / "r.html", calibrated, photos, title="t")
    words = " ".join(Page((tmp_path / "r.html").read_text(encoding="utf-8")).words.split())
    assert f"without calibration {100 * calibrated.calibration['before']['ece']:.1f} %" in words


def test_a_run_without_a_temperature_is_drawn_once(tmp_path: Path, photos: Photos) -> None:
    scores = score(photos, [0, 0, 1, 2, 2, 2, 3, 3])
    plain = dataclasses.replace(scores, logits=np.log(scores.probabilities))
    report.write(tmp_path / "r.html", plain, photos, title="t")
    page = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert "before" not in plain.calibration
    assert "without calibration" not in " ".join(page.words.split())
    (diagram,) = (image for image in page.images() if (image["alt"] or "").startswith("Reliability"))
    width, height = picture(diagram).size
    assert width == height  # of one diagram, not of two beside each other


def test_an_error_leaves_no_file(tmp_path: Path, photos: Photos, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bytes:
        raise MemoryError

    monkeypatch.setattr(figures, "confusion", fail)
    with pytest.raises(MemoryError):
        report.write(tmp_path / "r.html", score(photos, [0] * 8), photos, title="t")
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize("count", [2, 30, 150])
def test_the_confusion_matrix_is_a_picture_for_any_number_of_classes(count: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a missing glyph or a layout that does not fit
        png = figures.confusion(np.eye(count, dtype=int) * 9, [f"class number {index}" for index in range(count)])
    image = Image.open(io.BytesIO(png)).convert("RGB")
    assert image.format is None
    assert 400 < image.width < 1700
    dark = (np.asarray(image).astype(int) @ [1, 1, 1] < 300).mean()
    assert 0.002 < dark < 0.5


def test_names_that_the_font_cannot_draw_become_numbers() -> None:
    names = ["daisy", "花朵", "🌼", "Löwenzahn", "$a_", "two\nlines", "x" * 60]
    assert drawable(names) == ["daisy", "2", "3", "Löwenzahn", "$a_", "6", "x" * 27 + "…"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert figures.confusion(np.eye(7, dtype=int), names).startswith(b"\x89PNG")
