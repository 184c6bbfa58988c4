"""The rows of a study's records as one frame."""

from collections.abc import Sequence

import pandas as pd

from surm.records.record import Record


def study_rows(records: Sequence[Record]) -> pd.DataFrame:
    """All rows of the records, with their draw, by draw: the same frame in whatever order the records come."""
    rows = [
        (record.asked["study"]["draw"], record.signature, row) for record in records for row in record.happened["rows"]
    ]
    rows.sort(key=lambda entry: entry[:2])
    return pd.DataFrame([{"draw": draw, **row} for draw, _, row in rows])
