"""messages URL: what an echo server must give back. stay URL: waits to be closed.
stream URL: talks without pause until it is closed."""
import asyncio
import os
import sys

import websockets


async def messages(url):
    async with websockets.connect(url, max_size=None) as ws:
        for size in (0, 1, 125, 126, 127, 128, 65535, 65536, 1 << 20):
            for message in ("\u03ba" * size, os.urandom(size)):
                await ws.send(message)
                assert await ws.recv() == message, size
        pieces = ["frag", "", "men\u03c4", "x" * 70000, "ed"]
        await ws.send(pieces)
        assert await ws.recv() == "".join(pieces)
        for payload in (b"", b"x" * 125):
            await (await ws.ping(payload))
        many = [str(i) for i in range(500)]
        for m in many:
            await ws.send(m)
        assert [await ws.recv() for _ in many] == many
        await ws.close(3999, "that is all")
        assert ws.close_code == 3999, ws.close_code
    plain = await websockets.connect(url, compression=None)
    await plain.send(b"\x00" * 300000)
    assert await plain.recv() == b"\x00" * 300000
    await plain.close()
    assert plain.close_code == 1000
    print("good")


async def stay(url):
    async with websockets.connect(url) as ws:
        await ws.send("hello")
        await ws.recv()
        print("ready", flush=True)
        try:
            await ws.recv()
        except websockets.ConnectionClosed:
            pass
        print("closed", ws.close_code, ws.close_reason, flush=True)


async def stream(url):
    async with websockets.connect(url) as ws:
        try:
            for n in range(10**9):
                message = str(n) * 1000
                await ws.send(message)
                assert await ws.recv() == message
                if n == 10:
                    print("ready", flush=True)
        except websockets.ConnectionClosed:
            pass
        print("closed", ws.close_code, ws.close_reason, flush=True)


asyncio.run({"messages": messages, "stay": stay, "stream": stream}[sys.argv[1]](sys.argv[2]))
