"""The rules that every notebook of the course keeps, and the linter that verifies them.

The rules are told to authors in ``book/notebook-template.md``; this module is what holds them to
it. Every rule is a function that takes a `Page` and yields `Problem`s; `check_notebook` runs all.
"""

import ast
import json
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from html.parser import HTMLParser
from pathlib import Path

import nbformat

from retina_lab.course.references import Reference, cited, references_cell

GOALS = "What you will be able to do"
PREREQUISITES = "Prerequisites"
TIME = "Time"
QUESTION = "Think first"
EXERCISES = "Exercises"
SELF_CHECK = "Self-check"
SUMMARY = "Summary"
REFERENCES = "References"
SECTIONS = (GOALS, PREREQUISITES, TIME, QUESTION, EXERCISES, SELF_CHECK, SUMMARY, REFERENCES)

PARAMETERS_TAG = "parameters"
OUTPUT_TAG = "nbval-check-output"
SELF_CHECK_TAG = "self-check"
HIDE_TAG = "hide-input"
TAGS = (PARAMETERS_TAG, OUTPUT_TAG, SELF_CHECK_TAG, HIDE_TAG)

REQUIRED_PARAMETERS = {
    "profile": 'os.environ.get("RETINA_LAB_PROFILE", "class")',
    "dataset": 'os.environ.get("RETINA_LAB_DATASET", "phantom")',
    "device": '"auto"',
    "seed": "0",
}

MAX_CELLS = 60
MAX_CODE_LINES = 25
MAX_BYTES = 150 * 1024
MIN_EXERCISES = 3
MIN_GOALS = 2
MIN_ALT = 20

# What a committed notebook says about the kernel: nothing that differs between machines.
METADATA = {
    "kernelspec": {
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
        "name": "python3",
    },
    "language_info": {"name": "python"},
}

MACHINE_PATH = re.compile(r"(?<![\w.~/])/(?:home|Users|root|work|tmp|mnt|private)/\w|\b[A-Z]:\\+\w")
# `prose` leaves this where a code span was, so that a role, {name}`text`, can be told from `{x}`.
SPAN = "\N{OBJECT REPLACEMENT CHARACTER}"
MYST = re.compile(rf"^:{{3,}}|\{{[\w:-]+\}}{SPAN}", re.MULTILINE)
FENCE = re.compile(r"^ {0,3}(?P<mark>`{3,}|~{3,})(?P<info>[^\n`]*)$")
IMAGE = re.compile(r"!\[(?P<alt>[^\]]*)\]\(\s*<?(?P<target>[^)\s>]*)")
DETAILS = re.compile(
    r"<details>\n<summary>(?P<summary>[^<]*)</summary>\n\n(?P<body>.*?)\n\n</details>", re.DOTALL
)
EXERCISE = re.compile(r"Exercise (\d+): \S")


@dataclass(frozen=True)
class Problem:
    """One broken rule: which notebook, which cell (counted from 1, None: the whole), which rule."""

    notebook: str
    cell: int | None
    rule: str
    message: str

    def __str__(self) -> str:
        """Return the line that is printed."""
        place = f"cell {self.cell}" if self.cell else "notebook"
        return f"{self.notebook}: {place}: {self.rule}: {self.message}"


@dataclass(frozen=True)
class Heading:
    """A Markdown heading: its level, its text, the cell (from 1) and the line in it (from 0)."""

    level: int
    text: str
    cell: int
    line: int


@dataclass
class Page:
    """A notebook as the rules see it."""

    path: Path
    notebook: nbformat.NotebookNode
    references: dict[str, Reference] = field(default_factory=dict)
    ids: list[str | None] = field(default_factory=list)

    @property
    def name(self) -> str:
        """File name, for messages."""
        return self.path.name

    @cached_property
    def cells(self) -> list[tuple[int, nbformat.NotebookNode]]:
        """All cells with their number, counted from 1."""
        return list(enumerate(self.notebook.cells, start=1))

    @cached_property
    def code(self) -> list[tuple[int, nbformat.NotebookNode]]:
        """The code cells."""
        return [(n, cell) for n, cell in self.cells if cell.cell_type == "code"]

    @cached_property
    def markdown(self) -> list[tuple[int, nbformat.NotebookNode]]:
        """The Markdown cells."""
        return [(n, cell) for n, cell in self.cells if cell.cell_type == "markdown"]

    @cached_property
    def headings(self) -> list[Heading]:
        """All headings in order, those inside code fences left out."""
        return [
            Heading(len(match[1]), match[2].rstrip("# ").strip(), number, line)
            for number, cell in self.markdown
            for line, text in enumerate(without_fences(cell.source).split("\n"))
            if (match := re.match(r" {0,3}(#{1,6})\s+(.*)", text))
        ]

    def section(self, title: str) -> str:
        """Return the Markdown between the H2 `title` and the next H2, without the heading."""
        heading = next((h for h in self.headings if h.level == 2 and h.text == title), None)
        if heading is None:
            return ""
        ends = [h for h in self.headings if h.level <= 2 and _after(h, heading)]
        end = ends[0] if ends else None
        parts = []
        for number, cell in self.markdown:
            lines = cell.source.split("\n")
            first = heading.line + 1 if number == heading.cell else 0
            last = end.line if end and number == end.cell else len(lines)
            if number >= heading.cell and (end is None or number <= end.cell):
                parts.append("\n".join(lines[first:last]))
        return "\n\n".join(parts)

    def problem(self, cell: int | None, rule: str, message: str) -> Problem:
        """Return a problem of this notebook."""
        return Problem(self.name, cell, rule, message)


def _after(one: Heading, other: Heading) -> bool:
    return (one.cell, one.line) > (other.cell, other.line)


def tags(cell) -> list[str]:
    """Return the tags of a cell."""
    return list(cell.get("metadata", {}).get("tags", []))


def fences(markdown: str) -> Iterator[tuple[str, str]]:
    """Yield (language, code) of every fenced block."""
    mark, info, lines = "", "", []
    for line in markdown.split("\n"):
        match = FENCE.match(line)
        if not mark and match:
            mark, info, lines = match["mark"], match["info"].strip(), []
        elif mark and match and match["mark"].startswith(mark) and not match["info"].strip():
            yield info, "\n".join(lines)
            mark = ""
        elif mark:
            lines.append(line)


def without_fences(markdown: str) -> str:
    """Return the Markdown with fenced blocks emptied; the lines keep their numbers."""
    mark, lines = "", []
    for line in markdown.split("\n"):
        match = FENCE.match(line)
        if not mark and match:
            mark = match["mark"]
            lines.append("")
        elif mark:
            if match and match["mark"].startswith(mark) and not match["info"].strip():
                mark = ""
            lines.append("")
        else:
            lines.append(line)
    return "\n".join(lines)


def prose(markdown: str) -> str:
    """Return the Markdown without fenced blocks and formulae, code spans replaced by `SPAN`."""
    text = re.sub(r"\$\$.*?\$\$", "", without_fences(markdown), flags=re.DOTALL)
    text = re.sub(r"(?<!\\)\$[^$\n]+\$", "", text)
    return re.sub(r"(?<!`)(`+)(?!`).+?(?<!`)\1(?!`)", SPAN, text, flags=re.DOTALL)


def solutions(markdown: str) -> list[str]:
    """Return the ```python blocks of the folded solutions in a Markdown cell, one string each."""
    return [
        code
        for fold in DETAILS.finditer(markdown)
        if fold["summary"] == "Solution"
        for language, code in fences(fold["body"])
        if language == "python"
    ]


def parameters_cell(notebook) -> nbformat.NotebookNode | None:
    """Return the first code cell tagged ``parameters``, or None."""
    return next(
        (c for c in notebook.cells if c.cell_type == "code" and PARAMETERS_TAG in tags(c)), None
    )


def parameters(notebook) -> dict[str, ast.expr]:
    """Return name → expression of every assignment in the ``parameters`` cell."""
    cell = parameters_cell(notebook)
    if cell is None:
        return {}
    found = {}
    for node in ast.parse(cell.source).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = node.value
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
            found[node.target.id] = node.value
    return found


# --- the rules -------------------------------------------------------------------------------


def _file(page: Page) -> Iterator[Problem]:
    if not re.fullmatch(r"\d\d_[a-z0-9_]+\.ipynb", page.name):
        yield page.problem(None, "name", "the file must be called NN_name.ipynb, in lower case")
    size = page.path.stat().st_size
    if size > MAX_BYTES:
        yield page.problem(None, "size", f"{size} bytes; at most {MAX_BYTES} (strip outputs)")
    if len(page.cells) > MAX_CELLS:
        yield page.problem(None, "cells", f"{len(page.cells)} cells; at most {MAX_CELLS}")
    try:
        nbformat.validate(page.notebook)
    except nbformat.ValidationError as error:
        yield page.problem(None, "format", f"not a valid notebook: {error.message}")
    if len(set(page.ids)) != len(page.ids):
        yield page.problem(None, "format", "two cells have the same id, or none")


def _code_cells(page: Page) -> Iterator[Problem]:
    for number, cell in page.cells:
        if not cell.source.strip():
            yield page.problem(number, "empty", "an empty cell")
        if cell.cell_type == "raw":
            yield page.problem(number, "raw", "raw cells are not shown in Lab; use Markdown")
        for tag in tags(cell):
            if tag not in TAGS:
                yield page.problem(number, "tags", f"unknown tag {tag!r}; known: {', '.join(TAGS)}")
    for number, cell in page.code:
        lines = len(cell.source.rstrip().split("\n"))
        if lines > MAX_CODE_LINES:
            yield page.problem(number, "lines", f"{lines} lines of code; at most {MAX_CODE_LINES}")
        try:
            tree = ast.parse(cell.source)
        except SyntaxError as error:
            yield page.problem(
                number, "python", f"not plain Python, line {error.lineno}: {error.msg}"
            )
            continue
        yield from _drawing(page, number, tree)


def _drawing(page: Page, number: int, tree: ast.AST) -> Iterator[Problem]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        last = name.rsplit(".", 1)[-1]
        if name in ("plt.show", "pyplot.show", "matplotlib.pyplot.show"):
            yield page.problem(number, "alt", "use show(fig, alt=…) rather than plt.show()")
        elif last == "show":
            alt = next((k.value for k in node.keywords if k.arg == "alt"), None)
            if alt is None:
                yield page.problem(number, "alt", f"{name}(…) without alternative text: alt=…")
            elif isinstance(alt, ast.Constant) and len(str(alt.value).strip()) < MIN_ALT:
                yield page.problem(number, "alt", f"alternative text under {MIN_ALT} characters")
        elif last in ("interact", "interactive", "interactive_output", "interact_manual"):
            yield page.problem(
                number, "widget", f"{name}(…): bind sliders in retina_lab.widgets (explore_…)"
            )


def _parameters(page: Page) -> Iterator[Problem]:
    tagged = [(n, cell) for n, cell in page.cells if PARAMETERS_TAG in tags(cell)]
    if len(tagged) != 1 or tagged[0][1].cell_type != "code":
        message = f"exactly one code cell is tagged {PARAMETERS_TAG!r}; there are {len(tagged)}"
        yield page.problem(None, "parameters", message)
        return
    number, cell = tagged[0]
    try:
        body = ast.parse(cell.source).body
    except SyntaxError:
        return  # told by the rule about plain Python
    for node in body:
        if isinstance(node, ast.Import) and [a.name for a in node.names] == ["os"]:
            continue
        if not (isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)):
            text = ast.unparse(node).split("\n")[0]
            yield page.problem(number, "parameters", f"only assignments and `import os`: {text}")
        elif not _is_default(node.value):
            text = ast.unparse(node)
            message = f"a default is a literal or os.environ.get(…, …), not computed: {text}"
            yield page.problem(number, "parameters", message)
    given = {name: ast.unparse(value) for name, value in parameters(page.notebook).items()}
    for name, default in REQUIRED_PARAMETERS.items():
        if given.get(name) != ast.unparse(ast.parse(default, mode="eval")):
            yield page.problem(number, "parameters", f"must contain `{name} = {default}`")
    before = [n for n, c in page.code if n < number and tags(c) != [PARAMETERS_TAG]]
    if before:
        yield page.problem(before[0], "parameters", "code before the parameters cell")


def _is_default(value: ast.expr) -> bool:
    try:
        ast.literal_eval(value)
    except ValueError:
        return ast.unparse(value).startswith("os.environ.get(")
    return True


def _headings(page: Page) -> Iterator[Problem]:
    titles = [h for h in page.headings if h.level == 1]
    if len(titles) != 1 or (titles[0].cell, titles[0].line) != (1, 0):
        message = f"one H1, the first line of the first cell; there are {len(titles)}"
        yield page.problem(titles[1].cell if len(titles) > 1 else None, "title", message)
    for one, two in zip(page.headings, page.headings[1:], strict=False):
        if two.level > one.level + 1:
            message = f"H{two.level} after H{one.level}: {two.text!r} skips a level"
            yield page.problem(two.cell, "headings", message)
    tops = [h for h in page.headings if h.level == 2]
    names = [h.text for h in tops]
    for name in SECTIONS:
        if names.count(name) != 1:
            message = f"exactly one `## {name}`; there are {names.count(name)}"
            yield page.problem(None, "sections", message)
    order = [name for name in names if name in SECTIONS]
    if order != [name for name in SECTIONS if name in order]:
        yield page.problem(None, "sections", f"the order is {', '.join(SECTIONS)}")
    if QUESTION in names and EXERCISES in names:
        own = [h for h in tops if h.text not in SECTIONS]
        if not own:
            yield page.problem(None, "sections", "no section of its own (H2, one idea each)")
        for heading in own:
            if not names.index(QUESTION) < names.index(heading.text) < names.index(EXERCISES):
                message = f"`## {heading.text}` must stand between {QUESTION} and {EXERCISES}"
                yield page.problem(heading.cell, "sections", message)
    for number, cell in page.markdown:
        for fold in re.finditer(r"<details.*?</details>", without_fences(cell.source), re.DOTALL):
            if re.search(r"^ {0,3}#{1,6}\s", fold[0], re.MULTILINE):
                yield page.problem(number, "headings", "a heading inside a folded block")


def _opening(page: Page) -> Iterator[Problem]:
    goals = re.findall(r"^\s*(?:[-*+]|\d+\.)\s+\S", page.section(GOALS), re.MULTILINE)
    if len(goals) < MIN_GOALS:
        yield page.problem(None, "goals", f"`## {GOALS}` lists at least {MIN_GOALS} things")
    for title in (PREREQUISITES, SUMMARY):
        if not page.section(title).strip():
            yield page.problem(None, "sections", f"`## {title}` is empty")
    time = page.section(TIME)
    for pattern, says in (
        (r"\d+ minutes? to read", "N minutes to read"),
        (r"\d+ (?:minutes?|seconds?) to run on \S", "N minutes to run on …"),
    ):
        if not re.search(pattern, time):
            yield page.problem(None, "time", f"`## {TIME}` must say {says!r}")
    if not re.search(r"\?(?=\W*(?:\s|$))", page.section(QUESTION)):
        yield page.problem(None, "question", f"`## {QUESTION}` must ask a question (with a `?`)")
    heading = next((h for h in page.headings if h.text == QUESTION), None)
    if heading:
        for number, cell in page.code:
            if number < heading.cell and PARAMETERS_TAG not in tags(cell):
                message = f"runs before the question of `## {QUESTION}`"
                yield page.problem(number, "question", message)


def _exercises(page: Page) -> Iterator[Problem]:
    start = next((h for h in page.headings if h.level == 2 and h.text == EXERCISES), None)
    if start is None:
        return
    found = [h for h in page.headings if h.level == 3 and h.text.startswith("Exercise")]
    if len(found) < MIN_EXERCISES:
        yield page.problem(
            None, "exercises", f"at least {MIN_EXERCISES} `### Exercise N: name`; {len(found)} here"
        )
    for expected, heading in enumerate(found, start=1):
        match = EXERCISE.match(heading.text)
        if not match or int(match[1]) != expected:
            message = f"must be `### Exercise {expected}: name`, is {heading.text!r}"
            yield page.problem(heading.cell, "exercises", message)
        if not _after(heading, start):
            yield page.problem(heading.cell, "exercises", f"must stand under `## {EXERCISES}`")
        lines = page.notebook.cells[heading.cell - 1].source.split("\n")
        later = [h.line for h in page.headings if h.cell == heading.cell and h.line > heading.line]
        text = "\n".join(lines[heading.line : min(later, default=len(lines))])
        folds = {fold["summary"]: fold["body"] for fold in DETAILS.finditer(text)}
        for summary in ("Hint", "Solution"):
            if not folds.get(summary, "").strip():
                message = (
                    f"{heading.text!r} has no folded {summary.lower()} in its cell: <details>, "
                    f"<summary>{summary}</summary>, blank line, text, blank line, </details>"
                )
                yield page.problem(heading.cell, "exercises", message)
    for number, cell in page.markdown:
        for code in solutions(cell.source):
            try:
                ast.parse(code)
            except SyntaxError as error:
                message = f"a solution is not Python, line {error.lineno}: {error.msg}"
                yield page.problem(number, "exercises", message)
        if cell.source.count("<details") != len(DETAILS.findall(cell.source)):
            message = "<details> needs a <summary> in the next line and blank lines around its text"
            yield page.problem(number, "folding", message)


def _self_check(page: Page) -> Iterator[Problem]:
    tagged = [(n, cell) for n, cell in page.cells if SELF_CHECK_TAG in tags(cell)]
    if len(tagged) != 1 or tagged[0][1].cell_type != "code":
        message = f"exactly one code cell is tagged {SELF_CHECK_TAG!r}; there are {len(tagged)}"
        yield page.problem(None, "self-check", message)
        return
    number, cell = tagged[0]
    bounds = {h.text: h.cell for h in page.headings if h.level == 2}
    if SELF_CHECK in bounds and not bounds[SELF_CHECK] < number <= bounds.get(SUMMARY, number):
        yield page.problem(number, "self-check", f"must stand under `## {SELF_CHECK}`")
    try:
        tree = ast.parse(cell.source)
    except SyntaxError:
        return
    if not any(_can_fail(node) for node in ast.walk(tree)):
        yield page.problem(number, "self-check", "cannot fail: no assert, raise or check…(…)")


def _can_fail(node: ast.AST) -> bool:
    if isinstance(node, ast.Assert):
        return not isinstance(node.test, ast.Constant)
    if isinstance(node, ast.Call):
        return ast.unparse(node.func).rsplit(".", 1)[-1].startswith(("check", "assert"))
    return isinstance(node, ast.Raise)


class _Images(HTMLParser):
    """Collects the attributes of every <img>."""

    def __init__(self) -> None:
        super().__init__()
        self.images: list[dict[str, str | None]] = []

    def handle_starttag(self, tag, attrs) -> None:
        """Keep the attributes of images."""
        if tag == "img":
            self.images.append(dict(attrs))


def html_images(html: str) -> list[dict[str, str | None]]:
    """Return the attributes of every ``<img>`` in a piece of HTML."""
    parser = _Images()
    parser.feed(html)
    return parser.images


def _markdown(page: Page) -> Iterator[Problem]:
    for number, cell in page.markdown:
        text = prose(cell.source)
        images = [(m["alt"], m["target"]) for m in IMAGE.finditer(text)]
        images += [(i.get("alt") or "", i.get("src") or "") for i in html_images(text)]
        for alt, target in images:
            if len(alt.strip()) < MIN_ALT:
                message = f"image {target!r}: alternative text of at least {MIN_ALT} characters"
                yield page.problem(number, "alt", message)
            if re.match(r"(https?:)?//", target):
                message = f"image {target!r} comes from the network; the course works without one"
                yield page.problem(number, "offline", message)
            elif not target.startswith("data:") and not (page.path.parent / target).is_file():
                yield page.problem(number, "links", f"there is no image {target!r}")
        directive = any(language.startswith("{") for language, _ in fences(cell.source))
        if directive or MYST.search(text):
            message = "MyST roles and directives do not render in JupyterLab"
            yield page.problem(number, "markdown", message)
        for target in re.findall(r"(?<!!)\]\(\s*([^)\s]+)\s*\)", text):
            local = target.split("#")[0]
            if local and "://" not in target and not target.startswith("mailto:"):
                if not (page.path.parent / local).is_file():
                    yield page.problem(number, "links", f"there is no {local!r} to link to")
            elif target.startswith("#"):
                message = f"{target!r}: addresses of headings differ between Lab and book"
                yield page.problem(number, "links", message)


def _paths(page: Page) -> Iterator[Problem]:
    for number, cell in page.cells:
        text = cell.source + json.dumps(cell.get("outputs", []), ensure_ascii=False)
        match = MACHINE_PATH.search(text)
        if match:
            message = f"the path of one machine: {text[match.start() : match.end() + 20]!r}"
            yield page.problem(number, "paths", message)


def _references(page: Page) -> Iterator[Problem]:
    text = "\n\n".join(
        cell.source for _, cell in page.markdown if not cell.source.startswith(f"## {REFERENCES}")
    )
    keys, unknown = cited(without_fences(text), page.references)
    for citation in unknown:
        yield page.problem(None, "citations", f"{citation} is not in book/references.bib")
    if not keys:
        yield page.problem(None, "citations", "cites no source of book/references.bib")
    last = page.cells[-1][1] if page.cells else None
    if last is None or last.source.strip() != references_cell(keys, page.references):
        message = (
            f"the last cell must be `## {REFERENCES}` with the list that "
            "`python -m retina_lab.course form` writes"
        )
        yield page.problem(len(page.cells) or None, "references", message)


def _committed(page: Page) -> Iterator[Problem]:
    checked = 0
    for number, cell in page.code:
        if OUTPUT_TAG in tags(cell):
            checked += 1
            if not cell.outputs or cell.execution_count is None:
                message = f"tagged {OUTPUT_TAG!r} but has no output or no execution count"
                yield page.problem(number, "committed", message)
            for output in cell.outputs:
                data = output.get("data", {"text/plain": ""})
                if output.output_type == "error" or set(data) != {"text/plain"}:
                    yield page.problem(number, "committed", "only text may be committed as output")
                elif output.get("name") == "stderr":
                    yield page.problem(number, "committed", "a warning is committed as output")
        elif cell.outputs or cell.execution_count is not None:
            message = f"output or execution count without the tag {OUTPUT_TAG!r}"
            yield page.problem(number, "committed", message)
    if not checked:
        yield page.problem(None, "committed", f"no cell is tagged {OUTPUT_TAG!r}")
    for number, cell in page.cells:
        extra = set(cell.metadata) - {"tags", "jupyter"}
        hidden = cell.metadata.get("jupyter", {})
        if extra or hidden != ({"source_hidden": True} if HIDE_TAG in tags(cell) else {}):
            message = "metadata is not in committed form: run `python -m retina_lab.course form`"
            yield page.problem(number, "committed", message)
    if page.notebook.metadata != METADATA or page.notebook.nbformat_minor != 5:
        message = "kernel or format not in committed form: run `python -m retina_lab.course form`"
        yield page.problem(None, "committed", message)


RULES = (
    _file,
    _code_cells,
    _parameters,
    _headings,
    _opening,
    _exercises,
    _self_check,
    _markdown,
    _paths,
    _references,
    _committed,
)


def check_notebook(path: Path, references: dict[str, Reference]) -> list[Problem]:
    """Return everything in which a notebook departs from the template; an empty list is good.

    `references` is the bibliography (`retina_lab.course.references.read_references`).
    """
    try:
        text = path.read_text("utf-8")
        # nbformat repairs ids while it reads, so they are taken from the file itself
        ids = [cell.get("id") for cell in json.loads(text)["cells"]]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            notebook = nbformat.reads(text, as_version=4)
    except (ValueError, KeyError, AttributeError, TypeError, nbformat.ValidationError) as error:
        return [Problem(path.name, None, "format", f"cannot be read as a notebook: {error}")]
    page = Page(path, notebook, references, ids)
    return [problem for rule in RULES for problem in rule(page)]
