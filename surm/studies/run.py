"""One part of a study: compute it, or find that it is done, and leave a record."""

import time
from collections.abc import Callable
from typing import Any

from surm.records.claim import Claim
from surm.records.provenance import code, where
from surm.records.record import Record
from surm.studies.entry import Part
from surm.studies.registry import STUDIES


def run_part(part: Part, say: Callable[[str], None] = print) -> Record:
    """Compute a part of a study, or return the record of the same question.

    Args:
        part: the question.
        say: prints one line.

    Raises:
        Claimed: another process works on it.
        RecordError: the record is damaged.
    """
    if (record := part.finished_record()) is not None:
        return record
    code()  # as it is now, before anything is done with it
    question = dict(part.asked["study"])
    study = STUDIES[question.pop("name")]
    with Claim(part.folder.path) as claim:
        if (record := part.finished_record()) is not None:  # since the look above, by another process
            return record
        happened: dict[str, Any] = {}
        status, error, begun = "failed", None, time.perf_counter()
        try:
            happened = study.compute(question, say)
            status = "finished"
        except (KeyboardInterrupt, SystemExit):  # a launcher may end its process
            status = "interrupted"
            raise
        except Exception as failure:
            error = f"{type(failure).__name__}: {failure}"
            raise
        finally:
            seconds = time.perf_counter() - begun
            record = Record(
                part.folder.record,
                part.signature,
                status,
                part.asked,
                happened | {"seconds": seconds, "error": error},
                where("cpu", {}),
            )
            claim.confirm()
            record.write()
    return record
