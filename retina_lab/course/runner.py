"""The runner: executes notebooks with papermill and finds what papermill overlooks.

Papermill only warns of an unknown parameter, and exits well when a callback of a widget raises;
both are failures here. Notebooks run one after the other, never side by side: two trainings at
once on two cores take ten times as long as one after the other.
"""

import ast
import copy
import difflib
import hashlib
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import filelock
import nbformat
from nbformat.v4 import new_code_cell

from retina_lab.course import template
from retina_lab.course.project import PROFILES, CourseError, data_root, project_root, slug

WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
# Seconds after which a notebook hangs rather than works. The design's limits are far below these
# (class: four minutes on two cores); a slow machine must still be able to finish.
TIME_LIMITS = {"smoke": 300, "class": 1800, "full": 7 * 24 * 3600}


class NotebookFailed(CourseError):
    """A notebook did not run through; `path` is the copy that holds the traceback."""

    def __init__(self, message: str, path: Path) -> None:
        super().__init__(message)
        self.path = path


@dataclass(frozen=True)
class Settings:
    """How a notebook is executed.

    Args:
        profile: "smoke" (seconds, for tests), "class" (minutes) or "full" (the papers' settings).
        dataset: name of a dataset, or a folder of images.
        parameters: further values for the notebook's ``parameters`` cell.
        static: make explorers carry frames for pages without a kernel.
        solutions: run the solution of every exercise after the exercise.
    """

    profile: str = "class"
    dataset: str = "phantom"
    parameters: dict[str, object] = field(default_factory=dict)
    static: bool = False
    solutions: bool = False

    def __post_init__(self) -> None:
        if self.profile not in PROFILES:
            raise CourseError(f"No profile {self.profile!r}; there are {', '.join(PROFILES)}.")

    @property
    def folder(self) -> str:
        """Name of the folder for the executed copies."""
        return f"{self.profile}-{slug(self.dataset)}" + ("-solutions" if self.solutions else "")


@dataclass(frozen=True)
class Executed:
    """An executed copy: where it lies, how long it took, and whether it was there already."""

    path: Path
    seconds: float
    cells: list[dict]
    reused: bool

    @property
    def slowest(self) -> dict:
        """The cell that took longest: ``{"cell": n, "seconds": s, "source": first line}``."""
        return max(self.cells, key=lambda c: c["seconds"], default={})


def parse_parameter(text: str) -> tuple[str, object]:
    """Parse ``name=value``; a value that is no Python literal is a string.

    Raises:
        CourseError: no ``=``, or no name before it.
    """
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise CourseError(f"A parameter is given as name=value, not as {text!r}.")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def check_parameters(notebook, given: dict[str, object], name: str) -> dict[str, object]:
    """Return the given parameters as the notebook wants them.

    A default that is a string accepts anything as text; a float accepts an integer; a default of
    None accepts anything.

    Raises:
        CourseError: the notebook has no such parameter, or its value is of another type.
    """
    known = template.parameters(notebook)
    fitted = {}
    for key, value in given.items():
        if key in ("profile", "dataset"):
            raise CourseError(f"{key} is not given as a parameter: use --{key} {value}.")
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise CourseError(
                f"{name} has no parameter {key!r}; it has {', '.join(known) or 'none'}.{hint}"
            )
        fitted[key] = _fit(value, known[key], key, name)
    return fitted


def _fit(value: object, default: ast.expr, key: str, name: str) -> object:
    try:
        example = ast.literal_eval(default)
    except ValueError:
        example = ""  # os.environ.get(…): always a string
    if example is None or type(value) is type(example):
        return value
    if isinstance(example, str):
        return str(value)
    if isinstance(example, float) and type(value) is int:
        return float(value)
    raise CourseError(
        f"{name}: {key} must be of type {type(example).__name__} like its default {example!r}, "
        f"not {value!r}."
    )


def library_hash() -> str:
    """Return a hash of what a notebook's result depends on beside the notebook itself.

    That is the library's source (its course machinery aside), the committed weights, results
    and manifests, and the versions of Python and PyTorch.
    """
    library = Path(__file__).resolve().parents[1]
    files = [p for p in library.rglob("*.py") if "course" not in p.relative_to(library).parts]
    for folder in ("manifests", "results", "weights"):
        files += [p for p in (library.parent / "data" / folder).rglob("*") if p.is_file()]
    digest = hashlib.sha256()
    for path in sorted(files):
        name = path.relative_to(library.parent).as_posix()
        digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    versions = (platform.python_version(), importlib.metadata.version("torch"))
    digest.update(repr(versions).encode())
    return digest.hexdigest()


def _size_and_time(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _key(notebook, settings: Settings) -> str:
    cells = [(cell.cell_type, cell.source, template.tags(cell)) for cell in notebook.cells]
    vgg = os.environ.get("RETINA_LAB_VGG19")
    what = asdict(settings) | {"static": None, "data": data_root(), "vgg19": vgg}
    own = Path(settings.dataset)
    if own.is_dir():  # somebody's own images: they may be replaced at any time
        files = sorted(path for path in own.rglob("*") if path.is_file())
        what["images"] = [(str(f.relative_to(own)), *_size_and_time(f)) for f in files]
    text = json.dumps([cells, what, library_hash()], sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()


def read_executed(path: Path) -> dict:
    """Return what the runner wrote into an executed copy about its making, {} if nothing."""
    try:
        return dict(nbformat.read(path, as_version=4).metadata.get("retina_lab", {}))
    except (OSError, ValueError, KeyError, AttributeError, nbformat.ValidationError):
        return {}


def with_solutions(notebook):
    """Return a copy of the notebook with each solution's code as a cell after its exercise."""
    result = copy.deepcopy(notebook)
    cells = []
    for cell in result.cells:
        cells.append(cell)
        if cell.cell_type == "markdown":
            for n, code in enumerate(template.solutions(cell.source)):
                new = new_code_cell(code, metadata={"tags": ["solution"]})
                new.id = f"solution-{cell.id}-{n}"[:64]
                cells.append(new)
    result.cells = cells
    return result


def cell_numbers(executed, notebook) -> list[int]:
    """Return for every cell of an executed copy its number, from 1, in the notebook itself.

    Cells that the runner or papermill inserted count with the cell before them.
    """
    ids = {cell.id for cell in notebook.cells}
    numbers, number = [], 0
    for cell in executed.cells:
        number += cell.id in ids
        numbers.append(number)
    return numbers


def find_hidden_errors(notebook) -> Iterator[tuple[int | None, str]]:
    """Yield (index of the cell or None, message) for what went wrong without stopping the notebook.

    Looks into the saved state of Output widgets (where ``interact`` puts the errors of its
    callbacks), into stderr for the tracebacks of callbacks, and at pictures without alternative
    text.
    """
    widgets = notebook.metadata.get("widgets", {}).get(WIDGET_STATE, {}).get("state", {})
    for model, widget in widgets.items():
        for output in widget.get("state", {}).get("outputs", ()):
            if output.get("output_type") == "error":
                where = _cell_showing(notebook, model, widgets)
                yield where, f"in a widget: {output.get('ename')}: {output.get('evalue')}"
            elif _traceback(output):
                yield _cell_showing(notebook, model, widgets), "in a widget: " + _traceback(output)
    for number, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", ()):
            if output.output_type == "error":
                yield number, f"{output.ename}: {output.evalue}"
            elif _traceback(output):
                yield number, "on stderr: " + _traceback(output)
            elif "image/png" in output.get("data", {}):
                yield number, 'a figure without alternative text: use show(fig, alt="…")'
            elif "text/html" in output.get("data", {}):
                html = "".join(output.data["text/html"])
                if any(
                    not (image.get("alt") or "").strip() for image in template.html_images(html)
                ):
                    yield number, "an <img> without alternative text"


def _traceback(output) -> str:
    """Return the last line of a traceback on stderr, or nothing."""
    text = "".join(output.get("text", ""))
    if output.get("name") == "stderr" and "Traceback (most recent call last)" in text:
        return text.rstrip().split("\n")[-1]
    return ""


def _cell_showing(notebook, model: str, widgets: dict) -> int | None:
    """Return the cell in whose output a widget stands, itself or inside its container."""
    family = {model}
    while True:
        parents = {
            key
            for key, widget in widgets.items()
            if any(f"IPY_MODEL_{child}" in widget["state"].get("children", ()) for child in family)
        }
        if parents <= family:
            break
        family |= parents
    for number, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", ()):
            view = output.get("data", {}).get("application/vnd.jupyter.widget-view+json", {})
            if view.get("model_id") in family:
                return number
    return None


@contextmanager
def _environment(settings: Settings) -> Iterator[None]:
    """Tell the kernel by its environment what to do; put everything back afterwards."""
    told = {
        "RETINA_LAB_PROFILE": settings.profile,
        "RETINA_LAB_DATASET": settings.dataset,
        "RETINA_LAB_STATIC": "1" if settings.static else None,
        "RETINA_LAB_DATA": data_root(),
        # Text in outputs is the same on all machines, and no debugger announces itself.
        "COLUMNS": "80",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    before = {name: os.environ.get(name) for name in told}
    try:
        for name, value in told.items():
            _set(name, value)
        yield
    finally:
        for name, value in before.items():
            _set(name, value)


def _set(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


def run_notebook(
    path: Path,
    settings: Settings,
    out: Path | None = None,
    *,
    resume: bool = True,
    progress: bool = False,
) -> Executed:
    """Execute one notebook and return its executed copy.

    The copy lies in ``out/PROFILE-DATASET/`` (`out` is ``build/executed`` unless given), beside a
    ``timing.json`` with the seconds of every cell. With `resume`, a copy is taken as it is if the
    notebook, the settings and the library are what they were when it was made. A failed copy is
    kept as ``NAME.failed.ipynb``.

    Raises:
        CourseError: a parameter that the notebook does not have, or of another type.
        NotebookFailed: a cell raised, hung or killed the kernel; a widget's callback raised; a
            figure has no alternative text.
    """
    folder = (out or project_root() / "build" / "executed") / settings.folder
    folder.mkdir(parents=True, exist_ok=True)
    notebook = nbformat.read(path, as_version=4)
    given = check_parameters(notebook, settings.parameters, path.name)
    key = _key(notebook, settings)
    target = folder / path.name
    with filelock.FileLock(str(folder.parent / ".lock")):
        if resume and target.is_file():
            made = read_executed(target)
            if made.get("key") == key and (made["static"] or not settings.static):
                return Executed(target, made["seconds"], made["cells"], reused=True)
        failed = folder / f"{path.stem}.failed.ipynb"
        source = with_solutions(notebook) if settings.solutions else notebook
        try:
            executed, seconds = _execute(source, failed, path, settings, given, progress)
        except _Stopped as stop:
            number, cell = _stopped_at(nbformat.read(failed, as_version=4), notebook)
            kind = "solution in cell" if "solution" in template.tags(cell) else "cell"
            first = cell.source.strip().split("\n")[0]
            message = f"{path.name}: {kind} {number}: {stop}\n    it begins `{first}`"
            raise NotebookFailed(f"{message}\nsee {failed}", failed) from stop.__cause__
        cells = [
            {
                "cell": number,
                "seconds": round(cell.metadata.get("papermill", {}).get("duration") or 0, 3),
                "source": cell.source.strip().split("\n")[0],
            }
            for number, cell in zip(cell_numbers(executed, notebook), executed.cells, strict=True)
            if cell.cell_type == "code"
        ]
        executed.metadata["retina_lab"] = {
            "key": key,
            "profile": settings.profile,
            "dataset": settings.dataset,
            "parameters": given,
            "static": settings.static,
            "finished": time.strftime("%Y-%m-%d %H:%M:%S"),
            "seconds": round(seconds, 1),
            "cells": cells,
        }
        nbformat.write(executed, failed)
        numbers = cell_numbers(executed, notebook)
        errors = [
            f"{path.name}: " + (f"cell {numbers[n]}: " if n is not None else "") + message
            for n, message in find_hidden_errors(executed)
        ]
        if errors:
            raise NotebookFailed("\n".join([*errors, f"see {failed}"]), failed)
        failed.replace(target)
        _record(folder / "timing.json", path.stem, executed.metadata["retina_lab"])
    return Executed(target, round(seconds, 1), cells, reused=False)


class _Stopped(Exception):
    """A notebook stopped in one of its cells; the message says why."""


def _execute(notebook, target: Path, path: Path, settings: Settings, given: dict, progress: bool):
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    limit = TIME_LIMITS[settings.profile]
    start = time.monotonic()

    def seconds_left(_cell) -> int:
        return max(1, round(start + limit - time.monotonic()))

    nbformat.write(notebook, target)
    with _environment(settings):
        try:
            executed = papermill.execute_notebook(
                copy.deepcopy(notebook),
                target,
                parameters=given or None,
                kernel_name="python3",
                language="python",
                cwd=path.resolve().parent,
                progress_bar=progress,
                timeout_func=seconds_left,
                # the kernel's own warnings (it listens without encryption, on loopback) are noise
                extra_arguments=["--IPKernelApp.log_level=40"],
            )
        except PapermillExecutionError as error:
            raise _Stopped(f"{error.ename}: {error.evalue}") from error
        except CellTimeoutError as error:
            raise _Stopped(f"no end after {limit} s (profile {settings.profile})") from error
        except DeadKernelError as error:
            raise _Stopped("the kernel died; was there enough memory?") from error
    return executed, time.monotonic() - start


def _stopped_at(ran, notebook):
    """Return the number and the cell at which a copy stopped: the last that was begun."""
    return [
        (number, cell)
        for number, cell in zip(cell_numbers(ran, notebook), ran.cells, strict=True)
        if cell.metadata.get("papermill", {}).get("start_time")
    ][-1]


def _record(path: Path, name: str, made: dict) -> None:
    timing = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    timing[name] = {k: made[k] for k in ("profile", "dataset", "finished", "seconds", "cells")}
    timing[name]["cores"] = os.cpu_count()
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(timing, indent=1, sort_keys=True) + "\n", "utf-8")
    temporary.replace(path)


def timing_table(runs: dict[str, Executed]) -> str:
    """Return a table: notebook, seconds, slowest cell."""
    rows = [("notebook", "seconds", "slowest cell")]
    for name, run in runs.items():
        slowest = run.slowest
        text = f"{slowest['seconds']:.1f} s, cell {slowest['cell']}: {slowest['source']}"
        note = " (reused)" if run.reused else ""
        rows.append((name, f"{run.seconds:.1f}{note}", text[:60]))
    rows.append(("sum", f"{sum(r.seconds for r in runs.values() if not r.reused):.1f}", ""))
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    return "\n".join(f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c}".rstrip() for a, b, c in rows)
