"""The texts people read: the Markdown report, the self-contained HTML page and the blocks of the README."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from hallmark.errors import DataError
from hallmark.report.canvas import NEUTRALS, WIDTH, Picture
from hallmark.report.claims import STATES, Finding
from hallmark.report.expected import Expected
from hallmark.report.sheets import Sheet
from hallmark.report.tables import NOTHING, Table, markdown

SIGNS = dict(zip(STATES, ("✓", "◐", "✗", "·"), strict=True))
EMPTY = "Nothing has been run yet."
LONGEST = 45
"""Lines up to which a table stands in the Markdown report itself; longer ones are linked."""


@dataclass(frozen=True)
class Section:
    """Everything about one paper at one scale.

    Attributes:
        scale: The scale.
        facts: The outcome in a few sentences.
        commands: What reproduces each experiment.
        tables: The tables, the glance first.
        pictures: The figures.
        sheets: Pictures that stages drew.
        choice: Which scheme to choose when, as Markdown; empty where the rows do not tell.
    """

    scale: str
    facts: tuple[str, ...]
    commands: Mapping[str, str]
    tables: tuple[Table, ...]
    pictures: tuple[Picture, ...]
    sheets: tuple[Sheet, ...] = ()
    choice: str = ""

    def command(self, table: Table) -> str:
        """What reproduces a table."""
        return "; ".join(self.commands[experiment] for experiment in table.experiments)


@dataclass(frozen=True)
class Paper:
    """One paper: what it claims, what was found, and a section per scale, the largest first."""

    expected: Expected
    findings: tuple[Finding, ...]
    sections: tuple[Section, ...]

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.expected.paper

    def by_scale(self) -> list[tuple[str, list[Finding]]]:
        """The findings of each scale, the largest scale first."""
        scales = dict.fromkeys(finding.scale for finding in self.findings)
        return [(scale, [f for f in self.findings if f.scale == scale]) for scale in scales]


def report(papers: Sequence[Paper]) -> str:
    """The Markdown report."""
    return _render("report.md.j2", papers, autoescape=False)


def page(papers: Sequence[Paper]) -> str:
    """The HTML page: one file that needs nothing else."""
    return _render("page.html.j2", papers, autoescape=True)


def blocks(papers: Sequence[Paper], folder: str) -> dict[str, str]:
    """The generated blocks of the README by name.

    Args:
        papers: The papers.
        folder: The results folder as the README links to it.

    Returns:
        ``papers``: the state of every paper; ``figure``: the picture that shows most; and for each paper, under its
        name, its glance at the largest scale; ``matrix``: which scheme to choose when, nothing before the rows tell.
    """
    found = {"papers": overview(papers), "figure": f"*{EMPTY}*\n"}
    for paper in papers:
        found[paper.name] = f"*{EMPTY}*\n"
        for section in paper.sections[:1]:
            table = section.tables[0] if section.tables else None
            if table is not None:
                note = f"\n{table.note} Scale: {section.scale}.\n"
                found[paper.name] = markdown(table.heads, table.texts()) + note
    found["matrix"] = next((section.choice for p in papers for section in p.sections if section.choice), "")
    for picture in chosen_picture(papers):
        found["figure"] = f"![{picture.title}]({folder}/figures/{picture.name}.png)\n\n{picture.caption}\n"
    return found


def chosen_picture(papers: Sequence[Paper]) -> list[Picture]:
    """The picture for the README: the first of the first paper that has one; empty if there is none."""
    return [picture for paper in papers for section in paper.sections for picture in section.pictures][:1]


def fill(readme: str, found: Mapping[str, str]) -> str:
    """Put the generated blocks between their markers ``<!-- report:NAME -->`` and ``<!-- /report -->``.

    Raises:
        DataError: If a marker has an unknown name or is not closed.
    """
    opened = re.findall(r"<!-- report:(\S+) -->", readme)
    for name in opened:
        if name not in found:
            raise DataError(f"the README has a block report:{name}; there are: {', '.join(sorted(found))}")
    block = re.compile(r"(<!-- report:(\S+) -->\n)(?:(?!<!-- report:).)*?(<!-- /report -->)", re.DOTALL)
    filled, replaced = block.subn(lambda m: f"{m[1]}{found[m[2]]}{m[3]}", readme)
    if replaced != len(opened) or replaced != readme.count("<!-- /report -->"):
        raise DataError(
            "the README's report blocks do not match; each <!-- report:NAME --> line needs a <!-- /report -->"
        )
    return filled


def overview(papers: Sequence[Paper]) -> str:
    """The state of every paper's claims as a Markdown table."""
    lines = [
        [paper.expected.title, scale or NOTHING, *(str(sum(f.state == state for f in findings)) for state in STATES)]
        for paper in papers
        for scale, findings in paper.by_scale()
    ]
    return markdown(["paper", "scale", *(f"{SIGNS[state]} {state}" for state in STATES)], lines)


def claims_table(paper: Paper) -> tuple[list[str], list[list[str]]]:
    """Headings and lines of a paper's claims."""
    heads = ["claim", "paper's number", "scale", "state", "our figure", "still missing"]
    lines = [
        [
            f"{finding.claim.id}: {finding.claim.claim}",
            finding.claim.paper or "not available",
            finding.scale or NOTHING,
            f"{SIGNS[finding.state]} {finding.state}",
            finding.figure or NOTHING,
            finding.missing or NOTHING,
        ]
        for finding in paper.findings
    ]
    return heads, lines


def inline_svg(picture: Picture) -> Markup:
    """A picture to put into the page: no declarations, ids made unique, neutral colours and size left to the page."""
    svg = picture.svg.decode()
    box = re.search(r'viewBox="[^"]*"', svg)
    body = svg[svg.index("</defs>") + len("</defs>") : svg.rindex("</svg>")]
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{picture.name}-", body)
    for colour, name in NEUTRALS.items():
        body = body.replace(colour, f"var(--{name})")
    opening = Markup('<svg role="img" aria-label="{}" ').format(picture.title)
    return opening + Markup(f"{box[0] if box else ''}>{body}</svg>")


def _render(template: str, papers: Sequence[Paper], *, autoescape: bool) -> str:
    environment = Environment(
        loader=PackageLoader("hallmark.report"),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    tools = (claims_table, inline_svg, markdown, overview)
    environment.globals |= {tool.__name__: tool for tool in tools}
    environment.globals |= {"empty": EMPTY, "longest": LONGEST, "signs": SIGNS, "states": STATES, "usual": WIDTH}
    return environment.get_template(template).render(papers=papers)
