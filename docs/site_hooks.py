"""MkDocs hooks: pages and markup that the site has and the folder docs/ has not.

A page for each method, from its class; a page for each tutorial, from its executed notebook; the
README's neighbours (changes, contributing, security); equations, $...$ and $$...$$, as MathML,
which browsers draw without a script; and links that lead out of docs/ as plain paths, since the
site does not hold those files.
"""

import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from method_pages import method_page  # MkDocs puts this directory on the path
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter

from odesteer.methods import METHODS

REPOSITORY = Path(__file__).resolve().parent.parent
BESIDE = {
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changes.md",
}
# What a cell prints is text, and no code to be coloured.
NOTEBOOK = """{% extends "markdown/index.md.j2" %}
{% block stream %}
```text
{{ output.text.rstrip() }}
```
{% endblock %}"""
_LINK = re.compile(r"\[([^\]]+)\]\(([^)\s]+)\)")
_CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.DOTALL)
_BLOCK = re.compile(r"\$\$(.+?)\$\$", re.DOTALL)
_INLINE = re.compile(r"(?<![\w$\\])\$(?!\s)([^$\n]+?)(?<!\s)\$(?![\w$])")


def on_config(config: Any) -> Any:
    """The pages of the methods stand in the navigation in the order of the table."""
    [section] = [one["Methods"] for one in config.nav if "Methods" in one]
    section += [f"methods/{name}.md" for name in METHODS]
    return config


def on_files(files: Files, config: Any) -> Files:
    for name, method in METHODS.items():
        picture = REPOSITORY / "docs/images/methods" / f"{name}.png"
        page = method_page(method, f"../images/methods/{name}.png" if picture.exists() else None)
        files.append(File.generated(config, f"methods/{name}.md", content=page))
    for notebook in sorted((REPOSITORY / "docs/tutorials").glob("*.ipynb")):
        for name, content in _tutorial(notebook).items():
            files.append(File.generated(config, f"tutorials/{name}", content=content))
    for source, target in BESIDE.items():
        text = (REPOSITORY / source).read_text(encoding="utf-8").replace("](docs/", "](")
        for other, page in BESIDE.items():
            text = text.replace(f"]({other})", f"]({page})")
        files.append(File.generated(config, target, content=text))
    return files


def _tutorial(notebook: Path) -> dict[str, str | bytes]:
    """The page of a notebook and its pictures, by file name; the notebook itself is copied."""
    exporter = MarkdownExporter(raw_template=NOTEBOOK)
    resources = {"unique_key": notebook.stem, "output_files_dir": f"{notebook.stem}_files"}
    text, found = exporter.from_filename(str(notebook), resources=resources)
    title, _, rest = text.strip().partition("\n")
    offer = f'<a href="{notebook.name}" download>This page as a notebook</a>, to run it yourself.'
    return {f"{notebook.stem}.md": f"{title}\n\n{offer}\n{rest}\n"} | found["outputs"]


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    here = Path(page.file.src_uri).parent

    def link(match: re.Match[str]) -> str:
        text, target = match.groups()
        if target.endswith(".ipynb") and (REPOSITORY / "docs" / here / target).is_file():
            return f"[{text}]({target.removesuffix('.ipynb')}.md)"
        if re.match(r"[a-z]+:|#", target):
            return match[0]
        path = target.partition("#")[0]
        known = (REPOSITORY / "docs" / here / path).resolve()
        beside = {str(REPOSITORY / source): page for source, page in BESIDE.items()}
        if str(known) in beside:
            return f"[{text}]({beside[str(known)]})"
        inside = known.is_relative_to(REPOSITORY / "docs")
        if inside:
            return match[0]
        # A link to what is not there stays, and fails the strict build.
        return text if known.exists() else match[0]

    # Links may hold code, code holds no links: [`path`](target).
    parts = re.split(r"(```.*?```)", markdown, flags=re.DOTALL)
    text = "".join(part if part.startswith("```") else _LINK.sub(link, part) for part in parts)
    parts = _CODE.split(text)
    return "".join(part if i % 2 else _equations(part) for i, part in enumerate(parts))


def _equations(text: str) -> str:
    text = _BLOCK.sub(lambda match: convert(match[1].strip(), display="block"), text)
    # In a span: Markdown takes a line that begins with <math> for a block, which ends a paragraph.
    return _INLINE.sub(lambda match: f"<span>{convert(match[1])}</span>", text)
