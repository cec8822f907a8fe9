"""Read a user's table, CSV or JSON lines, as rows of named text; every error names its line."""

import csv
import io
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sa2depth.errors import DataError, nearest

_JSON_LINES = (".jsonl", ".ndjson")
_TABLES = (".csv", ".tsv", ".txt")
_SEPARATORS = ",;\t"


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        where: file and line, for errors: ``my.csv, line 3``.
        values: cells by column: text from CSV; text, numbers or lists from JSON.
    """

    where: str
    values: dict[str, Any] = field(hash=False)

    def text(self, column: str) -> str | None:
        """Text of a column, without spaces around it; None if it is empty.

        Raises:
            DataError: the value is a list or an object.
        """
        value = self.values.get(column)
        if isinstance(value, list | dict | bool):
            raise DataError(f"{self.where}: expected text in column '{column}', found {value}")
        return None if value is None else str(value).strip() or None

    def number(self, column: str) -> float | None:
        """Number of a column; None if it is empty.

        Raises:
            DataError: the value is not a number.
        """
        text = self.text(column)
        try:
            return None if text is None else float(text)
        except ValueError as error:
            raise DataError(
                f"{self.where}: expected a number such as 0.5 in column '{column}', found '{text}'"
            ) from error


def read_rows(path: Path, columns: Collection[str]) -> tuple[list[Row], set[str]]:
    """Rows of a CSV or JSON-lines file, and the columns that it has.

    UTF-8 with or without byte-order mark; any line ends; blank lines are skipped. In CSV the first line names the
    columns, cells are separated by comma, semicolon or tab and may be quoted. In JSON lines every line is an object.

    Args:
        path: ``.csv``, ``.tsv`` or ``.txt``; ``.jsonl`` or ``.ndjson``.
        columns: the names that columns may have.

    Raises:
        DataError: the file cannot be read, has no row, an unknown column or a malformed line, which is named.
    """
    suffix = path.suffix.lower()
    if suffix not in _JSON_LINES + _TABLES:
        raise DataError(
            f"{path}: expected a list whose name ends in {', '.join(_TABLES)} (CSV) or {', '.join(_JSON_LINES)} "
            "(one JSON object per line)"
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot read this list ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: expected UTF-8 text, found another encoding ({error}). Save it as UTF-8."
        ) from error
    read = _json_lines if suffix in _JSON_LINES else _table
    rows = list(read(path, text, columns))
    if not rows:
        raise DataError(f"{path}: expected at least one image, found an empty list")
    return rows, {column for row in rows for column in row.values}


def _json_lines(path: Path, text: str, columns: Collection[str]) -> Iterator[Row]:
    # Not splitlines(): JSON text may contain Unicode line separators.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{where}: expected one JSON object per line, found '{line.strip()[:80]}' ({error})"
            ) from error
        if not isinstance(values, dict):
            raise DataError(f"{where}: expected a JSON object {{...}}, found {type(values).__name__}")
        _check_columns(where, list(values), columns)
        yield Row(where, values)


def _table(path: Path, text: str, columns: Collection[str]) -> Iterator[Row]:
    first = next((line for line in text.splitlines() if line.strip()), "")
    separator = max(_SEPARATORS, key=first.count)
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=separator, strict=True, skipinitialspace=True
    )
    header: list[str] | None = None
    try:
        for cells in reader:
            where = f"{path}, line {reader.line_num}"
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = [cell.strip() for cell in cells]
                _check_columns(where, header, columns)
            elif len(cells) != len(header):
                raise DataError(
                    f"{where}: expected {len(header)} cells ({separator.join(header)}), found {len(cells)}. "
                    "Cells that contain the separator need quotes."
                )
            else:
                yield Row(where, dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: this is not valid CSV ({error})") from error


def _check_columns(where: str, found: list[str], columns: Collection[str]) -> None:
    for name in found:
        if name not in columns:
            raise DataError(
                f"{where}: unknown column '{name}'; {nearest(name, columns)}. In CSV the first line names the columns."
            )
        if found.count(name) > 1:
            raise DataError(f"{where}: column '{name}' occurs twice: remove or rename one")
