"""A language model whose answers are written down: what scores must make of a model that is right, or wrong."""

from types import SimpleNamespace

import torch

from sphere_pl.model.block_calls import BlockCalls
from sphere_pl.model.tokens import tokenize


class ScriptedModel:
    """Says after each prompt what it is told to; after anything else, and when it is done, the end of the text.

    It does what `sphere_pl.evaluation` asks of a `LanguageModel`: its hidden states are numbers of contexts.
    """

    recurrent, cached, n_layers, dtype, reading = False, True, 1, torch.float32, None
    device = output_device = torch.device("cpu")

    def __init__(self, tokenizer, says):
        self.tokenizer, self.pad_id = tokenizer, tokenizer.eos_token_id
        self.config, self.context = SimpleNamespace(max_position_embeddings=4096), 4096
        self.model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=tokenizer.eos_token_id))
        self.contexts, self.next = [], {}
        for entry in tokenize(tokenizer, says):
            for place in range(entry.target_start, len(entry.ids)):
                self.next.setdefault(tuple(entry.ids[:place]), entry.ids[place])

    def read(self, questions):
        return list(questions)

    def takes_masks(self, length):
        return False

    def new_cache(self):
        return Texts()

    def block_calls(self, ids, mask, positions, cache=None):
        before = cache.rows if cache is not None and cache.rows else [()] * len(ids)
        new, columns, whole = mask[:, -ids.shape[1] :], [], []
        for row, kept, beginning in zip(ids.tolist(), new.tolist(), before, strict=True):
            texts = [beginning]
            for token, real in zip(row, kept, strict=True):
                texts.append((*texts[-1], token) if real else texts[-1])
            columns.append(range(len(self.contexts), len(self.contexts) + len(row)))
            self.contexts += texts[1:]
            whole.append(texts[-1])
        if cache is not None:
            cache.rows = whole
        return BlockCalls(torch.tensor([list(each) for each in columns], dtype=torch.float64)[..., None], [], [], [])

    def run(self, hidden, calls, start, stop):
        return hidden

    def logits(self, hidden):
        scores = torch.zeros(len(hidden), len(self.tokenizer))
        for row, number in enumerate(hidden[:, 0].long().tolist()):
            scores[row, self.next.get(self.contexts[number], self.tokenizer.eos_token_id)] = 9.0
        return scores


class Texts:
    """The rows that a batch of texts has so far, as a cache holds keys and values."""

    def __init__(self):
        self.rows = []

    def batch_select_indices(self, keep):
        self.rows = [self.rows[place] for place in keep.tolist()]
