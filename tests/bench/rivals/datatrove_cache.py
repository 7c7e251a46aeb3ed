"""Put rows into datatrove's request cache: `datatrove_cache.py ROWS`."""

import asyncio
import json
import sys
import tempfile
import time

from datatrove.pipeline.inference.checkpointing import RequestCache

ANSWER = "A red circle on a white background, and beside it two blue squares."


async def main(rows: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        cache = RequestCache(folder)
        await cache.initialize(0)
        begun = time.perf_counter()
        for number in range(rows):
            name = f"/pictures/{number:07}.jpg"
            digest = cache.prepare_payload({"picture": name, "prompt": "Describe this image"})
            result = {"text": ANSWER, "finish_reason": "stop", "usage": {"completion_tokens": 9}}
            await cache.store_result(0, name, 0, result, payload_hash=digest)
        await cache.flush()
        took = time.perf_counter() - begun
        await cache.close()
    return took


if __name__ == "__main__":
    print(json.dumps({"seconds": asyncio.run(main(int(sys.argv[1])))}))  # noqa: T201 - its result
