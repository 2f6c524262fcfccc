"""Writes the tree in README.md from the first sentence of every module: `make readme`."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_HEADING = "## The tree\n"
_SKIPPED = ("__init__.py", "__pycache__")
_AT_ROOT = {
    "tests/": "mirrors the package; `contracts/` holds the suites that every model, kernel and store must pass",
    "docs/": "one page per job, and the store's format",
    "ray_cluster.yaml": "a cluster on AWS for `ray up`",
    "runtime_env.yaml": "what a submitted job takes along",
    "constraints.txt": "every package, pinned",
}


def main() -> None:
    """Replaces everything below the heading."""
    readme = ROOT / "README.md"
    before, _, _ = readme.read_text().partition(_HEADING)
    lines = ["neuroray/", *_tree(ROOT / "neuroray", "  "), *(f"{name:<40}{what}" for name, what in _AT_ROOT.items())]
    readme.write_text(f"{before}{_HEADING}\n```\n" + "\n".join(lines) + "\n```\n")


def _tree(folder: Path, indent: str) -> list[str]:
    lines = []
    for path in sorted(folder.iterdir(), key=lambda path: (path.is_dir(), path.name)):
        if path.name in _SKIPPED:
            continue
        if path.is_dir():
            lines.append(f"{indent + path.name + '/':<40}{_first_sentence(path / '__init__.py')}".rstrip())
            lines += _tree(path, indent + "  ")
        elif path.suffix == ".py":
            lines.append(f"{indent + path.name:<40}{_first_sentence(path)}")
    return lines


def _first_sentence(module: Path) -> str:
    docstring = ast.get_docstring(ast.parse(module.read_text())) or ""
    return docstring.split("\n")[0].rstrip(".")


if __name__ == "__main__":
    main()
