"""mdBook preprocessor, after KaTeX: keeps Markdown from reading the equations' HTML as Markdown.

KaTeX writes a tilde accent as `~` and a product as `*`, which would be emphasis to what comes next,
and its annotation repeats the TeX source with all its backslashes and underscores.
"""

import json
import re
import sys

SPECIAL = re.compile(r"[\\`*_~\[\]|$!#]")
TAG = re.compile(r"<[^>]*>")
SPAN = re.compile(r"<(/?)span\b[^>]*>")
START = re.compile(r'<span class="katex(?:-display)?">')


def end_of_span(html, at):
    """Where the span that starts at `at` is closed."""
    depth = 0
    for tag in SPAN.finditer(html, at):
        depth += -1 if tag[1] else 1
        if depth == 0:
            return tag.end()
    raise ValueError("an equation's HTML is cut short")


def escaped(html):
    def entities(text):
        return SPECIAL.sub(lambda match: f"&#{ord(match[0])};", text)

    parts, at = [], 0
    for tag in TAG.finditer(html):
        parts += [entities(html[at : tag.start()]), tag[0]]
        at = tag.end()
    return "".join(parts)


def with_equations(text):
    parts, at = [], 0
    while start := START.search(text, at):
        end = end_of_span(text, start.start())
        parts += [text[at : start.start()], escaped(text[start.start() : end])]
        at = end
    return "".join([*parts, text[at:]])


def walk(items):
    for item in items:
        if isinstance(item, dict) and "Chapter" in item:
            item["Chapter"]["content"] = with_equations(item["Chapter"]["content"])
            walk(item["Chapter"]["sub_items"])


def main():
    if sys.argv[1:2] == ["supports"]:
        sys.exit(0 if sys.argv[2] == "html" else 1)
    _, book = json.load(sys.stdin)
    walk(book["items"])
    json.dump(book, sys.stdout)


main()
