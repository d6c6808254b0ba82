"""Files of the Gemini stand-in, and how they are uploaded: Google's resumable protocol."""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hosted.http_server import Broken
from hosted.moment import stamp
from hosted.replies import Refused, Reply, say
from hosted.requests_in import fields, read_json

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from hosted.behaviour import Behaviour
    from hosted.http_server import Ask
    from hosted.moment import Clock

MOST_BYTES = 2**31
_LIFE_SECONDS = 48 * 3600.0
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")
_MIME = re.compile(r"jsonl|application/(x-)?jsonl?|application/(x-)?jsonlines|application/pdf|text/[\w.+-]+")
_FILE = {"name", "displayName", "mimeType", "sizeBytes"}


@dataclass
class StoredFile:
    """A file that was uploaded."""

    name: str
    account: str
    path: Path
    mime: str
    display_name: str
    created: float
    size: int = 0
    looks: int = 0


@dataclass
class Session:
    """An upload that has begun."""

    file: StoredFile
    declared: int
    received: int = 0
    final: bool = False


@dataclass
class Files:
    """All files of a stand-in."""

    folder: Path
    clock: Clock
    behaviour: Callable[[], Behaviour]
    kept: dict[str, StoredFile] = field(default_factory=dict)
    sessions: dict[str, Session] = field(default_factory=dict)
    uploads: int = 0
    """Uploads that were finished: the oracle of what was sent twice."""
    uploaded_bytes: int = 0
    deleted: list[str] = field(default_factory=list)

    def find(self, name: str, account: str) -> StoredFile:
        """Return a file; one that is not there, not ours or too old is refused alike."""
        file = self.kept.get(name)
        if file is None or file.account != account or self.clock.now - file.created > _LIFE_SECONDS:
            known = name.removeprefix("files/")
            message = f"You do not have permission to access the File {known} or it may not exist."
            raise Refused(403, message)
        return file

    def start(self, ask: Ask, account: str) -> Reply:
        """Begin an upload."""
        if ask.headers.get("x-goog-upload-protocol") != "resumable":
            raise Refused(400, "This stand-in takes resumable uploads only.")
        if ask.headers.get("x-goog-upload-command") != "start":
            raise Refused(400, "An upload begins with the command start.")
        said = fields(read_json(ask.body.read()).get("file", {}), _FILE, "file")
        declared = int(ask.headers.get("x-goog-upload-header-content-length") or said.get("sizeBytes") or -1)
        if declared > MOST_BYTES:
            raise Refused(400, f"File size {declared} exceeds the limit of {MOST_BYTES} bytes.")
        mime = ask.headers.get("x-goog-upload-header-content-type") or said.get("mimeType") or ""
        if not _MIME.fullmatch(mime):
            raise Refused(400, f"Unsupported MIME type: {mime}")
        given = said.get("name") or ""
        name = f"files/{given.removeprefix('files/')}" if given else f"files/{secrets.token_hex(6)}"
        if not _NAME.fullmatch(name.removeprefix("files/")):
            raise Refused(400, f"Invalid file name: {name}")
        self._refuse_taken(name)
        display_name = said.get("displayName") or ""
        if len(display_name) > 512:
            raise Refused(400, "The display name is longer than 512 characters.")
        token = secrets.token_urlsafe(24)
        path = self.folder / token
        path.touch()
        file = StoredFile(name, account, path, mime, display_name, self.clock.now)
        self.sessions[token] = Session(file, declared)
        url = f"{ask.base}{ask.path}?upload_id={token}&upload_protocol=resumable"
        granularity = str(self.behaviour().granularity)
        return Reply(
            200,
            b"",
            {
                "X-Goog-Upload-URL": url,
                "X-Goog-Upload-Status": "active",
                "X-Goog-Upload-Chunk-Granularity": granularity,
            },
        )

    def chunk(self, ask: Ask) -> Reply:
        """Take bytes, or say how many came; the address of the session is all the right that is needed."""
        session = self.sessions.get(ask.query["upload_id"])
        if session is None:
            raise Refused(404, "No such upload.")
        status = "final" if session.final else "active"
        commands = {one.strip() for one in ask.headers.get("x-goog-upload-command", "").split(",")}
        if commands == {"query"}:
            received = str(session.received)
            return Reply(200, b"", {"X-Goog-Upload-Status": status, "X-Goog-Upload-Size-Received": received})
        if commands == {"cancel"}:
            del self.sessions[ask.query["upload_id"]]
            return Reply(200, b"", {"X-Goog-Upload-Status": "cancelled"})
        try:
            return self._take(session, commands, ask)
        except Refused as refused:
            refused.reply.headers["X-Goog-Upload-Status"] = status
            raise

    def _take(self, session: Session, commands: set[str], ask: Ask) -> Reply:
        granularity = self.behaviour().granularity
        if session.final or not commands or commands - {"upload", "finalize"}:
            raise Refused(400, f"Upload has already been finalized, or no such command: {sorted(commands)}")
        before = session.received
        if "upload" in commands:
            if int(ask.headers.get("x-goog-upload-offset", -1)) != before:
                raise Refused(400, f"The offset is not that of the {before} bytes that were received.")
            self._write(session, ask, granularity)
        size = session.received - before
        if session.received > session.declared >= 0:
            self._keep(session, before)
            raise Refused(400, "More bytes came than were declared.")
        if "finalize" not in commands:
            if size % granularity:
                self._keep(session, before)
                raise Refused(400, f"{size} bytes are no multiple of {granularity}.")
            return Reply(200, b"", {"X-Goog-Upload-Status": "active"})
        if session.received < session.declared:
            raise Refused(400, "Fewer bytes came than were declared.")
        self._refuse_taken(session.file.name)
        session.final = True
        file = session.file
        file.created, file.size = self.clock.now, session.received
        self.kept[file.name] = file
        self.uploads += 1
        self.uploaded_bytes += file.size
        return say({"file": self.shown(file, ask)}, X_Goog_Upload_Status="final")

    def _write(self, session: Session, ask: Ask, granularity: int) -> None:
        try:
            with session.file.path.open("ab") as file:
                for piece in ask.body.pieces():
                    file.write(piece)
                    session.received += len(piece)
        except Broken:
            self._keep(session, session.received // granularity * granularity)
            raise

    def _keep(self, session: Session, size: int) -> None:
        session.received = size
        with session.file.path.open("r+b") as file:
            file.truncate(size)

    def _refuse_taken(self, name: str) -> None:
        taken = self.kept.get(name)
        if taken is not None and self.clock.now - taken.created <= _LIFE_SECONDS:
            raise Refused(409, f"Requested entity already exists: {name}")

    def look(self, name: str, ask: Ask, account: str) -> Reply:
        """Answer `files.get`."""
        if len(name.removeprefix("files/")) > 40:
            raise Refused(400, f"Invalid file name: {name}")
        file = self.find(name, account)
        file.looks += 1
        return say(self.shown(file, ask))

    def page(self, ask: Ask, account: str) -> Reply:
        """Answer `files.list`: newest first."""
        size = min(int(ask.query.get("pageSize") or 10), 100)
        first = int(ask.query.get("pageToken") or 0)
        mine = [file for file in self.kept.values() if file.account == account][::-1]
        shown = [self.shown(file, ask) for file in mine[first : first + size]]
        more = {"nextPageToken": str(first + size)} if first + size < len(mine) else {}
        return say({**({"files": shown} if shown else {}), **more})

    def delete(self, name: str, account: str) -> Reply:
        """Answer `files.delete`."""
        file = self.find(name, account)
        del self.kept[name]
        file.path.unlink()
        self.deleted.append(name)
        return say({})

    def ready(self, file: StoredFile) -> bool:
        """Say whether a file is ACTIVE."""
        return file.looks >= self.behaviour().files_processing

    def shown(self, file: StoredFile, ask: Ask) -> dict[str, Any]:
        """Return a File."""
        digest = hashlib.sha256()
        with file.path.open("rb") as content:
            while piece := content.read(2**20):
                digest.update(piece)
        return {
            "name": file.name,
            **({"displayName": file.display_name} if file.display_name else {}),
            "mimeType": file.mime,
            "sizeBytes": str(file.size),
            "createTime": stamp(file.created, 6),
            "updateTime": stamp(file.created, 6),
            "expirationTime": stamp(file.created + _LIFE_SECONDS),
            "sha256Hash": base64.b64encode(digest.hexdigest().encode()).decode(),
            "uri": f"{ask.base}/v1beta/{file.name}",
            "state": "ACTIVE" if self.ready(file) else "PROCESSING",
            "source": "UPLOADED",
        }
