//! Every rule of the component.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use essrun_component_integrator::Integrator;
use essrun_guest::mock::{Database, Volume, World};
use essrun_guest::prelude::*;
use essrun_guest::{Artifact, BackupStep};

fn world(rows: u64) -> World {
    World::new()
        .database(
            "main",
            Database::postgres().table("public.Widget Settings", &["id"], 2).table(
                "public.dimension_scalar_tokens",
                &["token"],
                rows,
            ),
        )
        .volume("config", Volume::new().file("dimension.bot.json", "{}"))
}

#[test]
fn all_is_taken_compared_and_its_tokens_end_after_a_leak() {
    let table = |name: &str, n| Artifact {
        name: format!("main/public.{name}"),
        kind: "postgres-table".into(),
        items: Some(n),
        size_bytes: 1,
    };
    let view = BackupView {
        id: "b".into(),
        taken_at_unix_seconds: 0,
        component_version: String::new(),
        facts: vec![],
        artifacts: vec![table("dimension_scalar_tokens", 3), table("Widget Settings", 2)],
    };
    let plan = world(3).run(Integrator::plan_backup).unwrap();
    assert!(matches!(
        &plan.steps[..],
        [BackupStep::DumpDatabase(_), BackupStep::ArchiveVolume(_)]
    ));
    let verify = |rows| world(rows).run(|| Integrator::verify(&view)).unwrap()[0].severity;
    assert_eq!(verify(3), Severity::Info);
    assert_eq!(verify(2), Severity::Error);
    let plan = world(3).run(|| Integrator::respond(&view)).unwrap();
    assert!(
        matches!(&plan.steps[0], IncidentStep::RunSql(s) if s.sql == "DELETE FROM public.dimension_scalar_tokens WHERE TRUE")
    );
    assert!(plan.steps.len() > 1);
    let no_config = World::new().database("main", Database::sqlite());
    let plan = no_config.run(Integrator::plan_backup).unwrap();
    assert!(matches!(&plan.steps[0], BackupStep::CopySqlite(_)));
    assert!(plan.notes().any(|n| n.text.contains("no `config`")));
}
