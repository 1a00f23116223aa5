"""The engine's side: answers requests on stdin until it ends. `EngineProcess` starts it."""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module
from typing import Any

import numpy as np

from darwinlm.formats.gguf.process import ENGINES


def answer(engine: Any, name: str, request: dict[str, Any]) -> Any:
    """Answer one request."""
    if name == "logits":
        np.save(request.pop("path"), engine.logits(**request))
        return None
    return getattr(engine, name)(**request)


def main() -> None:
    """Serve until stdin ends. Output of libraries goes to stderr, so that stdout only holds answers."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    engine: Any = None
    for line in sys.stdin:
        request = json.loads(line)
        name = request.pop("request")
        try:
            if "engine" in request:
                module = import_module(f"darwinlm.formats.gguf.{ENGINES[request.pop('engine')][0]}")
                engine = module.Engine(**request) if name == "load" else getattr(module, name)(**request)
                reply: dict[str, Any] = {"result": None}
            else:
                reply = {"result": answer(engine, name, request)}
        except Exception as error:  # noqa: BLE001 - whatever it was, the parent reports it
            reply = {"error": f"{type(error).__name__}: {str(error).strip()[:400]}"}
        channel.write(json.dumps(reply) + "\n")
        channel.flush()


if __name__ == "__main__":
    main()
