"""Rates of requests that are served together."""

from pathlib import Path

import pytest

from lab.benchmarks.serving import LlamaCppServer, Load, Server, measure

SECONDS = {"dense": (4.0, 2.0), "half": (2.0, 0.5)}


class Fixed(Server):
    """A server whose first round is slow."""

    def __init__(self, name: str) -> None:
        self.name, self.rounds = name, 0

    def seconds(self, load: Load) -> tuple[float, float]:
        self.rounds += 1
        read, wrote = SECONDS[self.name]
        return (read, wrote) if self.rounds > 1 else (100.0, 100.0)


def test_rates_are_tokens_of_all_requests_for_each_second(capsys: pytest.CaptureFixture[str]) -> None:
    dense, half = measure({name: Fixed(name) for name in SECONDS}, [Load(requests=8, prompt=100, new=11)], rounds=2)
    assert (dense.prompt, dense.written) == ([200.0, 200.0], [40.0, 40.0])
    assert (half.prompt, half.written) == ([400.0, 400.0], [160.0, 160.0])
    assert "8 at once, half: prompt 400.0 tokens/s, 2.00 times (2.00 to 2.00); written 160.0 tokens/s, 4.00 times" in (
        capsys.readouterr().out
    )


def test_each_model_gets_the_same_prompts_and_each_request_its_own() -> None:
    load = Load(requests=3, prompt=16, new=2)
    assert load.prompts() == load.prompts()
    assert len({tuple(prompt) for prompt in load.prompts()}) == 3


def test_llama_cpp_serves_requests_together(gguf_bytes: bytes, tmp_path: Path) -> None:
    pytest.importorskip("cyllama", reason="the real llama.cpp library comes with the extra gguf")
    (tmp_path / "m.gguf").write_bytes(gguf_bytes)
    load = Load(requests=2, prompt=300, new=4, vocabulary=32)
    server = LlamaCppServer(tmp_path / "m.gguf", load)
    assert all(seconds > 0 for seconds in server.seconds(load))
