"""Names and what they lead to, before anything is loaded."""

import pytest

from sphere_pl.errors import UserError
from sphere_pl.model.embedded import EMBEDDED_MODEL
from sphere_pl.model.files import label_of, lasting_name, local_model


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.mark.parametrize("name", ["gpt2", "organisation/model", "EleutherAI/gpt-j-6b", "a/b.c_d-1"])
def test_a_hub_id_is_left_to_the_hub(name):
    assert local_model(name) is None


@pytest.mark.parametrize(
    "name",
    ["./model", "../model", "/nowhere/model", "~/model", "~no-such-user/model", "a/b/c", "a--b", "models/modèle",
     "two words", "model.gguf", "model.safetensors", "C:\\models\\llama", "a" * 300, "a\nb"],
)  # fmt: skip
def test_a_name_that_is_no_hub_id_and_leads_nowhere_is_refused_in_one_line(name):
    with pytest.raises(UserError, match="neither a file nor a folder") as refusal:
        local_model(name)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["", " "])
def test_no_name_is_refused(name):
    with pytest.raises(UserError, match="has no name"):
        local_model(name)


def test_an_address_is_refused():
    with pytest.raises(UserError, match=r"is an address.*the hub id alone"):
        local_model("https://huggingface.co/gpt2")


def test_a_link_that_leads_nowhere_is_refused(tmp_path):
    (tmp_path / "link").symlink_to("gone")
    with pytest.raises(UserError, match=r"is a link to .*gone"):
        local_model("link")


@pytest.mark.parametrize("given", ["a--b", "a--b/", "./a--b", "modèle", "two words", "~/mine", "link"])
def test_what_is_there_is_found_whatever_it_is_called(tmp_path, given):
    for folder in ("a--b", "modèle", "two words", "home/mine"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "link").symlink_to("a--b")
    assert local_model(given).is_dir()


@pytest.mark.parametrize(
    ("name", "meant"), [("./models/lama-tiny", "models/llama-tiny"), ("./llama-tiny", "models/llama-tiny"),
                        ("./SmolLM-135M-Instruct", EMBEDDED_MODEL)]
)  # fmt: skip
def test_the_nearest_thing_is_named(tmp_path, name, meant):
    (tmp_path / "models" / "llama-tiny").mkdir(parents=True)
    (tmp_path / "models" / "llama-tiny" / "config.json").write_text("{}")
    with pytest.raises(UserError, match=f"Did you mean {meant}"):
        local_model(name)


@pytest.mark.parametrize(
    ("name", "label"),
    [("models/tiny/", "tiny"), ("organisation/model", "model"), ("a/b.Q4_1.gguf", "b.Q4_1"), ("Qwen2.5", "Qwen2.5")],
)  # fmt: skip
def test_a_model_has_a_short_name(name, label):
    assert label_of(name) == label


@pytest.mark.parametrize("name", [".", "x/..", "./"])
def test_a_folder_named_by_dots_is_called_by_its_name(tmp_path, name):
    (tmp_path / "x").mkdir()
    assert label_of(name) == tmp_path.name


def test_a_log_names_a_path_that_holds_from_everywhere(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "blob").write_bytes(b"GGUF")
    (tmp_path / "tiny.gguf").symlink_to("blob")
    (tmp_path / EMBEDDED_MODEL).mkdir()
    assert lasting_name("model") == str(tmp_path.resolve() / "model")
    assert lasting_name("tiny.gguf").endswith("/tiny.gguf")
    assert lasting_name("organisation/model") == "organisation/model"
    assert lasting_name(EMBEDDED_MODEL) == EMBEDDED_MODEL
