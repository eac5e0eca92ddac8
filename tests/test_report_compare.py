"""Two reports side by side: the right figures, the right kind of interval, and a clear word for whatever is missing."""

import json
import re
import shutil
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console
from test_report import MACHINE, broken_sections, check_page, hostile_section, names

from nanochat import report, report_page, report_terminal
from nanochat.configurator import parse
from nanochat.report_compare import OTHERS, UNPAIRED, Run, compare_tasks, compose_comparison, mean_of
from nanochat.report_section import Section
from nanochat.score import Score, correlation, difference, fingerprint, mean_difference

BEFORE = [n % 5 > 0 for n in range(200)]  # 160 right
NOW = [n % 5 > 0 or n % 2 == 0 for n in range(200)]  # 20 more, none less


def score(name, verdicts, chance=0.0, asked="all"):
    marks = fingerprint([asked, n] for n in range(len(verdicts)))
    return Score(name, sum(verdicts), len(verdicts), chance, verdicts=verdicts, asked=marks)


def write_run(bpb, topic, spelling, rate=1.0, tokens=(1000, 10)):
    """Sections as a small run leaves them, in the folder that NANOCHAT_BASE_DIR names."""
    curves = [
        {
            "name": "training loss",
            "x_label": "step",
            "y_label": "nats a token",
            "x": [5, tokens[1]],
            "y": [6, 3 / rate],
        },
        {"name": "val_bpb", "x_label": "step", "y_label": "bits per byte", "x": [tokens[1]], "y": [bpb]},
    ]
    trained = {"title": "Pretraining", "seconds": 100 * rate, "machine": MACHINE, "curves": curves}
    trained["settings"] = {"depth": 2, "lr_scale": rate, "data": "wiki", "window": None}
    trained["metrics"] = {"tokens": tokens[0], "steps": tokens[1], "tokens_per_second": 10.0, "val_bpb": bpb}
    report.write_section("base_train", trained)
    scores = [score("Topic", topic, 0.25).summary(), score("Spelling", spelling).summary()]
    settings = {"checkpoint": str(report.base_dir() / "checkpoints" / "sft" / "d2" / f"step_{tokens[1]:06d}")}
    section = {"title": "Evaluation", "scores": scores, "settings": settings, "machine": MACHINE}
    report.write_section("chat_eval_sft", section)


@pytest.fixture
def two(base_dir, monkeypatch):
    """The folders of two runs; the second is the one that NANOCHAT_BASE_DIR names."""
    folders = [base_dir / "first", base_dir / "second"]
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(folders[0]))
    write_run(1.5, BEFORE, BEFORE)
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(folders[1]))
    write_run(1.2, NOW, BEFORE[:1] + [False] + BEFORE[2:], rate=0.5, tokens=(2000, 10))
    return folders


def change(folder, name, action):
    path = folder / "report" / f"{name}.json"
    section = json.loads(path.read_text())
    action(section)
    path.write_text(json.dumps(section))


def compared(folder, capsys):
    """What is printed, with every run of blanks as one, so that lines can be looked for."""
    capsys.readouterr()
    report.compare(folder)
    return re.sub(r" +", " ", capsys.readouterr().out)


def test_figures_intervals_and_what_they_say(two, capsys):
    text = compared(two[0], capsys)
    assert text.startswith("second against first\n")
    assert "\n lr_scale (Pretraining) 1.0 0.5 \n" in text and "depth" not in text and "window" not in text
    assert "checkpoint" not in text  # in another folder and of another step, but of the same stage and tag
    assert "\n validation, bits per byte 1.5000 1.2000 -0.3000 \n" in text
    d, low, high = difference((160, 200), (180, 200), correlation(BEFORE, NOW))
    assert f" Topic 200 80.0 90.0 +10.0 {100 * low:+.1f} to {100 * high:+.1f} 20 0 better \n" in text
    assert re.search(r" Spelling 200 80.0 79.5 -0.5 -\S+ to \+\S+ 0 1 open \n", text)
    assert "Pretraining 1:40 0:50 -50% \n" in text and "Pretraining, tokens 1,000 2,000 +100% \n" in text
    said = text.split("What can be said")[1].replace("\n", " ")
    assert "second needs 20.0% fewer bits for a byte than first." in said
    assert "Evaluation: second is better in Topic. In Spelling it is open: by so few items a difference" in said
    assert "another --seed" in said


def test_the_mean_of_the_tasks_is_centred_on_guessing(two):
    old, new = (Section.read("chat_eval_sft", report.read_sections(f / "report")["chat_eval_sft"]) for f in two)
    mean = mean_of(compare_tasks(old, new))
    assert mean.before == pytest.approx(((0.8 - 0.25) / 0.75 + 0.8) / 2)
    assert mean.now == pytest.approx(((0.9 - 0.25) / 0.75 + 0.795) / 2)
    topic, spelling = compare_tasks(old, new)
    scaled = tuple(value / 0.75 for value in (topic.change, topic.low, topic.high))
    expected = mean_difference([scaled, (spelling.change, spelling.low, spelling.high)])
    assert (mean.change, mean.low, mean.high) == pytest.approx(expected)
    assert mean.change == pytest.approx(mean.now - mean.before) and mean.low > 0


def section(*scores):
    return Section.read("chat_eval_sft", json.loads(json.dumps({"scores": scores})))


def test_how_two_are_compared():
    whole, part = score("Topic", BEFORE).summary(), score("Topic", NOW[:50]).summary()
    (task,) = compare_tasks(section(whole), section(part))  # one was asked the first 50 of the other's items
    assert (task.items, task.gained, task.lost, task.before, task.now) == ("50", "5", "0", 0.8, 0.9)
    other = score("Topic", NOW, asked="others").summary()
    (task,) = compare_tasks(section(whole), section(other))
    assert task.gained == OTHERS and (task.change, task.low, task.high) == difference((160, 200), (180, 200))
    older = {key: value for key, value in whole.items() if key not in ("verdicts", "asked")}
    for a, b in ((older, part), (part, older), (older, older)):
        (task,) = compare_tasks(section(a), section(b))
        assert task.gained == UNPAIRED
    assert compare_tasks(section(older), section(part))[0].items == "200, 50"
    for broken in ({"verdicts": whole["verdicts"][1:]}, {"asked": "x" * 200}, {"verdicts": 7}, {"asked": None}):
        assert compare_tasks(section(whole | broken), section(whole))[0].gained == UNPAIRED
    assert compare_tasks(section(score("Topic", BEFORE).summary()), section(score("Spelling", NOW).summary())) == []
    wrong = whole | {"correct": 300} | dict.fromkeys(("verdicts", "asked"))
    assert compare_tasks(section(wrong), section(whole)) == []


def test_many_tasks_are_counted_and_not_named(two, capsys):
    """CORE: the figure, its 22 tasks, and their mean with an interval, which is that of the figure."""
    cores = []
    for folder, right in zip(two, (BEFORE[:-1] + [False], BEFORE)):
        tasks = [score(f"task{n}", right if n else BEFORE, 0.5, asked=n) for n in range(22)]
        cores.append(sum(task.centered for task in tasks) / 22)
        section = {"title": "CORE", "metrics": {"CORE": cores[-1]}, "scores": [task.summary() for task in tasks]}
        (folder / "report" / "base_eval.json").write_text(json.dumps(section))
    text = compared(two[0], capsys)
    assert f" CORE {cores[0]:.4f} {cores[1]:.4f} {cores[1] - cores[0]:+.4f} \n" in text
    assert f" Centred mean {100 * cores[0]:.1f} {100 * cores[1]:.1f} +1.0 " in text
    said = text.split("What can be said")[1].replace("\n", " ")
    assert "CORE: no task shows a difference. It is open: by so few items" in said


def test_a_report_of_an_older_program_is_compared_by_its_counts(two, capsys):
    change(two[0], "chat_eval_sft", lambda s: [row.pop("verdicts") for row in s["scores"]])
    change(two[0], "base_train", lambda s: s["settings"].pop("window"))
    change(two[1], "base_train", lambda s: s["settings"].update(lora_rank=0, fp8=True, seed=1))
    change(two[0], "base_train", lambda s: s["settings"].update(seed=0))
    text = compared(two[0], capsys)
    assert "unpaired better \n" in text and "does not say which items were right" in text.replace("\n", " ")
    assert " fp8 (Pretraining) – true \n" in text and " seed (Pretraining) 0 1 \n" in text
    assert "window" not in text and "lora" not in text


def test_what_is_missing_or_damaged_is_said(two, capsys):
    report.write_section("chat_rl", {"title": "Learning from rewards", "seconds": 5})
    (two[0] / "report" / "base_train.json").write_text("{broken")
    text = compared(two[0], capsys)
    assert "\n Learning from rewards – there \n" in text and "\n Pretraining – there \n" in text
    assert "Left out of first: " in text and "base_train.json" in text.replace("\n", "")
    assert "bits per byte" not in text and " Topic 200 80.0" in text
    (two[1] / "report" / "chat_eval_sft.json").unlink()
    text = compared(two[0], capsys)
    assert "There is no task that both were measured by." in text and "better" not in text


def test_what_cannot_be_compared_is_said(two, capsys):
    for folder, hash in zip(two, ("a", "b")):
        (folder / "report" / "tokenizer.json").write_text(json.dumps({"metrics": {"hash": hash}}))
        (folder / "report" / "data.json").write_text(json.dumps({"metrics": {"val documents": "510"}}))
    text = compared(two[0], capsys)
    assert "They have different tokenizers" in text and "held-out text of its own" not in text
    change(two[0], "base_train", lambda s: s["settings"].update(data="mine"))
    assert "Each was measured on held-out text of its own" in compared(two[0], capsys)


def test_the_pages(two, capsys):
    write_run(1.2, NOW, BEFORE, rate=0.5, tokens=(2000, 10))
    markdown, page = (path.read_text(encoding="utf-8") for path in report.compare(two[0]))
    assert markdown.startswith("# second against first\n") and "| Topic | 200 | 80.0 | 90.0 |" in markdown
    words = " ".join(check_page(page).data)
    assert page.count("<figure>") == 2 and "tokens read" in words and "Pretraining: training loss" in words
    assert "first <b>3</b>" in page and "second <b>6</b>" in page
    lines = [line for line in markdown.splitlines() if line.startswith("Pretraining: training loss")]
    assert [line.split(":")[1] for line in lines] == [" training loss, first", " training loss, second"]
    assert "Pretraining: all figures" in markdown
    report.reset()
    assert not list((two[1] / "report").glob("comparison.*"))


def test_curves_of_a_picture_share_their_scale():
    curves = [
        report_page.Curve(n, "", "", list(range(k)), y) for n, k, y in (("a", 40, [4.0] * 40), ("b", 20, [1] * 20))
    ]
    first, second = report_page.text_curves("loss", curves)
    assert first.count("█") == 40 and second.count("▁") == round(40 * 19 / 39) and first.index("█") == second.index("▁")


def test_a_terminal_of_80_columns_is_wide_enough(two, capsys, monkeypatch):
    monkeypatch.setattr(report_terminal, "score_console", lambda: Console(width=80))
    for folder in two:
        change(folder, "chat_eval_sft", lambda s: s["scores"][0].update(name="MentalArithmetic"))
    report.compare(two[0])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) == 80
    row = next(line.split() for line in lines if "MentalArithmetic" in line)
    assert row[:5] == ["MentalArithmetic", "200", "80.0", "90.0", "+10.0"] and row[6] == "to" and row[-1] == "better"


def test_a_copy_of_the_report_can_be_compared_with_what_follows(two, tmp_path, capsys):
    """What a later run of a stage would replace: report/ is copied, wherever."""
    copy = shutil.copytree(two[1] / "report", tmp_path / "before")
    change(two[1], "base_train", lambda s: s["metrics"].update(val_bpb=1.1))
    text = compared(copy, capsys)
    assert text.startswith("second against before\n") and "1.2000 1.1000 -0.1000" in text
    assert "no task shows a difference" in text.replace("\n", " ")
    other = shutil.copytree(two[1], tmp_path / "x" / "second")
    assert compared(other, capsys).startswith(f"{two[1].parent.name}/second against x/second\n")


def test_the_command(two, tmp_path):
    def run(*arguments):
        command = [sys.executable, "-W", "error", "-m", "nanochat.report", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    done = run("compare", two[0], "--here")
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert "second against first" in done.stdout and str(two[1] / "report" / "comparison.html") in done.stdout
    assert (tmp_path / "comparison.md").read_bytes() == (two[1] / "report" / "comparison.md").read_bytes()
    assert "\x1b" not in done.stdout
    backwards = run("compare", two[1], two[0])
    assert "first against second" in backwards.stdout and "first needs 25.0% more bits" in backwards.stdout


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["compare"], "Name the run"),
        (["compare", "nowhere"], "There is no report in nowhere"),
        (["compare", "{second}"], "Both are"),
        (["compare", "{second}/report"], "Both are"),
        (["generate", "{first}"], "takes no folder"),
        (["reset", "{first}"], "takes no folder"),
    ],
)
def test_mistakes_get_a_sentence(two, arguments, words):
    places = dict(zip(("first", "second"), two))
    with pytest.raises(SystemExit, match=words):
        report.main(parse(report.Config, [argument.format(**places) for argument in arguments]))
    assert (two[1] / "report" / "chat_eval_sft.json").exists()


def as_run(name, sections):
    return Run(name, [Section.read(n, s) for n, s in json.loads(json.dumps(sections)).items()], [])


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(*[st.dictionaries(names, broken_sections, max_size=4)] * 2)
def test_no_two_reports_are_too_broken(capsys, before, now):
    blocks = sum(compose_comparison(as_run("<a>", before), as_run("b", now)), [])
    report_page.to_markdown("x", blocks).encode("utf-8")
    check_page(report_page.to_html("x", "y", [b for b in blocks if not isinstance(b, report_page.Curves)]))
    report_terminal.print_blocks("x", blocks)
    capsys.readouterr()


def test_nothing_in_a_report_is_alive(capsys):
    sections = {name: hostile_section() for name in ("base_train", "chat_eval_sft")}
    other = {name: {**value, "settings": {"a": "[red]b"}} for name, value in sections.items()}
    blocks = sum(compose_comparison(as_run("<script>", sections), as_run("b", other)), [])
    check_page(report_page.to_html("x", "y", blocks))
    report_terminal.print_blocks("x", blocks)
    text = capsys.readouterr().out
    assert "[red]b" in text and "\x1b" not in text
