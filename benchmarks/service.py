"""Send a thousand studies to `train serve`, eight at a time, a tenth of them damaged.

    python -m benchmarks.service --run RUN --dicom STUDY [--requests 1000]

Starts the service, and prints the answers, the times, and the memory of the service and of its build processes.
"""

import argparse
import collections
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

AT_ONCE = 8


def main() -> None:
    """Run the campaign; exit with an error if any answer was not the expected one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", required=True)
    parser.add_argument("--dicom", type=Path, required=True, help="folder of one study")
    parser.add_argument("--requests", type=int, default=1000)
    options = parser.parse_args()
    files = [file.read_bytes() for file in sorted(options.dicom.iterdir()) if file.is_file()]
    with tempfile.TemporaryDirectory() as work:
        expected = answer_of_the_command(options.run, options.dicom, Path(work) / "answer")
    port = free_port()
    serve = [Path(sys.executable).with_name("train"), "serve", "--run", options.run, "--device", "cpu"]
    command = [*serve, "--port", port, "--seconds", 3600]
    service = subprocess.Popen([str(part) for part in command], stderr=subprocess.DEVNULL)
    try:
        sys.exit(campaign(f"http://127.0.0.1:{port}", service.pid, body_of(files), expected, options.requests))
    finally:
        service.terminate()
        service.wait(60)


def campaign(address: str, pid: int, body: bytes, expected: str, requests: int) -> int:
    """Send the requests and return the number of wrong answers."""
    with httpx.Client(base_url=address, timeout=600) as client:
        wait_until_up(client)
        memory, seconds, seen = [resident_mb(pid)], [], collections.Counter[str]()

        def ask(number: int) -> None:
            content = damaged(body, number) if number % 10 == 9 else body
            begun = time.monotonic()
            answered = client.post("/studies", content=content, headers=HEADERS)
            seconds.append(time.monotonic() - begun)
            memory.append(resident_mb(pid))
            right = answered.text == expected if number % 10 != 9 else answered.status_code in (200, 400, 422)
            seen[f"{answered.status_code} {'right' if right else 'WRONG'}"] += 1

        begun = time.monotonic()
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(ask, range(requests)))
        took = time.monotonic() - begun
        in_hand = client.get("/health").json()["in_hand"]
    quarter = max(1, len(memory) // 4)
    median = sorted(seconds)[len(seconds) // 2]
    print(f"{requests} requests, {AT_ONCE} at once: {took:.0f} s; one {median:.2f} s (median)")
    print(f"answers: {dict(seen)}; in hand afterwards: {in_hand}")
    for which, of in enumerate(("the service", "its build processes")):
        seen_mb = [pair[which] for pair in memory]
        second, last = max(seen_mb[quarter : 2 * quarter]), max(seen_mb[-quarter:])
        print(f"memory of {of}, MB: {second:.0f} at most in the second quarter, {last:.0f} in the last")
    return sum(count for what, count in seen.items() if what.endswith("WRONG"))


HEADERS = {"content-type": 'multipart/related; type="application/dicom"; boundary=cut-here'}


def body_of(files: list[bytes]) -> bytes:
    """Return a STOW-RS body."""
    parts = [b"--cut-here\r\nContent-Type: application/dicom\r\n\r\n" + content + b"\r\n" for content in files]
    return b"".join(parts) + b"--cut-here--\r\n"


def damaged(body: bytes, number: int) -> bytes:
    """Return the body truncated, with bytes overwritten, with a broken boundary, or junk, depending on the number."""
    half = len(body) // 2
    kinds = (body[:half], body[:200] + bytes(5000) + body[5200:], body.replace(b"--cut-here", b"--cut-her", 2),
             b"--cut-here\r\n\r\njunk\r\n--cut-here--\r\n")  # fmt: skip
    return kinds[number // 10 % len(kinds)]


def answer_of_the_command(run: str, dicom: Path, out: Path) -> str:
    """Return the answer of `train predict`, as the service writes it."""
    command = [Path(sys.executable).with_name("train"), "predict", "--run", run, "--dicom", dicom, "--out", out]
    subprocess.run([*map(str, command), "--device", "cpu"], check=True, stdout=subprocess.DEVNULL)

    return json.dumps(json.loads((out / "answer.json").read_text()), ensure_ascii=False)


def wait_until_up(client: httpx.Client) -> None:
    """Wait until the service responds."""
    for _ in range(3000):
        try:
            client.get("/health").raise_for_status()
            return
        except httpx.HTTPError:
            time.sleep(0.2)
    sys.exit("the service did not start")


def free_port() -> int:
    """Return a free port."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def resident_mb(pid: int) -> tuple[float, float]:
    """Return the resident memory of the service and of its build processes in MB."""
    children = [child for of in Path(f"/proc/{pid}/task").glob("*/children") for child in of.read_text().split()]
    return _pages_mb(str(pid)), sum(_pages_mb(child) for child in children)


def _pages_mb(pid: str) -> float:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):  # the process has just ended
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    main()
