import pytest
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.demos.boring_classes import BoringModel

from sphere_pl.run.edit_log import EditLog
from sphere_pl.run.editor_callback import EditorCallback
from sphere_pl.run.preflight import MemoryPreflight
from sphere_pl.run.results import RunResults
from sphere_pl.run.target_table import TargetTable


@pytest.mark.parametrize("kind", [EditLog, TargetTable, RunResults])
def test_a_callback_of_the_editor_refuses_another_module_before_it_touches_the_run_folder(kind, bare_trainer, tmp_path):
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(MisconfigurationException, match=f"`{kind.__name__}` acts on .*, found BoringModel. Leave"):
        bare_trainer(max_epochs=1, callbacks=[kind(str(tmp_path))]).fit(BoringModel())
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_every_callback_that_needs_the_editor_has_it_by_one_base():
    assert all(issubclass(kind, EditorCallback) for kind in (EditLog, MemoryPreflight, RunResults, TargetTable))
