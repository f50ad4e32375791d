"""Run folders as a real run leaves them, made of curves that collapse, and a browser to look at reports with."""

import csv
import json
import math
import shutil
import subprocess

import numpy as np
import pytest

LAYERS = [f"model.layers.{layer}.mlp.down_proj.weight" for layer in (4, 5, 6, 7, 8)]
ACCURACIES = ("efficacy", "generalization", "specificity", "neighborhood_agreement")
BEFORE = {"efficacy": 0.004, "generalization": 0.006, "specificity": 0.21, "neighborhood_agreement": 1.0}
AFTER = {"efficacy": 0.95, "generalization": 0.71, "specificity": 0.17, "neighborhood_agreement": 0.62}
CONFIG = "seed_everything: 1\nmodel:\n  name: SmolLM2-135M-Instruct\n  layers: [4, 5, 6, 7, 8]\n"


def curves(batches=15, size=100, collapse=900.0, seed=0):
    """Values by column for each batch, as a method that collapses around some number of edits would log them."""
    random = np.random.default_rng(seed)
    edits = size * np.arange(1, batches + 1, dtype=float)
    alive = 1 / (1 + np.exp((edits - collapse) / (0.18 * collapse)))
    noise = lambda scale: random.normal(0, scale, batches)  # noqa: E731
    columns = {"edits": edits}
    for name, top in AFTER.items():
        columns[f"val/{name}"] = np.clip(top * alive + 0.02 + noise(0.012), 0, 1)
        columns[f"batch/{name}"] = np.clip(top * np.sqrt(alive) + 0.02 + noise(0.02), 0, 1)
    columns["val/perplexity"] = 58 * np.exp(1.9 * (1 - alive)) + noise(0.8)
    drift = 0.0004 * edits / collapse + 0.004 * (1 - alive) + np.cumsum(np.abs(noise(0.00003)))
    for place, name in enumerate(LAYERS):
        columns[f"energy/{name}"] = 170000.0 * (1 + place / 20) * (1 + drift * (0.5 + 0.25 * place))
    columns["energy/change"], columns["energy/mean"] = drift, 0.513 * (1 + drift)
    columns["energy/step_change"] = np.diff(drift, prepend=0.0)
    columns["projection/in_principal"] = 0.08 + noise(0.006)
    columns["projection/removed"] = 0.75 * columns["projection/in_principal"]
    columns["projection/chance"] = np.full(batches, 0.071)
    columns["projection/rank"] = np.full(batches, 109.0)
    columns["target/probability"] = np.clip(0.93 - 0.2 * (1 - alive) + noise(0.01), 0, 1)
    columns["target/loss"], columns["target/steps"] = 0.2 + 0.4 * (1 - alive), 14 + noise(0.5)
    columns["time/seconds"] = 84 + noise(3.0)
    return columns


def write_metrics(path, columns, validate_every=1):
    """Write rows as Lightning's CSVLogger does: one for the batch, one for its validation, empty cells elsewhere."""
    validation = [name for name in columns if name.startswith(("val/", "batch/"))]
    training = [name for name in columns if name not in validation and name != "edits"]
    spearman = ["spearman/val/efficacy", "spearman_diff/val/efficacy"]
    header = sorted(["step", "epoch", "edits", *validation, *training, *spearman])
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, header)
        writer.writeheader()
        for step, edits in enumerate(columns["edits"]):
            common = {"step": step, "epoch": 0}
            writer.writerow(common | {"edits": edits} | {name: columns[name][step] for name in training})
            if (step + 1) % validate_every == 0:
                writer.writerow(common | {"edits": edits} | {name: columns[name][step] for name in validation})
                # EnergyCorrelation logs a row of its own, which says the step and not the edits.
                writer.writerow({"step": step} | dict.fromkeys(spearman, -0.5))


def results_of(columns, method="AlphaEdit + SPHERE", seed=1):
    """What the run writes at its end."""
    edits = int(columns["edits"][-1])
    last = {name: float(columns[f"val/{name}"][-1]) for name in (*ACCURACIES, "perplexity")}

    def with_errors(values):
        errors = {f"{name}_standard_error": math.sqrt(values[name] * (1 - values[name]) / edits) for name in ACCURACIES}
        return values | errors

    interval = {"rho": -0.93, "p": 0.0002, "low": -0.99, "high": -0.71, "n": len(columns["edits"])}
    weak = {"rho": -0.31, "p": 0.27, "low": -0.74, "high": 0.29, "n": len(columns["edits"]) - 1}
    return {
        "model": "SmolLM2-135M-Instruct",
        "method": method,
        "edits": edits,
        "before": with_errors(BEFORE | {"perplexity": 57.4}),
        "after": with_errors(last),
        "hyperspherical_energy": {
            name: {"before": 170000.0 * (1 + place / 20), "after": float(columns[f"energy/{name}"][-1])}
            for place, name in enumerate(LAYERS)
        },
        "spearman": {f"val/{name}": {"levels": interval, "differences": weak} for name in (*ACCURACIES, "perplexity")},
        "seconds_per_edit": 0.87,
        "seconds_total": 2170.0,
        "peak_memory_bytes": 3_300_000_000,
        "versions": {"sphere_pl": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
        "seed": seed,
        "failed": [
            {"prompt": f"The mother tongue of person {number} is", "wanted": "French", "given": "the"}
            for number in range(63)
        ],
    }


@pytest.fixture(name="curves")
def curves_fixture():
    """The function that makes the columns of a run folder: `curves(batches, size, collapse, seed)`."""
    return curves


@pytest.fixture
def make_run(tmp_path):
    """Make a run folder: `make_run("name", finished=True, validate_every=1, changes={...}, **curves)`."""

    def make(name="run", *, method="AlphaEdit + SPHERE", finished=True, validate_every=1, changes=None, **options):
        folder = tmp_path / name
        folder.mkdir()
        columns = curves(**options)
        write_metrics(folder / "metrics.csv", columns, validate_every)
        (folder / "config.yaml").write_text(CONFIG, encoding="utf-8")
        if finished:
            results = results_of(columns, method, options.get("seed", 0)) | (changes or {})
            (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
        return folder

    return make


@pytest.fixture
def browser(tmp_path):
    """Run headless Chromium on a page, a path or an address: `browser(path, "--dump-dom")` returns the process."""
    binary = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if binary is None:
        pytest.skip("no Chromium is installed (apt-get install chromium)")

    def run(page, *options, width=1200, height=2400):
        quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
        quiet += [
            "--disable-component-update",
            "--disable-sync",
            "--hide-scrollbars",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        ]
        quiet += ["--enable-logging=stderr", "--v=0", "--virtual-time-budget=5000", f"--window-size={width},{height}"]
        profile = f"--user-data-dir={tmp_path / 'browser'}"
        address = page if isinstance(page, str) else page.as_uri()
        command = [binary, *quiet, profile, *options, address]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)

    return run
