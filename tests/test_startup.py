"""The command line answers without loading what it does not need yet."""

import subprocess
import sys

PROGRAM = """
import sys
from sphere_pl.commands import main
sys.argv = ["sphere_pl", "fit", "--help"]
try:
    main()
except SystemExit:
    pass
print("loaded:", *(name for name in {heavy} if name in sys.modules))
"""
# torchmetrics brings transformers and accelerate with it, and lightning torchmetrics.
HEAVY = ("datasets", "wandb", "plotly", "gguf", "transformers.models.llama.modeling_llama")


def test_help_loads_no_library_that_only_a_run_needs():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(heavy=HEAVY)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip().splitlines()[-1] == "loaded:"
