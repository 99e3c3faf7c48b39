#!/usr/bin/env python3
"""Reads a backup without essrun: written from docs/FORMAT.md alone, with the stock `age` and `zstd` commands.

    essrun_read.py REPOSITORY IDENTITY list
    essrun_read.py REPOSITORY IDENTITY cat BACKUP ARTIFACT > FILE

REPOSITORY is a directory, IDENTITY an age identity file, BACKUP the beginning of a backup's name or `latest`.
It checks SHA-256 sums and lengths; signatures and chunk ids need Ed25519 and BLAKE3, which Python does not bring.
"""

import hashlib
import json
import pathlib
import subprocess
import sys

ENTRY = 36  # a chunk's id, 32 bytes, and its length, 4


def fail(message):
    sys.exit(f"essrun_read: {message}")


def unseal(identity, sealed):
    """age -d | zstd -d"""
    age = subprocess.run(["age", "-d", "-i", identity], input=sealed, capture_output=True)
    if age.returncode != 0:
        fail(age.stderr.decode(errors="replace").strip())
    zstd = subprocess.run(["zstd", "-d", "-c"], input=age.stdout, capture_output=True)
    if zstd.returncode != 0:
        fail(zstd.stderr.decode(errors="replace").strip())
    return zstd.stdout


def document(data, what):
    """A signed document: its claim and its payload, the payload's hash checked."""
    title, claim, signature, payload = data.split(b"\n", 3)
    if title != f"essrun {what} 1".encode():
        fail(f"expected a document `essrun {what} 1`, found {title[:60]!r}")
    if hashlib.sha256(payload).hexdigest() != signature.split(b" ")[2].decode():
        fail(f"the payload of a {what} is not the one that was signed")
    return json.loads(claim), payload


def entries(data):
    """Entries of a list or an index: (id, length)."""
    if len(data) % ENTRY:
        fail("a list of chunks is cut off")
    for at in range(0, len(data), ENTRY):
        yield data[at : at + 32].hex(), int.from_bytes(data[at + 32 : at + ENTRY], "little")


class Backup:
    def __init__(self, root, identity, manifest):
        self.root, self.identity = root, identity
        self.claim, payload = document(manifest.read_bytes(), "manifest")
        self.sealed = json.loads(unseal(identity, payload))
        self.places = {}  # chunk id: (pack, position, length)
        self.opened = (None, b"")  # one pack at a time
        for line in self.object(self.claim["list"]).decode().splitlines():
            name = line.split("  ", 1)[1]
            if name.startswith("index/"):
                self.read_index(name)

    def object(self, name):
        """An object's bytes, checked against the hash and size in its name."""
        data = (self.root / name).read_bytes()
        digest, size = name.rsplit("/", 1)[1].rsplit(".", 1)[0].split(".")[-2:]
        if len(data) != int(size) or hashlib.sha256(data).hexdigest() != digest:
            fail(f"{name} is damaged")
        return data

    def read_index(self, name):
        claim, payload = document(unseal(self.identity, self.object(name)), "index")
        position = 0
        for chunk, length in entries(payload):
            self.places.setdefault(chunk, (claim["pack"], position, length))
            position += length

    def chunk(self, chunk, length):
        pack, position, stored = self.places.get(chunk) or fail(f"chunk {chunk} is in no pack")
        if stored != length:
            fail(f"chunk {chunk} has another length than is said")
        if self.opened[0] != pack:
            self.opened = (pack, unseal(self.identity, self.object(pack)))
        return self.opened[1][position : position + length]

    def refs(self, content):
        """The chunks of a content, in order."""
        chunks = content["chunks"]
        if "inline" in chunks:
            return [(c["id"], c["bytes"]) for c in chunks["inline"]]
        return list(entries(b"".join(self.content(chunks["stored"]["list"]))))

    def content(self, content):
        total = 0
        for chunk, length in self.refs(content):
            data = self.chunk(chunk, length)
            total += len(data)
            yield data
        if total != content["bytes"]:
            fail("a content is shorter or longer than it was said to be")


def backups(root, identity):
    """Manifests that are not forgotten, oldest first: (backup's name, path)."""
    found = []
    for path in (root / "manifests").glob("*/*.manifest"):
        stone = root / "tombstones" / path.parent.name / (path.stem + ".tombstone")
        if not stone.exists():
            claim, _ = document(path.read_bytes(), "manifest")
            order = (claim["created_at"], claim["committed_at"], claim["sequence"])
            found.append((order, claim["backup"], path))
    return [(name, path) for _, name, path in sorted(found)]


def main(arguments):
    if len(arguments) < 3 or arguments[2] not in ("list", "cat"):
        sys.exit(__doc__)
    root, identity = pathlib.Path(arguments[0]), arguments[1]
    found = backups(root, identity)
    if arguments[2] == "list":
        for name, path in found:
            print(name)
            for artifact in Backup(root, identity, path).sealed["artifacts"]:
                print(f"  {artifact['content']['bytes']:>14}  {artifact['kind']}  {artifact['name']}")
        return
    wanted, name = arguments[3], arguments[4]
    matching = [path for backup, path in found if wanted == "latest" or backup.startswith(wanted)]
    if not matching:
        fail(f"no backup begins with {wanted}")
    backup = Backup(root, identity, matching[-1])
    for artifact in backup.sealed["artifacts"]:
        if artifact["name"] == name:
            for data in backup.content(artifact["content"]):
                sys.stdout.buffer.write(data)
            return
    fail(f"the backup has no artifact {name}")


if __name__ == "__main__":
    main(sys.argv[1:])
