//! Guests that pass every check at loading and then misbehave when called.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;
use common::*;
use essrun_sandbox::{Limits, SandboxError, Stop};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

const LOOP: &str = "(loop $l (br $l)) (unreachable)";

fn cpu() -> Stop {
    Stop::Cpu { limit: limits().cpu }
}

/// The database handle of the first query lands at 2052 when 2048 says ok.
const QUERY: &str = "(call $query (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 2048))";

#[tokio::test]
async fn endless_loop_in_each_export() {
    for export in EXPORTS {
        assert_eq!(stopped(&guest("", &[(export, LOOP)]), export).await, cpu(), "{export}");
    }
}

#[tokio::test]
async fn endless_loop_when_instantiated() {
    let wasm = guest("(func $s (loop $l (br $l))) (start $s)", &[]);
    assert_eq!(stopped(&wasm, "describe").await, cpu());
}

#[tokio::test]
async fn endless_loop_when_the_host_asks_for_memory() {
    let realloc =
        r#"(func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (loop $l (br $l)) (unreachable))"#;
    assert_eq!(stopped(&guest(realloc, &[]), "verify").await, cpu());
}

#[tokio::test]
async fn endless_loop_after_returning() {
    let post = r#"(func (export "cabi_post_ess:backup/system@0.1.0#describe") (param i32) (loop $l (br $l)))"#;
    assert_eq!(stopped(&guest(post, &[]), "describe").await, cpu());
}

#[tokio::test]
async fn a_loop_does_not_hold_up_other_work() {
    // On one thread: what else the host does must go on while the guest loops.
    let component = load(&guest("", &[("describe", LOOP)]));
    let others = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counter = others.clone();
    let other = tokio::spawn(async move {
        loop {
            counter.fetch_add(1, SeqCst);
            tokio::task::yield_now().await;
        }
    });
    call(&component, "describe", &Fake::new(), &limits()).await.unwrap_err();
    assert!(others.load(SeqCst) > 1);
    other.abort();
}

#[tokio::test]
async fn storm_of_host_calls() {
    let body = "(loop $l (call $settings (i32.const 2048)) (global.set $top (i32.const 65536)) (br $l)) (unreachable)";
    let limits = Limits {
        host_calls: 10_000,
        cpu: Duration::from_secs(60),
        ..limits()
    };
    let stop = stopped_with(&guest("", &[("verify", body)]), "verify", &Fake::new(), &limits).await;
    assert_eq!(stop, Stop::HostCalls { limit: 10_000 });
}

#[tokio::test]
async fn a_look_that_never_comes_back() {
    let world = Arc::new(Fake {
        silent: true,
        ..Fake::default()
    });
    let limits = Limits {
        wall_clock: Duration::from_millis(300),
        ..limits()
    };
    let body = format!("{QUERY} (i32.const 1024)");
    let stop = stopped_with(&guest("", &[("plan-backup", &body)]), "plan-backup", &world, &limits).await;
    assert_eq!(
        stop,
        Stop::WallClock {
            limit: limits.wall_clock
        }
    );
}

#[tokio::test]
async fn waiting_for_the_host_is_not_computing() {
    // The wall clock ends it, although it waited longer than it might compute.
    let world = Arc::new(Fake {
        silent: true,
        ..Fake::default()
    });
    let limits = Limits {
        cpu: Duration::from_millis(50),
        wall_clock: Duration::from_secs(1),
        ..limits()
    };
    let body = format!("{QUERY} (i32.const 1024)");
    let stop = stopped_with(&guest("", &[("plan-backup", &body)]), "plan-backup", &world, &limits).await;
    assert_eq!(
        stop,
        Stop::WallClock {
            limit: limits.wall_clock
        }
    );
}

#[tokio::test]
async fn memory_bomb() {
    let body = "(loop $l (br_if $l (i32.ne (memory.grow (i32.const 1)) (i32.const -1)))) (unreachable)";
    let stop = stopped(&guest("", &[("plan-backup", body)]), "plan-backup").await;
    assert_eq!(stop, Stop::Memory { limit: limits().memory });
}

#[tokio::test]
async fn memory_asked_for_at_once() {
    let wasm = guest("(memory (export \"memory\") 60000)", &[]);
    assert_eq!(
        stopped(&wasm, "describe").await,
        Stop::Memory { limit: limits().memory }
    );
}

#[tokio::test]
async fn table_bomb() {
    let body = "(loop $l (drop (table.grow $t (ref.null func) (i32.const 10000))) (br $l)) (unreachable)";
    let stop = stopped(&guest("(table $t 1 funcref)", &[("respond", body)]), "respond").await;
    assert_eq!(
        stop,
        Stop::Tables {
            limit: limits().table_elements
        }
    );
}

#[tokio::test]
async fn tables_asked_for_at_once() {
    let stop = stopped(&guest(&"(table 60000 funcref)".repeat(2), &[]), "describe").await;
    assert_eq!(
        stop,
        Stop::Tables {
            limit: limits().table_elements
        }
    );
}

#[tokio::test]
async fn deep_recursion() {
    let extra = "(func $down (param i64) (result i64) (i64.add (local.get 0) (call $down (i64.add (local.get 0) (i64.const 1)))))";
    let body = "(drop (call $down (i64.const 0))) (i32.const 1024)";
    assert_eq!(
        stopped(&guest(extra, &[("verify", body)]), "verify").await,
        Stop::StackOverflow
    );
}

#[tokio::test]
async fn handles_never_dropped() {
    // Opens for ever; the limit is an answer it can see, and it does not care.
    let body = format!("(loop $l {QUERY} (global.set $top (i32.const 65536)) (br $l)) (unreachable)");
    let world = Fake::new();
    let limits = Limits {
        host_calls: 5_000,
        cpu: Duration::from_secs(60),
        ..limits()
    };
    let stop = stopped_with(&guest("", &[("verify", &body)]), "verify", &world, &limits).await;
    assert_eq!(stop, Stop::HostCalls { limit: 5_000 });
    assert_eq!(world.most_open.load(SeqCst), 256);
    assert_eq!(
        world.asked.load(SeqCst),
        256,
        "the server is not asked beyond the limit"
    );
    assert_eq!(world.open.load(SeqCst), 0, "all are closed with the call");
}

#[tokio::test]
async fn listings_never_dropped() {
    let body = "(loop $l (call $walk (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 2048)) (global.set $top (i32.const 65536)) (br $l)) (unreachable)";
    let world = Fake::new();
    let limits = Limits {
        host_calls: 5_000,
        cpu: Duration::from_secs(60),
        ..limits()
    };
    let stop = stopped_with(&guest("", &[("verify", body)]), "verify", &world, &limits).await;
    assert_eq!(stop, Stop::HostCalls { limit: 5_000 });
    assert_eq!((world.most_open.load(SeqCst), world.open.load(SeqCst)), (256, 0));
}

#[tokio::test]
async fn large_buffers_behind_few_handles() {
    let body = format!("(loop $l {QUERY} (global.set $top (i32.const 65536)) (br $l)) (unreachable)");
    let world = Arc::new(Fake {
        held: 1 << 20,
        ..Fake::default()
    });
    let limits = Limits {
        host_calls: 100,
        cpu: Duration::from_secs(60),
        ..limits()
    };
    stopped_with(&guest("", &[("verify", &body)]), "verify", &world, &limits).await;
    // Sixteen are kept; the one too many is opened, weighed and closed again.
    assert!(world.most_open.load(SeqCst) <= 17, "{}", world.most_open.load(SeqCst));
}

#[tokio::test]
async fn handles_of_its_own_making() {
    for forged in ["0", "1", "12345", "-1"] {
        let body = format!("(call $next (i32.const {forged}) (i32.const 1) (i32.const 2048)) (i32.const 1024)");
        let stop = stopped(&guest("", &[("verify", &body)]), "verify").await;
        assert!(matches!(stop, Stop::Trap(_)), "{stop:?}");
    }
}

#[tokio::test]
async fn a_handle_dropped_twice() {
    let body = format!(
        "{QUERY} (call $drop-rows (i32.load (i32.const 2052))) (call $drop-rows (i32.load (i32.const 2052))) (i32.const 1024)"
    );
    let stop = stopped(&guest("", &[("verify", &body)]), "verify").await;
    assert!(matches!(stop, Stop::Trap(_)), "{stop:?}");
}

/// Reads one query to its end, page by page, and fails when told so by the host.
fn reads_all(rows: u32) -> Vec<u8> {
    let body = format!(
        "{QUERY} (loop $l (call $next (i32.load (i32.const 2052)) (i32.const {rows}) (i32.const 2064))
           (global.set $top (i32.const 65536))
           (br_if $l (i32.eqz (i32.load8_u (i32.const 2064)))))
         ;; the second byte says which error: 2 is `limit`
         (if (i32.eq (i32.load8_u (i32.const 2068)) (i32.const 2)) (then (return (i32.const 1024))))
         (unreachable)"
    );
    guest("", &[("verify", &body)])
}

#[tokio::test]
async fn more_rows_than_allowed() {
    let world = Fake::new();
    let limits = Limits {
        rows: 5_000,
        cpu: Duration::from_secs(60),
        ..limits()
    };
    call(&load(&reads_all(u32::MAX >> 1)), "verify", &world, &limits)
        .await
        .unwrap();
    assert_eq!(
        world.rows_given.load(SeqCst),
        5_001,
        "one beyond, to see that there is more"
    );
    host_lives().await;
}

#[tokio::test]
async fn more_bytes_than_allowed() {
    let world = Arc::new(Fake {
        row_bytes: 100_000,
        ..Fake::default()
    });
    let limits = Limits {
        looked_at: 4 << 20,
        cpu: Duration::from_secs(60),
        ..limits()
    };
    call(&load(&reads_all(1_000)), "verify", &world, &limits).await.unwrap();
    let given = world.bytes_given.load(SeqCst);
    assert!(given > 3 << 20 && given < 6 << 20, "{given}");
}

#[tokio::test]
async fn a_row_larger_than_any_page() {
    let world = Arc::new(Fake {
        row_bytes: 40 << 20,
        ..Fake::default()
    });
    call(&load(&reads_all(1)), "verify", &world, &limits()).await.unwrap();
    assert_eq!(world.rows_given.load(SeqCst), 1);
}

#[tokio::test]
async fn files_read_again_and_again() {
    let body =
        "(loop $l (call $read (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const -1) (i32.const 2048))
        (global.set $top (i32.const 65536)) (br_if $l (i32.eqz (i32.load8_u (i32.const 2048))))) (i32.const 1024)";
    let world = Fake::new();
    let limits = Limits {
        cpu: Duration::from_secs(60),
        ..limits()
    };
    call(&load(&guest("", &[("verify", body)])), "verify", &world, &limits)
        .await
        .unwrap();
    assert!(
        world.bytes_given.load(SeqCst) <= (65 << 20),
        "each at most 1 MiB, 64 MiB in all"
    );
}

#[tokio::test]
async fn too_many_paths_at_once() {
    // A list of 1,001 empty strings: the host refuses it, and asks nobody.
    let body = "(call $look (i32.const 0) (i32.const 0) (i32.const 4096) (i32.const 1001) (i32.const 2048))
        (if (i32.eqz (i32.load8_u (i32.const 2048))) (then (unreachable))) (i32.const 1024)";
    let world = Fake::new();
    call(&load(&guest("", &[("verify", body)])), "verify", &world, &limits())
        .await
        .unwrap();
    assert_eq!(world.asked.load(SeqCst), 0);
}

fn logs(message: &str, length: usize, times: u32) -> Vec<u8> {
    let extra = format!("(data (i32.const 4096) \"{message}\") (global $i (mut i32) (i32.const 0))");
    let body = format!(
        "(loop $l (call $log (i32.const 1) (i32.const 4096) (i32.const {length}))
           (global.set $i (i32.add (global.get $i) (i32.const 1)))
           (br_if $l (i32.lt_u (global.get $i) (i32.const {times})))) (i32.const 1024)"
    );
    guest(&extra, &[("verify", &body)])
}

#[tokio::test]
async fn log_flood() {
    let world = Fake::new();
    let limits = Limits {
        cpu: Duration::from_secs(60),
        ..limits()
    };
    call(&load(&logs("noise", 5, 100_000)), "verify", &world, &limits)
        .await
        .unwrap();
    let lines = world.lines();
    assert_eq!(lines.len(), 1_001);
    assert!(lines[1_000].1.contains("log budget is used up"), "{:?}", lines[1_000]);
    host_lives().await;
}

#[tokio::test]
async fn log_flood_of_long_lines() {
    let world = Fake::new();
    let limits = Limits {
        cpu: Duration::from_secs(60),
        ..limits()
    };
    let stop = stopped_with(&logs("x", 100_000, 1_000_000), "verify", &world, &limits).await;
    assert_eq!(stop, Stop::LogFlood);
    let lines = world.lines();
    assert!(
        lines.iter().all(|(_, l)| l.len() <= 1_027),
        "no line is longer than 1 KiB and its mark"
    );
    assert!(lines.iter().map(|(_, l)| l.len() as u64).sum::<u64>() <= Limits::default().log + 1_024);
}

#[tokio::test]
async fn terminal_escapes_in_the_log() {
    let world = Fake::new();
    call(
        &load(&logs("\\1b[2J\\1b]0;x\\07a\\0d\\0ab\\c2\\9b31m", 19, 1)),
        "verify",
        &world,
        &limits(),
    )
    .await
    .unwrap();
    let line = &world.lines()[0].1;
    assert!(!line.chars().any(char::is_control), "{line:?}");
    assert!(line.contains("a\u{fffd}\u{fffd}b"), "{line:?}");
}

#[tokio::test]
async fn text_that_is_not_utf8() {
    let stop = stopped(&logs("\\ff\\fe", 2, 1), "verify").await;
    assert!(matches!(&stop, Stop::Trap(t) if t.contains("utf-8")), "{stop:?}");
}

#[tokio::test]
async fn text_outside_of_its_memory() {
    for (at, length) in [("-2", "1"), ("131071", "2"), ("0", "-1")] {
        let body = format!("(call $log (i32.const 1) (i32.const {at}) (i32.const {length})) (i32.const 1024)");
        let stop = stopped(&guest("", &[("verify", &body)]), "verify").await;
        assert!(
            matches!(&stop, Stop::Trap(t) if t.contains("out of bounds")),
            "{stop:?}"
        );
    }
}

#[tokio::test]
async fn a_log_level_that_does_not_exist() {
    let body = "(call $log (i32.const 77) (i32.const 0) (i32.const 0)) (i32.const 1024)";
    let stop = stopped(&guest("", &[("verify", body)]), "verify").await;
    assert!(matches!(&stop, Stop::Trap(_)), "{stop:?}");
}

#[tokio::test]
async fn calls_back_into_the_host_while_the_host_asks_for_memory() {
    let realloc = r#"(func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
        (call $log (i32.const 0) (i32.const 0) (i32.const 0)) (i32.const 4096))"#;
    let stop = stopped(&guest(realloc, &[]), "verify").await;
    assert!(
        matches!(&stop, Stop::Trap(t) if t.contains("cannot leave component")),
        "{stop:?}"
    );
}

#[tokio::test]
async fn gives_the_host_memory_it_does_not_have() {
    let realloc = r#"(func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const -8))"#;
    let stop = stopped(&guest(realloc, &[]), "verify").await;
    assert!(matches!(&stop, Stop::Trap(_)), "{stop:?}");
}

#[tokio::test]
async fn traps_of_every_sort_mid_call() {
    let extra = "(table $t 2 funcref)";
    for body in [
        "(i32.div_u (i32.const 1) (i32.const 0))",
        "(i32.load (i32.const -4))",
        "(call_indirect $t (result i32) (i32.const 1))",
        "(call_indirect $t (result i32) (i32.const 9))",
        "(i32.trunc_f32_s (f32.const nan))",
    ] {
        let body = format!("{QUERY} {body}");
        let world = Fake::new();
        let stop = stopped_with(&guest(extra, &[("verify", &body)]), "verify", &world, &limits()).await;
        assert!(matches!(&stop, Stop::Trap(_)), "{body}: {stop:?}");
        assert_eq!(world.open.load(SeqCst), 0, "what was open is closed");
    }
    let stop = stopped(&guest(extra, &[("verify", "(unreachable)")]), "verify").await;
    assert_eq!(stop, Stop::Unreachable);
}

/// A `plan-backup` of one note whose text begins at `at`.
fn noted(extra: &str, at: u32, length: u32) -> Vec<u8> {
    // result: ok at 2048; list of steps at 2052/2056; one step at 3072 (align 4): discriminant 4 = note;
    // payload at +4: severity u8, text pointer at +8, length at +12.
    let body = format!(
        "(i32.store (i32.const 2052) (i32.const 3072)) (i32.store (i32.const 2056) (i32.const 1))
         (i32.store8 (i32.const 3072) (i32.const 4))
         (i32.store (i32.const 3080) (i32.const {at})) (i32.store (i32.const 3084) (i32.const {length}))
         (i32.const 2048)"
    );
    guest(extra, &[("plan-backup", &body)])
}

#[tokio::test]
async fn a_plan_with_an_endless_text() {
    let stop = stopped(
        &noted("(memory (export \"memory\") 1000)", 4096, 60 << 20),
        "plan-backup",
    )
    .await;
    assert_eq!(stop, Stop::HandedOver { limit: limits().held });
}

#[tokio::test]
async fn a_plan_with_a_text_larger_than_results_may_be() {
    let component = load(&noted("(memory (export \"memory\") 300)", 4096, 9 << 20));
    let error = call(&component, "plan-backup", &Fake::new(), &limits())
        .await
        .unwrap_err();
    assert!(
        matches!(&error, SandboxError::BadResult { problem, .. } if problem.contains("8.0 MiB")),
        "{error}"
    );
    host_lives().await;
}

#[tokio::test]
async fn terminal_escapes_in_a_plan() {
    let component = load(&noted("(data (i32.const 4096) \"\\1b[2Jgone\\0a\\07\")", 4096, 10));
    let plan = call(&component, "plan-backup", &Fake::new(), &limits()).await.unwrap();
    assert!(plan.contains("\u{fffd}[2Jgone\\n\u{fffd}"), "{plan}");
}

#[tokio::test]
async fn a_plan_with_endless_steps() {
    let body = "(i32.store (i32.const 2052) (i32.const 65536)) (i32.store (i32.const 2056) (i32.const 1500000)) (i32.const 2048)";
    let wasm = guest("(memory (export \"memory\") 1000)", &[("plan-backup", body)]);
    assert_eq!(
        stopped(&wasm, "plan-backup").await,
        Stop::HandedOver { limit: limits().held }
    );
}

#[tokio::test]
async fn a_plan_with_more_steps_than_results_may_have() {
    let body =
        "(i32.store (i32.const 2052) (i32.const 65536)) (i32.store (i32.const 2056) (i32.const 5000)) (i32.const 2048)";
    let wasm = guest("(memory (export \"memory\") 100)", &[("plan-backup", body)]);
    let limits = Limits {
        result_items: 4_000,
        ..limits()
    };
    let error = call(&load(&wasm), "plan-backup", &Fake::new(), &limits)
        .await
        .unwrap_err();
    assert!(
        matches!(&error, SandboxError::BadResult { problem, .. } if problem.contains("4000 items")),
        "{error}"
    );
}

#[tokio::test]
async fn a_list_that_ends_outside_of_its_memory() {
    let body = "(i32.store (i32.const 2052) (i32.const 65536)) (i32.store (i32.const 2056) (i32.const 100000000)) (i32.const 2048)";
    let stop = stopped(&guest("", &[("plan-backup", body)]), "plan-backup").await;
    assert!(
        matches!(&stop, Stop::Trap(t) if t.contains("out of bounds") || t.contains("out-of-bounds")),
        "{stop:?}"
    );
}

#[tokio::test]
async fn a_result_at_a_crooked_address() {
    let stop = stopped(&guest("", &[("plan-backup", "(i32.const 1021)")]), "plan-backup").await;
    assert!(matches!(&stop, Stop::Trap(t) if t.contains("aligned")), "{stop:?}");
}

#[tokio::test]
async fn a_result_of_no_known_case() {
    let body = "(i32.store8 (i32.const 2048) (i32.const 9)) (i32.const 2048)";
    let stop = stopped(&guest("", &[("plan-backup", body)]), "plan-backup").await;
    assert!(matches!(&stop, Stop::Trap(_)), "{stop:?}");
}

#[tokio::test]
async fn labels_that_are_none() {
    // A copy-sqlite step (1) whose label is a path, empty, or has escapes.
    for (label, length) in [("../../etc", 9), ("", 0), ("a\\1b[2J", 5), ("Main", 4), ("a b", 3)] {
        let body = format!(
            "(i32.store (i32.const 2052) (i32.const 3072)) (i32.store (i32.const 2056) (i32.const 1))
             (i32.store8 (i32.const 3072) (i32.const 1))
             (i32.store (i32.const 3076) (i32.const 4096)) (i32.store (i32.const 3080) (i32.const {length}))
             (i32.const 2048)"
        );
        let wasm = guest(
            &format!("(data (i32.const 4096) \"{label}\")"),
            &[("plan-backup", &body)],
        );
        let error = call(&load(&wasm), "plan-backup", &Fake::new(), &limits())
            .await
            .unwrap_err();
        assert!(
            matches!(&error, SandboxError::BadResult { problem, .. } if problem.contains("label")),
            "{error}"
        );
        assert!(!error.to_string().chars().any(char::is_control));
    }
    host_lives().await;
}

#[tokio::test]
async fn an_error_of_its_own_is_its_own() {
    // err(unsupported("old\x1b"))
    let body = "(i32.store8 (i32.const 2048) (i32.const 1)) (i32.store8 (i32.const 2052) (i32.const 1))
        (i32.store (i32.const 2056) (i32.const 4096)) (i32.store (i32.const 2060) (i32.const 4)) (i32.const 2048)";
    let wasm = guest("(data (i32.const 4096) \"old\\1b\")", &[("plan-backup", body)]);
    let error = call(&load(&wasm), "plan-backup", &Fake::new(), &limits())
        .await
        .unwrap_err();
    assert!(matches!(&error, SandboxError::Guest { .. }), "{error:?}");
    assert_eq!(
        error.to_string(),
        "component culprit: plan-backup: not a system this component knows how to serve: old\u{fffd}"
    );
}

#[tokio::test]
async fn nothing_is_kept_from_call_to_call() {
    // It remembers in a global that it was called; the next call must not see it.
    let extra = "(global $seen (mut i32) (i32.const 0))";
    let body = "(if (global.get $seen) (then (unreachable))) (global.set $seen (i32.const 1)) (i32.const 1024)";
    let component = load(&guest(extra, &[("verify", body)]));
    for _ in 0..3 {
        call(&component, "verify", &Fake::new(), &limits()).await.unwrap();
    }
}

#[tokio::test]
async fn describe_is_shown_nothing() {
    let body = format!("{QUERY} (if (i32.eqz (i32.load8_u (i32.const 2048))) (then (unreachable))) (i32.const 1024)");
    let world = Fake::new();
    call(&load(&guest("", &[("describe", &body)])), "describe", &world, &limits())
        .await
        .unwrap();
    assert_eq!(world.asked.load(SeqCst), 0);
}
