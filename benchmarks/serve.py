"""The service under load, beside the plainest handler that is right: python benchmarks/serve.py BUNDLE --photos FOLDER

For each number of clients, in turn: `handlens serve`, and forty lines of FastAPI and onnxruntime (`plain` below), each
in a process of its own, with a third that sends photos of the folder over loopback, each client the next one as soon as
it has its answer, also after a 503. Photos a second, percentiles of the latency of the photos that were answered, 503s,
memory, processor time. Beside them what decoding and the network alone reach here with all cores, and both one after
the other: 1 / (1 / decoding + 1 / network). Where wrk is installed it sends the same, as a check of our own client.
`--soak-s 600` then runs 32 clients for so long and writes the memory down every ten seconds.

An idle machine, please. Writes benchmarks/results/serve.json and the table in docs/serve.md.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from handlens import bundle as bundle_room
from handlens import files, run
from handlens.serve.batching import best_size

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "serve.json", ROOT / "docs" / "serve.md"
BEGIN, END = "<!-- load -->", "<!-- /load -->"
CLIENTS = (1, 4, 16, 32, 64, 128, 256)
MOST_PHOTOS = 64
WARM_S = 1.0
SOAK_CLIENTS, SOAK_EVERY_S = 32, 10.0


# ---- the plainest handler that is right ------------------------------------------------------------------------------
def plain(path: str) -> None:
    """The same pixels, the same network, the same numbers; no limits, no batches, no queue."""
    import onnxruntime
    import uvicorn
    from fastapi import FastAPI, Request
    from fastapi.concurrency import run_in_threadpool

    found = bundle_room.read(path)
    session = onnxruntime.InferenceSession(found.artifact["model.onnx"])
    app = FastAPI()

    def work(photo: bytes) -> list[dict[str, Any]]:
        pixels = found.preprocess.load(photo)[None]
        (probabilities,) = session.run(["probabilities"], {"photos": pixels})
        best = probabilities[0].argsort()[::-1][:5]
        return [{"name": found.classes[index], "probability": float(probabilities[0][index])} for index in best]

    async def predict(request: Request) -> dict[str, Any]:
        photo = await request.body()
        return {"guesses": await run_in_threadpool(work, photo)}

    predict.__annotations__["request"] = Request  # FastAPI reads annotations by their module
    app.post("/v1/predict")(predict)
    config = uvicorn.Config(app, port=0, log_level="critical", access_log=False)
    server = uvicorn.Server(config)

    async def begin() -> None:
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.02)
        print(f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/", flush=True)
        await serving

    asyncio.run(begin())


# ---- the client ------------------------------------------------------------------------------------------------------
class Client(asyncio.Protocol):
    """One connection at a time: sends a photo, waits for the answer, sends the next."""

    def __init__(self, requests: list[bytes], first: int, port: int) -> None:
        self.requests, self.next, self.port = requests, first, port
        self.seen: list[tuple[float, float, int]] = []  # when it was sent, seconds, status
        self.buffer = bytearray()
        self.over = False

    async def connect(self) -> None:
        await asyncio.get_running_loop().create_connection(lambda: self, "127.0.0.1", self.port)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.send()

    def send(self) -> None:
        self.buffer.clear()
        self.sent = time.perf_counter()
        self.transport.write(self.requests[self.next % len(self.requests)])  # type: ignore[attr-defined]
        self.next += 1

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self.buffer[:end]).lower()
        length = re.search(rb"content-length: (\d+)", head)
        if not length or len(self.buffer) < end + 4 + int(length[1]):
            return
        self.seen.append((self.sent, time.perf_counter() - self.sent, int(head.split(None, 2)[1])))
        if self.over:
            self.transport.close()
        elif b"connection: close" not in head:
            self.send()
        else:
            self.transport.close()
            self.again = asyncio.ensure_future(self.connect())


def client(port: int, clients: int, seconds: float, photos: list[str]) -> None:
    """Send for so long; print what was seen as JSON."""
    requests = []
    for path in photos:
        body = Path(path).read_bytes()
        head = (
            f"POST /v1/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}"
        )
        requests.append(f"{head}\r\n\r\n".encode() + body)

    async def begin() -> list[tuple[float, float, int]]:
        several = [Client(requests, index * 7, port) for index in range(clients)]
        await asyncio.gather(*(one.connect() for one in several))
        await asyncio.sleep(WARM_S + seconds)
        for one in several:
            one.over = True
        return [seen for one in several for seen in one.seen]

    start = time.perf_counter() + WARM_S
    seen = [one for one in asyncio.run(begin()) if start <= one[0] + one[1] <= start + seconds]
    good = sorted(taken for _, taken, status in seen if status == 200)
    refused = [taken for _, taken, status in seen if status == 503]
    found: dict[str, Any] = {"photos_per_s": len(good) / seconds, "refused_per_s": len(refused) / seconds}
    found["other_answers"] = len(seen) - len(good) - len(refused)
    for name, part in (("p50_ms", 0.5), ("p95_ms", 0.95), ("p99_ms", 0.99)):
        found[name] = 1000 * float(np.quantile(good, part)) if good else None
    print(json.dumps(found))


def with_wrk(port: int, clients: int, seconds: float, photos: list[str]) -> dict[str, Any] | None:
    """The same by wrk, which mixes the latencies of answered and refused requests; None where it is not installed."""
    if not shutil.which("wrk"):
        return None
    script = """
        local bodies, n = {}, 0
        for path in os.getenv("PHOTOS"):gmatch("[^\\n]+") do
          local file = io.open(path, "rb"); bodies[#bodies + 1] = file:read("*a"); file:close()
        end
        request = function()
          n = n + 1
          return wrk.format("POST", "/v1/predict", {["Content-Type"] = "image/jpeg"}, bodies[n % #bodies + 1])
        end
    """
    with tempfile.TemporaryDirectory() as folder:
        lua = Path(folder, "photos.lua")
        lua.write_text(script, encoding="utf-8")
        done = subprocess.run(
            ["wrk", "-t1", f"-c{clients}", f"-d{max(1, round(seconds))}s", "-s", lua, f"http://127.0.0.1:{port}"],
            env={**os.environ, "PHOTOS": "\n".join(photos)}, capture_output=True, text=True, check=True,
        )  # fmt: skip
    rate = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", done.stdout)
    return {"requests_per_s": float(rate[1]) if rate else None, "refused": int(bad[1]) if bad else 0}


# ---- the measurement -------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def running(command: list[str]) -> Iterator[tuple[int, int]]:
    """A service in a process of its own: its process id and its port."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        line = process.stdout.readline() if process.stdout else ""
        port = re.search(r":(\d+)/", line)
        if not port:
            sys.exit(f"{' '.join(command)} did not begin")
        yield process.pid, int(port[1])
    finally:
        process.terminate()
        process.wait(60)


def resident_mb(pid: int) -> float | None:
    """Memory of a process, where there is /proc."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except OSError:
        return None


def processor_s(pid: int) -> float | None:
    """Processor time of a process until now, where there is /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except OSError:
        return None


def load(pid: int, port: int, clients: int, seconds: float, photos: list[str]) -> dict[str, Any]:
    """One number of clients against one service."""
    before = processor_s(pid)
    done = subprocess.run(
        [sys.executable, __file__, "--client", json.dumps([port, clients, seconds, photos])],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found: dict[str, Any] = {"clients": clients, **json.loads(done.stdout)}
    after = processor_s(pid)
    if before is not None and after is not None:
        found["cores_used"] = (after - before) / (WARM_S + seconds)
    found["resident_mb"] = resident_mb(pid)
    return found


def alone(bundle: Path, photos: list[str], seconds: float) -> dict[str, float]:
    """Photos a second of decoding alone and of the network alone, each with all cores, and of one after the other."""
    classifier = run.load(bundle)
    data = [Path(path).read_bytes() for path in photos]
    pixels = np.stack([classifier.preprocess.load(one) for one in data])
    size = best_size(classifier.answers, classifier.preprocess.image_px)
    batch = pixels[np.arange(size) % len(pixels)]

    def rate(work: Any, count: int) -> float:
        work()
        done, begun = 0, time.perf_counter()
        while time.perf_counter() - begun < seconds:
            work()
            done += count
        return done / (time.perf_counter() - begun)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        decoding = rate(lambda: list(pool.map(classifier.preprocess.load, data)), len(data))
    network = rate(lambda: classifier.answers(batch, 5), size)
    return {
        "decoding_per_s": decoding,
        "network_per_s": network,
        "one_after_the_other_per_s": 1 / (1 / decoding + 1 / network),
        "photos_at_once": size,
    }


def middle(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of each figure."""
    found = {}
    for name in rounds[0]:
        values = [one[name] for one in rounds if one.get(name) is not None]
        found[name] = statistics.median(values) if values else None
    return found


def soak(pid: int, port: int, seconds: float, photos: list[str]) -> dict[str, Any]:
    """Memory over time, under load."""
    memory = [resident_mb(pid)]
    rates = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        rates.append(load(pid, port, SOAK_CLIENTS, SOAK_EVERY_S - WARM_S, photos)["photos_per_s"])
        memory.append(resident_mb(pid))
    return {"clients": SOAK_CLIENTS, "seconds": seconds, "resident_mb": memory, "photos_per_s": rates}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", type=Path, help="for onnxruntime")
    parser.add_argument("--photos", type=Path, help="a folder of JPEG photos, which are sent in turn")
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="for each number of clients, each service, each round"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--soak-s", type=float, default=0.0, help="seconds of load while memory is watched")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--client", help=argparse.SUPPRESS)
    parser.add_argument("--plain", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.client:
        return client(*json.loads(given.client))
    if given.plain:
        return plain(given.plain)
    if not given.bundle or not given.photos:
        parser.error("a bundle and --photos are needed")
    every = sorted(map(str, given.photos.rglob("*.jpg")))
    photos = every[:: max(1, len(every) // MOST_PHOTOS)][:MOST_PHOTOS]
    if not photos:
        parser.error(f"there is no .jpg in {given.photos}")
    results = measure(given, photos)
    files.write_json(given.out, results)
    if given.out == RESULTS:
        write_page(results)
    print("\n".join(table(results)))


def measure(given: argparse.Namespace, photos: list[str]) -> dict[str, Any]:
    from handlens.cost.latency import processor
    from handlens.train.judge import versions

    found = bundle_room.read(given.bundle)
    services = {
        "handlens": [sys.executable, "-m", "handlens", "serve", str(given.bundle), "--port", "0"],
        "plain": [sys.executable, __file__, "--plain", str(given.bundle)],
    }
    results: dict[str, Any] = {
        "command": f"python benchmarks/serve.py {given.bundle.name} --photos {given.photos.name}"
        f" --seconds {given.seconds:g} --rounds {given.rounds} --soak-s {given.soak_s:g}",
        "date": datetime.date.today().isoformat(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "versions": versions(),
        "net": found.net,
        "precision": found.precision,
        "image_px": found.preprocess.image_px,
        "photos": {"count": len(photos), "mean_bytes": statistics.mean(Path(path).stat().st_size for path in photos)},
        "alone": alone(given.bundle, photos, given.seconds),
    }
    with contextlib.ExitStack() as stack:
        at = {name: stack.enter_context(running(command)) for name, command in services.items()}
        for name in services:
            results[name] = []
        for clients in CLIENTS:
            rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in services}
            for _ in range(given.rounds):
                for name in services:
                    rounds[name].append(load(*at[name], clients, given.seconds, photos))
            for name in services:
                results[name].append(middle(rounds[name]))
                print(name, json.dumps(results[name][-1]), flush=True)
        results["wrk"] = {name: with_wrk(at[name][1], 32, given.seconds, photos) for name in services}
        if given.soak_s:
            results["soak"] = soak(*at["handlens"], given.soak_s, photos)
    at_32 = next(row for row in results["handlens"] if row["clients"] == 32)
    results["part_of_one_after_the_other"] = at_32["photos_per_s"] / results["alone"]["one_after_the_other_per_s"]
    return results


def table(results: dict[str, Any]) -> list[str]:
    """The results in Markdown."""
    alone_ = results["alone"]
    lines = [
        f"{results['net']} {results['precision']} at {results['image_px']} px on {results['processor']}, "
        f"{results['cores']} cores, {results['date']}. Alone, with all cores: decoding {alone_['decoding_per_s']:.0f},"
        f" the network {alone_['network_per_s']:.0f} photos a second, so one after the other"
        f" {alone_['one_after_the_other_per_s']:.0f}; with 32 clients the service reaches"
        f" {results['part_of_one_after_the_other']:.0%} of that.",
        "",
        "| clients | service | photos/s | p50 ms | p95 ms | p99 ms | 503s/s | memory MB |",
        "|--:|---|--:|--:|--:|--:|--:|--:|",
    ]
    for ours, theirs in zip(results["handlens"], results["plain"], strict=True):
        for name, row in (("handlens serve", ours), ("plainest handler", theirs)):
            cells = [row[key] for key in ("photos_per_s", "p50_ms", "p95_ms", "p99_ms", "refused_per_s", "resident_mb")]
            shown = " | ".join("" if cell is None else f"{cell:.0f}" for cell in cells)
            lines.append(f"| {row['clients']} | {name} | {shown} |")
    if soaked := results.get("soak"):
        memory = [value for value in soaked["resident_mb"][1:] if value is not None]
        if memory:
            minutes = soaked["seconds"] / 60
            least, most = f"{min(memory):.0f}", f"{max(memory):.0f}"
            # A result may be put together from two runs; of the second, "command" tells how it was made.
            run_ = f", in a run of its own{soaked['command'].partition(',')[2]}," if "command" in soaked else ""
            when = f" on {soaked['date']}" if soaked.get("date", results["date"]) != results["date"] else ""
            rate = statistics.median(soaked["photos_per_s"])
            lines += [
                "",
                f"Memory under load for {minutes:.0f} minutes{when}{run_} at {rate:.0f} photos a second: {least} to"
                f" {most} MB, {memory[-1]:.0f} at the end.",
            ]
    return lines


def write_page(results: dict[str, Any]) -> None:
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    with files.atomic(PAGE, "w") as file:
        file.write("\n".join([before + BEGIN, *table(results), END]) + after)


if __name__ == "__main__":
    main()
