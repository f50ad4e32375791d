"""Finished cells of the study, made up."""

from study.cells import parse
from study.runs import Run

WEIGHT = "model.layers.4.mlp.down_proj.weight"


def make_run(name, efficacy, energy=None, perplexity=None, share=0.09, chance=0.09, generalization=0.5, **more):
    """A finished cell with a validation every 100 edits."""
    n = len(efficacy)
    edits = [100.0 * (i + 1) for i in range(n)]
    constant = {"val/generalization": generalization, "val/specificity": 0.3, "val/neighborhood_agreement": 0.8}
    validations = {
        "edits": edits,
        "val/efficacy": efficacy,
        "batch/efficacy": efficacy,
        "val/perplexity": perplexity or [50.0] * n,
        **{metric: [value] * n for metric, value in constant.items()},
    }
    energy = energy or [0.001 * (i + 1) for i in range(n)]
    batches = {"edits": edits, "energy/mean": [0.5 + e for e in energy], "energy/change": energy}
    for ratio in ("0.1", "0.5", "0.9"):
        batches[f"shares/update_{ratio}/{WEIGHT}"] = [share] * n
        batches[f"shares/chance_{ratio}/{WEIGHT}"] = [chance] * n
        for kind in ("start", "accumulated"):
            batches[f"shares/{kind}_{ratio}/{WEIGHT}"] = [share] * n
    found = {"validations": validations, "batches": batches, "failed": None, "before": {"perplexity": 46.0}}
    return Run(parse(name), {**found, "seconds_per_edit": 0.5, **more})


def make_pairs(plain, sphere, method="alphaedit", draws=(1, 2, 3), **more):
    runs = []
    for draw in draws:
        runs.append(make_run(f"counterfact-{method}-plain-draw{draw}-{100 * len(plain)}", plain))
        runs.append(make_run(f"counterfact-{method}-current-draw{draw}-{100 * len(sphere)}", sphere, **more))
    return runs
