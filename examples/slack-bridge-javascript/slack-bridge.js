// A bridge to a Slack-like service, as an essrun plugin in JavaScript.
//
// The same rules as `examples/slack-bridge` has in Rust. Every function is called in a fresh interpreter: nothing is
// kept from one call to the next. Records of wit/backup are objects, names in camelCase; a variant is { tag, val };
// u64 and s64 are BigInt; a function fails by throwing the contract's error.

import { query, tables } from "ess:inspect/database@0.1.0";
import { get } from "ess:inspect/settings@0.1.0";
import { look, read } from "ess:inspect/volume@0.1.0";

const VERSION = "0.1.0";
const TABLES = ["channel", "message", "puppet", "team"];
const LOGGED_IN = "SELECT count(*) FROM public.puppet WHERE token IS NOT NULL";
const DEFAULTS = { "registration-file": "registration.yaml", "keep-seen-events": false };

const settings = () => ({ ...DEFAULTS, ...JSON.parse(get()) });
const finding = (check, severity, message, remedy = "") => ({ check, severity, message, remedy });

/** What a failed look said, as an error of the contract. */
function inspect(error) {
  const said = error?.payload ?? error;
  return { tag: "inspect", val: String(said?.val ?? said) };
}

/** The one integer a query gives. */
function oneInteger(sql) {
  try {
    return query("main", sql, []).next(1)[0][0].val;
  } catch (error) {
    throw inspect(error);
  }
}

function hasConfig() {
  try {
    look("config", [""]);
    return true;
  } catch (error) {
    if ((error?.payload ?? error)?.tag === "denied") return false; // not granted: an optional need
    throw inspect(error);
  }
}

function registration() {
  const path = settings()["registration-file"];
  let text = "";
  try {
    text = String.fromCharCode(...read("config", path, 65536));
  } catch {
    // not there: said below
  }
  const keys = new Set(text.split("\n").filter((l) => l.includes(":")).map((l) => l.split(":")[0].trim()));
  if (keys.has("as_token") && keys.has("hs_token")) {
    return finding("bridge-registration", "info", `as_token and hs_token are in ${path}`);
  }
  const remedy = "set registration-file, or put the registration back with the tokens Synapse has";
  return finding("bridge-registration", "warning", `${path} has no as_token and hs_token`, remedy);
}

export const system = {
  describe() {
    return {
      system: "Slack bridge",
      version: VERSION,
      tier: "bridge",
      loss: "Channels must be linked again, users log in again.",
      needs: [
        { label: "main", kind: "database", role: "owned", required: true, purpose: "the bridge's database" },
        { label: "config", kind: "volume", role: "owned", required: false, purpose: "configuration and registration" },
      ],
      settings: [
        {
          name: "registration-file",
          defaultJson: JSON.stringify(DEFAULTS["registration-file"]),
          purpose: "the registration in `config`",
        },
        {
          name: "keep-seen-events",
          defaultJson: "false",
          purpose: "keep public.seen_event, by which repeated deliveries are known",
        },
      ],
      classes: [
        { pattern: "main/public.*", sensitivity: "personal", exposes: "who wrote when in which channel", onLeak: [] },
        {
          pattern: "main/public.puppet",
          sensitivity: "secret",
          exposes: "users' tokens for the remote service",
          onLeak: ["revoke the app's tokens in the remote service's administration"],
        },
        {
          pattern: "config",
          sensitivity: "secret",
          exposes: "as_token and hs_token: whoever has them speaks as every user of the bridge",
          onLeak: ["replace as_token and hs_token in both copies of the registration, restart bridge and Synapse"],
        },
      ],
      fences: [],
    };
  },

  planBackup() {
    const there = new Set(tables("main").filter((t) => t.schema === "public").map((t) => t.name));
    const missing = TABLES.filter((name) => !there.has(name));
    if (missing.length > 0) {
      throw { tag: "unsupported", val: `no Slack bridge's database: ${missing.join(", ")} missing` };
    }
    const leaveOutData = settings()["keep-seen-events"]
      ? []
      : [{ table: "public.seen_event", why: "the service repeats deliveries for an hour at most" }];
    const steps = [
      { tag: "dump-database", val: { database: "main", leaveOutData, rowFilters: [] } },
      { tag: "record-fact", val: { key: "logged-in", value: String(oneInteger(LOGGED_IN)) } },
    ];
    if (hasConfig()) steps.push({ tag: "archive-volume", val: { volume: "config", take: [], leaveOut: [] } });
    return { steps };
  },

  planRestore(backup) {
    const held = new Set(backup.artifacts.map((a) => a.name.split("/")[0]));
    const steps = [];
    if (held.has("config")) steps.push({ tag: "restore-volume", val: "config" });
    if (held.has("main")) steps.push({ tag: "restore-database", val: "main" });
    steps.push({ tag: "note", val: { severity: "info", text: "start the bridge after the restored Synapse answers" } });
    return { steps };
  },

  verify(backup) {
    const orphans = oneInteger(
      "SELECT count(*) FROM public.message m WHERE NOT EXISTS " +
        "(SELECT 1 FROM public.channel c WHERE c.id = m.channel_id)",
    );
    const findings = [
      orphans > 0n
        ? finding(
            "slack-messages-have-channels",
            "error",
            `${orphans} messages have no channel`,
            "restore again into a fresh database",
          )
        : finding("slack-messages-have-channels", "info", "every message has its channel"),
    ];
    const now = String(oneInteger(LOGGED_IN));
    const before = backup.facts.find((f) => f.key === "logged-in")?.value;
    findings.push(
      before === now
        ? finding("slack-logins", "info", `${now} users are logged in`)
        : finding("slack-logins", "warning", `${now} users are logged in, they were ${before}`, "the others log in again"),
    );
    if (hasConfig()) findings.push(registration());
    return findings;
  },

  respond() {
    const steps = [
      {
        tag: "run-sql",
        val: {
          artifacts: ["main/public.puppet"],
          database: "main",
          sql: "UPDATE public.puppet SET token = NULL WHERE token IS NOT NULL",
          countSql: LOGGED_IN,
          why: "logs all users out of the remote service on this side; stop the bridge first",
        },
      },
    ];
    for (const { pattern, onLeak } of system.describe().classes) {
      for (const text of onLeak) steps.push({ tag: "advise", val: { artifacts: [pattern], text } });
    }
    return { steps };
  },
};
