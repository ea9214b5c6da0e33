"""What the service answers: to photos however they are sent, and about itself."""

from __future__ import annotations

import base64
import json
import logging
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from starlette.testclient import TestClient

from handlens import bundle, photos, run
from handlens.serve import pages, schemas
from handlens.serve.corrections import Corrections

JPEG = {"Content-Type": "image/jpeg"}


def sent(client: TestClient, how: str, photo: bytes, url: str = "/v1/predict") -> Any:
    if how == "raw":
        return client.post(url, content=photo, headers=JPEG)
    if how == "octets":
        return client.post(url, content=photo, headers={"Content-Type": "application/octet-stream"})
    if how == "multipart":
        return client.post(url, files=[("photos", ("garden.png", photo, "image/png"))])
    return client.post(url, json={"photos": [base64.b64encode(photo).decode()]})


@pytest.mark.parametrize("how", ["raw", "octets", "multipart", "json"])
def test_a_photo_is_answered_as_by_predict(client: TestClient, tiny: ModuleType, tiny_bundle: Path, how: str) -> None:
    photo = tiny.photo(1)
    expected = run.load(tiny_bundle, 1).predict(photo)
    answer = sent(client, how, photo)
    assert answer.status_code == 200
    found = answer.json()
    schemas.Answers.model_validate(found, strict=True)
    assert found["model"] == "tiny"
    assert re.fullmatch("[0-9a-f]{12}", found["version"])
    assert 0 < found["time_ms"] < 10_000
    assert found["answers"] == [
        {
            "photo": "garden.png" if how == "multipart" else 0,
            "guesses": [pytest.approx(guess._asdict(), abs=1e-6) for guess in expected],
            "unknown": False,
            "score": None,
        }
    ]


def test_many_photos_in_their_order_and_one_that_cannot_be_read(client: TestClient, tiny: ModuleType) -> None:
    files = [
        ("photos", ("a.png", tiny.photo(0))),
        ("photos", ("../..\\notes\n.txt", b"no photo")),
        ("photos", ("花.png", tiny.photo(2))),
    ]
    answer = client.post("/v1/predict?top=1", files=files)
    assert answer.status_code == 200
    first, second, third = answer.json()["answers"]
    assert (first["photo"], third["photo"]) == ("a.png", "花.png")
    assert [one["guesses"][0]["name"] for one in (first, third)] == ["blue sky", "🌿 leaf"]
    assert [len(one["guesses"]) for one in (first, third)] == [1, 1]
    assert second.keys() == {"photo", "error", "hint"}
    assert second["error"] == "the photo is not a photo that can be read"
    assert "/" not in second["photo"] and "\n" not in second["photo"]


@pytest.mark.parametrize(("broken", "whole"), [(1, 0), (2, 0), (1, 2), (0, 2)])
def test_the_log_counts_what_cannot_be_read(
    client: TestClient, tiny: ModuleType, caplog: pytest.LogCaptureFixture, broken: int, whole: int
) -> None:
    photos = [b"no photo"] * broken + [tiny.photo(0)] * whole
    with caplog.at_level(logging.INFO, "handlens.serve"):
        client.post("/v1/predict", files=[("photos", (f"{at}.png", photo)) for at, photo in enumerate(photos)])
    (line,) = [vars(record) for record in caplog.records if "photos" in vars(record)]
    assert (line["photos"], line["unreadable"]) == (broken + whole, broken)


def test_top_in_the_address_and_in_the_json(client: TestClient, tiny: ModuleType) -> None:
    photo = base64.b64encode(tiny.photo(0)).decode()
    for url, more in (("/v1/predict?top=2", {}), ("/v1/predict", {"top": 2})):
        answer = client.post(url, json={"photos": [photo], **more})
        assert len(answer.json()["answers"][0]["guesses"]) == 2


def test_an_unknown_photo_is_said_to_be(serving: Any, tiny: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    from handlens.evaluate.unknown import Rejection
    from handlens.run import bundles

    load = bundles.classifier_of

    def strict(*given: Any) -> Any:
        import dataclasses

        return dataclasses.replace(load(*given), rejection=Rejection(kind="max-softmax", threshold=0.9999999))

    monkeypatch.setattr(bundles, "classifier_of", strict)
    with serving() as client:
        found = client.post("/v1/predict", content=tiny.photo(0), headers=JPEG).json()["answers"][0]
        assert found["unknown"] is True
        assert found["score"] == pytest.approx(found["guesses"][0]["probability"], abs=1e-6)
        assert client.get("/v1/model").json()["rejection"]["kind"] == "max-softmax"
        assert 'handlens_photos_total{model="tiny",outcome="unknown"} 1.0' in client.get("/metrics").text


def test_what_a_model_is(client: TestClient, tiny: ModuleType, tiny_bundle: Path) -> None:
    found = client.get("/v1/model").json()
    schemas.Facts.model_validate(found)
    read = bundle.read(tiny_bundle)
    assert found["classes"] == list(read.classes)
    assert found["preprocess"] == json.loads(json.dumps(read.preprocess.to_dict()))
    assert (found["net"], found["runtime"], found["precision"]) == ("tiny", "onnx", "float32")
    assert found["card"] == read.card
    assert found["rejection"] is None
    brief = {name: found[name] for name in ("name", "version", "net", "runtime", "precision")}
    assert client.get("/v1/models").json() == [brief]


def test_several_models_by_name(serving: Any, tiny: ModuleType, tmp_path: Path) -> None:
    for name, card in (("a", {"of": "a"}), ("b", {"of": "b"})):
        bundle.write(tmp_path / name, tiny.bundle(card=card))
    with serving(bundles={"first": tmp_path / "a", "second": tmp_path / "b"}) as client:
        assert [model["name"] for model in client.get("/v1/models").json()] == ["first", "second"]
        assert client.get("/v1/model?model=second").json()["card"] == {"of": "b"}
        asked = [client.post(url, content=tiny.photo(0), headers=JPEG).json() for url in (
            "/v1/predict", "/v1/predict?model=second"
        )]  # fmt: skip
        assert [answer["model"] for answer in asked] == ["first", "second"]
        assert asked[0]["version"] != asked[1]["version"]
        wrong = client.post("/v1/predict?model=third", content=tiny.photo(0), headers=JPEG)
        assert wrong.status_code == 404
        assert "first, second" in wrong.json()["hint"]


def test_health_and_counts(client: TestClient, tiny: ModuleType) -> None:
    assert client.get("/healthz").json() == {"status": "running"}
    assert client.get("/readyz").json() == {"status": "ready"}

    def count(text: str) -> float:
        found = re.search(r'^handlens_photos_total{model="tiny",outcome="answered"} (\S+)', text, re.M)
        return float(found[1]) if found else 0.0

    before = count(client.get("/metrics").text)
    client.post("/v1/predict", files=[("photos", tiny.photo(0)), ("photos", tiny.photo(1))])
    after = client.get("/metrics").text
    assert count(after) == before + 2
    assert 'handlens_requests_total{route="/v1/predict",status="200"}' in after
    assert "handlens_batch_photos_count" in after
    assert "process_resident_memory_bytes" in after


def test_the_description_is_whole_and_has_examples(client: TestClient) -> None:
    found = client.get("/openapi.json").json()
    routes = {"/v1/predict", "/v1/model", "/v1/models", "/v1/corrections", "/healthz", "/readyz", "/metrics"}
    assert found["paths"].keys() == routes
    predict = found["paths"]["/v1/predict"]["post"]
    assert predict["requestBody"]["content"].keys() >= {"multipart/form-data", "image/jpeg", "application/json"}
    example = predict["responses"]["200"]["content"]["application/json"]["example"]
    schemas.Answers.model_validate(example)
    assert {"403", "413", "422", "503"} <= predict["responses"].keys()
    assert "HTTPValidationError" not in str(found)  # FastAPI's own, which is never answered
    model = found["paths"]["/v1/model"]["get"]["responses"]
    assert model.keys() == {"200", "400", "401", "404"}
    assert client.get("/v1/model", params={"model": "x" * 1000}).status_code == 400
    assert found["paths"]["/readyz"]["get"]["responses"].keys() == {"200", "503"}
    assert "security" not in found


def test_the_description_has_the_key_that_is_wanted(serving: Any) -> None:
    with serving(api_key="a-key-of-many-letters") as client:
        found = client.get("/openapi.json").json()
    assert found["security"] == [{"bearer": []}, {"header": []}]
    assert found["components"]["securitySchemes"]["header"]["name"] == "X-API-Key"


def test_the_docs_ask_no_other_host(client: TestClient) -> None:
    page = client.get("/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "POST /v1/predict" in page.text
    assert not re.search(r"<script|<link|<img|https?://", page.text)


# ---- the page --------------------------------------------------------------------------------------------------------
@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "page"
    folder.mkdir()
    (tmp_path / "secret.txt").write_text("secret")
    for name in ("index.html", "app.js", "style.css", "manifest.webmanifest", "made.py"):
        (folder / name).write_text(f"this is {name}")
    monkeypatch.setattr(pages, "FOLDER", folder)
    return folder


@pytest.mark.usefixtures("page")
@pytest.mark.parametrize(
    ("path", "name", "kind"),
    [
        ("/", "index.html", "text/html; charset=utf-8"),
        ("/app.js", "app.js", "text/javascript; charset=utf-8"),
        ("/style.css", "style.css", "text/css; charset=utf-8"),
        ("/manifest.webmanifest", "manifest.webmanifest", "application/manifest+json"),
    ],
)
def test_the_files_of_the_page(client: TestClient, path: str, name: str, kind: str) -> None:
    found = client.get(path)
    assert (found.status_code, found.text, found.headers["content-type"]) == (200, f"this is {name}", kind)
    policy = found.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe-inline" not in policy and "http" not in policy
    assert "frame-ancestors 'none'" in policy  # no other page can lay itself over this one
    assert found.headers["x-content-type-options"] == "nosniff"
    assert found.headers["referrer-policy"] == "no-referrer"
    assert found.headers["cross-origin-opener-policy"] == "same-origin"
    assert found.headers["permissions-policy"].startswith("camera=(self),")
    assert found.headers.get("cache-control") != "no-store"


def test_what_is_said_of_photos_is_kept_by_no_browser(client: TestClient, tiny: ModuleType) -> None:
    for answer in (client.post("/v1/predict", content=tiny.photo(0), headers=JPEG), client.get("/v1/model")):
        assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")


@pytest.mark.usefixtures("page")
@pytest.mark.parametrize(
    "path", ["/none.js", "/made.py", "/../secret.txt", "/%2e%2e/secret.txt", "/..%2fsecret.txt", "//etc/passwd", "/.js"]
)
def test_nothing_else_is_given(client: TestClient, path: str) -> None:
    found = client.get(path)
    assert found.status_code == 404
    assert found.json()["error"] == "there is nothing at this address"


# ---- corrections -----------------------------------------------------------------------------------------------------
def test_a_corrected_photo_is_kept_for_the_next_training(serving: Any, tiny: ModuleType, tmp_path: Path) -> None:
    with serving(keep=tmp_path / "kept") as client:
        for _ in range(2):  # the same photo twice is kept once
            answer = client.post("/v1/corrections", params={"name": "花朵"}, content=tiny.photo(0), headers=JPEG)
            assert (answer.status_code, answer.json()) == (201, {"saved": True, "name": "花朵"})
        client.post("/v1/corrections", params={"name": "🌿 leaf"}, content=tiny.photo(1), headers=JPEG)
        wrong = client.post("/v1/corrections", params={"name": "../up"}, content=tiny.photo(1), headers=JPEG)
        assert wrong.status_code == 400
        broken = client.post("/v1/corrections", params={"name": "花朵"}, content=b"no photo", headers=JPEG)
        assert broken.status_code == 422
        assert client.post("/v1/corrections", content=tiny.photo(1), headers=JPEG).status_code == 400
    found = photos.scan(tmp_path / "kept")
    assert sorted(Path(path).parent.name for path in found.paths) == ["花朵", "🌿 leaf"]
    assert all(re.fullmatch(r"[0-9a-f]{64}\.jpg", Path(path).name) for path in found.paths)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_the_last_word_on_a_photo_counts(serving: Any, tiny: ModuleType, tmp_path: Path) -> None:
    with serving(keep=tmp_path / "kept", kept=1) as client:
        for name in ("花朵", "🌿 leaf", "花朵"):
            answer = client.post("/v1/corrections", params={"name": name}, content=tiny.photo(0), headers=JPEG)
            assert answer.status_code == 201
            assert [path.parent.name for path in (tmp_path / "kept").glob("*/*")] == [name]
        taken_back = client.post("/v1/corrections", params={"name": ""}, content=tiny.photo(0), headers=JPEG)
        assert (taken_back.status_code, taken_back.json()) == (201, {"saved": False, "name": ""})
        client.post("/v1/corrections", params={"name": name}, content=tiny.photo(0), headers=JPEG)
    kept = Corrections(tmp_path / "kept", 9)
    for name, left in (("🌿 leaf", ["🌿 leaf"]), ("", []), ("", [])):
        kept.save(tiny.photo(0), name, tiny.CLASSES)
        assert [path.parent.name for path in (tmp_path / "kept").glob("*/*")] == left
        assert kept.count == len(left)


def test_classes_that_would_share_a_folder_have_two(tiny: ModuleType, tmp_path: Path) -> None:
    kept = Corrections(tmp_path / "kept", 9)
    for index, name in enumerate(("Rose", "rose", "Viola spp.")):
        kept.save(tiny.photo(index), name, ("Rose", "rose", "Viola spp."))
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["Rose", "Viola spp", "rose-2"]


def test_the_folder_for_corrections_has_an_end(serving: Any, tiny: ModuleType, tmp_path: Path) -> None:
    with serving(keep=tmp_path / "kept", kept=1) as client:
        answers = [
            client.post("/v1/corrections", params={"name": "花朵"}, content=tiny.photo(index), headers=JPEG).status_code
            for index in range(2)
        ]
        assert answers == [201, 507]
        for path in (tmp_path / "kept").glob("*/*"):  # "train with them, and empty the folder"
            path.unlink()
        again = client.post("/v1/corrections", params={"name": "花朵"}, content=tiny.photo(1), headers=JPEG)
        assert again.status_code == 201


def test_no_photo_is_kept_unasked(client: TestClient, tiny: ModuleType) -> None:
    answer = client.post("/v1/corrections", params={"name": "花朵"}, content=tiny.photo(0), headers=JPEG)
    assert answer.status_code == 403
    assert "--keep" in answer.json()["hint"]
