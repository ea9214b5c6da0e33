"""From the network's numbers to an answer, and what the page says: by node, without a browser."""

from __future__ import annotations

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
