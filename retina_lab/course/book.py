"""The book: Jupyter Book over the runner's executed notebooks, without a network.

Nothing is executed while the book is rendered. Nothing is fetched either, neither while it is
built nor while it is read: MathJax is copied from an installed package, a widget is replaced by
the frames that it carries as HTML, and the finished pages are searched for whatever would load
something from elsewhere.
"""

import copy
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import lru_cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat

from retina_lab.course import template
from retina_lab.course.project import CourseError
from retina_lab.course.runner import Settings, read_executed
from retina_lab.datasets.layouts import INSTEAD

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
MATHJAX = "tex-svg-full.js"  # everything in one file: nothing is loaded later
# What a page loads by itself, as (tag, attribute); a link that a reader may follow is none of it.
LOADING = {
    ("audio", "src"),
    ("embed", "src"),
    ("iframe", "src"),
    ("image", "href"),
    ("img", "src"),
    ("img", "srcset"),
    ("input", "src"),
    ("link", "href"),
    ("object", "data"),
    ("script", "src"),
    ("source", "src"),
    ("source", "srcset"),
    ("track", "src"),
    ("use", "href"),
    ("video", "poster"),
    ("video", "src"),
}
# Relations of <link> that only tell something about the page.
TELLING = {"canonical", "alternate", "author", "help", "license", "next", "prev", "search", "index"}
CSS_LOADS = re.compile(r"(?:url\(\s*|@import\s+)['\"]?((?:https?:)?//[^'\")\s;]+)", re.IGNORECASE)
SCRIPT_LOADS = re.compile(
    r"""(?:import\s*\(|import\s|fetch\(|\.src\s*=|\.href\s*=|importScripts\()\s*"""
    r"""['"`]((?:https?:)?//[^'"`\s]+)""",
)


def book_copy(notebook, made: dict):
    """Return an executed notebook as a page of the book.

    Widgets give way to the HTML that they carry (an output without any is dropped: a progress
    bar has nothing to say afterwards), warnings to the reader of a log are left out, and the page
    says with what it was computed, and where phantoms had to stand in for the dataset. `made` is
    what the runner wrote (`runner.read_executed`).
    """
    page = copy.deepcopy(notebook)
    page.metadata.pop("widgets", None)
    for cell in page.cells:
        if cell.cell_type != "code":
            continue
        if "injected-parameters" in template.tags(cell):
            cell.metadata["tags"] = [*template.tags(cell), "remove-cell"]
        cell.outputs = [output for output in cell.outputs if _shown(output)]
    title, _, rest = page.cells[0].source.partition("\n")
    said = "".join(
        output.text
        for cell in page.cells
        for output in cell.get("outputs", ())
        if output.output_type == "stream"
    )
    instead = [line.strip() for line in said.split("\n") if line.strip().endswith(INSTEAD)]
    given = "".join(f", {name} = {value!r}" for name, value in made["parameters"].items())
    page.cells[0].source = "\n".join(
        [
            title,
            "",
            "```{admonition} Computed with",
            ":class: computed",
            f"dataset `{Path(made['dataset']).name}`, profile `{made['profile']}`{given}; "
            f"{made['finished'].split()[0]}, in {made['seconds']:.0f} s.",
            *dict.fromkeys(instead),
            "```",
            rest,
        ]
    )
    return page


def _shown(output) -> bool:
    if output.output_type == "stream":
        return output.name == "stdout"
    data = output.get("data", {})
    if WIDGET_VIEW in data:
        del data[WIDGET_VIEW]
        return "text/html" in data
    return True


def stage(root: Path, executed: dict[str, Path], settings: Settings, source: Path) -> None:
    """Lay out the book's sources: the pages of ``book/``, the notebooks' pages, MathJax.

    Raises:
        CourseError: an executed copy is not one of the runner's, or was made without frames.
    """
    import yaml

    if source.exists():
        shutil.rmtree(source)
    shutil.copytree(root / "book", source)
    (source / "notebooks").mkdir(exist_ok=True)
    dates = []
    for name, path in executed.items():
        made = read_executed(path)
        if not made:
            raise CourseError(f"{path} was not made by the runner: run the notebook again.")
        if not made["static"]:
            raise CourseError(f"{path} carries no frames for its explorers: run it with --static.")
        page = book_copy(nbformat.read(path, as_version=4), made)
        nbformat.write(page, source / "notebooks" / f"{name}.ipynb")
        dates.append(made["finished"].split()[0])
    (source / "assets" / "mathjax").mkdir(parents=True, exist_ok=True)
    shutil.copy(mathjax_file(), source / "assets" / "mathjax" / MATHJAX)
    config_file = source / "_config.yml"
    config = yaml.safe_load(config_file.read_text("utf-8"))
    config.setdefault("parse", {})["myst_substitutions"] = {
        "dataset": f"`{Path(settings.dataset).name}`",
        "profile": f"`{settings.profile}`",
        "computed": max(dates, default="(no notebook yet)"),
    }
    config_file.write_text(yaml.safe_dump(config, allow_unicode=True, sort_keys=False), "utf-8")


def mathjax_file() -> Path:
    """Return MathJax as one file, from the installed package that carries it.

    Raises:
        CourseError: the package is missing, or does not hold the file.
    """
    package = "sphinx-mathjax-offline"
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == MATHJAX:
            return Path(file.locate())
    raise CourseError(
        f"No {MATHJAX} found: pip install -c constraints.txt -e '.[book]' ({package})."
    )


def render(source: Path, output: Path) -> None:
    """Run Jupyter Book on a folder of sources; the pages land in ``output/_build/html``.

    Raises:
        CourseError: anything went wrong, a warning included; the message holds Sphinx's words.
    """
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()"]
    command += [
        "build",
        str(source),
        "--path-output",
        str(output),
        "--all",
        "-W",
        "-n",
        "--keep-going",
        "-q",
    ]
    environment = dict(os.environ, PYTHONWARNINGS="ignore", PYTHONUTF8="1")
    run = subprocess.run(
        command,
        env=environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if run.returncode:
        words = re.sub(r"\x1b\[[\d;]*m", "", f"{run.stdout}\n{run.stderr}")
        raise CourseError(f"The book was not rendered:\n{words}")


def build_book(root: Path, executed: dict[str, Path], settings: Settings) -> Path:
    """Render the book over executed notebooks and return its ``index.html``.

    Books of several datasets and profiles lie side by side in ``build/book/``, whose own
    ``index.html`` leads to the one made last. A book is replaced only once the new one is
    finished and clean.

    Raises:
        CourseError: Jupyter Book warns, a page would load something from the network, or a link
            inside the book leads nowhere.
    """
    work = root / "build" / "book-work" / settings.folder
    stage(root, executed, settings, work / "source")
    if (work / "_build").exists():
        shutil.rmtree(work / "_build")
    render(work / "source", work)
    html = work / "_build" / "html"
    problems = [*loads_from_network(html), *broken_links(html)]
    if problems:
        raise CourseError("\n".join([f"The book in {html} is not clean:", *problems]))
    target = root / "build" / "book" / settings.folder
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        shutil.rmtree(target)
    shutil.move(html, target)
    _write_door(target.parent, settings.folder)
    return target / "index.html"


def _write_door(books: Path, newest: str) -> None:
    """Write the page that leads to the book made last and names the others."""
    others = sorted(p.parent.name for p in books.glob("*/index.html"))
    links = "\n".join(f'<li><a href="{name}/index.html">{name}</a></li>' for name in others)
    (books / "index.html").write_text(
        f"""<!DOCTYPE html>
<html lang="en-GB">
<head>
<meta charset="utf-8">
<meta http-equiv="refresh" content="0; url={newest}/index.html">
<title>The books that were made here</title>
</head>
<body>
<h1>The books that were made here</h1>
<ul>
{links}
</ul>
</body>
</html>
""",
        "utf-8",
    )


class _Page(HTMLParser):
    """Collects what a page loads, links to and can be linked at."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.loads: list[tuple[str, str]] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self._inside: str | None = None

    def handle_starttag(self, tag, attrs) -> None:
        """Sort a tag's attributes."""
        given = {name: value or "" for name, value in attrs}
        self.ids.update(given[name] for name in ("id", "name") if given.get(name))
        self._inside = tag if tag in ("script", "style") else None
        if "style" in given:
            self.styles.append(given["style"])
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag == "link" and set(given.get("rel", "").lower().split()) <= TELLING:
            return
        for name in ("src", "href", "data", "srcset", "poster"):
            if (tag, name) in LOADING and given.get(name):
                self.loads.append((tag, given[name]))

    def handle_endtag(self, tag) -> None:
        """Leave a script or style."""
        self._inside = None

    def handle_data(self, data) -> None:
        """Keep the text of scripts and styles."""
        if self._inside == "script":
            self.scripts.append(data)
        elif self._inside == "style":
            self.styles.append(data)


@lru_cache(maxsize=512)
def _read_page(path: Path, _modified: int) -> _Page:
    page = _Page()
    page.feed(path.read_text("utf-8"))
    page.close()
    return page


def _pages(html: Path) -> Iterator[tuple[Path, _Page]]:
    for path in sorted(html.rglob("*.html")):
        if "_static" not in path.relative_to(html).parts:
            yield path, _read_page(path, path.stat().st_mtime_ns)


def _remote(url: str) -> bool:
    return bool(re.match(r"\s*(?:https?:)?//", url, re.IGNORECASE))


def loads_from_network(html: Path) -> list[str]:
    """Return what the pages in a folder would load from another host, one line each."""
    found = []
    for path, page in _pages(html):
        name = path.relative_to(html).as_posix()
        for tag, value in page.loads:
            found += [f"{name}: <{tag}> loads {u}" for u in value.split(", ") if _remote(u)]
        for text in page.styles:
            found += [f"{name}: a style loads {url}" for url in CSS_LOADS.findall(text)]
        for text in page.scripts:
            found += [f"{name}: a script loads {url}" for url in SCRIPT_LOADS.findall(text)]
    for path in sorted(html.rglob("*.css")):
        name = path.relative_to(html).as_posix()
        text = re.sub(r"/\*.*?\*/", "", path.read_text("utf-8", errors="replace"), flags=re.DOTALL)
        found += [f"{name} loads {url}" for url in CSS_LOADS.findall(text)]
    return found


def broken_links(html: Path) -> list[str]:
    """Return the links and files inside the book that lead nowhere, one line each."""
    found = []
    for path, page in _pages(html):
        name = path.relative_to(html).as_posix()
        for url in dict.fromkeys([*page.links, *(value for _, value in page.loads)]):
            parts = urlsplit(url)
            if parts.scheme or parts.netloc or url in ("#", ""):
                continue
            target = path.parent / unquote(parts.path) if parts.path else path
            if target.is_dir():
                target = target / "index.html"
            if not target.is_file():
                found.append(f"{name}: there is no {url}")
            elif parts.fragment and target.suffix == ".html":
                ids = _read_page(target.resolve(), target.stat().st_mtime_ns).ids
                if unquote(parts.fragment) not in ids:
                    found.append(f"{name}: there is no place {url}")
    return found
