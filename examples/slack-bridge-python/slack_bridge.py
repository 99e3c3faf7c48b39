"""A bridge to a Slack-like service, as an essrun plugin in Python.

The same rules as `examples/slack-bridge` has in Rust. Every function is called in a fresh interpreter: nothing is kept
from one call to the next. What is returned are the records of wit/backup as dataclasses.
"""

import json

from componentize_py_types import Err
from wit_world.exports import System as SystemContract
from wit_world.imports import backup, database, incident, restore, settings, volume
from wit_world.imports import ess_backup_types as t
from wit_world.imports import ess_inspect_types as looks

VERSION = "0.1.0"
TABLES = ["channel", "message", "puppet", "team"]
LOGGED_IN = "SELECT count(*) FROM public.puppet WHERE token IS NOT NULL"
DEFAULTS = {"registration-file": "registration.yaml", "keep-seen-events": False}


def given_settings():
    return {**DEFAULTS, **json.loads(settings.get())}


def one_integer(sql):
    """The one integer a query gives. Rows come in pages; leaving the `with` ends the query."""
    try:
        with database.query("main", sql, []) as rows:
            return rows.next(1)[0][0].value
    except Err as e:
        raise Err(t.Error_Inspect(f"{sql}: {e.value.value}"))


def has_config():
    try:
        volume.look("config", [""])
        return True
    except Err as e:
        if isinstance(e.value, looks.Error_Denied):
            return False  # not granted: an optional need
        raise Err(t.Error_Inspect(e.value.value))


def found(check, severity, message, remedy=""):
    return restore.Finding(check, severity, message, remedy)


class System(SystemContract):
    def describe(self):
        return t.Description(
            system="Slack bridge",
            version=VERSION,
            tier=t.Tier.BRIDGE,
            loss="Channels must be linked again, users log in again.",
            needs=[
                t.Need("main", t.NeedKind.DATABASE, t.NeedRole.OWNED, True, "the bridge's database"),
                t.Need("config", t.NeedKind.VOLUME, t.NeedRole.OWNED, False, "configuration and registration"),
            ],
            settings=[
                t.Setting("registration-file", json.dumps(DEFAULTS["registration-file"]), "the registration in `config`"),
                t.Setting("keep-seen-events", "false", "keep public.seen_event, by which repeated deliveries are known"),
            ],
            classes=[
                t.ArtifactClass("main/public.*", t.Sensitivity.PERSONAL, "who wrote when in which channel", []),
                t.ArtifactClass(
                    "main/public.puppet",
                    t.Sensitivity.SECRET,
                    "users' tokens for the remote service",
                    ["revoke the app's tokens in the remote service's administration"],
                ),
                t.ArtifactClass(
                    "config",
                    t.Sensitivity.SECRET,
                    "as_token and hs_token: whoever has them speaks as every user of the bridge",
                    ["replace as_token and hs_token in both copies of the registration, restart bridge and Synapse"],
                ),
            ],
            fences=[],
        )

    def plan_backup(self):
        chosen = given_settings()
        there = {table.name for table in database.tables("main") if table.schema == "public"}
        missing = [name for name in TABLES if name not in there]
        if missing:
            raise Err(t.Error_Unsupported(f"no Slack bridge's database: {', '.join(missing)} missing"))
        left_out = []
        if not chosen["keep-seen-events"]:
            left_out = [backup.TableRule("public.seen_event", "the service repeats deliveries for an hour at most")]
        steps = [
            backup.Step_DumpDatabase(backup.DumpDatabase("main", left_out, [])),
            backup.Step_RecordFact(t.Fact("logged-in", str(one_integer(LOGGED_IN)))),
        ]
        if has_config():
            steps.append(backup.Step_ArchiveVolume(backup.ArchiveVolume("config", [], [])))
        return backup.Plan(steps)

    def plan_restore(self, backup_view):
        held = {artifact.name.split("/")[0] for artifact in backup_view.artifacts}
        steps = []
        if "config" in held:
            steps.append(restore.Step_RestoreVolume("config"))
        if "main" in held:
            steps.append(restore.Step_RestoreDatabase("main"))
        steps.append(restore.Step_Note(t.Note(t.Severity.INFO, "start the bridge after the restored Synapse answers")))
        return restore.Plan(steps)

    def verify(self, backup_view):
        findings = []
        orphans = one_integer(
            "SELECT count(*) FROM public.message m WHERE NOT EXISTS "
            "(SELECT 1 FROM public.channel c WHERE c.id = m.channel_id)"
        )
        check = "slack-messages-have-channels"
        if orphans:
            remedy = "restore again into a fresh database"
            findings.append(found(check, t.Severity.ERROR, f"{orphans} messages have no channel", remedy))
        else:
            findings.append(found(check, t.Severity.INFO, "every message has its channel"))

        now = one_integer(LOGGED_IN)
        before = next((fact.value for fact in backup_view.facts if fact.key == "logged-in"), None)
        if before == str(now):
            findings.append(found("slack-logins", t.Severity.INFO, f"{now} users are logged in"))
        else:
            message = f"{now} users are logged in, they were {before}"
            findings.append(found("slack-logins", t.Severity.WARNING, message, "the others log in again"))

        if has_config():
            findings.append(self.registration())
        return findings

    def registration(self):
        path = given_settings()["registration-file"]
        try:
            text = volume.read("config", path, 65536).decode("utf-8", "replace")
        except Err:
            text = ""
        keys = {line.split(":", 1)[0].strip() for line in text.splitlines() if ":" in line}
        if {"as_token", "hs_token"} <= keys:
            return found("bridge-registration", t.Severity.INFO, f"as_token and hs_token are in {path}")
        remedy = "set registration-file, or put the registration back with the tokens Synapse has"
        return found("bridge-registration", t.Severity.WARNING, f"{path} has no as_token and hs_token", remedy)

    def respond(self, backup_view):
        steps = [
            incident.Step_RunSql(
                incident.Statement(
                    artifacts=["main/public.puppet"],
                    database="main",
                    sql="UPDATE public.puppet SET token = NULL WHERE token IS NOT NULL",
                    count_sql=LOGGED_IN,
                    why="logs all users out of the remote service on this side; stop the bridge first",
                )
            )
        ]
        for kind in self.describe().classes:
            steps += [incident.Step_Advise(incident.Advice([kind.pattern], text)) for text in kind.on_leak]
        return incident.Plan(steps)
