"""What the page of a report shows and what it points at."""

import re
from html.parser import HTMLParser
from pathlib import Path

from fedistill import report


class Reader(HTMLParser):
    """What a page shows and what it points at."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.headings: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data):
        last = self.tags[-1] if self.tags else ""
        if last == "style":
            return
        self.words.append(data.strip())
        if last in ("h1", "h2") and data.strip():
            self.headings.append(data.strip())

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def read(folder: Path, output: Path | None = None) -> Reader:
    return Reader(report.write(folder, output).read_text())
