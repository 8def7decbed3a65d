"""Exchanges from cassettes: vcrpy cannot see curl, so a session of curl_cffi plays them.

A request is played for what it means: JSON is compared as JSON, a form by its parts, and the ids
of runs, which the plugin makes up, are those of the recording wherever they come up.
"""

import json
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import curl_cffi.requests
from chat_ui import captured, parse_form
from curl_cffi.requests import AsyncSession, Headers
from vcr.errors import CannotOverwriteExistingCassetteException  # type: ignore[import-untyped]
from vcr.request import Request  # type: ignore[import-untyped]

LEFT_OUT = {"is_retry": False, "selectedMcpServers": []}  # what a message without these means
NEITHER = ("generationId", "timezone")  # compared: the one is made up, the other the machine's


def content_of(content: Any) -> bytes | None:
    """The whole body of a request: bytes, what can be read, or pieces."""
    if content is None or isinstance(content, bytes):
        return content
    if hasattr(content, "read"):
        return b"".join(iter(lambda: content.read(65_536), b""))
    return b"".join(content)


def meaning(request: Request) -> tuple[Any, str]:
    """What a request asks for, to be compared; and the id of the run that it begins."""
    kind = next((v for k, v in request.headers.items() if k.lower() == "content-type"), "")
    kind = kind if isinstance(kind, str) else kind[0]
    body: Any = request.body or b""
    message: dict[str, Any] = {}
    if kind.startswith("multipart/"):
        data, files = parse_form(kind, body)
        message = LEFT_OUT | (data or {})
        body = {k: v for k, v in message.items() if k not in NEITHER}, files
    elif body:
        body = json.loads(body)
    url = urlsplit(request.uri)
    asked = (request.method, url.netloc, url.path, sorted(parse_qsl(url.query)), body)
    return asked, message.get("generationId", "")


class CassetteSession(AsyncSession[Any]):
    """A session whose exchanges come from a cassette, or go to it."""

    cassette: Any = None  # vcrpy gives each cassette a subclass

    async def request(  # type: ignore[override]
        self, method: Any, url: str, *, content: Any = None, content_callback: Any, **options: Any
    ) -> Any:
        sent = content_of(content)
        request = Request(method, url, sent, options["headers"])
        if self.cassette.write_protected:
            recorded = self._recorded(request)
        else:
            recorded = await self._record(method, url, sent, options)
            self.cassette.append(request, recorded)
        body = recorded["body"]["string"]
        for at in range(0, len(body), 61):  # in pieces, cut anywhere
            content_callback(body[at : at + 61])
        headers = Headers({name: values[0] for name, values in recorded["headers"].items()})
        return SimpleNamespace(status_code=recorded["status"]["code"], headers=headers)

    def _recorded(self, request: Request) -> Any:
        """The answer to a request: the next that was recorded, else the last one again."""
        state = vars(self.cassette)
        ids: dict[str, str] = state.setdefault("ids", {})  # of runs: recorded -> made up
        played: set[int] = state.setdefault("played", set())
        for old, new in ids.items():
            request.uri = request.uri.replace(new, old)
        wanted, made = meaning(request)
        found = []
        for number, (other, response) in enumerate(self.cassette.data):
            recorded, run = meaning(other)
            if recorded == wanted and ids.get(run, made) == made:
                found.append((number, run, response))
        if not found and (answer := answer_to_what_was_not_recorded(request)):
            return answer
        if not found:
            raise CannotOverwriteExistingCassetteException(
                cassette=self.cassette, failed_request=request
            )
        number, run, response = next((one for one in found if one[0] not in played), found[-1])
        played.add(number)
        if run:
            ids[run] = made
        body = response["body"]["string"]
        body = body.encode() if isinstance(body, str) else body
        for old, new in ids.items():
            body = body.replace(old.encode(), new.encode())
        return response | {"body": {"string": body}}

    async def _record(self, method: Any, url: str, sent: bytes | None, options: Any) -> Any:
        body = bytearray()

        def take(piece: bytes) -> int:
            body.extend(piece)
            return len(piece)

        content: Any = None if sent is None else iter([sent])
        response = await super().request(
            method, url, content=content, content_callback=take, **options
        )
        kind = response.headers.get("content-type")
        return {
            "status": {"code": response.status_code, "message": response.reason},
            "headers": {"content-type": [kind]} if kind else {},
            "body": {"string": bytes(body)},
        }


def answer_to_what_was_not_recorded(request: Request) -> Any:
    """That a run is stored, as they all are; and the list of models, which all servers had.

    One more is in it, which the server does not know.
    """
    body, kind = b"", ""
    if request.path.endswith("/stream"):
        body, kind = b'event: end\ndata: {"status":"completed"}\n\n', "text/event-stream"
    if request.path.endswith("/api/v2/models"):
        models = captured("models")["json"]
        models.append(models[1] | {"id": "nobody/nothing", "name": "nobody/nothing"})
        body, kind = json.dumps({"json": models}).encode(), "application/json"
    headers = {"content-type": [kind]}
    status = {"code": 200, "message": "OK"}
    return {"status": status, "headers": headers, "body": {"string": body}} if body else None


CUSTOM_PATCHES = ((curl_cffi.requests, "AsyncSession", CassetteSession),)
