"""One part of a study: compute it, or find that it is done, and leave a record."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from surm.config import signature as identity
from surm.records.claim import Claim
from surm.records.record import Record, finished_record, run_directory, where
from surm.records.storage import write_json
from surm.studies.registry import STUDIES


def run_part(asked: dict[str, Any], output_dir: str | Path, say: Callable[[str], None] = print) -> Record:
    """Compute a part of a study, or return the record of the same question.

    Args:
        asked: the question, from `surm.signature.asked_part`.
        output_dir: receives `runs/<signature>/record.json`.
        say: prints one line.

    Raises:
        Claimed: another process works on it.
        RecordError: the record is damaged.
    """
    name = identity.signature(asked)
    folder = run_directory(output_dir, name)
    if (record := finished_record(folder)) is not None:
        return record
    question = dict(asked["study"])
    study = STUDIES[question.pop("name")]
    with Claim(folder) as claim:
        if (record := finished_record(folder)) is not None:  # since the look above, by another process
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
            record = {
                "signature": name,
                "status": status,
                "asked": asked,
                "happened": happened | {"seconds": seconds, "error": error},
                "where": where("cpu", {}),
            }
            claim.confirm()
            write_json(folder / "record.json", record)
    return record
