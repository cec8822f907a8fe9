"""What the documents say about the tree must be true: paths in the map of rooms, files that links name."""

import re
from pathlib import Path

import pytest

import sa2depth

ROOT = Path(__file__).parents[1]
PACKAGE = Path(sa2depth.__file__).parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
ROOMS = sorted(child.name for child in PACKAGE.iterdir() if (child / "__init__.py").is_file())


def architecture() -> str:
    return (ROOT / "docs" / "architecture.md").read_text()


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_is_on_the_map(room):
    assert re.search(rf"^  (\w+/ +)?{room}/ ", architecture(), re.MULTILINE)


def test_every_path_in_the_architecture_exists():
    named = set(re.findall(r"`((?:[a-z_0-9]+/)+(?:[a-z_0-9]+\.(?:py|yaml))?)`", architecture()))
    assert len(named) > 15
    homes = (PACKAGE, ROOT, ROOT / "src")
    assert not [name for name in named if not any((home / name).exists() for home in homes)]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_to_a_file_leads_somewhere(document):
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", document.read_text())
    assert not [link for link in links if not (document.parent / link).exists()]
