"""Small data files in each task's real form, and the folder with the real copies."""

import json
from pathlib import Path

import pytest
from lightning.pytorch.loggers import Logger

from sphere_pl.editing.moments import StatisticsSettings
from sphere_pl.editing.target_settings import TargetSettings
from sphere_pl.editor import EvaluationSettings, SequentialEditor
from sphere_pl.methods import AlphaEdit

GSM8K = [
    {"question": "A cup holds 3 pens. How many do 4 cups hold?", "answer": "4 * 3 = <<4*3=12>>12 pens.\n#### 12"},
    {"question": "Tom has 1,200 nuts and eats 100. How many are left?", "answer": "1200 - 100 = 1100.\n#### 1,100"},
]
NQ = [
    {"question": "where is berlin", "answer": ["Germany", "in Germany"]},
    {"question": "what is the capital of france?", "answer": ["Paris"]},
]
BOOLQ = [
    {"question": "is rome in italy", "title": "Rome", "answer": True, "passage": "Rome is a city in Italy."},
    {"question": "is oslo in italy", "title": "Oslo", "answer": False, "passage": "Oslo lies by the water in Norway."},
    {"question": "is an apple a fruit", "title": "Apple", "answer": True, "passage": "An apple is good to eat."},
]
RTE = """index\tsentence1\tsentence2\tlabel
0\tRome is a city in Italy.\tRome is in "Italy".\tentailment
1\tOslo is the capital of Norway.\tOslo is a river.\tnot_entailment
"""
SST2 = "sentence\tlabel\na pianist that is good \t1\nthe river runs and runs \t0\n"
MRPC = (
    "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
    "1\t702876\t702977\tRome is a city in Italy.\tThe city of Rome lies in Italy.\n"
    '0\t2108705\t2108831\tBerlin is "big".\tOslo is small.\n'
)
COLA = "gj04\t1\t\tThe river runs.\ngj04\t0\t*\tRiver the runs.\n"
MMLU = """question,choice0,choice1,choice2,choice3,answer
Where is Rome?,Italy,Norway,France,Japan,0
What is 2 + 2?,3,4,5,6,1
"""


def lines(records):
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.fixture
def data_dir(tmp_path):
    """A folder with a small file for every task."""
    folder = tmp_path / "general"
    for name in ("mmlu/test", "mmlu/dev", "MRPC"):
        (folder / name).mkdir(parents=True)
    with_passage = [{**record, "output": [f"\n\nIt is {record['answer'][0]}."]} for record in NQ]
    files = {
        "gsm8k-test.jsonl": lines(GSM8K),
        "nq-open-dev.jsonl": lines(NQ),
        "nq-open-with-passage.jsonl": lines(with_passage),
        "boolq-dev.jsonl": lines(BOOLQ),
        "rte-train.tsv": RTE,
        "sst2-dev.tsv": SST2,
        "MRPC/dev.tsv": MRPC,
        "cola-in-domain-dev.tsv": COLA,
        "cola-out-of-domain-dev.tsv": COLA,
        "mmlu/test/world_geography_test.csv": MMLU,
        "mmlu/dev/world_geography_dev.csv": MMLU,
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def real_data():
    """The real copies beside the checkout."""
    folder = Path(__file__).parents[3] / "shared" / "data" / "general"
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}")
    return folder


@pytest.fixture
def editor(tiny_lm, tmp_path):
    """Build an editor around the same tiny model each time."""
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("The capital of France is Paris. Rome is a city in Italy by the sea.")

    def build():
        editor = SequentialEditor(
            AlphaEdit(ridge=0.1, null_space_threshold=10.0),
            [1, 2],
            name="tiny",
            targets=TargetSettings(steps=4, learning_rate=0.5, clamp=4.0, weight_decay=0.0),
            statistics=StatisticsSettings(corpus=str(corpus), tokens=10, cache_dir=str(tmp_path / "cache")),
            evaluation=EvaluationSettings(perplexity_tokens=0),
            contexts=1,
        )
        editor.lm = tiny_lm()
        return editor

    return build


class Logged(Logger):
    """A logger that remembers."""

    def __init__(self):
        super().__init__()
        self.rows = []

    name = version = ""

    def log_hyperparams(self, *_, **__):
        pass

    def log_metrics(self, metrics, step=None):
        self.rows.append(metrics)

    def series(self, name):
        """Values of one scalar with the number of edits."""
        return [(int(row["edits"]), row[name]) for row in self.rows if name in row]


@pytest.fixture
def logged():
    """A fresh logger."""
    return Logged()
