"""A page of a report as plain data, and that data as one HTML file that loads nothing.

What a page says is decided where it is put together; how it looks stands in `page.html.j2`.
Everything is escaped but the charts, which we draw ourselves. The file forbids itself, by its
content security policy, to run a script or to fetch anything.
"""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from fedistill.findings import Finding

if TYPE_CHECKING:
    from jinja2 import Template

PLUS_MINUS = "\N{PLUS-MINUS SIGN}"
_TEMPLATE = "page.html.j2"


class Block:
    """Something that stands in a section; `kind` says which part of the template draws it."""

    kind: ClassVar[str]

    @property
    def empty(self) -> bool:
        """Whether there is nothing to draw."""
        return False


@dataclass(frozen=True)
class Text(Block):
    """A paragraph."""

    kind = "text"
    text: str


@dataclass(frozen=True)
class Warnings(Block):
    """What a reader must know before believing the numbers."""

    kind = "warnings"
    texts: Sequence[str]

    @property
    def empty(self) -> bool:
        """Whether there is no warning."""
        return not self.texts


@dataclass(frozen=True)
class Facts(Block):
    """Names and values."""

    kind = "facts"
    facts: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Headline(Block):
    """The numbers that matter most: (name, number, what stands beside it)."""

    kind = "headline"
    scores: Sequence[tuple[str, str, str]]


@dataclass(frozen=True)
class Findings(Block):
    """Claims held against the data."""

    kind = "findings"
    findings: Sequence[Finding]


@dataclass(frozen=True)
class Table(Block):
    """A table; numbers stand right, the first `names` columns left.

    Attributes:
        head: one name a column.
        rows: texts.
        strong: (row, column) of the cells that stand out.
        names: columns that hold no numbers.
        caption: below it.
    """

    kind = "table"
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    strong: frozenset[tuple[int, int]] = frozenset()
    names: int = 1
    caption: str = ""


@dataclass(frozen=True)
class Chart(Block):
    """A drawing of ours, as an `<svg>` element."""

    kind = "chart"
    svg: str
    caption: str


@dataclass(frozen=True)
class Image(Block):
    """A PNG inside the page."""

    kind = "image"
    source: str
    caption: str
    wide: bool = False

    @classmethod
    def read(cls, path: Path, caption: str, *, wide: bool = False) -> "Image | None":
        """Read a PNG file; None if there is none.

        Args:
            path: of the file.
            caption: says what it shows.
            wide: on a phone it scrolls, as its letters would be too small otherwise.
        """
        try:
            content = path.read_bytes()
        except OSError:
            return None
        return cls(f"data:image/png;base64,{base64.b64encode(content).decode()}", caption, wide)


@dataclass(frozen=True)
class Pictures(Block):
    """Charts and images, beside each other where the screen is wide.

    Attributes:
        pictures: those that there are.
        folded: the line that unfolds them; empty: they are open.
    """

    kind = "pictures"
    pictures: Sequence[Chart | Image | None]
    folded: str = ""

    @property
    def shown(self) -> list[Chart | Image]:
        """Return the pictures that there are."""
        return [picture for picture in self.pictures if picture is not None]

    @property
    def empty(self) -> bool:
        """Whether there is no picture."""
        return not self.shown


@dataclass(frozen=True)
class Code(Block):
    """Text to copy: a click selects all of it."""

    kind = "code"
    text: str
    title: str = ""
    folded: bool = False

    @property
    def empty(self) -> bool:
        """Whether there is no text."""
        return not self.text


@dataclass(frozen=True)
class Links(Block):
    """Relative addresses of files beside the page: (address, text, what it is)."""

    kind = "links"
    links: Sequence[tuple[str, str, str]]


@dataclass(frozen=True)
class Section:
    """A part of a page under a heading."""

    title: str
    blocks: Sequence[Block]

    @property
    def anchor(self) -> str:
        """Return the heading as part of an address."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")

    @property
    def shown(self) -> list[Block]:
        """Return the blocks that hold anything."""
        return [block for block in self.blocks if not block.empty]


@dataclass(frozen=True)
class Page:
    """A page; sections without a block are left out."""

    title: str
    subtitle: str
    sections: Sequence[Section]
    version: str

    def html(self) -> str:
        """Return the page as one file."""
        sections = [section for section in self.sections if section.shown]
        return _template().render(page=self, sections=sections) + "\n"


@cache
def _template() -> "Template":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(_TEMPLATE)


def score(mean: float, std: float, n: int) -> str:
    """Write an accuracy with its standard deviation, where several values have one."""
    return f"{mean:.2f} {PLUS_MINUS} {std:.2f}" if n > 1 else f"{mean:.2f}"


def size(count: float) -> str:
    """Write a number of bytes in decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def duration(seconds: float) -> str:
    """Write a time: `12.3 s`, `4:57 min`, `2:03 h`."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d} min"
    return f"{minutes // 60}:{minutes % 60:02d} h"
