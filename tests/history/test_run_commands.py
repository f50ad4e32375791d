"""The commands on a saved run, from their arguments to what they write and say."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from sphere_callbacks import SpectrumRestraint
from sphere_pl import apply_delta
from sphere_pl.commands import diff, export, predict, validate
from sphere_pl.errors import UserError
from sphere_pl.evaluation.scored import to_plain
from sphere_pl.history.saved import SavedRun
from tests.saving import SaveAt

PROMPTS = ["The capital of France is", "Rome is a city in Italy"]


def logits(model, tokenizer, prompt):
    with torch.no_grad():
        return model(**tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)).logits


def exported(folder):
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def run_export(run, *args):
    export.main(["--run_dir", str(run.folder), "--out", str(run.folder / "out"), *args])
    return run.folder / "out"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_an_export_loads_to_the_same_logits(fit, model_type, dtype):
    run = fit(model_type=model_type, sphere={"strength": 0.5}, dtype=dtype)
    model, tokenizer = exported(run_export(run))
    edited = run.editor.language_model
    assert model.dtype == edited.dtype
    for prompt in PROMPTS:
        ours = logits(edited.model, edited.tokenizer, prompt)
        tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == "float32" else {"rtol": 2e-2, "atol": 2e-2}
        torch.testing.assert_close(logits(model, tokenizer, prompt), ours, **tolerance)


def test_an_export_after_some_edits_is_the_run_stopped_there(fit):
    run, stopped = fit(method="ROME"), fit("stopped", "ROME", max_steps=2)
    model, tokenizer = exported(run_export(run, "--at", "2"))
    edited = stopped.editor.language_model
    for prompt in PROMPTS:
        ours = logits(edited.model, edited.tokenizer, prompt)
        torch.testing.assert_close(logits(model, tokenizer, prompt), ours, rtol=1e-4, atol=1e-4)
    edits = json.loads((run.folder / "out" / "edits.json").read_text())
    assert [edit["case_id"] for edit in edits] == ["0", "1"]


def test_an_export_under_prune_holds_the_restrained_weights(fit, tmp_path):
    restraint = SpectrumRestraint()
    run = fit(callbacks=[restraint], val_check_interval=1)
    with restraint.swapped(run.editor):
        restrained = {s.name: w.detach().clone() for s, w in zip(run.editor.sites, run.editor.weights, strict=True)}
    model, _ = exported(run_export(run))
    for name, weight in restrained.items():
        torch.testing.assert_close(model.get_parameter(name).float(), weight, rtol=1e-4, atol=1e-5)


def test_an_export_without_an_edit_says_so(fit, capsys):
    run = fit()
    out = run_export(run, "--without", "2", "3")
    assert capsys.readouterr().out.startswith("2 edits of ")
    card = (out / "README.md").read_text()
    assert "Taken out afterwards: 2, 3" in card
    first = fit("first", max_steps=1)
    model, _ = exported(out)
    for name, weight in first.live.items():
        torch.testing.assert_close(model.get_parameter(name), weight, rtol=1e-3, atol=1e-5)


def test_the_card_names_base_method_edits_metrics_and_licence(fit, model_folder):
    folder = model_folder()
    (folder / "README.md").write_text("---\nlicense: mit\n---\nA tiny model.")
    (folder / "LICENSE").write_text("The MIT License")
    run = fit()
    scores = {"edits": 4, "before": {"efficacy": 0.0}, "after": {"efficacy": 0.75, "efficacy_standard_error": 0.25}}
    (run.folder / "results.json").write_text(json.dumps(scores))
    out = run_export(run)
    card = (out / "README.md").read_text()
    for words in ("license: mit", "AlphaEdit", "4 facts", "| efficacy | 0.000 | 0.750 |", "The capital of France is"):
        assert words in card, words
    assert (out / "LICENSE").read_text() == "The MIT License"
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "edits.json"} <= {
        path.name for path in out.iterdir()
    }


def test_a_licence_that_is_not_known_is_said_to_be_so(fit):
    card = (run_export(fit()) / "README.md").read_text()
    assert "license: other" in card
    assert "could not be found" in card


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_a_delta_turns_the_base_into_the_edited_model(fit, model_folder, model_type):
    run = fit(model_type=model_type)
    out = run_export(run, "--delta_only")
    assert {path.name for path in out.iterdir()} == {"delta.safetensors", "README.md", "edits.json"}
    model = AutoModelForCausalLM.from_pretrained(model_folder(model_type))
    assert apply_delta(model, out / "delta.safetensors") is model
    edited = run.editor.language_model
    for prompt in PROMPTS:
        ours = logits(edited.model, edited.tokenizer, prompt)
        torch.testing.assert_close(logits(model, edited.tokenizer, prompt), ours, rtol=1e-4, atol=1e-4)
    with safe_open(out / "delta.safetensors", "pt") as file:
        assert str(run.folder.parent) not in json.dumps(file.metadata())  # no paths of this machine


def test_a_delta_is_refused_by_another_model_which_stays_as_it_is(fit, tiny_lm):
    delta = run_export(fit(), "--delta_only") / "delta.safetensors"
    other = tiny_lm(seed=1).model
    before = [p.clone() for p in other.parameters()]
    with pytest.raises(UserError, match="another model"):
        apply_delta(other, delta)
    assert all(torch.equal(a, b) for a, b in zip(before, other.parameters(), strict=True))
    with pytest.raises(UserError, match="does not have"):
        apply_delta(tiny_lm("gpt2").model, delta)


def test_a_file_that_is_no_delta_is_refused(fit, tiny_lm):
    run = fit()
    with pytest.raises(UserError, match="no delta"):
        apply_delta(tiny_lm().model, run.folder / "edits" / "batch-00000.safetensors")
    with pytest.raises(UserError, match="no delta"):
        apply_delta(tiny_lm().model, run.folder / "edits.jsonl")


def test_a_push_uploads_the_folder_to_a_private_repository(fit, monkeypatch, capsys):
    import huggingface_hub

    calls = []

    class Url(str):
        repo_id = "me/edited"

    class Hub:
        def create_repo(self, name, **kwargs):
            calls.append((name, kwargs))
            return Url("https://hub/me/edited")

        def upload_folder(self, **kwargs):
            names = sorted(path.name for path in kwargs["folder_path"].iterdir())
            calls.append((kwargs["repo_id"], names))

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    run = fit()
    run_export(run, "--delta_only", "--push_to_hub", "edited")
    (name, options), (repository, names) = calls
    assert (name, repository) == ("edited", "me/edited")
    assert options == {"private": True, "exist_ok": True}
    assert names == ["README.md", "delta.safetensors", "edits.json"]
    assert "https://hub/me/edited" in capsys.readouterr().out
    (run.folder / "out").rename(run.folder / "before")
    run_export(run, "--adapter", "--push_to_hub", "edited")
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors", "edits.json"} <= set(calls[-1][1])


@pytest.mark.parametrize("name", ["../outside", "a/b/c", "-x"])
def test_a_repository_name_that_is_none_is_refused_and_the_export_kept(fit, name):
    run = fit("my run")
    with pytest.raises(UserError, match=r"did not take.*`hf upload \S+ '.*my run/out'`"):
        run_export(run, "--delta_only", f"--push_to_hub={name}")
    assert (run.folder / "out" / "delta.safetensors").exists()


def test_an_export_writes_over_nothing(fit):
    run = fit()
    (run.folder / "out").mkdir()
    (run.folder / "out" / "mine").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        run_export(run)
    assert (run.folder / "out" / "mine").read_text() == "mine"


def test_an_export_that_fails_leaves_nothing_half_written(fit):
    run = fit(method="FT")
    with pytest.raises(UserError, match="no keys and residuals"):
        run_export(run, "--without", "1")
    assert not list(run.folder.glob("*out*"))
    assert not list(run.folder.glob(".export*"))


def test_case_ids_and_texts_cannot_write_elsewhere_or_mark_up_the_card(fit, requests):
    evil = requests[0]._replace(case_id="../../evil", target_new="Berlin|\n# Owned <b>", subject="France")
    run = fit(records=[evil, requests[1]])
    before = set(run.folder.parent.iterdir())
    card = (run_export(run) / "README.md").read_text()
    assert "\n# Owned" not in card
    assert "<b>" not in card.replace("\\<b", "")
    assert set(run.folder.parent.iterdir()) == before
    export.main(["--run_dir", str(run.folder), "--without", "../../evil"])
    assert (run.folder / "export-without" / "config.json").exists()
    assert set(run.folder.parent.iterdir()) == before


def test_another_base_model_is_refused(fit, tiny_lm, tmp_path):
    run = fit()
    other = tiny_lm(seed=1)
    other.model.save_pretrained(tmp_path / "other")
    other.tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="not the unedited model"):
        run_export(run, "--model", str(tmp_path / "other"))


def test_a_base_model_that_has_moved_can_be_named(fit, model_folder):
    run = fit()
    moved = model_folder().rename(model_folder().with_name("moved"))
    with pytest.raises(UserError, match="neither a file nor a folder"):
        run_export(run)
    assert (run_export(run, "--model", str(moved)) / "config.json").exists()


def test_a_configuration_that_was_mangled_is_refused_or_read(fit, capsys):
    """What is left of config.yaml never ends in a traceback."""
    run = fit()
    path = run.folder / "config.yaml"
    for text in ("[]", "{", "model: []", "model: {method: 3, evaluation: {batch_size: x}}", "trainer: 1", "\x00"):
        path.write_text(text)
        for command, arguments in ((validate, ["--out", str(run.folder / "v.json")]), (export, ["--without", "0"])):
            try:
                command.main(["--run_dir", str(run.folder), *arguments])
            except UserError:
                continue
            assert command is validate


# ------------------------------------------------------------------ diff


def shown(capsys, *args):
    diff.main([*args, "--json"])
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_diff_measures_every_matrix_that_changed(fit, capsys, model_type):
    run = fit(model_type=model_type)
    base = SavedRun.open(run.folder).load_base().weights
    capsys.readouterr()
    found = shown(capsys, "--run_dir", str(run.folder))
    assert [each["name"] for each in found] == [site.name for site in run.editor.sites]
    for each in found:
        change = (run.live[each["name"]] - base[each["name"]]).double()
        values = torch.linalg.svdvals(change)
        assert each["shape"] == list(change.shape)
        assert each["frobenius"] == pytest.approx(float(change.norm()), rel=1e-4)
        assert each["relative"] == pytest.approx(float(change.norm() / base[each["name"]].norm()), rel=1e-4)
        assert each["spectral"] == pytest.approx(float(values[0]), rel=1e-4)
        assert each["rank"] == 4
        assert each["largest_row"] == int(change.norm(dim=1).argmax())
        assert each["largest_row_norm"] == pytest.approx(float(change.norm(dim=1).max()), rel=1e-4)


def test_diff_compares_two_runs_and_a_run_with_its_export(fit, capsys):
    first, second = fit("first"), fit("second", sphere={"strength": 0.8})
    out = run_export(second)
    capsys.readouterr()
    between = shown(capsys, str(first.folder), str(second.folder))
    for each in between:
        expected = float((second.live[each["name"]] - first.live[each["name"]]).norm())
        assert each["frobenius"] == pytest.approx(expected, rel=1e-3)
    against = shown(capsys, str(second.folder), str(out))
    assert all(each["relative"] < 1e-5 for each in against)
    diff.main(["--run_dir", str(first.folder), "--at", "0"])
    assert "no matrix differs" in capsys.readouterr().out


def test_diff_shows_a_table(fit, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    run = fit(method="ROME")
    capsys.readouterr()
    diff.main([str(run.folder)])
    out = capsys.readouterr().out
    assert "model.layers.2.mlp.down_proj.weight" in out
    assert "32 x 48" in out


def test_diff_refuses_models_that_cannot_be_compared(fit, model_folder):
    with pytest.raises(UserError, match="different models"):
        diff.main([str(model_folder("llama")), str(model_folder("gpt2"))])
    with pytest.raises(UserError, match="one run folder, or two"):
        diff.main([])


# ------------------------------------------------------------------ validate and predict


def test_validate_scores_before_and_after_on_the_runs_own_records(fit, capsys):
    run = fit(val_check_interval=1)
    validate.main(["--run_dir", str(run.folder)])
    scores = json.loads((run.folder / "validation.json").read_text())
    assert (scores["edits"], scores["records"], scores["own_records"]) == (4, 4, True)
    for when, expected in (("before", run.editor.scores.before), ("after", run.editor.scores.after)):
        assert scores[when] == pytest.approx(to_plain(expected), rel=1e-4, nan_ok=True)
    assert "neighborhood agreement" in capsys.readouterr().out


def test_validate_scores_other_records(fit, tmp_path, capsys):
    run = fit()
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"prompt": "The capital of Norway is", "subject": "Norway", "target": "Oslo"}) + "\n")
    out = tmp_path / "scores.json"
    validate.main(["--run_dir", str(run.folder), "--data.name=jsonl", f"--data.path={path}", "--out", str(out)])
    scores = json.loads(out.read_text())
    assert (scores["records"], scores["own_records"]) == (1, False)
    assert "generalization" not in scores["after"]
    with pytest.raises(UserError, match="could not be read"):
        validate.main(["--run_dir", str(run.folder), "--data.name", "jsonl", "--data.path", "missing.jsonl"])
    with pytest.raises(UserError, match="--nonsense"):
        validate.main(["--run_dir", str(run.folder), "--nonsense", "1"])
    with pytest.raises(UserError, match=r"`--data\.nonsense` is no argument of this command"):
        validate.main(["--run_dir", str(run.folder), "--data.nonsense", "1"])


def test_validate_and_predict_take_a_checkpoint_and_find_its_run(fit, capsys):
    run = fit(method="ROME")
    path = run.folder / "checkpoints" / "two.ckpt"
    path.parent.mkdir()
    run = fit(method="ROME", last=[SaveAt(2, path)], val_check_interval=1)
    two = fit("two", "ROME", max_steps=2, val_check_interval=1)
    validate.main(["--ckpt_path", str(path)])
    scores = json.loads((run.folder / "validation.json").read_text())
    assert (scores["edits"], scores["records"]) == (2, 2)
    assert scores["after"]["perplexity"] == pytest.approx(two.editor.scores.after["perplexity"].value, rel=1e-4)
    validate.main(["--run_dir", str(run.folder), "--at", "2"])
    again = json.loads((run.folder / "validation.json").read_text())
    assert again["after"] == pytest.approx(scores["after"], rel=1e-4, nan_ok=True)
    predict.main(["--ckpt_path", str(path), "--max_tokens", "3"])
    assert len(json.loads((run.folder / "predictions.json").read_text())) == 2


def test_a_checkpoint_that_would_execute_code_is_refused(fit, tmp_path):
    import os
    import pickle

    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    run = fit()
    bad = run.folder / "bad.ckpt"
    torch.save({"state_dict": Attack()}, bad)
    with pytest.raises(UserError, match=r"without executing code|not a checkpoint"):
        validate.main(["--ckpt_path", str(bad)])
    bad.write_bytes(pickle.dumps(Attack()))
    with pytest.raises(UserError, match=r"without executing code|not a checkpoint"):
        validate.main(["--ckpt_path", str(bad)])
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Name the run"),
        (["--run_dir=/nowhere"], "is no folder"),
        (["--ckpt_path=/nowhere/a.ckpt"], "lies in no run folder"),
        (["--run_dir={run}", "--ckpt_path=missing.ckpt"], "is no file"),
        (["--run_dir={run}", "--ckpt_path=last"], "holds no checkpoint"),
        (["--run_dir={run}", "--ckpt_path=a", "--at=1"], "two states"),
        (["--run_dir={run}", "--at=3"], "--at 2 and --at 4"),
        (["--run_dir={run}", "--ckpt_path={run}/other.ckpt"], "no checkpoint of"),
    ],
)
def test_a_state_that_is_not_there_is_said_to_be_so(fit, arguments, words):
    run = fit()
    torch.save({"state_dict": {}}, run.folder.parent / "other.ckpt")
    if "other" in "".join(arguments):
        (run.folder.parent / "other.ckpt").rename(run.folder / "other.ckpt")
    given = [argument.format(run=run.folder) for argument in arguments]
    for command in (validate, predict):
        with pytest.raises(UserError, match=words):
            command.main(given)


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_predict_answers_as_generate_does_before_and_after(fit, model_folder, model_type, capsys):
    run = fit(model_type=model_type)
    predict.main(["--run_dir", str(run.folder), "--prompt", PROMPTS[0], "--prompt", PROMPTS[1], "--max_tokens", "4"])
    cases = json.loads((run.folder / "predictions.json").read_text())
    base, tokenizer = exported(model_folder(model_type))
    for when, model in (("before", base), ("after", run.editor.language_model.model)):
        for prompt, case in zip(PROMPTS, cases, strict=True):
            given = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
            width = given["input_ids"].shape[1]
            full = model.generate(**given, max_new_tokens=4, do_sample=False, pad_token_id=0)[0, width:]
            assert case[when] == tokenizer.decode(full, skip_special_tokens=True)
    assert any(case["before"] != case["after"] for case in cases)
    assert "before" in capsys.readouterr().out


def test_predict_asks_for_the_runs_own_edits_without_prompts(fit, capsys):
    run = fit()
    predict.main(["--run_dir", str(run.folder), "--limit", "3", "--max_tokens", "2"])
    cases = json.loads((run.folder / "predictions.json").read_text())
    assert [case["wanted"] for case in cases] == ["Berlin", "Norway", "Italy"]
    capsys.readouterr()
    (run.folder / "taken").write_text("a file, in which no folder can be")
    with pytest.raises(UserError, match="could not be written"):
        predict.main(
            ["--run_dir", str(run.folder), "--limit", "1", "--out", str(run.folder / "taken" / "answers.json")]
        )
    said = capsys.readouterr().out
    assert "1 fact that was asked" in said, "answers that cannot be written are shown all the same"
    assert "Written to" not in said


def test_predict_reads_prompts_from_files(tmp_path):
    (tmp_path / "a.txt").write_text("One is\n\nTwo is \n", encoding="utf-8")
    (tmp_path / "a.jsonl").write_text('{"prompt": "Three is"}\n{"prompt": "Four is"}\n')
    (tmp_path / "empty.txt").write_text("\n")
    assert predict.read_prompts(tmp_path / "a.txt") == ["One is", "Two is"]
    assert predict.read_prompts(tmp_path / "a.jsonl") == ["Three is", "Four is"]
    with pytest.raises(UserError, match="holds no prompt"):
        predict.read_prompts(tmp_path / "empty.txt")
    with pytest.raises(UserError, match="could not be read"):
        predict.read_prompts(tmp_path / "missing.txt")


def test_predict_refuses_prompts_that_leave_no_room(fit):
    run = fit()
    with pytest.raises(UserError, match="expected 1 to"):
        predict.main(["--run_dir", str(run.folder), "--prompt", "by the sea " * 60])
    with pytest.raises(UserError, match="at least 1"):
        predict.main(["--run_dir", str(run.folder), "--max_tokens", "0"])


def test_a_final_file_that_was_altered_is_refused_by_name(fit):
    from sphere_pl.run.results import save_edited

    run = fit()
    path = run.folder / "edited.safetensors"
    save_edited(run.editor, path)
    base = SavedRun.open(run.folder).load_base()
    exact = SavedRun.open(run.folder).weights(base)
    assert all(torch.equal(exact[name], weight) for name, weight in run.live.items())  # bit for bit, not rebuilt
    (run.folder / "results.json").write_text(json.dumps({"edits": 4, "edited_sha256": "0" * 64}))
    with pytest.raises(UserError, match=r"edited\.safetensors has another SHA-256"):
        SavedRun.open(run.folder).weights(base)
    path.write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"edited\.safetensors is damaged"):
        SavedRun.open(run.folder).weights(base)


def test_the_final_file_of_an_earlier_fit_is_not_taken_for_this_one(fit):
    from sphere_pl.run.results import save_edited

    early = fit("early", max_steps=1)
    run = fit()
    save_edited(early.editor, run.folder / "edited.safetensors")
    base = SavedRun.open(run.folder).load_base()
    for name, weight in SavedRun.open(run.folder).weights(base).items():
        torch.testing.assert_close(weight, run.live[name], rtol=1e-5, atol=2e-6)


def test_the_tensors_of_the_final_file_are_those_of_the_model(fit):
    from sphere_pl.run.results import save_edited

    run = fit(model_type="gpt2")
    save_edited(run.editor, run.folder / "edited.safetensors")
    stored = load_file(run.folder / "edited.safetensors")
    weights = SavedRun.open(run.folder).weights(SavedRun.open(run.folder).load_base())
    assert all(torch.equal(stored[name].T, weight) for name, weight in weights.items())
