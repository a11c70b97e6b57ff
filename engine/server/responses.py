"""Whole answers in JSON."""

from typing import Any

import msgspec
from fastapi.responses import Response


def json_response(data: Any, status: int = 200) -> Response:
    """`data` as JSON; dataclasses and enums are written as objects and their values."""
    return Response(msgspec.json.encode(data), status, media_type="application/json")
