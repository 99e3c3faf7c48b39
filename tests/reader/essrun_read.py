#!/usr/bin/env python3
"""Reads a backup without essrun: written from docs/FORMAT.md alone, with the stock `age` and `zstd` commands.

    essrun_read.py REPOSITORY IDENTITY list
    essrun_read.py REPOSITORY IDENTITY meta BACKUP ARTIFACT
    essrun_read.py REPOSITORY IDENTITY cat BACKUP ARTIFACT > FILE
    essrun_read.py REPOSITORY IDENTITY tree BACKUP ARTIFACT NEW-DIRECTORY

REPOSITORY is a directory, IDENTITY an age identity file, BACKUP the beginning of a backup's name or `latest`.
`meta` prints what an artifact is, as JSON: its kind, how sensitive it is, and `meta` (of a table its columns and format).
`cat` writes its bytes (all parts of a table, one after the other), `tree` the files of a volume.
It checks SHA-256 sums and lengths; signatures and chunk ids need Ed25519 and BLAKE3, which Python does not bring.
"""

import base64
import hashlib
import json
import os
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
        revised = revision(root, manifest)
        if revised:
            self.claim, payload = revised
        self.sealed = json.loads(unseal(identity, payload))
        self.places = {}  # chunk id: (pack, position, length)
        self.opened = (None, b"")  # one pack at a time
        for line in set(self.object(self.claim["list"]).decode().split("\n")) - {""}:
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

    def artifact(self, name):
        for artifact in self.sealed["artifacts"]:
            if artifact["name"] == name:
                return artifact
        fail(f"the backup has no artifact {name}")

    def bytes_of(self, artifact):
        """An artifact's bytes; a table that was split has further contents in its meta."""
        yield from self.content(artifact["content"])
        if artifact["kind"] == "postgres-table":
            for part in artifact["meta"]["parts"][1:]:
                yield from self.content(part["content"])


def revision(root, manifest):
    """The revision of a manifest that counts: its claim and payload."""
    digest = hashlib.sha256(manifest.read_bytes()).hexdigest()
    found = (root / "revisions" / manifest.parent.name).glob(manifest.stem + ".*.revision")
    for path in sorted(found, reverse=True):
        claim, payload = document(path.read_bytes(), "revision")
        if claim["manifest"] == digest:
            return claim, payload
    return None


def name_bytes(name):
    return bytes.fromhex(name["hex"]) if isinstance(name, dict) else name.encode()


def write_tree(backup, artifact, root):
    """A volume: files and directories with their attributes, below a new directory."""
    listing = b"".join(backup.content(artifact["content"]))
    entries = [json.loads(line) for line in listing.splitlines()]
    root = os.fsencode(root)
    directories, made, files = [], set(), set()
    for entry in entries:
        path = name_bytes(entry["path"])
        if path and any(part in (b"", b".", b"..") for part in path.split(b"/")):
            fail(f"the listing has the path {path!r}")
        # Never through a link, whatever the listing says: only into directories made here.
        if path and path.rpartition(b"/")[0] not in made:
            fail(f"the listing has {path!r} in what is no directory of it")
        target = os.path.join(root, path) if path else root
        if entry["kind"] == "directory":
            os.mkdir(target, 0o700)
            made.add(path)
            directories.append((target, entry))
            continue
        if entry["kind"] == "symlink":
            os.symlink(name_bytes(entry["target"]), target)
        elif entry["kind"] != "file":
            fail(f"the listing has {path!r} of an unknown kind")
        elif "hardlink" in entry:
            earlier = name_bytes(entry["hardlink"])
            if earlier not in files:
                fail(f"the listing has {path!r} as another name of what is no file of it")
            os.link(os.path.join(root, earlier), target, follow_symlinks=False)
            files.add(path)
            continue
        else:
            write_file(backup, entry, target)
            files.add(path)
        attributes(entry, target)
    # Directories last and from below: writing into one changes its time.
    for target, entry in reversed(directories):
        attributes(entry, target)


def write_file(backup, entry, target):
    with open(target, "xb") as out:
        data = b"".join(backup.content(entry["content"])) if "content" in entry else b""
        for offset, length in entry.get("extents", [[0, len(data)]]):
            out.seek(offset)
            out.write(data[:length])
            data = data[length:]
        out.truncate(entry["size"])


def attributes(entry, target):
    if os.geteuid() == 0:
        os.chown(target, entry["uid"], entry["gid"], follow_symlinks=False)
    for name, value in entry.get("xattrs", []):
        os.setxattr(target, name_bytes(name), base64.b64decode(value), follow_symlinks=False)
    if entry["kind"] != "symlink":
        os.chmod(target, entry["mode"])
    seconds, nanoseconds = entry["mtime"]
    os.utime(target, ns=(seconds * 10**9 + nanoseconds,) * 2, follow_symlinks=False)


def is_forgotten(root, manifest):
    """Whether a manifest has a tombstone; one for another manifest counts for nothing."""
    stone = root / "tombstones" / manifest.parent.name / (manifest.stem + ".tombstone")
    if not stone.exists():
        return False
    claim, _ = document(stone.read_bytes(), "tombstone")
    return claim["manifest"] == hashlib.sha256(manifest.read_bytes()).hexdigest()


def backups(root, identity):
    """Manifests that are not forgotten, oldest first: (backup's name, path)."""
    found = []
    for path in (root / "manifests").glob("*/*.manifest"):
        if not is_forgotten(root, path):
            claim, _ = document(path.read_bytes(), "manifest")
            order = (claim["created_at"], claim["committed_at"], claim["sequence"])
            found.append((order, claim["backup"], path))
    return [(name, path) for _, name, path in sorted(found)]


def main(arguments):
    wanted_arguments = {"list": 3, "meta": 5, "cat": 5, "tree": 6}
    if len(arguments) < 3 or wanted_arguments.get(arguments[2]) != len(arguments):
        sys.exit(__doc__)
    root, identity, verb = pathlib.Path(arguments[0]), arguments[1], arguments[2]
    found = backups(root, identity)
    if verb == "list":
        for name, path in found:
            print(name)
            for artifact in Backup(root, identity, path).sealed["artifacts"]:
                print(f"  {artifact['content']['bytes']:>14}  {artifact['kind']}  {artifact['name']}")
        return
    wanted = arguments[3]
    matching = [path for backup, path in found if wanted == "latest" or backup.startswith(wanted)]
    if not matching:
        fail(f"no backup begins with {wanted}")
    backup = Backup(root, identity, matching[-1])
    artifact = backup.artifact(arguments[4])
    if verb == "meta":
        print(json.dumps({key: artifact[key] for key in ("name", "kind", "sensitivity", "meta")}, indent=1))
        return
    if verb == "tree":
        if artifact["kind"] != "volume":
            fail(f"{artifact['name']} is no file tree")
        write_tree(backup, artifact, arguments[5])
        return
    for data in backup.bytes_of(artifact):
        sys.stdout.buffer.write(data)


if __name__ == "__main__":
    main(sys.argv[1:])
