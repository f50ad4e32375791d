"""The file of costs."""

import json

from benchmarks.__main__ import merged
from benchmarks.measure import Measurement


def test_a_cost_measured_again_takes_its_row_and_leaves_the_others(tmp_path):
    path = tmp_path / "costs.json"
    rows = [Measurement(name, 2.0, 8, None, 1.0, "CPU") for name in ("z", "keys")]
    path.write_text(json.dumps(merged(path, rows)))
    found = merged(path, [Measurement("whole", 5.0, 10, None, 1.0, "CPU"), rows[0]._replace(ratio=3.0)])
    assert [(row["name"], row["ratio"]) for row in found] == [("z", 3.0), ("keys", 2.0), ("whole", 5.0)]
