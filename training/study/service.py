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
from training.study.desk import KINDS, Desk
from training.study.scratch import needs_room, temporary_folder
from training.study.uploads import Refused, receive

LOOPBACK = ("127.0.0.1", "localhost", "::1")
LOG = logging.getLogger("uvicorn.error")
OPEN_PATHS = ("/health",)  # need no token


def make_app(desk: Desk, host: str = "127.0.0.1") -> FastAPI:
    """Return the application: POST /studies, GET /health and /metrics."""
    app = FastAPI(title="ich-cache: answers to head-CT studies; research only", docs_url=None, redoc_url=None)
    if host in LOOPBACK:  # protects against DNS rebinding by web pages
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK, "[::1]", "testserver"])

    @app.middleware("http")
    async def check_token(request: Request, call: Callable[[Request], Awaitable[Response]]) -> Response:
        if desk.rules.token is None or request.url.path in OPEN_PATHS or _bears(request, desk.rules.token):
            return await call(request)
        return JSONResponse({"error": "send the service's token: Authorization: Bearer TOKEN"}, 401)

    @app.get("/health")
    async def health() -> dict[str, object]:
        return {"status": "ok", "run": desk.about["name"], "in_hand": desk.counts.in_hand}

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse(desk.counts.to_text())

    @app.post("/studies")
    async def studies(request: Request) -> Response:
        if not desk.counts.enter(desk.rules.waiting):
            busy = f"{desk.rules.waiting} studies are in progress; send this one again later"
            return JSONResponse({"error": busy}, 503, headers={"Retry-After": "5"})
        return await _answer_counted(desk, request)

    return app


def _bears(request: Request, token: str) -> bool:
    given = request.headers.get("authorization", "")
    return hmac.compare_digest(given.encode(), f"Bearer {token}".encode())


async def _answer_counted(desk: Desk, request: Request) -> Response:
    """Answer one request, and count its outcome in any case."""
    start, outcome, slices = time.monotonic(), "failed", 0
    try:
        kind = _kind(request)
        content, slices = await _answer(desk, request, kind, start + desk.rules.seconds)
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
        desk.counts.leave(outcome, seconds, slices)
        LOG.info("study: %s, %d slices, %.2f s", outcome, slices, seconds)


def _kind(request: Request) -> str:
    """Return the requested kind of answer, from ?answer= or else the Accept header; JSON by default."""
    requested = request.query_params.get("answer")
    accepted = request.headers.get("accept", "")
    kind = requested or next((name for name, media in KINDS.items() if media.split(";")[0] in accepted), "json")
    if kind not in KINDS:
        raise Refused(400, f"answer={kind}: use one of {', '.join(KINDS)}")
    return kind


async def _answer(desk: Desk, request: Request, kind: str, deadline: float) -> tuple[bytes, int]:
    identifiers = _flag(request, "identifiers")
    if identifiers and not desk.rules.identifiers:
        raise Refused(403, "the service does not return identifiers; start it with --identifiers")
    with temporary_folder() as work, needs_room():
        (source := Path(work) / "source").mkdir()
        try:
            async with asyncio.timeout(desk.rules.seconds), _body(request) as body:
                type_of = request.headers.get("content-type", "")
                await receive(type_of, body, source, desk.rules.megabytes * 10**6)
        except TimeoutError as error:
            raise Refused(
                408, "the body did not arrive in time; send it faster, or allow more with --seconds"
            ) from error
        heatmap = _flag(request, "heatmap")
        return await asyncio.to_thread(
            desk.serve, source, Path(work), kind, deadline, heatmap=heatmap, identifiers=identifiers
        )


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


def run_service(desk: Desk, host: str, port: int) -> None:
    """Serve until SIGINT or SIGTERM."""
    app = make_app(desk, host)
    desk.start()
    try:
        _serve(app, host, port)
    finally:
        desk.close()


def _serve(app: FastAPI, host: str, port: int) -> None:
    uvicorn.run(app, host=host, port=port, access_log=False, timeout_keep_alive=30, h11_max_incomplete_event_size=65536)
