"""`compare` with too little to compare."""


def test_one_run_is_told_where_its_own_page_is(command_line, tmp_path):
    (tmp_path / "metrics.csv").write_text("edits,val/efficacy\n1,0.5\n")
    (tmp_path / "results.json").write_text("{}")
    status, _, err = command_line("compare", str(tmp_path), str(tmp_path), "--out", str(tmp_path / "both.html"))
    assert status == 2
    assert "One run has nothing to be compared with" in err
    assert str(tmp_path / "report.html") in err
    assert not (tmp_path / "both.html").exists()


def test_the_command_that_it_gives_can_be_pasted(command_line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, word in (("my $run", "'my $run'"), ("-x", "./-x")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text("{}")
        _, _, err = command_line("compare", "--", name)
        assert f"compare {word} <another run>" in err
