"""vLLM's CPU build, its engine in this process."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from peers.cases import Case, Work
from peers.checkpoint import read_geometry, stored_values
from peers.protocol import (
    Document,
    Facts,
    Generated,
    NotSupportedError,
    Settings,
    Stopwatch,
    serve,
)

KV_GIB = "4"
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", KV_GIB)
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")


class VllmCpu:
    """bfloat16, compiled as it is by default, without shared prefixes."""

    def __init__(self, settings: Settings) -> None:
        if settings.weights != "bf16":
            raise NotSupportedError("vllm-cpu quantises nothing at load; needs another checkpoint")
        cores = sorted(os.sched_getaffinity(0))
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cores))
        import vllm

        self._vllm: Any = vllm
        self._folder = settings.folder
        self._llm: Any = vllm.LLM(
            str(settings.folder),
            dtype="bfloat16",
            max_model_len=settings.max_len,
            max_num_seqs=settings.max_num_seqs,
            enable_prefix_caching=False,
            skip_tokenizer_init=True,
            disable_log_stats=True,
        )

    def facts(self) -> Facts:
        values = sum(stored_values(self._folder).values())
        geometry = read_geometry(self._folder)
        untied = 0 if geometry.is_tied else geometry.embedding_values
        version = f"vllm {self._vllm.__version__}"
        return Facts(version, 2 * (values - untied), logits_bits=16, kv_bits=16)

    def prepare(self, case: Case) -> None:
        pass

    def run(self, work: Sequence[Work]) -> Generated:
        engine = self._llm.llm_engine
        for index, w in enumerate(work):
            params = self._params(max_tokens=w.num_output, ignore_eos=True)
            engine.add_request(str(index), {"prompt_token_ids": list(w.prompt)}, params)
        tokens: list[list[int]] = [[] for _ in work]
        # Requests are known by number: the engine may hand back an id that it has lengthened.
        watch = Stopwatch(len(work))
        while engine.has_unfinished_requests():
            for output in engine.step():
                index = int(output.request_id.split("-")[0])
                made = list(output.outputs[0].token_ids)
                watch.saw(index, len(made) - len(tokens[index]))
                tokens[index] = made
            watch.end_step()
        return watch.stop(tokens)

    def log_likelihood(self, document: Document) -> float:
        params = self._params(max_tokens=1, prompt_logprobs=0)
        prompt = {"prompt_token_ids": list(document.ids)}
        (output,) = self._llm.generate([prompt], params, use_tqdm=False)
        scored = range(document.start, len(document.ids))
        return sum(float(output.prompt_logprobs[i][document.ids[i]].logprob) for i in scored)

    def _params(self, **values: object) -> Any:
        return self._vllm.SamplingParams(temperature=0.0, detokenize=False, **values)


if __name__ == "__main__":
    serve(VllmCpu)
