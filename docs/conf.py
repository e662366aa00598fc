"""Settings of the site that `make docs` builds."""

import importlib.metadata
import sys
from pathlib import Path

# Extensions of our own, and the benchmarks.
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

project = "optaxtricks"
author = "The optaxtricks authors"
release = version = importlib.metadata.version("optaxtricks")

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon"]
extensions += ["bare_names", "cost_table", "mathml", "signatures"]
add_module_names = False
autodoc_default_options = {"member-order": "bysource"}
maximum_signature_line_length = 72
napoleon_attr_annotations = False
napoleon_custom_sections = ["Guarantees"]
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"

# A role that leads nowhere is an error; types of other packages have no page here.
nitpicky = True
nitpick_ignore_regex = [
    ("py:class", r"(axes|flax|jax|matplotlib|nn|nnx|np|optax|os|plt|re)\..*"),
    ("py:class", "Any|Axes|Callable|Iterable|Mapping|Sequence"),
]

html_theme = "furo"
html_title = f"optaxtricks {release}"
html_math_renderer = "mathml"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_favicon = "static/icon.svg"
html_copy_source = False
