"""Inference engines, each run in a process of its own: one that dies on a model takes nothing else with it."""

from darwinlm.engines.process import ENGINES, EngineProcess, Timing, require_engine

__all__ = ["ENGINES", "EngineProcess", "Timing", "require_engine"]
