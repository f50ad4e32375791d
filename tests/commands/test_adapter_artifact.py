"""The adapter of a run as an artifact of its wandb run."""

from types import SimpleNamespace

from sphere_pl.commands import adapter_artifact, export


def test_the_adapter_of_the_export_is_logged_when_the_run_ends(fit, place, monkeypatch):
    logged = []
    run = SimpleNamespace(id="r1", log_artifact=logged.append)
    monkeypatch.setattr(adapter_artifact, "_wandb_runs", lambda trainer: [SimpleNamespace(experiment=run)])
    status, _, err = fit("a", [0, 1], "--wandb.adapter=true")
    assert status == 0, err
    assert "not all that follows" not in err
    export.main(["--run_dir=a", "--adapter", "--out=exported"])
    (artifact,) = logged
    assert (artifact.name, artifact.type, artifact.metadata["rank"]) == ("adapter-r1", "model", 2)
    entries = artifact.manifest.entries
    assert set(entries) == {path.name for path in (place / "exported").iterdir()}
    whole = (place / "exported" / "adapter_model.safetensors").stat().st_size
    assert entries["adapter_model.safetensors"].size == whole
