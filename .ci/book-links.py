"""Dead links: in the Markdown of the repository as the forge shows it, and in the built book.

Usage: book-links.py BOOK. Links to other hosts are not followed: a check that needs the network fails
for reasons that are not the repository's.
"""

import html.parser
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

FENCE = re.compile(r"^(```+|~~~+).*?^\1[^\S\n]*$", re.M | re.S)
HEADING = re.compile(r"^#{1,6} +(.*?) *#*$", re.M)
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\[\]]*\])*\]\(<?([^)\s>]+)>?(?: \"[^\"]*\")?\)")


class Page(html.parser.HTMLParser):
    """The ids of a page, what it links to, and what it loads from other hosts."""

    def __init__(self, path):
        super().__init__()
        self.anchors, self.links, self.loads = set(), [], []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name == "id" or (name == "name" and tag == "a"):
                self.anchors.add(value)
            elif name in ("href", "src") and value and tag != "use":
                self.links.append(value)
                if tag != "a" and urlsplit(value).netloc:
                    self.loads.append(value)


class Markdown:
    """The anchors that the forge gives to headings, and what the page links to."""

    loads = ()

    def __init__(self, path):
        text = FENCE.sub("", path.read_text())
        self.anchors, self.links = set(), LINK.findall(re.sub(r"`[^`\n]*`", "", text))
        for heading in HEADING.findall(text):
            words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
            slug = base = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
            count = 0
            while slug in self.anchors:
                count += 1
                slug = f"{base}-{count}"
            self.anchors.add(slug)


@cache
def read(path):
    return Page(path) if path.suffix == ".html" else Markdown(path)


def dead(page, link):
    """Says what is wrong with a link, or nothing."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc or link.startswith("javascript"):
        return None
    target = page if not parts.path else (page.parent / unquote(parts.path)).resolve()
    if target.is_dir() and page.suffix == ".html":
        target /= "index.html"
    if not target.exists():
        return "no such file"
    if parts.fragment and target.suffix in (".html", ".md"):
        if unquote(parts.fragment) not in read(target).anchors:
            return "no such anchor"
    return None


def main(book):
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        check=True, capture_output=True, text=True,
    )
    pages = [Path(name).resolve() for name in listed.stdout.splitlines()]
    built = sorted(path.resolve() for path in Path(book).rglob("*.html"))
    if not built:
        sys.exit(f"no page in {book}")
    failures = 0
    for page in pages + built:
        # The page for unknown addresses links from the root of a site that is nowhere yet.
        links = read(page).links if page.name != "404.html" else []
        reasons = [(link, dead(page, link)) for link in links]
        reasons += [(link, "needs the network to be seen") for link in read(page).loads]
        for link, reason in reasons:
            if reason:
                print(f"{page.relative_to(Path.cwd())}: {link}: {reason}", file=sys.stderr)
                failures += 1
    print(f"{len(pages)} Markdown files, {len(built)} pages of the book, {failures} dead links")
    sys.exit(failures > 0)


main(sys.argv[1])
