"""How the documentation is built: ``make docs``, offline, every warning an error."""

from __future__ import annotations

import re
from typing import Any

import lightning_mpq

project = "lightning_mpq"
author = "the authors of lightning_mpq"
version = release = lightning_mpq.__version__
html_title = "lightning_mpq"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

html_theme = "furo"
html_copy_source = False
html_show_sourcelink = False

default_role = "py:obj"  # single backticks in docstrings name things of this package
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

nitpick_ignore_regex = [
    # Other packages and the standard library, whose inventories an offline build does not have.
    (r"py:.*", r"(torch|lightning|rich|collections|pathlib|os|contextlib|typing)\..*"),
    # Parts that docstrings of the public face point their reader to, and that are no part of it.
    (
        "py:obj",
        r"(pack_model|restore_layers|targets_of|block_error|ErrorFeedback.factorise|FakeQuantizedRows|FinetunePhase.load|prepare_by)",
    ),
    ("py:class", r".*\.(FakeQuantizedLayer|WeightQuantizer|SolvedProblem|KeptGroups|PackedRows|InputPerturbations)"),
    ("py:class", r".*\.(InputQuantizer|Learned)"),
    ("py:class", r"tuple\[~torch\.Tensor"),  # Sphinx takes the tuple of a field for a name
]


def find_by_last_words(app: Any, env: Any, node: Any, contnode: Any) -> Any:
    """Let a docstring say `shrink` wherever it stands; the full name is that of the file which defines it."""
    if node.get("refdomain") != "py" or node.get("refspecific"):
        return None
    node["refspecific"] = True
    domain, kind = env.get_domain("py"), node["reftype"]
    return domain.resolve_xref(env, node["refdoc"], app.builder, kind, node["reftarget"], node, contnode)


def link_as_files(app: Any, docname: str, source: list[str]) -> None:
    """Let links to Markdown files outside of this folder, which are no pages of the site, lead to the files."""
    source[0] = re.sub(r"\]\((\.\./[^)#]+\.md)\)", r"](path:\1)", source[0])


def setup(app: Any) -> None:
    """Connect what this file adds to Sphinx."""
    app.connect("source-read", link_as_files)
    app.connect("missing-reference", find_by_last_words)
