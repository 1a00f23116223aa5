"""Inference engines, each in a separate process, so that a crash doesn't affect the caller."""

from darwinlm.engines.process import ENGINES, EngineProcess, Timing, require_engine

__all__ = ["ENGINES", "EngineProcess", "Timing", "require_engine"]
