"""The book: what the builder makes of a notebook, what it refuses, and a page in a real browser."""

import re
import shutil
from pathlib import Path

import nbformat
import pytest
import yaml
from nbformat.v4 import new_markdown_cell, new_notebook, new_output
from PIL import Image

from retina_lab.course import book, runner
from retina_lab.course.project import CourseError
from retina_lab.course.references import read_references
from retina_lab.datasets import open_labelled_split
from tests.chromium import needs_chromium, open_page
from tests.made_notebooks import code, good_notebook, made_course, write

ROOT = Path(__file__).parents[1]
MADE = {
    "profile": "smoke",
    "dataset": "/images/chase_db1",
    "parameters": {"seed": 3},
    "finished": "2026-01-02 03:04:05",
    "seconds": 12.3,
}


def display(**data):
    """An output that shows something, by MIME type with ``/`` written ``_``."""
    return new_output("display_data", {k.replace("_", "/", 1): v for k, v in data.items()})


def widget(**data):
    """An output with the view of a widget."""
    return new_output("display_data", {book.WIDGET_VIEW: {"model_id": "a"}} | data)


# --- pages -----------------------------------------------------------------------------------


def test_page_of_a_notebook_needs_no_kernel():
    cell = code("x")
    cell.outputs = [
        widget(**{"text/plain": "HBox()"}),  # a progress bar
        widget(**{"text/html": "<input type='range'>", "text/plain": "Explorer"}),
        new_output("stream", name="stderr", text="a warning"),
        new_output("stream", name="stdout", text="2\n"),
        display(text_html="<img alt='x'>"),
    ]
    injected = code("seed = 3", "injected-parameters")
    notebook = new_notebook(
        cells=[new_markdown_cell("# Title\n\nText."), cell, injected],
        metadata={"widgets": {runner.WIDGET_STATE: {"state": {}}}},
    )
    page = book.book_copy(notebook, MADE)
    assert "widgets" not in page.metadata
    kinds = [(o.output_type, sorted(o.get("data", {}))) for o in page.cells[1].outputs]
    assert kinds == [
        ("display_data", ["text/html", "text/plain"]),
        ("stream", []),
        ("display_data", ["text/html"]),
    ]
    assert "remove-cell" in page.cells[2].metadata["tags"]
    first = page.cells[0].source
    assert first.startswith("# Title\n")
    assert "dataset `chase_db1`, profile `smoke`, seed = 3; 2026-01-02, in 12 s." in first
    assert first.endswith("\nText.")
    assert book.WIDGET_VIEW in notebook.cells[1].outputs[0].data  # the original is left alone


def test_page_says_where_phantoms_stand_in(tmp_path, capsys):
    for number in range(2):
        Image.new("RGB", (64, 64)).save(tmp_path / f"eye{number}.png")
    open_labelled_split(tmp_path)  # nobody has labelled these
    cell = code("x")
    cell.outputs = [new_output("stream", name="stdout", text=f"1\n{capsys.readouterr().out}2\n")]
    page = book.book_copy(new_notebook(cells=[new_markdown_cell("# Title"), cell]), MADE)
    assert "(2; 5 are the least), so phantoms take its place here.\n```" in page.cells[0].source


# --- what a finished book is searched for ------------------------------------------------------


def html(tmp_path, body, name="index.html"):
    """Write a page; return the folder."""
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(f"<html><body>{body}</body></html>", "utf-8")
    return tmp_path


REMOTE = {
    "script": "<script src='https://cdn.example/x.js'></script>",
    "protocol-relative": "<script src='//cdn.example/x.js'></script>",
    "style sheet": "<link rel='stylesheet' href='https://fonts.example/css'>",
    "preload": "<link rel='preload' href='https://fonts.example/f.woff2'>",
    "icon": "<link rel='icon' href='https://x.example/i.png'>",
    "image": "<img alt='a' src='HTTPS://x.example/i.png'>",
    "image set": "<img alt='a' srcset='a.png 1x, https://x.example/i.png 2x'>",
    "frame": "<iframe src='https://x.example'></iframe>",
    "style": "<style>@import 'https://x.example/a.css';</style>",
    "attribute": "<p style='background: url(https://x.example/a.png)'>x</p>",
    "module": "<script type='module'>import 'https://x.example/m.js'</script>",
    "fetch": "<script>fetch('https://x.example/data')</script>",
    "late script": "<script>s.src = 'https://x.example/a.js'</script>",
}
LOCAL = {
    "link to follow": "<a href='https://doi.org/10.1/x'>paper</a>",
    "data": "<img alt='a' src='data:image/png;base64,AA=='>",
    "canonical": "<link rel='canonical' href='https://x.example/page'>",
    "words in a script": "<script>// see https://x.example/docs\nlet a = 1</script>",
    "namespace": "<svg xmlns='http://www.w3.org/2000/svg'></svg>",
    "words": "<p>https://x.example/a.js</p>",
}


@pytest.mark.parametrize("kind", REMOTE)
def test_what_loads_from_the_network_is_found(tmp_path, kind):
    (line,) = book.loads_from_network(html(tmp_path, REMOTE[kind]))
    assert line.startswith("index.html: ")
    assert "//" in line


@pytest.mark.parametrize("kind", LOCAL)
def test_what_a_reader_may_follow_is_left_alone(tmp_path, kind):
    assert book.loads_from_network(html(tmp_path, LOCAL[kind])) == []


def test_style_sheets_are_searched_too(tmp_path):
    html(tmp_path, "")
    (tmp_path / "a.css").write_text(
        "/* url(https://ok.example/a) */ p {background: url('//x.example/b.png')}", "utf-8"
    )
    assert book.loads_from_network(tmp_path) == ["a.css loads //x.example/b.png"]


def test_broken_links_are_found(tmp_path):
    html(tmp_path, "<p id='there'>x</p>", "part/page.html")
    body = """
      <a href='part/page.html'>good</a> <a href='part/page.html#there'>good</a>
      <a href='part/page.html#gone'>bad</a> <a href='gone.html'>bad</a> <a href='#'>top</a>
      <a href='#nowhere'>bad</a> <a href='mailto:a@b.c'>mail</a> <img alt='a' src='gone.png'>
      <a href='https://x.example/gone'>elsewhere</a>
    """
    assert book.broken_links(html(tmp_path, body)) == [
        "index.html: there is no place part/page.html#gone",
        "index.html: there is no gone.html",
        "index.html: there is no place #nowhere",
        "index.html: there is no gone.png",
    ]


# --- a whole small book ------------------------------------------------------------------------


SLIDER = """\
from IPython.display import HTML, Markdown, display
display(Markdown("| a | b |\\n|---|---|\\n| 1 | **2** |"))
display(HTML('''<input type="range" id="s" aria-label="number" min="0" max="9" value="5"
oninput="document.getElementById('seen').textContent = 'seen ' + this.value">
<output id="seen">seen 5</output>'''))
"""


def small_book(folder: Path, index: str, *chapters: str) -> Path:
    """Make a course with this front page, and the real book's configuration and looks."""
    course = made_course(folder)
    shutil.copy(ROOT / "book" / "_config.yml", course / "book")
    shutil.copytree(ROOT / "book" / "assets", course / "book" / "assets")
    (course / "book" / "index.md").write_text(index, "utf-8")
    (course / "book" / "bibliography.md").write_text(
        "# Bibliography\n\n```{bibliography}\n:all:\n```\n", "utf-8"
    )
    toc = {"format": "jb-book", "root": "index", "chapters": []}
    toc["chapters"] = [{"file": name} for name in ("bibliography", *chapters)]
    (course / "book" / "_toc.yml").write_text(yaml.safe_dump(toc), "utf-8")
    return course


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A book of one notebook with a slider, rendered; the path of its front page."""
    index = "# Front\n\nDataset {{ dataset }}, profile {{ profile }}. {cite:t}`staal2004`: $a^2$.\n"
    course = small_book(tmp_path_factory.mktemp("book"), index, "notebooks/01_made")
    path = write(course, good_notebook(code(SLIDER)))
    settings = runner.Settings("smoke", static=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(course)
        run = runner.run_notebook(path, settings)
        return book.build_book(course, {"01_made": run.path}, settings)


@pytest.mark.slow
def test_book_says_with_what_it_was_computed(built):
    assert built.parent.name == "smoke-phantom"
    front = built.read_text("utf-8")
    assert re.search(r"Dataset <code.*phantom.*, profile <code.*smoke", front)
    page = (built.parent / "notebooks" / "01_made.html").read_text("utf-8")
    assert "Computed with" in page
    assert "<summary>Solution</summary>" in page
    assert re.search(r"<td>(<p>)?<strong>2</strong>(</p>)?</td>", page)  # an output's table


@pytest.mark.slow
@needs_chromium
def test_book_lives_without_a_network(built):
    with open_page() as page:
        page.goto((built.parent / "notebooks" / "01_made.html").as_uri())
        page.wait_for_selector("mjx-container svg")  # MathJax is there, and has drawn
        page.focus("#s")
        page.keyboard.press("ArrowRight")
        assert page.inner_text("#seen") == "seen 6"
        assert not page.is_visible("text=Count.")
        page.locator("summary", has_text="Hint").first.click()
        assert page.is_visible("text=Count.")
        page.goto((built.parents[1] / "index.html").as_uri())  # leads to the newest book
        page.wait_for_url(built.as_uri())
        page.wait_for_selector("mjx-container svg")
        assert page.refused == []
        assert page.errors == []


@pytest.mark.slow
def test_warning_of_sphinx_is_an_error(tmp_path):
    course = small_book(tmp_path, "# Front\n\n{cite:t}`nobody`\n")
    with pytest.raises(CourseError, match="nobody"):
        book.build_book(course, {}, runner.Settings("smoke"))
    assert not (course / "build" / "book" / "smoke-phantom").exists()


@pytest.mark.slow
def test_page_that_would_load_something_is_refused(tmp_path):
    index = "# Front\n\n<script src='https://cdn.example/x.js'></script>\n"
    course = small_book(tmp_path, index)
    with pytest.raises(CourseError, match=r"loads https://cdn\.example/x\.js"):
        book.build_book(course, {}, runner.Settings("smoke"))


def test_copy_that_the_runner_did_not_make_is_refused(tmp_path):
    course = small_book(tmp_path, "# Front")
    path = course / "stray.ipynb"
    for made, message in (({}, "not made by the runner"), (MADE | {"static": False}, "--static")):
        notebook = good_notebook()
        notebook.metadata["retina_lab"] = made
        nbformat.write(notebook, path)
        with pytest.raises(CourseError, match=message):
            book.stage(course, {"01_made": path}, runner.Settings("smoke"), tmp_path / "source")


# --- the real book's sources -------------------------------------------------------------------


def entries(toc) -> list[str]:
    """All files that a table of contents names."""
    if isinstance(toc, dict):
        own = [toc["file"]] if "file" in toc else []
        return own + [name for value in toc.values() for name in entries(value)]
    if isinstance(toc, list):
        return [name for value in toc for name in entries(value)]
    return []


def test_table_of_contents_holds_every_page_once():
    toc = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text("utf-8"))
    listed = sorted([toc["root"], *entries(toc)])
    pages = [p.relative_to(ROOT / "book") for p in (ROOT / "book").rglob("*.md")]
    notebooks = [p.relative_to(ROOT) for p in (ROOT / "notebooks").glob("*.ipynb")]
    assert listed == sorted(p.with_suffix("").as_posix() for p in [*pages, *notebooks])


def test_each_notebook_has_a_page_for_its_teacher():
    pages = {p.stem for p in (ROOT / "book" / "instructor").glob("[0-9]*.md")}
    assert pages == {p.name[:2] for p in (ROOT / "notebooks").glob("*.ipynb")}
    for number in pages:
        text = (ROOT / "book" / "instructor" / f"{number}.md").read_text("utf-8")
        for section in (
            "Learning goals",
            "Plan",
            "Misconceptions",
            "Expected results",
            "Questions to discuss",
            "Grading the exercises",
        ):
            assert f"## {section}\n" in text, (number, section)
        assert "90 |" in text  # the plan ends with the class


def test_bibliography_can_be_read_and_has_no_address_twice():
    references = read_references(ROOT / "book" / "references.bib")
    addresses = [r.url for r in references.values() if r.url]
    assert len(addresses) == len(set(addresses))
    for reference in references.values():
        assert reference.authors != "Anonymous", reference.key
        assert "\\" not in reference.markdown(), reference.key


def test_glossary_defines_the_words_of_the_course():
    text = (ROOT / "book" / "glossary.md").read_text("utf-8")
    terms = [
        line
        for block in text.split("```{glossary}\n")[1:]
        for line in block.split("```")[0].split("\n")
        if line and not line.startswith(" ")
    ]
    assert len(terms) == len(set(terms)) >= 35
