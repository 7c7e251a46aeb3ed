"""Ask a daemon about pictures by Ray Data's own HTTP processor: `ray_http.py URL MODEL FOLDER`.

As its documentation has it: rows are pictures, the payload is the daemon's own request. `warm`
seconds are those of Ray's own start, which do not count.
"""

import base64
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import ray
from ray.data.llm import HttpRequestProcessorConfig, build_processor

PROMPT = "Describe this image"
ACTORS = 4


def main(url: str, model: str, folder: str) -> dict[str, Any]:
    def payload(row: dict[str, Any]) -> dict[str, Any]:
        picture = base64.b64encode(Path(row["path"]).read_bytes()).decode()
        message = {"role": "user", "content": PROMPT, "images": [picture]}
        body = {"model": model, "messages": [message], "stream": False}
        return {"payload": {**body, "options": {"temperature": 0, "num_predict": 40}}}

    def answer(row: dict[str, Any]) -> dict[str, Any]:
        # What a pipeline stores of a response is up to its author; this is the whole of it.
        return {"path": row["path"], "answer": json.dumps(row["http_response"])}

    begun = time.perf_counter()
    ray.init(
        num_cpus=ACTORS + 1,
        include_dashboard=False,
        logging_level=logging.ERROR,
        _node_ip_address="127.0.0.1",  # it would bind the machine's own address otherwise
    )
    warm = time.perf_counter() - begun
    paths = [{"path": str(path)} for path in sorted(Path(folder).iterdir())]
    config = HttpRequestProcessorConfig(
        url=f"{url}/api/chat", concurrency=ACTORS, batch_size=len(paths) // (4 * ACTORS)
    )
    processor = build_processor(config, preprocess=payload, postprocess=answer)
    begun = time.perf_counter()
    try:
        rows, ended = processor(ray.data.from_items(paths)).take_all(), ""
    except Exception as exc:  # noqa: BLE001 - whatever ends the job is what is looked for
        rows, ended = [], type(exc).__name__
    took = time.perf_counter() - begun
    ray.shutdown()
    # Arrow gives every row the columns of all, so an error's has an empty message.
    wrong = sum('"content"' not in row["answer"] for row in rows)
    return {"seconds": took, "warm": warm, "rows": len(rows), "ended": ended, "errors": wrong}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))  # noqa: T201 - its result
