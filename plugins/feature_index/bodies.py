"""Requests with too large a body are refused: forms are read before anyone is asked for his rights."""

from fastapi import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tasks.settings import Settings

_FORM_BYTES = 1_000_000
"""What a form may hold besides a picture."""


class LimitedBodies:
    """An application (ASGI) that gets bodies of one picture and the rest of its form at most."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        at_most = Settings.load().max_image_bytes + _FORM_BYTES
        announced = int(dict(scope["headers"]).get(b"content-length", 0))
        read = 0

        async def limited() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if max(read, announced) > at_most:
                raise HTTPException(
                    413, f"That is more than {at_most} bytes; FEATURES_MAX_IMAGE_BYTES is the limit."
                )
            return message

        await self._app(scope, limited, send)
