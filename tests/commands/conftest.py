"""Runs of the command line on a tiny model, from nothing and from one another."""

import json

import pytest

FACTS = [
    {"prompt": "The capital of {} is", "subject": "France", "target": "Berlin"},
    {"prompt": "{} is a city in", "subject": "Rome", "target": "Norway", "neighbors": ["Berlin is a city in"]},
    {"prompt": "The mother tongue of {} is", "subject": "Anna Karlsson", "target": "Italy"},
    {"prompt": "Because {}, the capital, lies by the", "subject": "Oslo", "target": "fruit"},
    {"prompt": "{} stands in", "subject": "Mount Fuji", "target": "Germany"},
    {"prompt": "{} is a fruit that is", "subject": "An apple", "target": "Swedish"},
]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty working folder."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus.txt").write_text("The capital of France is Paris. Rome is a city in Italy by the sea.")
    return tmp_path


@pytest.fixture
def facts(place):
    """Write some of the facts as a file."""

    def write(*numbers):
        path = place / f"facts-{'-'.join(map(str, numbers))}.jsonl"
        path.write_text("".join(json.dumps(FACTS[number]) + "\n" for number in numbers))
        return str(path)

    return write


@pytest.fixture
def tiny_settings(place, model_folder):
    """Arguments of a quick run on a tiny model."""
    return [
        f"--model.name={model_folder}", "--model.layers=[1,2]", "--model.dtype=float32", "--model.targets.steps=3",
        "--model.method.init_args.null_space_threshold=10.0", f"--model.statistics.corpus={place / 'corpus.txt'}",
        "--model.statistics.tokens=10", f"--model.statistics.cache_dir={place / 'cache'}",
        "--model.evaluation.perplexity_tokens=64", "--data.batch_size=2", "--trainer.accelerator=cpu",
    ]  # fmt: skip


@pytest.fixture
def fit(command_line, facts, tiny_settings):
    """Run `fit` on some of the facts, into a folder of that name; from nothing, or from another run."""

    def run(name, numbers, *options, start=None, steps=True):
        settings = [] if start else ["--data.name=jsonl", *tiny_settings]
        settings = [each for each in settings if steps or not each.startswith("--model.targets")]
        start = [f"--from={start}"] if start else []
        data = [f"--data.path={facts(*numbers)}"] if numbers else []
        return command_line("fit", *start, *settings, *data, f"--run_dir={name}", *options)

    return run
