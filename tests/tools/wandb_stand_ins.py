"""W&B without W&B: its offline files decoded, and a server as far as its client asks."""

import gzip
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import wandb
from wandb.proto.wandb_internal_pb2 import Record

TRACKING = {
    "name": "wandb",
    "mode": "offline",
    "project": "surm",
    "entity": None,
    "tags": ["laptop"],
    "log_adapter": False,
}


@pytest.fixture(autouse=True)
def stranger_to_wandb(monkeypatch, tmp_path):
    """No account, no settings and no cache of whoever runs the tests."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / "netrc"))


def transaction_log(path: Path) -> list[Record]:
    """W&B's own messages in a `.wandb` file, which has the framing of a LevelDB log.

    After 7 bytes of file header come blocks of 32 KiB with fragments: checksum (4 bytes), length (2), type (1), data;
    types 1 and 4 end a message, and a block's last bytes are padding where no fragment header fits.
    """
    content, position, message, records = path.read_bytes(), 7, b"", []
    assert content.startswith(b":W&B")
    while position < len(content):
        if (left := -position % 32768) and left < 7:
            position += left
        length, kind = int.from_bytes(content[position + 4 : position + 6], "little"), content[position + 6]
        message += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            records.append(Record.FromString(message))
            message = b""
    return records


def items(updates) -> dict:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in updates}


def logged(directory: Path, signature: str) -> dict:
    """What an offline run wrote: its identity, configuration, history by step, summary and exit code."""
    wandb.teardown()  # `finish` returns before its service has closed the file
    (path,) = directory.glob(f"wandb/offline-run-*-{signature}/*.wandb")
    records = transaction_log(path)
    run = next(record.run for record in records if record.HasField("run"))
    rows = (items(record.history.item) for record in records if record.HasField("history"))
    summary: dict = {}
    for record in records:
        if record.HasField("summary"):
            summary |= items(record.summary.update)
    (exit_code,) = [record.exit.exit_code for record in records if record.HasField("exit")]
    return {
        "identity": (run.run_id, run.run_group, run.display_name, run.project, set(run.tags)),
        "machine": (run.host, run.git.remote_url, records[0].environment.email),
        "config": {name: value for name, value in items(run.config.update).items() if name != "_wandb"},
        "history": {
            row["_step"]: {name: value for name, value in row.items() if not name.startswith("_")} for row in rows
        },
        "summary": {name: value for name, value in summary.items() if not name.startswith("_")},
        "exit_code": exit_code,
        "sweep": run.sweep_id,
        "artifacts": [record.artifact for record in records if record.HasField("artifact")],
    }


class Server(ThreadingHTTPServer):
    """Stands in for W&B's server, as far as its client asks: an account, runs with their history, saved views."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.run: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.views: list[dict[str, Any]] = []

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        match operation:
            case "Viewer" | "GetDefaultEntity":
                return {"viewer": {"id": "1", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}
            case "RunResumeStatus":
                return {"model": {"id": "1", "name": "surm", "bucket": self.bucket() if self.run else None}}
            case "UpsertBucket":
                self.run |= {name: value for name, value in variables.items() if value is not None}
                return {"upsertBucket": {"bucket": self.bucket(), "inserted": not self.history}}
            case "CreateRunFiles":
                return {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": []}}
            case "UpsertView2":
                self.views.append(variables)
                return {"upsertView": {"view": {"id": "1", "name": variables["name"]}, "inserted": True}}
        return {}

    def bucket(self) -> dict[str, Any]:
        project = {"id": "1", "name": self.run["project"], "entity": {"id": "1", "name": "me"}}
        return {
            "id": "1",
            "name": self.run["name"],
            "project": project,
            "config": "{}",
            "summaryMetrics": "{}",
            "logLineCount": 0,
            "eventsLineCount": 0,
            "eventsTail": "[]",
            "wandbConfig": json.dumps({"t": {}}),
            "historyLineCount": len(self.history),
            "historyTail": json.dumps([json.dumps(row) for row in self.history[-1:]]),
        }

    def store(self, files: dict[str, dict[str, Any]]) -> None:
        if lines := files.get("wandb-history.jsonl"):
            self.history[lines["offset"] :] = [json.loads(line) for line in lines["content"]]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        answer: dict[str, Any] = {}
        if self.path == "/graphql":
            asked = json.loads(body)
            operation = re.search(r"(?:query|mutation) (\w+)", asked["query"])
            assert operation
            answer = {"data": self.server.answer(operation[1], asked.get("variables", {}))}
        elif self.path.endswith("/file_stream"):
            self.server.store(json.loads(body).get("files", {}))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    wandb.teardown()  # it keeps the address of the server
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        yield server
        wandb.teardown()
        server.shutdown()
