//! What was promised to authors: a component built against a released contract goes on working with this host.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use essrun_testkit::essrun::Essrun;
use essrun_testkit::workspace;

#[test]
fn a_component_of_0_1_0_loads_and_answers_as_it_always_did() {
    let frozen = workspace().join("tests/frozen");
    let size = std::fs::metadata(frozen.join("plugin-0.1.0.wasm")).unwrap().len();
    assert!(size < 200 * 1024, "{size} bytes are much for a file that stays in git");
    let essrun = Essrun::in_dir(&frozen);
    let looked = essrun
        .run_json(&["plugin", "inspect", "plugin-0.1.0.wasm"])
        .expect_success();
    assert_eq!(looked.events[0]["plugin"]["contract"], "0.1.0");
    for import in ["database", "volume", "settings", "log"] {
        let name = format!("ess:inspect/{import}@0.1.0");
        let imports = looked.events[0]["plugin"]["imports"].as_array().unwrap();
        assert!(imports.iter().any(|i| i == &name), "it does not use {name}");
    }
    let args = [
        "plugin",
        "test",
        "plugin-0.1.0.wasm",
        "world.toml",
        "--expect",
        "golden-0.1.0.json",
    ];
    let answered = essrun.run(&args).expect_success();
    assert!(answered.stdout.contains("as expected"), "{answered}");
    // The comparison would notice: another world gives other answers.
    let dir = tempfile::tempdir().unwrap();
    let other = std::fs::read_to_string(frozen.join("world.toml"))
        .unwrap()
        .replace("blue", "green");
    std::fs::write(dir.path().join("world.toml"), other).unwrap();
    let world = dir.path().join("world.toml");
    let args = [
        "plugin",
        "test",
        "plugin-0.1.0.wasm",
        world.to_str().unwrap(),
        "--expect",
        "golden-0.1.0.json",
    ];
    essrun.run(&args).expect_code(8).expect_stderr(&["green"]);
}
