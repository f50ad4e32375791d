"""Runs on tiny models, with their edit log, as a fit leaves them."""

import json

import lightning as L
import pytest
import yaml

from sphere_callbacks import RelativeMask, SparseProjection, SpectrumRestraint
from sphere_pl.data.datamodule import EditLoader
from sphere_pl.editing.moments import StatisticsSettings
from sphere_pl.editing.target_settings import TargetSettings
from sphere_pl.editor import EvaluationSettings, SequentialEditor
from sphere_pl.methods import EMMET, FT, MEMIT, ROME, SCR, AlphaEdit
from sphere_pl.run.edit_log import EditLog

# These tests are about what is kept of edits; free answers have tests of their own.
LITTLE = {"perplexity_tokens": 64, "protocols": ["teacher_forced"], "cases": 0, "facts": 0}
# Each method as it is edited with here: its arguments, the layers, the size of a batch.
METHODS = {
    "AlphaEdit": (AlphaEdit, {"ridge": 1.0, "null_space_threshold": 10.0}, [1, 2], 2),
    "MEMIT": (MEMIT, {"second_moment_weight": 5.0}, [1, 2], 2),
    "MEMIT-seq": (MEMIT, {"second_moment_weight": 5.0, "remember_past": True}, [1, 2], 2),
    "EMMET": (EMMET, {"ridge": 0.01}, [1, 2], 2),
    "ROME": (ROME, {}, [2], 1),
    "FT": (FT, {"learning_rate": 0.01, "epochs": 5}, [2], 2),
    "SCR": (SCR, {"confirm": False}, [2], 2),
}


@pytest.fixture
def model_folder(tiny_lm, tmp_path):
    """Save a tiny model where `from_pretrained` finds it."""

    def save(model_type="llama"):
        folder = tmp_path / model_type
        if not folder.exists():
            lm = tiny_lm(model_type)
            lm.model.save_pretrained(folder)
            lm.tokenizer.save_pretrained(folder)
        return folder

    return save


class Fit:
    """A run and what it left, the editor with its live weights included."""

    def __init__(self, folder, editor, trainer):
        self.folder, self.editor, self.trainer = folder, editor, trainer
        self.live = {s.name: w.detach().clone() for s, w in zip(editor.sites, editor.weights, strict=True)}

    @property
    def lines(self):
        return [json.loads(line) for line in (self.folder / "edits.jsonl").read_text().splitlines()]


@pytest.fixture
def fit(model_folder, tmp_path, bare_trainer, requests):
    """Run a fit into `tmp_path / name`, log and all, and write the config.yaml that the command line would write."""

    def run(
        name="run",
        method="AlphaEdit",
        model_type="llama",
        *,
        callbacks=(),
        last=(),
        sphere=None,
        dtype="float32",
        records=None,
        ckpt_path=None,
        keep="all",
        gigabytes=20.0,
        retry=0,
        **trainer_arguments,
    ):
        kind, arguments, layers, size = METHODS[method]
        (tmp_path / "corpus.txt").write_text("The capital of France is Paris.\n\nRome is a city in Italy by the sea.")
        statistics = {"corpus": str(tmp_path / "corpus.txt"), "tokens": 20, "cache_dir": str(tmp_path / "cache")}
        L.seed_everything(0, verbose=False)
        editor = SequentialEditor(
            kind(**arguments),
            layers,
            name=str(model_folder(model_type)),
            targets=TargetSettings(steps=4, learning_rate=0.5, clamp=4.0, weight_decay=0.0),
            statistics=StatisticsSettings(**statistics),
            evaluation=EvaluationSettings(**LITTLE),
            contexts=1,
            dtype=dtype,
        )
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        projection = SparseProjection(**(sphere or {"strength": 0.0}))
        log = EditLog(str(folder), keep, gigabytes)
        trainer = bare_trainer(max_epochs=1, callbacks=[*callbacks, projection, log, *last], **trainer_arguments)
        config = {
            "model": {
                "method": {"class_path": f"sphere_pl.methods.{kind.__name__}", "init_args": arguments},
                "statistics": statistics,
                "evaluation": {"text": None, "batch_size": 20, **LITTLE},
            },
            "projection": sphere or {"strength": 0.0},
            "trainer": {"callbacks": _specs(callbacks)},
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        trainer.fit(
            editor, EditLoader(rich(requests if records is None else records), size, retry=retry), ckpt_path=ckpt_path
        )
        return Fit(folder, editor, trainer)

    return run


def _specs(callbacks):
    """The callbacks that a configuration would name; a test's own are not in it."""
    masks = [{"class_path": "sphere_callbacks.RelativeMask", "init_args": {"keep": c.keep}}
             for c in callbacks if isinstance(c, RelativeMask)]  # fmt: skip
    return masks + [{"class_path": "sphere_callbacks.SpectrumRestraint"} for c in callbacks
                    if isinstance(c, SpectrumRestraint)]  # fmt: skip


def rich(requests):
    """The requests with a paraphrase and a neighbour each."""
    return [
        r._replace(paraphrases=(f"So {r.question}",), neighbors=("Berlin is a city in",), neighbor_answers=("Germany",))
        for r in requests
    ]


class Worse(L.Callback):
    """Logs a metric that a guard takes for a collapse at chosen batches."""

    def __init__(self, bad, hook):
        self.bad, self.hook, self.batches = bad, hook, 0

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.batches += 1
        if self.hook == "batch":
            pl_module.log("harm", float(self.batches in self.bad))

    def on_validation_epoch_end(self, trainer, pl_module):
        if self.hook == "validation":
            pl_module.log("harm", float(self.batches in self.bad))


@pytest.fixture
def worse():
    """See `Worse`."""
    return Worse
