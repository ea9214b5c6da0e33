"""The routes of the service."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import prometheus_client
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.types import ASGIApp

import handlens
from handlens import cores
from handlens.errors import HandlensError, PhotoError
from handlens.serve import pages, schemas
from handlens.serve.batching import Batcher
from handlens.serve.corrections import Corrections
from handlens.serve.gate import TAKES_PHOTOS, Gate
from handlens.serve.limits import RefusedError, Settings, busy
from handlens.serve.metrics import Metrics
from handlens.serve.models import Model, Models, Served
from handlens.serve.uploads import Held, Upload, body_of, parse

log = logging.getLogger("handlens.serve")

MOST_GUESSES = 1000
REFUSED_AFTER_S = 0.05  # at the soonest: a client that tries again at once should not cost what photos cost
REFUSALS_PER_S = 100  # of all clients together: the more they are, the longer each is kept waiting
TOP = Query(5, ge=1, le=MOST_GUESSES, description="How many guesses a photo gets.")
MODEL = Query("", max_length=100, description="The model's name; the first where none is named.")


class Service:
    """What the routes share: threads, queues and counts."""

    def __init__(self, settings: Settings, models: Models) -> None:
        self.settings = settings
        self.limits = settings.limits
        self.models = models
        self.metrics = Metrics()
        self.held = Held(self.limits.held_bytes)
        self.photos = 0  # decoded, waiting or in the network
        self.refusing = 0  # requests that are kept waiting for their refusal
        self.corrections = Corrections(settings.keep, self.limits.kept) if settings.keep else None

    @contextlib.asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        """Threads and the watch over the bundles' files, for as long as the service runs."""
        self.decoders = ThreadPoolExecutor(cores.available(), "decode")
        self.network = ThreadPoolExecutor(1, "network")
        self.models.begin(self._batcher)
        watching = asyncio.create_task(self.models.watch(self.settings.poll_s, self._announce))
        for model in self.models.all():
            self._announce(model)
        try:
            yield
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
            self.decoders.shutdown(wait=False, cancel_futures=True)
            self.network.shutdown(wait=False, cancel_futures=True)

    def _batcher(self, model: Model) -> Batcher:
        watch = self.metrics.batches.labels(model.name).observe
        return Batcher(model.classifier.answers, self.network, model.batch, self.limits.wait_s, watch)

    def _announce(self, model: Model) -> None:
        self.metrics.model.clear()
        for one in self.models.all():
            self.metrics.model.labels(one.name, one.version, one.classifier.net, one.classifier.runtime).set(1)
        log.info("serving", extra={"model": model.name, "version": model.version, "photos_at_once": model.batch})

    async def refuse_when_full(self) -> None:
        """Raises RefusedError (503), a while later, when no further photo would be taken on."""
        if self.photos >= self.limits.photos:
            await self.keep_waiting()
            raise busy()

    async def keep_waiting(self) -> None:
        """Before a refusal, which whoever gets it may answer with the next request at once."""
        self.refusing += 1
        try:
            await asyncio.sleep(max(REFUSED_AFTER_S, self.refusing / REFUSALS_PER_S))
        finally:
            self.refusing -= 1

    @contextlib.contextmanager
    def room_for(self, count: int) -> Iterator[None]:
        """Count photos in and out. Raises RefusedError (503) when there is no room for them."""
        if self.photos + count > self.limits.photos:
            raise busy()
        self.photos += count
        self.metrics.waiting.set(self.photos)
        try:
            yield
        finally:
            self.photos -= count
            self.metrics.waiting.set(self.photos)

    async def in_time(self, work: Any) -> Any:
        """Await the work. Raises RefusedError (503) when it takes too long."""
        try:
            async with asyncio.timeout(self.limits.time_s):
                return await work
        except TimeoutError:
            raise busy(f"the photos could not be answered within {self.limits.time_s:g} seconds") from None

    async def answer(self, served: Served, upload: Upload, index: int, top: int) -> dict[str, Any]:
        """One photo's entry in the answer."""
        photo = index if upload.name is None else upload.name
        load = functools.partial(served.model.classifier.preprocess.load, upload.data, self.limits.pixels)
        outcomes = self.metrics.photos
        try:
            with served.batcher.coming():
                pixels = await asyncio.get_running_loop().run_in_executor(self.decoders, load)
        except PhotoError as error:
            outcomes.labels(served.model.name, "unreadable").inc()
            refused = unreadable(error)
            return {"photo": photo, "error": refused.message, "hint": refused.hint}
        answer = await served.batcher.answer(pixels, top)
        outcomes.labels(served.model.name, "unknown" if answer.unknown else "answered").inc()
        guesses = [{"name": name, "probability": probability} for name, probability in answer.guesses]
        return {"photo": photo, "guesses": guesses, "unknown": answer.unknown, "score": answer.score}


def unreadable(error: PhotoError) -> RefusedError:
    """A photo's error for those far away: what its decoder said stays here."""
    return RefusedError(422, error.message.partition(" (")[0], error.hint)


def create(settings: Settings, models: Models, authority: Path | None = None) -> ASGIApp:
    """The service as an ASGI application. authority: the certificate that phones may trust, given at /handlens.crt."""
    service = Service(settings, models)
    limits = settings.limits
    app = FastAPI(
        title="handlens",
        version=handlens.__version__,
        description="Photos in, guesses out.",
        docs_url=None,  # its page would load scripts from another host
        redoc_url=None,
        lifespan=service.lifespan,
    )

    @app.post(
        "/v1/predict",
        summary="Say what is on photos",
        responses=schemas.responses(schemas.Answers, schemas.ANSWERS, 200, 400, 401, 403, 404, 408, 413, 415, 422, 503),
        openapi_extra=schemas.PHOTOS,
    )
    async def predict(request: Request, top: int = TOP, model: str = MODEL) -> Response:
        """One photo or many. A photo that cannot be read has an error in place of guesses; alone, the status is 422."""
        async with body_of(request, service.held, limits) as body:
            begun = time.perf_counter()
            content_type = request.headers.get("content-type", "")
            if content_type.startswith("image/"):  # nothing to take apart
                uploads, values = parse(body, content_type, limits)
            else:
                uploads, values = await asyncio.to_thread(parse, body, content_type, limits)
            if "top" in values:
                top = _number(values["top"])
            served = models.get(values.get("model", model))
            told = request.state.told
            told.update(model=served.model.name, photos=len(uploads))
            with service.room_for(len(uploads)):
                work = (service.answer(served, upload, index, top) for index, upload in enumerate(uploads))
                answers = await service.in_time(asyncio.gather(*work))
        told["unreadable"] = sum("error" in answer for answer in answers)
        if len(answers) == 1 and "error" in answers[0]:
            raise RefusedError(422, answers[0]["error"], answers[0]["hint"])
        return JSONResponse(
            {
                "model": served.model.name,
                "version": served.model.version,
                "time_ms": round(1000 * (time.perf_counter() - begun), 3),
                "answers": answers,
            }
        )

    @app.get("/v1/model", summary="A model", responses=schemas.responses(schemas.Facts, None, 200, 400, 401, 404))
    async def one_model(model: str = MODEL) -> Response:
        """Its classes, its pixel contract, its card."""
        return JSONResponse(models.get(model).model.facts())

    @app.get("/v1/models", summary="The models", responses=_list_of(schemas.Brief))
    async def all_models() -> Response:
        """The first is the one that answers where none is named."""
        return JSONResponse([one.brief() for one in models.all()])

    @app.post(
        "/v1/corrections",
        summary="Keep a wrongly answered photo for the next training",
        status_code=201,
        responses=schemas.responses(
            schemas.Saved, {"saved": True, "name": "tulips"}, 201, 400, 401, 403, 404, 408, 413, 415, 422, 503, 507
        ),
        openapi_extra=schemas.ONE_PHOTO,
    )
    async def correct(
        request: Request, name: str = Query(max_length=500, description="Its right class."), model: str = MODEL
    ) -> Response:
        """The last name of a photo counts; with an empty one what was kept of it is taken back.

        Where the service was not started with a folder for them, the status is 403 and nothing is kept.
        """
        if service.corrections is None:
            raise RefusedError(403, "this service keeps no photos", "it does when it is started with --keep")
        async with body_of(request, service.held, limits) as body:
            uploads, _ = await asyncio.to_thread(parse, body, request.headers.get("content-type", ""), limits)
            if len(uploads) > 1:
                raise RefusedError(400, "more than one photo came at once", "send one photo a request")
            classifier = models.get(model).model.classifier

            def keep() -> None:
                classifier.preprocess.load(uploads[0].data, limits.pixels)
                service.corrections.save(uploads[0].data, name, classifier.classes)  # type: ignore[union-attr]

            with service.room_for(1):
                await service.in_time(asyncio.get_running_loop().run_in_executor(service.decoders, keep))
        request.state.told.update(photos=1, kept=bool(name))
        return JSONResponse({"saved": bool(name), "name": name}, 201)

    @app.get("/healthz", summary="Whether the service runs", include_in_schema=True)
    async def healthz() -> Response:
        """200 as long as it does."""
        return JSONResponse({"status": "running"})

    @app.get("/readyz", summary="Whether photos are answered", responses={503: {"model": schemas.Error}})
    async def readyz() -> Response:
        """200 when they are; 503 when as many wait as are taken on."""
        if not models.ready or service.photos >= limits.photos:
            return JSONResponse(busy().to_dict(), 503, busy().headers)
        return JSONResponse({"status": "ready"})

    @app.get("/metrics", summary="Counts for Prometheus", response_class=Response)
    async def counts() -> Response:
        """In its text format."""
        return Response(service.metrics.text(), media_type=prometheus_client.CONTENT_TYPE_LATEST)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(pages.docs(app.openapi()))

    @app.get("/handlens.crt", include_in_schema=False)
    async def certificate() -> Response:
        if authority is None:
            raise RefusedError(404, "this service has no certificate of its own")
        return FileResponse(authority, media_type="application/x-x509-ca-cert", filename="handlens.crt")

    @app.get("/{path:path}", include_in_schema=False)
    async def page(path: str) -> Response:
        if f"/{path}" in TAKES_PHOTOS:  # else this route, which takes any path, would say 404
            raise HTTPException(405, headers={"Allow": "POST"})
        return await asyncio.to_thread(pages.file, path)

    @app.exception_handler(RefusedError)
    async def refused(_: Request, error: RefusedError) -> Response:
        if error.status == 503:
            await service.keep_waiting()
        return JSONResponse(error.to_dict(), error.status, error.headers)

    @app.exception_handler(PhotoError)
    async def photo(_: Request, error: PhotoError) -> Response:
        return JSONResponse(unreadable(error).to_dict(), 422)

    @app.exception_handler(HandlensError)
    async def failed(request: Request, error: HandlensError) -> Response:
        log.error("a request failed", extra={"error": str(error), "path": request.url.path})
        return JSONResponse(RefusedError(500, "the service could not do this; its log says why").to_dict(), 500)

    @app.exception_handler(HTTPException)
    async def other(_: Request, error: HTTPException) -> Response:
        known = {404: "there is nothing at this address", 405: "this address does not take this method"}
        answer = RefusedError(
            error.status_code, known.get(error.status_code, "refused"), "GET /docs lists what there is"
        )
        return JSONResponse(answer.to_dict(), error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        wrong = RefusedError(
            400, f"{first['loc'][-1]} is not as it must be: {first['msg']}", "GET /docs lists what there is"
        )
        return JSONResponse(wrong.to_dict(), 400)

    @app.exception_handler(Exception)
    async def bug(request: Request, _: Exception) -> Response:
        return JSONResponse(
            RefusedError(500, "something went wrong in the service", "its log says what").to_dict(), 500
        )

    app.openapi_schema = schemas.as_it_is(app.openapi(), bool(settings.api_key))
    return Gate(app, settings, service.metrics, service.refuse_when_full)


def _number(text: str) -> int:
    if not text.isdecimal() or len(text) > 9 or not 1 <= int(text) <= MOST_GUESSES:
        raise RefusedError(400, f"top is not as it must be: a number from 1 to {MOST_GUESSES}")
    return int(text)


def _list_of(model: type[schemas.Brief]) -> dict[int | str, Any]:
    return schemas.responses(list[model], None, 200, 401)  # type: ignore[valid-type, arg-type]
