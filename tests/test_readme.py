"""The README's tree is the package's own: every module with its first sentence. `make readme` writes it anew."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def first_sentence(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    return docstring.split("\n")[0].rstrip(".")


def test_the_tree_names_every_module_with_its_own_first_sentence():
    readme = (ROOT / "README.md").read_text()
    modules = [path for path in sorted((ROOT / "neuroray").rglob("*.py")) if path.name != "__init__.py"]
    missing = [
        str(path.relative_to(ROOT))
        for path in modules
        if not re.search(rf"{re.escape(path.name)}\s+{re.escape(first_sentence(path))}", readme)
    ]
    assert not missing, "make readme writes the tree anew"


def test_every_page_that_the_readme_links_to_is_there():
    links = re.findall(r"\]\(((?:docs/|CONTRIBUTING)[^)#]*)\)", (ROOT / "README.md").read_text())
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
