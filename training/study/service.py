"""The HTTP service: its endpoints, authorisation, and responses."""

import asyncio
import hmac
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.middleware.trustedhost import TrustedHostMiddleware

from training.errors import NoRoomError, StudyError
from training.study.backend import KINDS, Backend, Form
from training.study.scratch import needs_room, temporary_folder
from training.study.uploads import Refused, receive

LOOPBACK = ("127.0.0.1", "localhost", "::1")
LOG = logging.getLogger("uvicorn.error")
OPEN_PATHS = ("/health",)  # need no token


def make_app(backend: Backend, host: str = "127.0.0.1") -> FastAPI:
    """Return the application: POST /studies, GET /health and /metrics."""
    app = FastAPI(title="ich-cache: answers to head-CT studies; research only", docs_url=None, redoc_url=None)
    if host in LOOPBACK:  # protects against DNS rebinding by web pages
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK, "[::1]", "testserver"])

    @app.middleware("http")
    async def check_token(request: Request, call: Callable[[Request], Awaitable[Response]]) -> Response:
        if backend.options.token is None or request.url.path in OPEN_PATHS or _bears(request, backend.options.token):
            return await call(request)
        return JSONResponse({"error": "send the service's token: Authorization: Bearer TOKEN"}, 401)

    @app.get("/health")
    async def health() -> dict[str, object]:
        return {"status": "ok", "run": backend.about["name"], "in_hand": backend.counts.in_hand}

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse(backend.counts.to_text())

    @app.post("/studies")
    async def studies(request: Request) -> Response:
        if not backend.counts.enter(backend.options.waiting):
            busy = f"{backend.options.waiting} studies are in progress; send this one again later"
            return JSONResponse({"error": busy}, 503, headers={"Retry-After": "5"})
        return await _answer_counted(backend, request)

    return app


def _bears(request: Request, token: str) -> bool:
    given = request.headers.get("authorization", "")
    return hmac.compare_digest(given.encode(), f"Bearer {token}".encode())


async def _answer_counted(backend: Backend, request: Request) -> Response:
    """Answer one request, and count its outcome in any case."""
    start, outcome, slices = time.monotonic(), "failed", 0
    try:
        kind = _kind(request)
        content, slices = await _answer(backend, request, kind, start + backend.options.seconds)
        outcome = "answered"
        return Response(content, media_type=KINDS[kind])
    except Refused as error:
        outcome = f"refused_{error.status}"
        return JSONResponse({"error": " ".join(str(error).split())}, error.status)
    except StudyError as error:
        outcome = "refused_422"
        return JSONResponse({"error": " ".join(str(error).split())}, 422)
    except NoRoomError as error:
        outcome = "refused_507"
        LOG.error("%s", error)
        return JSONResponse({"error": "the service's disk is full; send the study again later"}, 507)
    except Exception:
        LOG.exception("a study was not answered")  # a bug; the traceback quotes no value of a file
        return JSONResponse({"error": "an internal error of the service; see its log"}, 500)
    finally:
        seconds = time.monotonic() - start
        backend.counts.leave(outcome, seconds, slices)
        LOG.info("study: %s, %d slices, %.2f s", outcome, slices, seconds)


def _kind(request: Request) -> str:
    """Return the requested kind of answer, from ?answer= or else the Accept header; JSON by default."""
    requested = request.query_params.get("answer")
    accepted = request.headers.get("accept", "")
    kind = requested or next((name for name, media in KINDS.items() if media.split(";")[0] in accepted), "json")
    if kind not in KINDS:
        raise Refused(400, f"answer={kind}: use one of {', '.join(KINDS)}")
    return kind


async def _answer(backend: Backend, request: Request, kind: str, deadline: float) -> tuple[bytes, int]:
    identifiers = _flag(request, "identifiers")
    if identifiers and not backend.options.identifiers:
        raise Refused(403, "the service does not return identifiers; start it with --identifiers")
    with temporary_folder() as work, needs_room():
        (source := Path(work) / "source").mkdir()
        try:
            async with asyncio.timeout(backend.options.seconds), _body(request) as body:
                type_of = request.headers.get("content-type", "")
                await receive(type_of, body, source, backend.options.megabytes * 10**6)
        except TimeoutError as error:
            raise Refused(
                408, "the body did not arrive in time; send it faster, or allow more with --seconds"
            ) from error
        form = Form(kind, _flag(request, "heatmap"), identifiers)
        return await asyncio.to_thread(backend.serve, source, Path(work), form, deadline)


def _flag(request: Request, name: str) -> bool:
    return request.query_params.get(name, "false").lower() in ("1", "true", "yes")


@asynccontextmanager
async def _body(request: Request) -> AsyncIterator[AsyncIterator[bytes]]:
    """Yield the body in pieces; a client that disconnects is a refused request."""
    from starlette.requests import ClientDisconnect

    try:
        yield request.stream()
    except ClientDisconnect as error:
        raise Refused(400, "the client disconnected before the end of the body") from error


def run_service(backend: Backend, host: str, port: int) -> None:
    """Serve until SIGINT or SIGTERM."""
    app = make_app(backend, host)
    backend.start()
    try:
        _serve(app, host, port)
    finally:
        backend.close()


def _serve(app: FastAPI, host: str, port: int) -> None:
    uvicorn.run(app, host=host, port=port, access_log=False, timeout_keep_alive=30, h11_max_incomplete_event_size=65536)
