"""The linter finds each broken rule, the runner each way in which a notebook fails."""

import copy
import json
import os

import nbformat
import pytest
from nbformat.v4 import new_markdown_cell, new_notebook, new_output

from retina_lab.course import committed, project, runner, template
from retina_lab.course.__main__ import main
from retina_lab.course.project import CourseError
from retina_lab.course.references import canonical, cited, read_references, references_cell
from tests.made_notebooks import EXERCISE, PARAMETERS, code, good_notebook, made_course, write


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A course without notebooks; the working directory is in it."""
    monkeypatch.chdir(made_course(tmp_path))
    for name in ("RETINA_LAB_PROFILE", "RETINA_LAB_DATASET", "RETINA_LAB_STATIC"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def problems(course, notebook, name="01_made.ipynb"):
    """Write a notebook exactly as it is and lint it."""
    path = course / "notebooks" / name
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False), "utf-8")
    return template.check_notebook(path, read_references(course / "book" / "references.bib"))


def finished(course, notebook):
    """The committed form of a made notebook."""
    return nbformat.read(write(course, notebook), as_version=4)


# --- the linter ------------------------------------------------------------------------------


def test_good_notebook_has_no_problems(course):
    assert problems(course, finished(course, good_notebook())) == []


def replace(cell: int, old: str, new: str):
    """A change of one cell's source; the old text must be there."""

    def change(notebook):
        assert old in notebook.cells[cell].source
        notebook.cells[cell].source = notebook.cells[cell].source.replace(old, new)

    return change


def insert(cell: int, *cells):
    """An insertion before the cell with this number."""

    def change(notebook):
        for n, new in enumerate(copy.deepcopy(cells)):
            new.id = f"new-{n}"
            notebook.cells.insert(cell + n, new)

    return change


def setting(cell: int, name: str, value):
    """A change of a cell's field."""

    def change(notebook):
        notebook.cells[cell][name] = value

    return change


def metadata(**values):
    """A change of the notebook's metadata."""
    return lambda notebook: notebook.metadata.update(values)


def output(*outputs):
    """A change of the committed output."""
    return setting(4, "outputs", [nbformat.from_dict(o) for o in outputs])


DETAILS = "<details>\n<summary>Hint</summary>\n\n{}\n\n</details>"
PNG = {"output_type": "display_data", "metadata": {}, "data": {"image/png": "AA=="}}
WARNING = {"output_type": "stream", "name": "stderr", "text": "DeprecationWarning"}

# what is changed in the good notebook, the rule that breaks, the number of the cell, part of the
# message
BROKEN = {
    "too many cells": (insert(4, *[new_markdown_cell("text")] * 51), "cells", None, "61 cells"),
    "too large": (replace(3, "It is", "It is " + "x" * 160_000), "size", None, "at most 153600"),
    "same id": (setting(3, "id", "cell-2"), "format", None, "same id"),
    "empty cell": (setting(3, "source", " \n"), "empty", 4, "empty"),
    "raw cell": (setting(3, "cell_type", "raw"), "raw", 4, "raw"),
    "unknown tag": (
        setting(4, "metadata", {"tags": ["nbval-check-output", "skip-execution"]}),
        "tags",
        5,
        "skip-execution",
    ),
    "long code": (insert(5, code("\n".join(["x = 1"] * 26))), "lines", 6, "26 lines"),
    "not Python": (insert(5, code("!pip install x")), "python", 6, "line 1"),
    "no parameters": (setting(1, "metadata", {}), "parameters", None, "there are 0"),
    "two parameters": (
        insert(2, code("a = 1", "parameters")),
        "parameters",
        None,
        "there are 2",
    ),
    "computed parameter": (replace(1, "steps = 3", "steps = 1 + 2"), "parameters", 2, "computed"),
    "code in parameters": (replace(1, "steps = 3", "print(3)"), "parameters", 2, "print(3)"),
    "no seed": (replace(1, "seed = 0", "sead = 0"), "parameters", 2, "`seed = 0`"),
    "profile fixed": (
        replace(1, 'os.environ.get("RETINA_LAB_PROFILE", "class")', '"class"'),
        "parameters",
        2,
        "RETINA_LAB_PROFILE",
    ),
    "code before parameters": (insert(1, code("x = 1")), "parameters", 2, "before"),
    "two titles": (replace(3, "## Two", "# Two"), "title", 4, "there are 2"),
    "no title": (replace(0, "# A small lesson", "A small lesson"), "title", None, "there are 0"),
    "skipped level": (replace(3, "It is", "#### Deep\n\nIt is"), "headings", 4, "H4 after H2"),
    "missing section": (replace(0, "## Time", "## Hours"), "sections", None, "`## Time`"),
    "section twice": (
        replace(3, "It is", "## Summary\n\nIt is"),
        "sections",
        None,
        "there are 2",
    ),
    "wrong order": (
        replace(0, "## Prerequisites\n\nNone.\n\n## Time", "## Time\n\n## Prerequisites\n\nNo."),
        "sections",
        None,
        "the order is",
    ),
    "own section too late": (
        insert(7, new_markdown_cell("## More\n\nText.")),
        "sections",
        8,
        "between Think first and Exercises",
    ),
    "nothing of its own": (replace(3, "## Two", "### Two"), "sections", None, "of its own"),
    "one goal": (replace(0, "- measure `{a}` thing", ""), "goals", None, "at least 2"),
    "no prerequisites": (replace(0, "None.", ""), "sections", None, "Prerequisites` is empty"),
    "no reading time": (replace(0, "5 minutes to read", "Soon"), "time", None, "to read"),
    "no machine": (replace(0, "1 minute to run on", "1 minute to run"), "time", None, "run on"),
    "no question": (replace(2, "?", "."), "question", None, "`?`"),
    "answer before question": (insert(2, code("print(2)")), "question", 3, "before the question"),
    "two exercises": (replace(5, EXERCISE.format(n=3), ""), "exercises", None, "2 here"),
    "wrong number": (replace(5, "Exercise 2:", "Exercise 4:"), "exercises", 6, "Exercise 2"),
    "exercise without name": (replace(5, "2: add 2", "2"), "exercises", 6, "Exercise 2"),
    "no hint": (
        replace(5, "<summary>Hint</summary>", "<summary>Tip</summary>"),
        "exercises",
        6,
        "hint",
    ),
    "empty solution": (
        replace(5, "```python\nanswer = x + 1\nassert answer == 1 + 2\n```", " "),
        "exercises",
        6,
        "solution",
    ),
    "solution not Python": (replace(5, "answer = x + 1", "answer = x +"), "exercises", 6, "Python"),
    "exercise too early": (
        lambda n: (
            replace(5, "## Exercises\n\n" + EXERCISE.format(n=1), "## Exercises")(n),
            replace(3, "It is", EXERCISE.format(n=1))(n),
        ),
        "exercises",
        4,
        "under `## Exercises`",
    ),
    "fold without blank line": (
        replace(5, "<summary>Hint</summary>\n\nCount.", "<summary>Hint</summary>\nCount."),
        "folding",
        6,
        "blank lines",
    ),
    "heading in a fold": (replace(5, "Count.", "#### Count\n\nUp."), "headings", 6, "folded"),
    "no self-check": (setting(7, "metadata", {}), "self-check", None, "there are 0"),
    "self-check cannot fail": (setting(7, "source", "print(x)"), "self-check", 8, "cannot fail"),
    "self-check asserts a constant": (
        setting(7, "source", "assert True"),
        "self-check",
        8,
        "cannot fail",
    ),
    "figure without alt": (insert(5, code("show(figure)")), "alt", 6, "alt=…"),
    "figure with short alt": (insert(5, code('show(f, alt="a plot")')), "alt", 6, "under 20"),
    "plt.show": (insert(5, code("plt.show()")), "alt", 6, "plt.show"),
    "bare interact": (insert(5, code("interact(f, x=3)")), "widget", 6, "explore_"),
    "image without alt": (replace(3, "It is", "![](x.png)"), "alt", 4, "x.png"),
    "HTML image without alt": (replace(3, "It is", '<img src="x.png">'), "alt", 4, "x.png"),
    "remote image": (
        replace(3, "It is", "![a picture with long words](https://example.org/x.png)"),
        "offline",
        4,
        "network",
    ),
    "missing image": (
        replace(3, "It is", "![a picture with long words](gone.png)"),
        "links",
        4,
        "gone.png",
    ),
    "missing page": (replace(3, "It is", "[next](02_gone.ipynb)"), "links", 4, "02_gone.ipynb"),
    "link to a heading": (replace(3, "It is", "[there](#Two)"), "links", 4, "#Two"),
    "role": (replace(3, "It is", "{cite}`staal2004`"), "markdown", 4, "MyST"),
    "directive": (replace(3, "It is", "```{note}\nx\n```\n"), "markdown", 4, "MyST"),
    "colon fence": (replace(3, "It is", "\n:::{note}\nx\n:::\n"), "markdown", 4, "MyST"),
    "machine path": (insert(5, code('open("/home/ada/x")')), "paths", 6, "/home/ada"),
    "Windows path": (insert(5, code(r'open(r"C:\data\x")')), "paths", 6, "C:"),
    "unknown citation": (
        replace(3, "It is", "[A, 2020](https://doi.org/10.1/x)"),
        "citations",
        None,
        "10.1/x",
    ),
    "unknown key": (replace(3, "It is", "It<!-- cite: nobody -->"), "citations", None, "nobody"),
    "cites nothing": (
        lambda n: (
            replace(0, "[Staal et al., 2004](https://doi.org/10.1109/TMI.2004.825627)", "S")(n),
            replace(0, "<!-- cite: slides -->", "")(n),
        ),
        "citations",
        None,
        "no source",
    ),
    "references not written": (setting(9, "source", "## References"), "references", 10, "form"),
    "reference forgotten": (
        replace(3, "It is", "[S](https://arxiv.org/pdf/2003.07311v2) is"),
        "references",
        10,
        "form",
    ),
    "output missing": (setting(4, "outputs", []), "committed", 5, "no output"),
    "count missing": (setting(4, "execution_count", None), "committed", 5, "execution count"),
    "figure committed": (output(PNG), "committed", 5, "only text"),
    "warning committed": (output(WARNING), "committed", 5, "warning"),
    "untagged output": (
        setting(7, "outputs", [new_output("stream", name="stdout", text="x")]),
        "committed",
        8,
        "without the tag",
    ),
    "untagged count": (setting(7, "execution_count", 3), "committed", 8, "without the tag"),
    "nothing checked": (
        lambda n: (setting(4, "metadata", {})(n), setting(4, "outputs", [])(n)),
        "committed",
        None,
        "no cell is tagged",
    ),
    "cell metadata": (setting(3, "metadata", {"collapsed": True}), "committed", 4, "form"),
    "hidden for the book only": (
        setting(7, "metadata", {"tags": ["self-check", "hide-input"]}),
        "committed",
        8,
        "form",
    ),
    "other kernel": (metadata(kernelspec={"name": "my_env"}), "committed", None, "kernel"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_each_broken_rule_is_named_with_its_cell(course, name):
    change, rule, cell, message = BROKEN[name]
    notebook = finished(course, good_notebook())
    change(notebook)
    found = [p for p in problems(course, notebook) if p.rule == rule and message in p.message]
    assert found, [str(p) for p in problems(course, notebook)]
    assert found[0].cell == cell
    assert str(found[0]).startswith("01_made.ipynb: ")


ALLOWED = {
    "code span that looks like a role": "A set is written `{x}` and an f-string `f'{x}'`.",
    "formula with braces": "$\\hat{y}_{i}$ and $$\\frac{a}{b}$$",
    "fence with headings": "```text\n# not a heading\n![](x.png)\n```",
    "link to documentation": "[skimage](https://scikit-image.org/docs)",
    "link to itself": "[this notebook](01_made.ipynb)",
    "relative data path": "The folder `data/DRIVE` and `~/data`.",
    "alternative text": "![two vessels that cross each other](made.png)",
}


@pytest.mark.parametrize("name", ALLOWED)
def test_what_looks_wrong_and_is_right(course, name):
    (course / "notebooks" / "made.png").touch()
    (course / "notebooks" / "01_made.ipynb").touch()
    notebook = finished(course, good_notebook(new_markdown_cell(ALLOWED[name])))
    assert problems(course, notebook) == []


def test_bad_file_name_and_unreadable_file(course):
    (problem,) = problems(course, finished(course, good_notebook()), "Lesson.ipynb")
    assert problem.rule == "name"
    broken = course / "notebooks" / "02_broken.ipynb"
    broken.write_text("{", "utf-8")
    (problem,) = template.check_notebook(broken, {})
    assert problem.rule == "format"
    assert "02_broken.ipynb" in str(problem)


def test_check_command_says_what_is_wrong(course, capsys):
    write(course, good_notebook())
    assert main(["check"]) == 0
    write(course, good_notebook(code("plt.show()")), "02_bad.ipynb")
    assert main(["check"]) == 1
    assert "02_bad.ipynb: cell 6: alt: " in capsys.readouterr().out
    assert main(["check", "1"]) == 0


def test_no_notebooks_is_an_error_not_a_success(course, capsys):
    assert main(["check"]) == 1
    assert "There are no notebooks" in capsys.readouterr().err


# --- references ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "same"),
    [
        ("https://doi.org/10.1109/TMI.2004.825627", "http://dx.doi.org/10.1109/tmi.2004.825627"),
        ("https://arxiv.org/abs/2003.07311", "https://arxiv.org/pdf/2003.07311v2.pdf"),
        ("https://example.org/a/", "https://www.example.org/a"),
    ],
)
def test_spellings_of_one_address(url, same):
    assert canonical(url) == canonical(same)


def test_citations_in_order_of_first_mention(course):
    references = read_references(course / "book" / "references.bib")
    text = (
        "[b](https://arxiv.org/abs/2003.07311) then<!-- cite: slides --> and "
        "[again](https://arxiv.org/pdf/2003.07311) [c](https://doi.org/10.1/unknown) "
        "![no link](https://doi.org/10.2/image) [docs](https://docs.python.org)"
    )
    assert cited(text, references) == (["soft", "slides"], ["https://doi.org/10.1/unknown"])
    assert references_cell(["slides", "soft"], references).split("\n") == [
        "## References",
        "",
        "- Simon De Lange (no year). *Slides*. Lecture.",
        "- Suprosanna Shit (2021). *clDice*. "
        "[arxiv.org/abs/2003.07311](https://arxiv.org/abs/2003.07311)",
    ]


# --- committed form --------------------------------------------------------------------------


def test_committed_form_keeps_thought_and_checked_outputs_only(course):
    executed = good_notebook(code("print('noise')", "hide-input"))
    executed.cells[5].outputs = [new_output("stream", name="stdout", text="noise\n")]
    for n, cell in enumerate(executed.cells):
        cell.metadata["papermill"] = {"duration": n}
        if cell.cell_type == "code":
            cell.execution_count = n
    executed.metadata["language_info"] = {"name": "python", "version": "3.99"}
    references = read_references(course / "book" / "references.bib")
    result = committed.committed_form(executed, executed, references)
    assert problems(course, result) == []
    assert result.cells[4].outputs[0].text == "2\n"
    assert (result.cells[5].outputs, result.cells[5].execution_count) == ([], None)
    assert result.cells[5].metadata == {
        "tags": ["hide-input"],
        "jupyter": {"source_hidden": True},
    }
    again = committed.committed_form(result, executed, references)
    assert nbformat.writes(again) == nbformat.writes(result)


def test_printed_text_is_committed_in_one_piece(course):
    """A kernel sends what is printed in pieces, here one way and there another."""
    whole = good_notebook()
    (cell,) = [c for c in whole.cells if template.OUTPUT_TAG in template.tags(c)]
    cell.outputs = [new_output("stream", text="one\ntwo\n")]
    torn = copy.deepcopy(whole)
    torn.cells[whole.cells.index(cell)].outputs = [
        new_output("stream", text="one\n"),
        new_output("stream", text="two\n"),
        new_output("stream", name="stderr", text="three\n"),
    ]
    outputs = next(
        c.outputs for c in committed.committed_form(whole, torn, {}).cells if c.id == cell.id
    )
    assert [(o.name, o.text) for o in outputs] == [("stdout", "one\ntwo\n"), ("stderr", "three\n")]


def test_form_command_makes_a_clean_notebook_and_stays_the_same(course, capsys):
    notebook = good_notebook()
    notebook.cells[4].outputs, notebook.cells[4].execution_count = [], None
    path = course / "notebooks" / "01_made.ipynb"
    nbformat.write(notebook, path)
    assert main(["check"]) == 1
    assert main(["form", "1"]) == 0, capsys.readouterr()
    first = path.read_bytes()
    assert b"\r" not in first
    assert main(["check"]) == 0
    assert main(["form", "1"]) == 0
    assert path.read_bytes() == first


# --- parameters ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("steps=4", ("steps", 4)),
        ("rate=1e-3", ("rate", 0.001)),
        ("budget=60s", ("budget", "60s")),
        ("budget=None", ("budget", None)),
        ("device=", ("device", "")),
        ("name=a=b", ("name", "a=b")),
    ],
)
def test_parameter_on_the_command_line(text, expected):
    assert runner.parse_parameter(text) == expected


@pytest.mark.parametrize("text", ["steps", "=3", "2x=3", "a b=3"])
def test_bad_parameter_on_the_command_line(text):
    with pytest.raises(CourseError, match="name=value"):
        runner.parse_parameter(text)


@pytest.mark.parametrize(
    ("given", "fitted"),
    [
        ({"steps": 4}, 4),
        ({"rate": 2}, 2.0),
        ({"device": 0}, "0"),
        ({"budget": "60s"}, "60s"),
        ({"budget": 3}, 3),
    ],
)
def test_parameters_fit_the_type_of_their_default(given, fitted):
    result = runner.check_parameters(good_notebook(), given, "x")
    assert result == dict.fromkeys(given, fitted)
    assert type(next(iter(result.values()))) is type(fitted)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"step": 4}, "no parameter 'step'.*Did you mean steps"),
        ({"steps": "4s"}, "must be of type int"),
        ({"steps": 4.0}, "must be of type int"),
        ({"rate": True}, "must be of type float"),
        ({"profile": "full"}, "use --profile full"),
        ({"dataset": "drive"}, "use --dataset drive"),
    ],
)
def test_wrong_parameters_are_refused(given, message):
    with pytest.raises(CourseError, match=message):
        runner.check_parameters(good_notebook(), given, "01_made.ipynb")


def test_unknown_parameter_stops_before_anything_runs(course, capsys):
    write(course, good_notebook())
    assert main(["run", "-p", "step=4"]) == 1
    assert "no parameter 'step'" in capsys.readouterr().err
    assert not (course / "build").exists()


# --- names -----------------------------------------------------------------------------------


def test_notebooks_by_number_name_and_path(course):
    first = write(course, good_notebook())
    tenth = write(course, good_notebook(), "10_tenth.ipynb")
    assert project.find_notebooks([]) == [first, tenth]
    for name in ("1", "01", "01_made", str(first), os.path.relpath(first)):
        assert project.find_notebooks([name]) == [first]
    assert project.find_notebooks(["10", "1", "01_made"]) == [tenth, first]
    for name in ("2", "made", "gone.ipynb"):
        with pytest.raises(CourseError, match=name):
            project.find_notebooks([name])


def test_outside_a_course_the_checkout_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (project.project_root() / "pyproject.toml").is_file()


def test_folder_of_images_as_dataset_gets_a_folder_name():
    assert runner.Settings("smoke", "/a/My images").folder == "smoke-a_my_images"


def test_unknown_profile():
    with pytest.raises(CourseError, match="smoke, class, full"):
        runner.Settings("fast")


# --- running ---------------------------------------------------------------------------------


def test_run_records_reuses_and_runs_again_when_something_changed(course, capsys):
    report = code("print(profile, dataset, steps, os.environ.get('RETINA_LAB_STATIC'))")
    path = write(course, good_notebook(report))
    settings = runner.Settings("smoke", "phantom", {"steps": 7})
    first = runner.run_notebook(path, settings)
    assert first.path == course / "build" / "executed" / "smoke-phantom" / "01_made.ipynb"
    assert not first.reused
    executed = nbformat.read(first.path, as_version=4)
    printed = [c.outputs[0].text for c in executed.cells if c.source.startswith("print(profile")]
    assert printed == ["smoke phantom 7 None\n"]

    timing = json.loads((first.path.parent / "timing.json").read_text("utf-8"))["01_made"]
    assert timing["seconds"] > 0
    assert [c["source"] for c in timing["cells"] if c["cell"] == 6] == [report.source]
    assert first.slowest in timing["cells"]
    assert "01_made" in runner.timing_table({"01_made": first})

    assert runner.run_notebook(path, settings).reused
    assert not runner.run_notebook(path, settings, resume=False).reused
    changed = runner.Settings("smoke", "phantom", {"steps": 8})
    assert not runner.run_notebook(path, changed).reused
    assert not runner.run_notebook(path, runner.Settings("smoke", static=True)).reused
    # a copy with frames serves whoever does not need them
    assert runner.run_notebook(path, runner.Settings("smoke")).reused


def test_new_results_and_moved_files_make_old_copies_stale(tmp_path, monkeypatch):
    library, results = tmp_path / "retina_lab" / "course", tmp_path / "data" / "results"
    library.mkdir(parents=True)
    (results / "a").mkdir(parents=True)
    monkeypatch.setattr(runner, "__file__", str(library / "runner.py"))
    found = {runner.library_hash()}
    (results / "a" / "x.json").write_text("1", "utf-8")
    found.add(runner.library_hash())
    (results / "a").rename(results / "b")
    found.add(runner.library_hash())
    assert len(found) == 3


def test_new_photographs_in_a_folder_of_ones_own_make_old_copies_stale(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "library_hash", lambda: "same")
    settings = runner.Settings(dataset=str(tmp_path))
    before = runner._key(good_notebook(), settings)
    assert before == runner._key(good_notebook(), settings)
    (tmp_path / "eye.png").write_bytes(b"x")
    assert before != runner._key(good_notebook(), settings)


def test_key_follows_notebook_settings_and_library(monkeypatch):
    def key(notebook=None, **settings):
        return runner._key(notebook or good_notebook(), runner.Settings(**settings))

    other = good_notebook()
    other.cells[3].source += " Indeed."
    first = key()
    assert first == key(static=True) == key()
    different = [key(other), key(profile="smoke"), key(dataset="drive"), key(parameters={"a": 1})]
    monkeypatch.setenv("RETINA_LAB_DATA", "elsewhere")
    different.append(key())
    monkeypatch.delenv("RETINA_LAB_DATA")
    monkeypatch.setattr(runner, "library_hash", lambda: "another")
    different.append(key())
    assert len({first, *different}) == 7


def test_environment_is_put_back(course, monkeypatch):
    monkeypatch.setenv("RETINA_LAB_PROFILE", "full")
    two = os.pathsep.join(("images", "my eyes"))
    monkeypatch.setenv("RETINA_LAB_DATA", two)
    with runner._environment(runner.Settings("smoke", static=True)):
        assert os.environ["RETINA_LAB_PROFILE"] == "smoke"
        assert os.environ["RETINA_LAB_STATIC"] == "1"
        whole = os.pathsep.join((str(course / "images"), str(course / "my eyes")))
        assert os.environ["RETINA_LAB_DATA"] == whole
    assert os.environ["RETINA_LAB_PROFILE"] == "full"
    assert os.environ["RETINA_LAB_DATA"] == two
    assert "RETINA_LAB_STATIC" not in os.environ


def test_failing_cell_is_named_and_its_traceback_kept(course, capsys):
    write(course, good_notebook(code("y = x\nraise ValueError('no vessels')")))
    write(course, good_notebook(), "02_fine.ipynb")
    assert main(["run", "--profile", "smoke", "-p", "seed=1"]) == 1
    printed = capsys.readouterr()
    assert "01_made.ipynb: cell 6: ValueError: no vessels" in printed.err
    assert "begins `y = x`" in printed.err
    assert "02_fine" in printed.out  # the others still ran
    folder = course / "build" / "executed" / "smoke-phantom"
    assert "Traceback" in (folder / "01_made.failed.ipynb").read_text("utf-8")
    assert not (folder / "01_made.ipynb").exists()
    assert (folder / "02_fine.ipynb").is_file()


INTERACT = """\
from ipywidgets import interact

@interact(n=(0, 3))
def draw(n=1):
    raise ValueError("callback broke")
"""


def test_error_inside_a_widget_callback_fails_the_run(course):
    path = write(course, good_notebook(code(INTERACT)))
    with pytest.raises(runner.NotebookFailed, match="cell 6: in a widget: ValueError: callback b"):
        runner.run_notebook(path, runner.Settings("smoke"))


def test_solutions_are_run_where_they_stand(course):
    settings = runner.Settings("smoke", solutions=True)
    path = write(course, good_notebook())
    executed = nbformat.read(runner.run_notebook(path, settings).path, as_version=4)
    ran = [c for c in executed.cells if "solution" in template.tags(c)]
    assert [c.source.split("\n")[0] for c in ran] == [f"answer = x + {n}" for n in (1, 2, 3)]
    assert all(c.execution_count for c in ran)

    wrong = good_notebook()
    replace(5, "assert answer == 2 + 2", "assert answer == 5")(wrong)
    write(course, wrong)
    with pytest.raises(runner.NotebookFailed, match="solution in cell 6: AssertionError"):
        runner.run_notebook(path, settings)


def test_hanging_notebook_is_stopped(course, monkeypatch):
    monkeypatch.setitem(runner.TIME_LIMITS, "smoke", 6)
    path = write(course, good_notebook(code("import time\ntime.sleep(600)")))
    with pytest.raises(runner.NotebookFailed, match="cell 6: no end after 6 s"):
        runner.run_notebook(path, runner.Settings("smoke"))


def test_dead_kernel_is_reported(course):
    path = write(course, good_notebook(code("os._exit(1)")))
    with pytest.raises(runner.NotebookFailed, match="cell 6: the kernel died"):
        runner.run_notebook(path, runner.Settings("smoke"))


TRACEBACK = "Traceback (most recent call last):\n  File x\nKeyError: 'fov'\n"
VIEW = {"application/vnd.jupyter.widget-view+json": {"model_id": "box"}}
ERROR = {"output_type": "error", "ename": "E", "evalue": "v", "traceback": []}


def shown(data):
    """An output of one cell."""
    return {"output_type": "display_data", "metadata": {}, "data": data}


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        ([{"output_type": "stream", "name": "stderr", "text": TRACEBACK}], "KeyError: 'fov'"),
        ([{"output_type": "stream", "name": "stdout", "text": TRACEBACK}], None),
        ([{"output_type": "stream", "name": "stderr", "text": "Warning: x"}], None),
        ([shown({"image/png": "AA=="})], "without alternative text"),
        ([shown({"text/html": "<img src='x'>"})], "without alternative text"),
        ([shown({"text/html": "<img src='x' alt=' '>"})], "without alternative text"),
        ([shown({"text/html": "<img src='x' alt='a vessel'>"})], None),
        ([shown({"text/html": "<b>bold</b>"})], None),
    ],
)
def test_errors_hidden_in_outputs(outputs, expected):
    cell = code("x")
    cell.outputs = [nbformat.from_dict(o) for o in outputs]
    found = list(runner.find_hidden_errors(new_notebook(cells=[new_markdown_cell("a"), cell])))
    assert len(found) == (expected is not None)
    if expected:
        assert found[0][0] == 1
        assert expected in found[0][1]


def test_error_in_nested_widget_is_traced_to_its_cell():
    cell = code("explore()")
    cell.outputs = [nbformat.from_dict(shown(VIEW))]
    state = {
        "box": {"state": {"children": ["IPY_MODEL_inner"]}},
        "inner": {"state": {"children": ["IPY_MODEL_out"]}},
        "out": {"state": {"outputs": [ERROR]}},
        "other": {"state": {"outputs": []}},
    }
    notebook = new_notebook(
        cells=[code("x"), cell], metadata={"widgets": {runner.WIDGET_STATE: {"state": state}}}
    )
    assert list(runner.find_hidden_errors(notebook)) == [(1, "in a widget: E: v")]


def test_parameters_of_the_made_notebook_are_read():
    assert list(template.parameters(good_notebook())) == [
        line.split(" = ")[0] for line in PARAMETERS.split("\n") if " = " in line
    ]
