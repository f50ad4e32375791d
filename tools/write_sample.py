"""Have the default model write the text that its second moments come from: `python -m tools.write_sample`.

A minute of sampling that every first run would begin with. Another processor rounds otherwise and would write another
text; any will do.
"""

import json
from pathlib import Path

from sphere_pl.data import builtin
from sphere_pl.editing.moments import StatisticsSettings, sampled_texts
from sphere_pl.model.embedded import EMBEDDED_MODEL
from sphere_pl.model.fingerprint import fingerprint
from sphere_pl.model.loading import load_language_model
from sphere_pl.model.tokens import encode
from sphere_pl.progress import untracked

BUDGET = 15_360  # tokens: ten for each dimension of a key


def main() -> None:
    """Sample and write the file."""
    settings = StatisticsSettings()
    lm = load_language_model(EMBEDDED_MODEL, dtype="bfloat16")
    texts, tokens = [], 0
    for text in sampled_texts(lm, settings, BUDGET, untracked):
        texts.append(text)
        tokens += min(settings.length, len(encode(lm.tokenizer, [text])[0].ids))
        if tokens >= BUDGET:
            break
    each = ("bfloat16", "float16", "float32")
    models = [fingerprint(load_language_model(EMBEDDED_MODEL, dtype=dtype)) for dtype in each]
    kept = builtin.Written(models, settings.length, settings.seed, tokens, texts)
    path = Path(builtin.__file__).with_name("written.json")
    path.write_text(json.dumps(kept._asdict(), ensure_ascii=False, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
