"""The committed form of a notebook: what is thought is kept, what is computed is not."""

import copy
from pathlib import Path

import nbformat

from retina_lab.course import template
from retina_lab.course.references import Reference, cited, references_cell


def committed_form(notebook, executed, references: dict[str, Reference]):
    """Return the notebook as it is committed.

    Outputs are taken from the executed copy, for cells tagged ``nbval-check-output`` only; every
    other output, execution count and metadatum goes. The last cell lists the sources cited.
    """
    result = copy.deepcopy(notebook)
    by_id = {cell.id: cell for cell in executed.cells}
    for cell in result.cells:
        cell.metadata = nbformat.from_dict(_metadata(cell))
        if cell.cell_type != "code":
            cell.pop("attachments", None)
            continue
        cell.outputs, cell.execution_count = [], None
        if template.OUTPUT_TAG in template.tags(cell):
            run = by_id[cell.id]
            cell.outputs = _joined([_output(output) for output in run.outputs])
            cell.execution_count = run.execution_count
    _write_references(result, references)
    result.metadata = nbformat.from_dict(template.METADATA)
    result.nbformat, result.nbformat_minor = 4, 5
    return result


def _metadata(cell) -> dict:
    tags = template.tags(cell)
    metadata: dict = {"tags": tags} if tags else {}
    if template.HIDE_TAG in tags:
        metadata["jupyter"] = {"source_hidden": True}  # what the tag is to the book, this is to Lab
    return metadata


def _output(output):
    output = copy.deepcopy(output)
    if "metadata" in output:
        output.metadata = nbformat.from_dict({})
    return output


def _joined(outputs: list) -> list:
    """Printed text in one piece: into how many it falls on its way is a matter of timing."""
    result: list = []
    for output in outputs:
        last = result[-1] if result else None
        if last and last.output_type == output.output_type == "stream" and last.name == output.name:
            last.text += output.text
        else:
            result.append(output)
    return result


def _write_references(notebook, references: dict[str, Reference]) -> None:
    heading = f"## {template.REFERENCES}"
    cells = [c for c in notebook.cells if c.cell_type == "markdown"]
    text = "\n\n".join(
        template.without_fences(c.source) for c in cells if not c.source.startswith(heading)
    )
    keys, _ = cited(text, references)
    if cells and cells[-1].source.startswith(heading):
        cells[-1].source = references_cell(keys, references)


def write_notebook(notebook, path: Path) -> None:
    """Write a notebook in the spelling in which notebooks are committed, whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(nbformat.writes(notebook) + "\n", "utf-8", newline="\n")
    temporary.replace(path)
