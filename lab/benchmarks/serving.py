"""Throughput of several requests at once: GGUF files in llama.cpp, or folders in vLLM, all models in turns.

    python -m lab.benchmarks.serving dense=dense-q8_0.gguf half=half-q8_0.gguf --out gguf.json
    VLLM_CPU_KVCACHE_SPACE=2 python -m lab.benchmarks.serving dense=MODEL half=runs/half/model --out vllm.json

Every request has its own prompt of random tokens, and then writes so many tokens. Time is that of the processor, of one
thread, so that a busy machine counts little. The first model is the one that the others are compared with. vLLM needs
an environment of its own (`make test-vllm` makes it) and OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Load:
    """Requests that are served together: their number, and the tokens that each of them reads and writes.

    Tokens are random ones of the first `vocabulary`, without the first eighth, where special tokens are.
    """

    requests: int
    prompt: int
    new: int
    vocabulary: int = 8192

    def prompts(self) -> list[list[int]]:
        """Prompts of random tokens, the same for every model."""
        draw = random.Random(self.requests)
        tokens = range(self.vocabulary // 8, self.vocabulary)
        return [draw.choices(tokens, k=self.prompt) for _ in range(self.requests)]


class Server(ABC):
    """A model in an engine."""

    @abstractmethod
    def seconds(self, load: Load) -> tuple[float, float]:
        """Processor seconds for all prompts with one token after each, and for all further tokens."""


class LlamaCppServer(Server):
    """A GGUF file in llama.cpp, through cyllama."""

    BATCH = 512

    def __init__(self, path: Path, largest: Load) -> None:
        from cyllama.llama import llama_cpp as library

        library.disable_logging()
        library.llama_backend_init()
        self.model = library.LlamaModel(str(path), library.LlamaModelParams(), verbose=False)
        parameters = library.LlamaContextParams()
        parameters.n_ctx = largest.requests * (largest.prompt + largest.new)
        parameters.n_seq_max = largest.requests
        parameters.n_batch = parameters.n_ubatch = self.BATCH
        parameters.n_threads = parameters.n_threads_batch = 1
        self.context = library.LlamaContext(self.model, parameters, verbose=False)
        self.batch = library.LlamaBatch(n_tokens=self.BATCH, embd=0, n_seq_max=largest.requests)

    def seconds(self, load: Load) -> tuple[float, float]:
        """See `Server.seconds`. Which tokens are written doesn't matter, so those of the prompt are written again."""
        self.context.kv_cache_clear(True)
        prompts = load.prompts()
        places = [
            (token, place, request, place == load.prompt - 1)
            for request, prompt in enumerate(prompts)
            for place, token in enumerate(prompt)
        ]
        start = time.process_time()
        for first in range(0, len(places), self.BATCH):
            self._decode(places[first : first + self.BATCH])
        read = time.process_time()
        for place in range(load.prompt, load.prompt + load.new - 1):
            again = place % load.prompt
            self._decode([(prompt[again], place, request, True) for request, prompt in enumerate(prompts)])
        return read - start, time.process_time() - read

    def _decode(self, places: Sequence[tuple[int, int, int, bool]]) -> None:
        self.batch.reset()
        for token, place, request, with_logits in places:
            self.batch.add(token, place, [request], with_logits)
        self.context.decode(self.batch)
        self.context.synchronize()


class VllmServer(Server):
    """A folder in vLLM, in this process, without a cache of prompts that were read before."""

    def __init__(self, folder: Path, largest: Load) -> None:
        os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        from vllm import LLM

        self.model = LLM(
            str(folder),
            dtype="bfloat16",
            max_model_len=largest.prompt + largest.new,
            max_num_seqs=largest.requests,
            enable_prefix_caching=False,
            skip_tokenizer_init=True,
        )

    def seconds(self, load: Load) -> tuple[float, float]:
        """See `Server.seconds`. The second part is the difference of two runs."""
        first, all_of_them = self._run(load, 1), self._run(load, load.new)
        return first, all_of_them - first

    def _run(self, load: Load, new: int) -> float:
        from vllm import SamplingParams

        options = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True, detokenize=False)
        prompts = [{"prompt_token_ids": prompt} for prompt in load.prompts()]
        start = time.process_time()
        self.model.generate(prompts, options, use_tqdm=False)
        return time.process_time() - start


@dataclass(frozen=True)
class Rates:
    """Tokens of a model for each processor second, round by round."""

    model: str
    load: Load
    prompt: list[float]
    written: list[float]


def measure(servers: dict[str, Server], loads: Sequence[Load], rounds: int) -> list[Rates]:
    """Rates of every model under every load, all models in turns; the first round isn't counted."""
    found: list[Rates] = []
    for load in loads:
        rates = {name: Rates(name, load, [], []) for name in servers}
        for number in range(rounds + 1):
            for name, server in servers.items():
                read, wrote = server.seconds(load)
                if number:
                    rates[name].prompt.append(load.requests * load.prompt / read)
                    rates[name].written.append(load.requests * (load.new - 1) / wrote)
        found += rates.values()
        show(list(rates.values()))
    return found


def show(rates: Sequence[Rates]) -> None:
    """Print medians, and the median and range of the ratios to the first model, round by round."""
    for rate in rates:
        parts = []
        for kind in ("prompt", "written"):
            own, first = getattr(rate, kind), getattr(rates[0], kind)
            ratios = [one / other for one, other in zip(own, first, strict=True)]
            parts.append(
                f"{kind} {statistics.median(own):.1f} tokens/s, {statistics.median(ratios):.2f} times "
                f"({min(ratios):.2f} to {max(ratios):.2f})"
            )
        print(f"{rate.load.requests} at once, {rate.model}: {'; '.join(parts)}", flush=True)


def main() -> None:
    """Measure the models that the command line names."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("models", nargs="+", metavar="NAME=PATH")
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 8, 32], help="requests at once")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of each prompt")
    parser.add_argument("--new", type=int, default=32, help="tokens that each request writes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True, help="JSON file of all rates")
    given = parser.parse_args()
    loads = [Load(requests, given.prompt, given.new) for requests in given.requests]
    largest = max(loads, key=lambda load: load.requests)
    paths = {name: Path(path) for name, _, path in (model.partition("=") for model in given.models)}
    servers: dict[str, Server] = {
        name: LlamaCppServer(path, largest) if path.suffix == ".gguf" else VllmServer(path, largest)
        for name, path in paths.items()
    }
    rates = measure(servers, loads, given.rounds)
    given.out.write_text(json.dumps([asdict(rate) for rate in rates], indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
