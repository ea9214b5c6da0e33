"""What a browser is given: the page's files, and the description of the service as plain HTML."""

from __future__ import annotations

import json
import re
from html import escape
from pathlib import Path
from typing import Any

from starlette.responses import FileResponse, Response

import handlens
from handlens.serve.limits import RefusedError

FOLDER = Path(handlens.__file__).parent / "page"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".webmanifest": "application/manifest+json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".ico": "image/x-icon",
    ".wasm": "application/wasm",
    ".txt": "text/plain; charset=utf-8",
}


def file(path: str) -> Response:
    """A file of the page; "" is its index.html. Raises RefusedError (404) for all else."""
    name = path or "index.html"
    proper = re.fullmatch(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)*", name, re.ASCII)
    found = FOLDER / name
    kind = TYPES.get(found.suffix)
    if not proper or kind is None or not found.is_file():
        raise RefusedError(404, "there is nothing at this address", "GET /docs lists what there is")
    return FileResponse(found, headers={"content-type": kind, "cache-control": "no-cache"})


def docs(openapi: dict[str, Any]) -> str:
    """The routes and examples of an OpenAPI description as one page of HTML, without scripts and styles."""
    parts = []
    for path, methods in openapi["paths"].items():
        for method, route in methods.items():
            parts.append(f"<h2><code>{escape(method.upper())} {escape(path)}</code></h2>")
            parts.append(f"<p>{escape(route.get('summary', ''))}</p><p>{escape(route.get('description', ''))}</p>")
            parameters = "".join(
                f"<li><code>{escape(one['name'])}</code>: {escape(one.get('description', ''))}</li>"
                for one in route.get("parameters", ())
            )
            parts.append(f"<ul>{parameters}</ul>" if parameters else "")
            kinds = ", ".join(route.get("requestBody", {}).get("content", ()))
            parts.append(f"<p>Body: {escape(kinds)}</p>" if kinds else "")
            for status, response in route["responses"].items():
                parts.append(f"<p>{escape(status)}: {escape(response['description'])}</p>")
                examples = [one["example"] for one in response.get("content", {}).values() if "example" in one]
                if status.startswith("2"):
                    parts += [f"<pre>{escape(_indented(example))}</pre>" for example in examples]
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>handlens</title><h1>handlens {escape(openapi['info']['version'])}</h1>"
        '<p>Machines read <a href="/openapi.json">/openapi.json</a>.</p>' + "\n".join(parts)
    )


def _indented(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)
