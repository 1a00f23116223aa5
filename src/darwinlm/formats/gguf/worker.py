"""The engine's side: answers requests on stdin until it ends. `EngineProcess` starts it."""

from __future__ import annotations

import json
import os
import sys

import numpy as np
from numpy.typing import NDArray

from darwinlm.formats.gguf.engine import REQUESTS, Engine, Generated, engine_class
from darwinlm.runtime.json_values import JsonObject


def begin(name: str, target: str, request: JsonObject) -> Engine | None:
    """Answer the first request: load a model, or quantise a file without loading it."""
    kind = engine_class(target)
    if name == "quantise":
        kind.quantise(**request)
        return None
    return kind(**request)


def answer(engine: Engine, name: str, request: JsonObject) -> Generated | list[int] | None:
    """Answer one request to a loaded engine."""
    if name not in REQUESTS:
        raise ValueError(f"an engine answers {', '.join(REQUESTS)}")
    path = request.pop("path", None)
    result: Generated | list[int] | NDArray[np.float32] = getattr(engine, name)(**request)
    if isinstance(result, np.ndarray):
        np.save(path, result)
        return None
    return result


def main() -> None:
    """Serve until stdin ends. Output of libraries goes to stderr, so that stdout only holds answers."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    engine: Engine | None = None
    for line in sys.stdin:
        request = json.loads(line)
        name = request.pop("request")
        try:
            reply: JsonObject = {"result": None}
            if "engine" in request:
                engine = begin(name, request.pop("engine"), request)
            elif engine is not None:
                reply = {"result": answer(engine, name, request)}
        except Exception as error:  # noqa: BLE001 - whatever it was, the parent reports it
            reply = {"error": f"{type(error).__name__}: {str(error).strip()[:400]}"}
        channel.write(json.dumps(reply) + "\n")
        channel.flush()


if __name__ == "__main__":
    main()
