"""What can be wrong with data."""

from dataclasses import dataclass

SHOWN_CHARACTERS = 80  # of a bad value


class DataError(ValueError):
    """Data that cannot be trained or evaluated on; the message names file, item, key and remedy."""


@dataclass(frozen=True)
class Finding:
    """One problem of a data set.

    Attributes:
        item: what it is about, for example "annotation 12"; empty for the file as a whole.
        key: of the JSON record; empty for the whole item.
        severity: "error"; "warning", where a run can honestly go on; "dropped", an object that Detectron2's
            loader leaves out, which becomes one of the two.
    """

    file: str
    item: str
    key: str
    expected: str
    got: object
    remedy: str
    severity: str = "error"

    def __str__(self) -> str:
        place = ": ".join(part for part in (self.file, self.item, self.key) if part)
        got = self.got if isinstance(self.got, str) else repr(self.got)
        if len(got) > SHOWN_CHARACTERS:
            got = got[:SHOWN_CHARACTERS] + "..."
        return f"{place}: expected {self.expected}, got {got}; {self.remedy}"


def has_id(record, key: str = "id") -> bool:
    """Whether a JSON value is a record that can be looked up by a key: a number or a string."""
    return isinstance(record, dict) and isinstance(record.get(key), (int, str))


def item_name(kind: str, record, index: int) -> str:
    """What messages call a record: for example "image 12", or its place in the file if it has no id."""
    return f"{kind} {record['id']}" if has_id(record) else f"{kind} at index {index}"
