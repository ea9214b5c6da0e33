"""What the service answers, for its description in OpenAPI. The answers themselves are made in `app`."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field


class Guess(BaseModel):
    """A class and its probability."""

    name: str
    probability: float = Field(ge=0, le=1)


class Answered(BaseModel):
    """One photo that was answered."""

    photo: str | int = Field(description="The file's name, or the photo's index where it had none.")
    guesses: list[Guess] = Field(description="The most probable classes, best first.")
    unknown: bool = Field(description="Whether the photo shows none of the classes.")
    score: float | None = Field(description="How much it is like the classes; null where the model cannot say.")


class Unread(BaseModel):
    """One photo among several that could not be read."""

    photo: str | int
    error: str
    hint: str


class Answers(BaseModel):
    """What is said of the photos, in their order."""

    model: str
    version: str = Field(description="The content of the model's bundle: the same digits, the same answers.")
    time_ms: float = Field(description="From the last byte of the photos to the answer.")
    answers: list[Answered | Unread]


class Brief(BaseModel):
    """A model in a line."""

    name: str
    version: str
    net: str
    runtime: str
    precision: str


class Facts(Brief):
    """All that may be known of a model."""

    classes: list[str]
    preprocess: dict[str, Any] = Field(description="The pixel contract: what is done to a photo.")
    rejection: dict[str, Any] | None = Field(description="Score and threshold of unknown photos.")
    card: dict[str, Any]


class Saved(BaseModel):
    """A corrected photo was kept."""

    saved: bool
    name: str


class Error(BaseModel):
    """Why a request was refused, and what to do."""

    error: str
    hint: str


ANSWERS = {
    "model": "flowers",
    "version": "3f2c9a1be07d",
    "time_ms": 9.7,
    "answers": [
        {
            "photo": "garden.jpg",
            "guesses": [{"name": "tulips", "probability": 0.97}, {"name": "roses", "probability": 0.02}],
            "unknown": False,
            "score": 0.97,
        },
        {"photo": "notes.txt", "error": "the photo is not a photo that can be read", "hint": "use JPEG, PNG"},
    ],
}
ERROR = {"error": "the request holds no photo", "hint": "send the bytes of one photo as image/jpeg"}
_BINARY = {"schema": {"type": "string", "format": "binary"}}
PHOTOS = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"photos": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                    "required": ["photos"],
                }
            },
            "image/jpeg": _BINARY,
            "application/octet-stream": _BINARY,
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "photos": {"type": "array", "items": {"type": "string", "format": "byte"}},
                        "top": {"type": "integer"},
                        "model": {"type": "string"},
                    },
                    "required": ["photos"],
                },
                "example": {"photos": ["/9j/4AAQSkZJRg..."], "top": 3},
            },
        },
    }
}
ONE_PHOTO = {
    "requestBody": {
        "required": True,
        "content": {
            name: PHOTOS["requestBody"]["content"][name]  # type: ignore[index]
            for name in ("image/jpeg", "application/octet-stream", "multipart/form-data")
        },
    }
}


def responses(model: type[BaseModel], example: Any = None, status: int = 200, *refusals: int) -> dict[int | str, Any]:
    """FastAPI's `responses` of a route: what it answers, and with which statuses it refuses."""
    content = {"content": {"application/json": {"example": example}}} if example is not None else {}
    good: dict[int | str, Any] = {status: {"model": model, **content}}
    bad = {"model": Error, "content": {"application/json": {"example": ERROR}}}
    return good | dict.fromkeys(refusals, bad)


def as_it_is(description: dict[str, Any], has_key: bool) -> dict[str, Any]:
    """FastAPI's description less the 422 that it adds for parameters, here a 400; with the key if one is wanted."""
    for methods in description["paths"].values():
        for route in methods.values():
            if "HTTPValidationError" in str(route["responses"].get("422")):
                del route["responses"]["422"]
    for name in ("HTTPValidationError", "ValidationError"):
        description["components"]["schemas"].pop(name, None)
    if has_key:
        description["components"]["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
        description["security"] = [{"bearer": []}, {"header": []}]
    return description
