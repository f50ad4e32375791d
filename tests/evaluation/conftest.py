import pytest
import torch


@pytest.fixture(params=["llama", "qwen2", "gpt2"])
def reference_family(request):
    """The families on which scores are compared with the slow way."""
    return request.param


@pytest.fixture
def slow():
    """One prompt at a time, no padding, no cache: `slow.answer(lm, text, target)`, `slow.write(lm, text, tokens)`."""

    class Slow:
        @torch.no_grad()
        def answer(self, lm, text, target):
            """Likeliest tokens at the target's places, the target's tokens, their mean log-probability."""
            ids = lm.tokenizer(text)["input_ids"]
            whole = lm.tokenizer(f"{text} {target}")["input_ids"]
            logp = lm.model(input_ids=torch.tensor([whole])).logits[0].double().log_softmax(-1)
            at = logp[len(ids) - 1 : len(whole) - 1]
            wanted = whole[len(ids) :]
            mean = sum(at[k, token].item() for k, token in enumerate(wanted)) / len(wanted)
            return at.argmax(-1).tolist(), wanted, mean

        @torch.no_grad()
        def write(self, lm, text, tokens):
            """Greedy continuation up to the end of the text or a newline that follows something."""
            ids, found = lm.tokenizer(text)["input_ids"], []
            for _ in range(tokens):
                token = lm.model(input_ids=torch.tensor([ids + found])).logits[0, -1].argmax().item()
                if token == lm.tokenizer.eos_token_id:
                    break
                found.append(token)
            return lm.tokenizer.decode(found, skip_special_tokens=True).strip().split("\n")[0].rstrip()

    return Slow()


@pytest.fixture
def rich(requests):
    """Requests with paraphrases, neighbours and questions that follow, different numbers of each."""
    return [
        r._replace(
            paraphrases=tuple(f"{start} {r.question}" for start in ("So", "And", "Because")[:index]),
            neighbors=("Berlin is a city in", "Oslo is", "Mount Fuji stands in")[: index + 1],
            neighbor_answers=("Germany", "", "Japan by the sea")[: index + 1],
            portability=("An apple is", "You and I")[: index % 3],
            portability_answers=(("a fruit", "good"), ("speak",))[: index % 3],
            aliases=("Bärlin",) if index == 0 else (),
            generation=(f"{r.subject} is", f"{r.subject} plays")[: index % 3],
            target_true=None if index == 1 else r.target_true,
        )
        for index, r in enumerate(requests)
    ]
