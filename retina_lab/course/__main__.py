"""``python -m retina_lab.course run | check | form | book | test | lab``."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from retina_lab.cli import forgive_streams
from retina_lab.course.project import (
    PROFILES,
    CourseError,
    data_root,
    find_notebooks,
    project_root,
)


def _dataset(text: str) -> str:
    """Return a folder of images as an absolute path (a kernel runs elsewhere), a name as it is."""
    return str(Path(text).resolve()) if {"/", os.sep} & set(text) else text


def _run(options: argparse.Namespace) -> int:
    import nbformat

    from retina_lab.course import runner

    settings = runner.Settings(
        profile=options.profile,
        dataset=options.dataset,
        parameters=dict(runner.parse_parameter(text) for text in options.parameter),
        static=options.static,
        solutions=options.solutions,
    )
    notebooks = find_notebooks(options.notebooks)
    for path in notebooks:  # a wrong name shall not be found after an hour
        runner.check_parameters(nbformat.read(path, as_version=4), settings.parameters, path.name)
    runs, failures = run_all(notebooks, settings, options.out, resume=options.resume)
    if runs:
        print(runner.timing_table(runs))
    for failure in failures:
        print(f"\n{failure}", file=sys.stderr)
    return 1 if failures else 0


def run_all(notebooks: list[Path], settings, out: Path | None, *, resume: bool):
    """Run notebooks one after the other; return the executed copies and the failures."""
    from retina_lab.course import runner

    runs, failures = {}, []
    for path in notebooks:
        print(f"{path.stem} ({settings.profile}, {settings.dataset}) …", flush=True)
        try:
            run = runner.run_notebook(
                path, settings, out, resume=resume, progress=sys.stderr.isatty()
            )
        except runner.NotebookFailed as error:
            failures.append(error)
            print(f"{path.stem}: FAILED", flush=True)
            continue
        runs[path.stem] = run
        print(f"{path.stem}: {'reused' if run.reused else f'{run.seconds:.1f} s'}, {run.path}")
    return runs, failures


def _check(options: argparse.Namespace) -> int:
    from retina_lab.course.references import read_references
    from retina_lab.course.template import check_notebook

    root = project_root()
    references = read_references(root / "book" / "references.bib")
    notebooks = find_notebooks(options.notebooks, root)
    problems = [p for path in notebooks for p in check_notebook(path, references)]
    for problem in problems:
        print(problem)
    print(f"{len(notebooks)} notebooks checked, {len(problems)} problems")
    return 1 if problems else 0


def _form(options: argparse.Namespace) -> int:
    import nbformat

    from retina_lab.course import committed, runner
    from retina_lab.course.references import read_references
    from retina_lab.course.template import check_notebook

    references = read_references(project_root() / "book" / "references.bib")
    remaining = 0
    for path in find_notebooks(options.notebooks):
        # The copy is made anew unless the notebook ran before exactly as it stands.
        run = runner.run_notebook(path, runner.Settings(profile="smoke"))
        before = nbformat.read(path, as_version=4)
        after = committed.committed_form(before, nbformat.read(run.path, as_version=4), references)
        committed.write_notebook(after, path)
        problems = check_notebook(path, references)
        remaining += len(problems)
        for problem in problems:
            print(problem)
        print(f"{path.name}: in committed form, {len(problems)} problems left")
    return 1 if remaining else 0


def _book(options: argparse.Namespace) -> int:
    from retina_lab.course import book, runner

    root = project_root()
    settings = runner.Settings(profile=options.profile, dataset=options.dataset, static=True)
    runs, failures = run_all(find_notebooks([], root), settings, None, resume=options.resume)
    if runs:
        print(runner.timing_table(runs))
    if failures:
        raise CourseError("\n\n".join(map(str, failures)))
    index = book.build_book(root, {name: run.path for name, run in runs.items()}, settings)
    print(f"The book: {index}")
    return 0


def _test(options: argparse.Namespace) -> int:
    """Check style and template, then run nbval and pytest in one go: one closing line."""
    root = project_root()
    environment = dict(
        os.environ,
        RETINA_LAB_PROFILE="smoke",
        RETINA_LAB_DATASET="phantom",  # the committed outputs are those of phantoms
        OMP_NUM_THREADS="1",  # two workers, one thread each: threads of two trainings would spin
    )
    environment.pop("RETINA_LAB_STATIC", None)
    if data_root():
        environment["RETINA_LAB_DATA"] = data_root()  # kernels run in notebooks/
    python = [sys.executable, "-m"]
    # The longest file first, or one process would still be at it when the other has finished.
    pytest = [*python, "pytest", "-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"]
    pytest += ["--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout", "300"]
    commands = {
        "ruff check": [*python, "ruff", "check", "."],
        "ruff format": [*python, "ruff", "format", "--check", "."],
        "the notebooks' template": [*python, "retina_lab.course", "check"],
        "pytest": [*pytest, *(options.arguments or ["tests/notebooks", "notebooks", "tests"])],
    }
    failed = []
    for name, command in commands.items():
        print(f"== {name}", flush=True)
        if subprocess.run(command, cwd=root, env=environment, check=False).returncode:
            failed.append(name)
    if failed:
        print(f"FAILED: {', '.join(failed)}")
    return 1 if failed else 0


def _lab(options: argparse.Namespace) -> int:
    root = project_root()
    environment = dict(os.environ)
    if data_root():
        environment["RETINA_LAB_DATA"] = data_root()  # kernels run in notebooks/
    opened = [str(p.relative_to(root)) for p in find_notebooks(options.notebooks, root)[:1]]
    command = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={root}"]
    command += [*opened, *options.arguments]
    try:
        return subprocess.run(command, cwd=root, env=environment, check=False).returncode
    except KeyboardInterrupt:
        return 0


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    result = argparse.ArgumentParser(prog="python -m retina_lab.course", description=__doc__)
    verbs = result.add_subparsers(required=True, metavar="VERB")

    def verb(name: str, function, text: str) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=text, description=text)
        sub.set_defaults(function=function)
        return sub

    def how(sub: argparse.ArgumentParser) -> None:
        profile = os.environ.get("RETINA_LAB_PROFILE", "class")
        dataset = os.environ.get("RETINA_LAB_DATASET", "phantom")
        sub.add_argument("--profile", choices=PROFILES, default=profile)
        sub.add_argument("--dataset", metavar="NAME", type=_dataset, default=dataset)
        sub.add_argument(
            "--resume",
            action=argparse.BooleanOptionalAction,
            default=True,
            help="take executed copies that are up to date as they are (default) or run anew",
        )

    which = "number, name or path of a notebook; all of the course if none is given"
    run = verb("run", _run, "execute notebooks, one after the other")
    run.add_argument("notebooks", nargs="*", metavar="NB", help=which)
    how(run)
    run.add_argument(
        "-p", "--parameter", action="append", default=[], metavar="NAME=VALUE",
        help="a value for the notebook's parameters cell; may be repeated",
    )  # fmt: skip
    run.add_argument("--out", type=Path, metavar="DIR", help="default: build/executed")
    run.add_argument(
        "--static", action="store_true", help="explorers carry frames for pages without a kernel"
    )
    run.add_argument(
        "--solutions", action="store_true", help="run the exercises' solutions where they stand"
    )

    check = verb("check", _check, "verify that notebooks keep the template's rules")
    check.add_argument("notebooks", nargs="*", metavar="NB", help=which)

    form = verb("form", _form, "execute (smoke) and put notebooks in the form to commit")
    form.add_argument("notebooks", nargs="+", metavar="NB", help=which)

    book = verb("book", _book, "execute every notebook and render the book, without a network")
    how(book)

    test = verb("test", _test, "run everything that guards the course")
    test.set_defaults(arguments=[])

    lab = verb("lab", _lab, "open the course in JupyterLab")
    lab.add_argument("notebooks", nargs="*", metavar="NB", help="the notebook to open")
    lab.set_defaults(arguments=[])
    return result


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; return the exit status."""
    forgive_streams()
    sub = parser()
    options, rest = sub.parse_known_args(arguments)
    if rest:
        if options.function not in (_lab, _test):
            sub.error(f"unknown arguments: {' '.join(rest)}")
        options.arguments = rest  # JupyterLab's or pytest's own, such as --no-browser or -k name
    try:
        return options.function(options)
    except CourseError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
