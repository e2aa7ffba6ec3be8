"""The docs as a site: ``sphinx-build -W docs docs/_build`` (Sphinx, MyST, sphinx-gallery, autodoc)."""

import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import measured  # noqa: E402
from docutils import nodes  # noqa: E402
from docutils.parsers.rst import Directive  # noqa: E402

import sampdetox_transforms  # noqa: E402

project, author = "sampdetox-transforms", "the authors of sampdetox-transforms"
copyright = f"{author}; Apache-2.0"
version = release = sampdetox_transforms.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "results/*.md", "tutorial"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = f"sampdetox-transforms {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # shapes in signatures are long; the docstrings say them in words
autodoc_preserve_defaults = True
napoleon_google_docstring, napoleon_numpy_docstring = True, False
napoleon_use_ivar = True
napoleon_attr_annotations = False

sphinx_gallery_conf = {
    "examples_dirs": "tutorial",
    "gallery_dirs": "auto_tutorial",
    "filename_pattern": r"plot_",
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "write_computation_times": False,
    "min_reported_time": 0,
    "remove_config_comments": True,
}

# What works on a page that is read as a file, as a link of the site
LINKS = (
    (re.compile(r"\[([^\]]+)\]\(((?:\.\./)?results/[^)]+\.(?:md|json))\)"), r"{download}`\1 <\2>`"),
    (re.compile(r"\]\(tutorial/README\.rst\)"), "](auto_tutorial/index.rst)"),
    (re.compile(r"\]\(tutorial/([^)]+)\.py\)"), r"](auto_tutorial/\1.rst)"),
)


PAGE = re.compile(r"[a-z_]+")


class Tables(Directive):
    """All results, each with n, commit, whether weights and settings are today's, and both files."""

    def run(self) -> list[nodes.Node]:
        table = nodes.table(classes=["results"])
        group = nodes.tgroup(cols=5)
        table += group
        for width in (30, 14, 20, 16, 20):
            group += nodes.colspec(colwidth=width)
        head, body = nodes.thead(), nodes.tbody()
        group += head
        group += body
        head += _row("results", "images", "commit", "weights, settings", "files")
        for path in sorted(measured.RESULTS.glob("*.json")):
            name, about = path.stem, measured.facts(path.stem)
            old = measured.earlier(name)
            commit = about["commits"][0] if about["commits"] else ""
            state = f"earlier {old}" if old else "today's" if commit else "unknown"
            row = _row(name, about["n"].removeprefix("n = "), commit, state)
            row += _files(name)
            body += row
        return [table]


def _row(*cells: str) -> nodes.row:
    row = nodes.row()
    for cell in cells:
        row += nodes.entry("", nodes.paragraph(text=cell))
    return row


def _files(name: str) -> nodes.entry:
    from sphinx.addnodes import download_reference

    paragraph = nodes.paragraph()
    for kind in ("md", "json"):
        if measured.path(name, kind).exists():
            target = f"results/{name}.{kind}"
            paragraph += download_reference("", "", nodes.literal(text=kind), reftarget=target, refdoc="results")
            paragraph += nodes.Text(" ")
    return nodes.entry("", paragraph)


def as_links_of_the_site(app, docname: str, source: list[str]) -> None:
    if docname == "index":
        # pages that are not written yet are left out, those that no list names come last
        lines = [line for line in source[0].splitlines() if not PAGE.fullmatch(line) or (HERE / f"{line}.md").exists()]
        source[0] = "\n".join(lines)
        listed = set(source[0].split()) | {"index"}
        others = sorted(path.stem for path in HERE.glob("*.md") if path.stem not in listed)
        source[0] = source[0].replace("OTHERS", "\n".join(others))
    for pattern, replacement in LINKS:
        source[0] = pattern.sub(replacement, source[0])


def setup(app) -> dict[str, bool]:
    app.connect("source-read", as_links_of_the_site)
    app.add_directive("tables", Tables)
    return {"parallel_read_safe": True}
