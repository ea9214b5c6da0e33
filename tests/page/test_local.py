"""From the network's numbers to an answer, and what the page says: by node, without a browser."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable

import numpy as np

from handlens.evaluate.unknown import KINDS, Rejection


def test_the_score_of_unknown_photos_is_pythons(node: Callable[[str], str]) -> None:
    logits = np.array([[3.0, -1.0, 0.5], [0.1, 0.0, -0.1], [12.0, 3.0, -40.0]], np.float32)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    rows = json.dumps(list(zip(probabilities.tolist(), logits.tolist(), strict=True)))
    for kind in KINDS:
        rejection = Rejection(kind=kind, threshold=0.9)
        answers = json.loads(
            node(f"""
            globalThis.self = globalThis;
            const {{ judge }} = await import("./local.js");
            const facts = {{ classes: ["a", "b", "c"], rejection: {json.dumps(rejection.to_dict())} }};
            const judged = {rows}.map(([probabilities, logits]) => judge(facts, {{ probabilities, logits }}));
            console.log(JSON.stringify(judged));
            """)
        )
        expected = rejection.scores(probabilities, logits)
        assert np.allclose([answer["score"] for answer in answers], expected, atol=1e-5)
        assert [answer["unknown"] for answer in answers] == (expected < 0.9).tolist()
        assert [answer["guesses"][0]["name"] for answer in answers] == ["a", "a", "a"]


def test_both_languages_say_everything(node: Callable[[str], str]) -> None:
    languages = json.loads(node("""import { STRINGS } from "./strings.js"; console.log(JSON.stringify(STRINGS));"""))
    english, chinese = languages["en"], languages["zh"]
    assert english.keys() == chinese.keys()
    for key, sentence in english.items():
        assert set(re.findall(r"{\w+}", sentence)) == set(re.findall(r"{\w+}", chinese[key])), key


def test_the_language_is_the_browsers_first_known_one(node: Callable[[str], str]) -> None:
    found = node("""
    import { firstLanguage } from "./strings.js";
    console.log(firstLanguage(["fr-FR", "zh-TW", "en"]), firstLanguage(["en-GB", "zh"]), firstLanguage([]));
    """)
    assert found.split() == ["zh", "en", "en"]


def test_a_table_is_safe_in_a_spreadsheet_and_its_numbers_are_numbers(node: Callable[[str], str]) -> None:
    cells = ["=1+1", "-2.5", "-cmd", "+1", 'a "b", c', "", "@x", "0.125000", "-"]
    found = node(f"""
    import {{ csv }} from "./csv.js";
    process.stdout.write(csv([{json.dumps(cells)}, [null, undefined, 3]]));
    """)
    rows = list(csv.reader(io.StringIO(found, newline="")))
    assert rows == [["'=1+1", "-2.5", "'-cmd", "'+1", 'a "b", c', "", "'@x", "0.125000", "'-"], ["", "", "3"]]


def test_a_page_that_its_server_sent_on_to_is_given_from_the_cache_as_if_not(node: Callable[[str], str]) -> None:
    """Browsers refuse a redirected answer to a navigation; some servers send /index.html on to /."""
    found = node("""
    import { readFileSync, writeFileSync } from "node:fs";
    const site = 'const SITE = { version: "1", files: ["index.html"], more: [] };';
    const text = readFileSync("./sw.js", "utf8").replace(/const SITE = .*/, site);
    writeFileSync("./filled.js", text);
    const handlers = {}, kept = new Response("the page", { headers: { "Content-Type": "text/html" } });
    Object.defineProperty(kept, "redirected", { value: true });
    globalThis.self = { location: "https://example.org/sw.js" };
    globalThis.addEventListener = (name, handle) => (handlers[name] = handle);
    globalThis.caches = { open: async () => ({ match: async () => kept }) };
    await import("./filled.js");
    let answer;
    const request = { url: "https://example.org/", method: "GET" };
    handlers.fetch({ request, respondWith: (given) => (answer = given) });
    const response = await answer;
    console.log(response.redirected, response.headers.get("Cross-Origin-Opener-Policy"), await response.text());
    """)
    assert found.split() == ["false", "same-origin", "the", "page"]


def test_a_file_is_given_though_the_store_is_full(node: Callable[[str], str]) -> None:
    found = node("""
    import { readFileSync, writeFileSync } from "node:fs";
    const site = 'const SITE = { version: "1", files: ["index.html"], more: [] };';
    writeFileSync("./filled.js", readFileSync("./sw.js", "utf8").replace(/const SITE = .*/, site));
    const handlers = {};
    globalThis.self = { location: "https://example.org/sw.js" };
    globalThis.addEventListener = (name, handle) => (handlers[name] = handle);
    const put = async () => { throw new DOMException("full", "QuotaExceededError"); };
    globalThis.caches = { open: async () => ({ match: async () => undefined, put }) };
    globalThis.fetch = async () => new Response("the page");
    await import("./filled.js");
    let answer;
    const request = { url: "https://example.org/", method: "GET" };
    handlers.fetch({ request, respondWith: (given) => (answer = given) });
    console.log(await (await answer).text());
    """)
    assert found.split() == ["the", "page"]
