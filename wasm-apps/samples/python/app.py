"""A web app for wasi:http 0.2 in Python.

/         which pod and node answered, and the number of this instance's requests to `/`
/headers  the request's headers as JSON
else      404
"""

import json
import os

from componentize_py_types import Ok
from wit_world import exports
from wit_world.imports.types import (
    Fields,
    IncomingRequest,
    OutgoingBody,
    OutgoingResponse,
    ResponseOutparam,
)

# Longest write that `blocking-write-and-flush` takes, in bytes.
WRITE_BYTES_MAX = 4096

requests = 0


class IncomingHandler(exports.IncomingHandler):
    """What the host calls once per request."""

    def handle(self, request: IncomingRequest, response_out: ResponseOutparam) -> None:
        path = (request.path_with_query() or "/").partition("?")[0]
        status, content_type, text = answer(path, request)
        headers = Fields.from_list([("content-type", content_type.encode())])
        response = OutgoingResponse(headers)
        response.set_status_code(status)
        body = response.body()
        ResponseOutparam.set(response_out, Ok(response))
        data = text.encode()
        # The stream is a child of the body, and has to go before the body is finished.
        with body.write() as stream:
            for start in range(0, len(data), WRITE_BYTES_MAX):
                stream.blocking_write_and_flush(data[start : start + WRITE_BYTES_MAX])
        OutgoingBody.finish(body, None)


def answer(path: str, request: IncomingRequest) -> tuple[int, str, str]:
    """Status, content type and body."""
    if path == "/":
        global requests
        requests += 1
        pod = os.environ.get("POD_NAME", "unknown")
        node = os.environ.get("NODE_NAME", "unknown")
        print(f"request {requests}", flush=True)
        greeting = f"Hello from Python in pod {pod} on node {node}, request {requests}\n"
        return 200, "text/plain; charset=utf-8", greeting
    if path == "/headers":
        headers = {name: value.decode("latin-1") for name, value in request.headers().entries()}
        return 200, "application/json", json.dumps(headers) + "\n"
    return 404, "text/plain; charset=utf-8", "not found\n"
