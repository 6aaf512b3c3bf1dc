"""Control a headless Chromium with the DevTools protocol: open a page, press keys, and evaluate expressions."""

import asyncio
import base64
import json
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from tornado.httpclient import AsyncHTTPClient
from tornado.websocket import WebSocketClientConnection, websocket_connect

from testkit.chromium import CHROMIUM, FLAGS

CODES = {"Enter": 13, "Escape": 27, "End": 35, "Home": 36, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39,
         "ArrowDown": 40, "Tab": 9}  # fmt: skip


class Page:
    """A page in the browser.

    Attributes:
        errors: exceptions of its scripts, and messages on the console.
        requested: addresses that it requested from the network.
    """

    def __init__(self, socket: WebSocketClientConnection) -> None:
        self._socket, self._number = socket, 0
        self.errors: list[str] = []
        self.requested: list[str] = []

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result; events in the meantime are recorded."""
        self._number += 1
        await self._socket.write_message(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(await asyncio.wait_for(self._socket.read_message(), 60) or "null")
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]
            if message.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.errors.append(json.dumps(message["params"]))
            if message.get("method") == "Network.requestWillBeSent":
                self.requested.append(message["params"]["request"]["url"])

    async def open(self, address: str, width: int, height: int = 900) -> None:
        """Open a page in a window of the given size in CSS pixels."""
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.call(f"{domain}.enable")
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        await self.call("Page.navigate", url=address)
        while await self.evaluate("document.readyState") != "complete":
            await asyncio.sleep(0.1)

    async def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression."""
        found = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def press(self, key: str) -> None:
        """Press and release a key."""
        of = {"key": key, "windowsVirtualKeyCode": CODES.get(key) or ord(key.upper())}
        text = "\r" if key == "Enter" else key if len(key) == 1 else ""
        await self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **of)
        await self.call("Input.dispatchKeyEvent", type="keyUp", **of)

    async def picture(self, path: Path) -> None:
        """Write a screenshot as PNG."""
        shot = await self.call("Page.captureScreenshot")
        path.write_bytes(base64.b64decode(shot["data"]))


def browse(profile: Path, visit: Callable[[Page], Awaitable[None]]) -> None:
    """Start Chromium with a new profile, call `visit` with a page, and end it."""
    command = [str(CHROMIUM), *FLAGS, "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        asyncio.run(_visit(_port(profile, process), visit))
    finally:
        process.terminate()
        process.wait(30)


def _port(profile: Path, process: subprocess.Popen[bytes]) -> int:
    file = profile / "DevToolsActivePort"
    for _ in range(600):
        if file.exists() and file.read_text().count("\n"):
            return int(file.read_text().split()[0])
        assert process.poll() is None, "Chromium has ended"
        time.sleep(0.1)
    raise TimeoutError("Chromium did not start")


async def _visit(port: int, visit: Callable[[Page], Awaitable[None]]) -> None:
    targets = json.loads((await AsyncHTTPClient().fetch(f"http://127.0.0.1:{port}/json")).body)
    [address] = [target["webSocketDebuggerUrl"] for target in targets if target["type"] == "page"]
    socket = await websocket_connect(address, max_message_size=1 << 26)
    await visit(Page(socket))
    socket.close()
