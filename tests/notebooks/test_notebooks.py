"""The notebooks of the course as they are committed.

``make test`` gives the notebooks themselves to pytest as well: nbval runs every cell (profile
smoke) and compares the outputs of the cells tagged ``nbval-check-output``. What nbval cannot see
is tested here: the template's rules, errors in widgets, figures without alternative text, and
that the folded solutions run.
"""

from pathlib import Path

import pytest

from retina_lab.course import runner
from retina_lab.course.references import read_references
from retina_lab.course.template import check_notebook

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_there_are_notebooks():
    numbers = [path.name[:2] for path in NOTEBOOKS]
    assert numbers == [f"{n:02d}" for n in range(1, len(numbers) + 1)]
    assert len(numbers) >= 4


@each
def test_notebook_keeps_the_rules(path):
    problems = check_notebook(path, read_references(ROOT / "book" / "references.bib"))
    assert [str(problem) for problem in problems] == []


@each
@pytest.mark.slow
def test_notebook_runs_with_its_solutions(path, tmp_path):
    settings = runner.Settings("smoke", "phantom", solutions=True, static=True)
    runner.run_notebook(path, settings, tmp_path)
