"""transformers' own generate(): equal lengths as one batch, ragged requests one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers

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


class Transformers:
    """Eager bfloat16 with transformers' default attention."""

    def __init__(self, settings: Settings) -> None:
        if settings.weights != "bf16":
            raise NotSupportedError("transformers quantises for a CPU only with further packages")
        torch.set_num_threads(settings.threads)
        self._folder = settings.folder
        load = transformers.AutoModelForCausalLM.from_pretrained
        self._model: Any = load(settings.folder, dtype=torch.bfloat16).eval()
        self._model.generation_config = transformers.GenerationConfig(pad_token_id=0)

    def facts(self) -> Facts:
        values = sum(stored_values(self._folder).values())
        geometry = read_geometry(self._folder)
        untied = 0 if geometry.is_tied else geometry.embedding_values
        version = f"transformers {transformers.__version__}, torch {torch.__version__}"
        return Facts(version, 2 * (values - untied), logits_bits=16, kv_bits=16)

    def prepare(self, case: Case) -> None:
        pass

    def run(self, work: Sequence[Work]) -> Generated:
        watch = Stopwatch(len(work))
        is_even = len({(len(w.prompt), w.num_output) for w in work}) == 1
        groups = [list(range(len(work)))] if is_even else [[index] for index in range(len(work))]
        tokens = [made for group in groups for made in self._generate(work, group, watch)]
        return watch.stop(tokens)

    def _generate(
        self, work: Sequence[Work], group: list[int], watch: Stopwatch
    ) -> list[list[int]]:
        ids = torch.tensor([work[index].prompt for index in group])

        def each_step(*_: object, **__: object) -> torch.Tensor:
            for index in group:
                watch.saw(index)
            watch.end_step()
            return torch.zeros(len(group), dtype=torch.bool)

        out = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=work[group[0]].num_output,
            do_sample=False,
            stopping_criteria=[each_step],
        )
        made: list[list[int]] = out[:, ids.shape[1] :].tolist()
        return made

    @torch.inference_mode()
    def log_likelihood(self, document: Document) -> float:
        logits = self._model(torch.tensor([document.ids[:-1]])).logits[0, document.start - 1 :]
        targets = torch.tensor(document.ids[document.start :])
        log_probs = torch.log_softmax(logits.double(), dim=-1)
        return float(log_probs.gather(1, targets[:, None]).sum())


if __name__ == "__main__":
    serve(Transformers)
