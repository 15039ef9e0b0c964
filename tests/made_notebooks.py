"""Small notebooks that keep every rule of the template, to be broken one rule at a time."""

import json
from pathlib import Path

from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from retina_lab.course import committed, template
from retina_lab.course.references import read_references

BIBLIOGRAPHY = """\
@article{staal2004, author = {Staal, Joes}, title = {Ridges}, year = {2004}, journal = {TMI},
  doi = {10.1109/TMI.2004.825627}}
@misc{slides, author = {De Lange, Simon}, title = {Slides}, howpublished = {Lecture}}
@misc{soft, author = {Shit, Suprosanna}, title = {{clDice}}, year = {2021},
  url = {https://arxiv.org/abs/2003.07311}}
"""
OPENING = """\
# A small lesson

After [Staal et al., 2004](https://doi.org/10.1109/TMI.2004.825627)
and the slides<!-- cite: slides -->.

## What you will be able to do

- name a thing
- measure `{a}` thing

## Prerequisites

None.

## Time

5 minutes to read, 1 minute to run on two CPU cores.
"""
PARAMETERS = """\
import os

profile = os.environ.get("RETINA_LAB_PROFILE", "class")  # "smoke", "class" or "full"
dataset = os.environ.get("RETINA_LAB_DATASET", "phantom")
device = "auto"
seed = 0
steps = 3
rate = 0.5
budget = None
"""
EXERCISE = """\
### Exercise {n}: add {n}

What is $x + {n}$?

<details>
<summary>Hint</summary>

Count.

</details>

<details>
<summary>Solution</summary>

```python
answer = x + {n}
assert answer == {n} + 2
```

</details>
"""


def code(source: str, *tags: str):
    """A code cell with tags."""
    return new_code_cell(source, metadata={"tags": list(tags)} if tags else {})


def good_notebook(*own_cells):
    """A notebook that keeps every rule; `own_cells` stand in its own section."""
    checked = code("x = 2\nprint(x)", template.OUTPUT_TAG)
    checked.outputs = [new_output("stream", name="stdout", text="2\n")]
    checked.execution_count = 2
    cells = [
        new_markdown_cell(OPENING),
        code(PARAMETERS, template.PARAMETERS_TAG),
        new_markdown_cell("## Think first\n\nHow much is two?"),
        new_markdown_cell("## Two\n\nIt is $1 + 1$."),
        checked,
        *own_cells,
        new_markdown_cell("## Exercises\n\n" + "\n".join(EXERCISE.format(n=n) for n in (1, 2, 3))),
        new_markdown_cell("## Self-check"),
        code("assert x == 2, x", template.SELF_CHECK_TAG),
        new_markdown_cell("## Summary\n\nTwo is two."),
        new_markdown_cell("## References"),
    ]
    for n, cell in enumerate(cells):
        cell.id = f"cell-{n}"
    return new_notebook(cells=cells, metadata=json.loads(json.dumps(template.METADATA)))


def made_course(folder: Path) -> Path:
    """Make a folder that is a course: notebooks/ (empty), book/ with a bibliography."""
    (folder / "notebooks").mkdir()
    (folder / "book").mkdir()
    (folder / "book" / "_config.yml").write_text("title: Made\n", "utf-8")
    (folder / "book" / "references.bib").write_text(BIBLIOGRAPHY, "utf-8")
    return folder


def write(course: Path, notebook, name: str = "01_made.ipynb") -> Path:
    """Write a notebook into a made course, in committed form as far as it keeps the rules."""
    references = read_references(course / "book" / "references.bib")
    path = course / "notebooks" / name
    committed.write_notebook(committed.committed_form(notebook, notebook, references), path)
    return path
