"""mdBook preprocessor: clause ids become anchors and links, figures part of their page.

On the forge the sources read as they are: `[S-3.7]` is text there, a figure is an image, and a link
out of docs/ leads to a file. In the book the id in `**[S-3.7]**` is an anchor, every other mention of
it a link, a figure's lines take the colour of the theme that the reader has chosen, and a link out of
docs/ leads to the repository. A clause that is defined twice or nowhere fails the build.
"""

import json
import posixpath
import re
import sys
import tomllib
from pathlib import Path

REPOSITORY = tomllib.loads(Path("../Cargo.toml").read_text())["workspace"]["package"]["repository"]

ID = r"\[S-(\d+\.\d+)\]"
DEFINITION = re.compile(r"^\*\*" + ID + r"\*\*", re.M)
MENTION = re.compile(ID + r"(?![(\[:])")
LINKED = re.compile(ID + r"\(([^)#\s]+\.md)\)")
FIGURE = re.compile(r"!\[([^\]]*)\]\(([^)]+\.svg)\)")
OUTWARD = re.compile(r"\]\((\.\./[^)\s#]+)")
# Code keeps its brackets: fenced blocks, then spans.
CODE = re.compile(r"^(?P<fence>```+).*?^(?P=fence)[^\S\n]*$|(?P<ticks>`+).+?(?P=ticks)", re.M | re.S)


def chapters(items):
    for item in items:
        chapter = item.get("Chapter") if isinstance(item, dict) else None
        if chapter:
            yield chapter
            yield from chapters(chapter["sub_items"])


def outside_code(text, change):
    parts, at = [], 0
    for code in CODE.finditer(text):
        parts += [change(text[at : code.start()]), code.group()]
        at = code.end()
    return "".join([*parts, change(text[at:])])


def definitions(items):
    where = {}
    for chapter in chapters(items):
        for clause in DEFINITION.findall(chapter["content"]):
            if clause in where:
                sys.exit(f"[S-{clause}] is defined in {where[clause]} and again in {chapter['path']}")
            where[clause] = chapter["path"]
    return where


def with_clauses(text, path, where):
    def definition(match):
        # Written with entities, so that no bracket of it is taken for a mention.
        shown = f"&#91;S-{match[1]}&#93;"
        return f'<a class="clause" id="S-{match[1]}" href="#S-{match[1]}">{shown}</a>'

    def mention(match):
        if match[1] not in where:
            sys.exit(f"{path}: [S-{match[1]}] is defined nowhere")
        page = posixpath.relpath(where[match[1]], posixpath.dirname(path) or ".")
        return f"[&#91;S-{match[1]}&#93;]({page}#S-{match[1]})"

    text = LINKED.sub(r"[&#91;S-\1&#93;](\2#S-\1)", DEFINITION.sub(definition, text))
    return MENTION.sub(mention, text)


def with_figures(text, folder):
    def figure(match):
        svg = (folder / match[2]).read_text()
        # The page's own style holds here; a blank line would end the block of HTML.
        svg = re.sub(r"<style>.*?</style>\s*", "", svg, flags=re.S)
        svg = "\n".join(filter(str.strip, svg.splitlines()))
        label = match[1].replace('"', "&quot;")
        return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)

    return FIGURE.sub(figure, text)


def with_repository(text, path):
    def outward(match):
        target = posixpath.normpath(posixpath.join("docs", posixpath.dirname(path), match[1]))
        if target.startswith("docs/") or target == "docs":
            return match[0]
        if not Path("..", target).exists():
            sys.exit(f"{path}: {match[1]} does not exist")
        return f"]({REPOSITORY}/blob/main/{target}"

    return OUTWARD.sub(outward, text)


def main():
    if sys.argv[1:2] == ["supports"]:
        sys.exit(0 if sys.argv[2] == "html" else 1)
    context, book = json.load(sys.stdin)
    where = definitions(book["items"])
    for chapter in chapters(book["items"]):
        path = chapter["path"]
        if path is None:
            continue

        def change(text):
            text = with_repository(with_clauses(text, path, where), path)
            return with_figures(text, Path(context["root"], path).parent)

        chapter["content"] = outside_code(chapter["content"], change)
    json.dump(book, sys.stdout)


main()
