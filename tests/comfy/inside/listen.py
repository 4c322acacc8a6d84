"""Runs in ComfyUI's Python: queue a graph and write down what the server tells its page about it.

usage: listen.py URL GRAPH.json [INTERRUPT_AT]   (prints one line of JSON)

With INTERRUPT_AT the graph is interrupted after so many cycles. Printed are the prompt id, how the graph
ended, the pack's own events, and how many there were of each kind.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp

END = {"execution_success", "execution_error", "execution_interrupted"}


async def listen(url: str, graph: Any, interrupt_at: int) -> dict[str, Any]:
    """All events up to the end of the graph."""
    ours: list[Any] = []
    kinds: Counter[str] = Counter()
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{url}/ws?clientId=test") as socket:
        queued = await session.post(f"{url}/prompt", json={"prompt": graph, "client_id": "test"})
        answer = await queued.json()
        async for message in socket:
            if message.type == aiohttp.WSMsgType.BINARY:
                kinds["preview"] += 1
                continue
            content = json.loads(message.data)
            kinds[content["type"]] += 1
            if content["type"] == "collectionlora.run":
                ours.append(content["data"])
                if interrupt_at and content["data"].get("cycle") == interrupt_at:
                    await session.post(f"{url}/interrupt", json={})
            if content["type"] in END:
                return {
                    "prompt_id": answer["prompt_id"],
                    "end": content["type"],
                    "ours": ours,
                    "kinds": kinds,
                }
    raise RuntimeError("the server closed the connection")


if __name__ == "__main__":
    graph = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    at = int(sys.argv[3]) if len(sys.argv) > 3 else 0
    print(json.dumps(asyncio.run(listen(sys.argv[1], graph, at))))
