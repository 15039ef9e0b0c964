"""The bibliography: one BibTeX file serves the notebooks, the linter and the book."""

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

CITE_COMMENT = re.compile(r"<!--\s*cite:\s*([\w:-]+)\s*-->")
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(\s*<?(https?://[^\s)>]+)>?[^)]*\)")
# Addresses of publications: a link to one of these needs an entry in the bibliography.
PUBLICATION = re.compile(r"https://(doi\.org|arxiv\.org)/")


@dataclass(frozen=True)
class Reference:
    """One entry of the bibliography, in plain text."""

    key: str
    authors: str
    year: str
    title: str
    where: str
    url: str | None

    def markdown(self) -> str:
        """Return the entry as one line of Markdown."""
        text = f"{self.authors} ({self.year}). *{self.title}*."
        if self.where:
            text += f" {self.where}."
        if self.url:
            text += f" [{self.url.removeprefix('https://')}]({self.url})"
        return text


def canonical(url: str) -> str:
    """Return an address in the one spelling in which addresses are compared."""
    url = url.strip().rstrip("/.,;").lower()
    url = re.sub(r"^https?://(dx\.|www\.)?", "https://", url)
    url = re.sub(r"^https://arxiv\.org/pdf/", "https://arxiv.org/abs/", url)
    return re.sub(r"(arxiv\.org/abs/[\d.]+?)(v\d+)?(\.pdf)?$", r"\1", url)


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text.replace("{", "").replace("}", "").replace("--", "–")).strip()


def _authors(entry) -> str:
    people = entry.persons.get("author") or entry.persons.get("editor") or []
    names = []
    for person in people:
        given = " ".join(person.first_names + person.middle_names)
        family = " ".join(person.prelast_names + person.last_names)
        names.append(_plain(f"{given} {family}".strip()))
    if len(names) > 6:
        return f"{', '.join(names[:5])} et al."
    if len(names) > 1:
        return f"{', '.join(names[:-1])} and {names[-1]}"
    return names[0] if names else "Anonymous"


def _where(fields) -> str:
    parts = []
    source = fields.get("journal") or fields.get("booktitle") or fields.get("howpublished")
    source = source or fields.get("publisher") or fields.get("note")
    if source:
        volume = fields.get("volume", "")
        if volume and "number" in fields:
            volume += f"({fields['number']})"
        parts.append(f"{source} {volume}".strip())
    if "pages" in fields:
        parts.append(fields["pages"])
    return _plain(", ".join(parts))


@lru_cache
def _read(path: str, _modified: int) -> dict[str, Reference]:
    try:
        from pybtex.database import parse_file
    except ImportError as error:
        raise ImportError(
            "Reading the bibliography needs pybtex, which comes with the book's extra: "
            "pip install 'retina-lab[book]'."
        ) from error
    references = {}
    for key, entry in parse_file(path, bib_format="bibtex").entries.items():
        fields = entry.fields
        url = f"https://doi.org/{fields['doi']}" if "doi" in fields else fields.get("url")
        references[key] = Reference(
            key=key,
            authors=_authors(entry),
            year=fields.get("year", "no year"),
            title=_plain(fields["title"]),
            where=_where(fields),
            url=url,
        )
    return references


def read_references(path: Path) -> dict[str, Reference]:
    """Read a BibTeX file: key → Reference, in the file's order.

    Raises:
        FileNotFoundError: no such file.
        ImportError: pybtex (of the extra ``book``) is missing.
    """
    return _read(str(path), path.stat().st_mtime_ns)


def cited(markdown: str, references: dict[str, Reference]) -> tuple[list[str], list[str]]:
    """Return the keys cited in `markdown`, in order of first mention, and the unknown citations.

    A citation is a link to the address of an entry, or ``<!-- cite: KEY -->`` for a source that
    has none. Links elsewhere are no citations, unless they lead to doi.org or arxiv.org.
    """
    by_url = {canonical(r.url): r.key for r in references.values() if r.url}
    mentions = [(m.start(), m.group(1), None) for m in CITE_COMMENT.finditer(markdown)]
    mentions += [(m.start(), None, m.group(1)) for m in LINK.finditer(markdown)]
    keys: list[str] = []
    unknown: list[str] = []
    for _, key, url in sorted(mentions, key=lambda mention: mention[0]):
        if url is not None:
            key = by_url.get(canonical(url))
            if key is None and not PUBLICATION.match(canonical(url)):
                continue
        if key in references:
            keys.append(key)
        else:
            unknown.append(key or url)
    return list(dict.fromkeys(keys)), list(dict.fromkeys(unknown))


def references_cell(keys: list[str], references: dict[str, Reference]) -> str:
    """Return the text of a notebook's last cell: the heading and one item per cited source."""
    items = [f"- {references[key].markdown()}" for key in keys]
    return "\n".join(["## References", "", *items]) if items else "## References"
