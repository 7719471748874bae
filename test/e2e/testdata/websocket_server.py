"""Echoes WebSocket messages; says how each connection was closed."""
import asyncio
import http
import sys

import websockets


async def echo(ws, path=None):
    try:
        async for message in ws:
            await ws.send(message)
    except websockets.ConnectionClosed:
        pass
    print("closed", ws.close_code, ws.close_reason, flush=True)


async def health(path, headers):
    if path == "/health":
        return http.HTTPStatus.OK, [], b"ok\n"


async def main():
    async with websockets.serve(echo, "0.0.0.0", int(sys.argv[1]), max_size=None, process_request=health):
        await asyncio.Future()


asyncio.run(main())
