//! What a person at a terminal sees, and is asked: essrun under `script`, which gives it a terminal of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use essrun_testkit::site::Site;
use std::io::Write;
use std::process::{Command, Stdio};

/// Runs essrun with a terminal; gives its exit code and all that was on the screen.
fn at_a_terminal(site: &Site, args: &[&str], typed: &str) -> (Option<i32>, String) {
    let essrun = site.essrun().command(args);
    let words = std::iter::once(essrun.get_program()).chain(essrun.get_args());
    let line: Vec<String> = words
        .map(|w| format!("'{}'", w.to_str().unwrap().replace('\'', "'\\''")))
        .collect();
    let mut script = Command::new("script");
    script
        .args(["-q", "-e", "-c", &line.join(" "), "/dev/null"])
        .current_dir(site.path())
        .env("SHELL", "/bin/sh")
        .env("TERM", "xterm")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit());
    for (name, value) in essrun.get_envs() {
        match value {
            Some(value) => script.env(name, value),
            None => script.env_remove(name),
        };
    }
    let mut child = script
        .spawn()
        .expect("script, of bsdutils, which every Debian has; `cargo xtask setup` says what else is missing");
    // Kept open until it ends: a terminal does not hang up by itself.
    let mut keyboard = child.stdin.take().unwrap();
    keyboard.write_all(typed.as_bytes()).unwrap();
    let output = std::thread::spawn(move || {
        let mut screen = Vec::new();
        std::io::Read::read_to_end(&mut child.stdout.take().unwrap(), &mut screen).unwrap();
        (child.wait().unwrap(), screen)
    });
    let (status, screen) = output.join().unwrap();
    drop(keyboard);
    (status.code(), String::from_utf8_lossy(&screen).into_owned())
}

#[test]
fn bars_and_the_result_are_shown_and_a_restore_asks() {
    let mut site = Site::create();
    site.database("shop");
    site.fill(
        "shop",
        "CREATE TABLE item (id int PRIMARY KEY, name text);\n\
         INSERT INTO item SELECT n, 'item ' || n FROM generate_series(1, 50000) n;",
    );
    site.prepare("[components.shop]\nuse = \"generic\"\ndatabases.main = { url-env = \"SHOP_DB\" }\n");

    let (code, screen) = at_a_terminal(&site, &["pipeline.toml"], "");
    assert_eq!(code, Some(0), "{screen}");
    let bar = screen
        .split(['\r', '\n'])
        .find(|l| l.contains("shop/main/public.item") && (l.contains('░') || l.contains('█')));
    assert!(bar.is_some(), "no bar is in\n{screen}");
    let list = site.essrun().run_json(&["list", "pipeline.toml"]).expect_success();
    let id = list.events[0]["id"].as_str().unwrap();
    let after = &screen[screen.rfind('█').or(screen.rfind('░')).unwrap()..];
    assert!(
        after.contains(id),
        "the result does not stand after the bars in\n{screen}"
    );

    // Without a terminal there is no bar, and nobody to ask.
    let plain = site.essrun().run(&["pipeline.toml"]).expect_success();
    assert!(!format!("{plain}").contains(['░', '█']), "{plain}");
    site.drop_database("shop");
    let restore = ["restore", "pipeline.toml", "--identity", "elsewhere/identity.txt"];
    site.essrun()
        .run(&restore)
        .expect_code(4)
        .expect_stderr(&["not confirmed"]);
    let (code, screen) = at_a_terminal(&site, &restore, "n\n");
    assert_eq!(code, Some(4), "{screen}");
    assert!(screen.contains("[y/N]") && screen.contains("not confirmed"), "{screen}");
    assert!(!site.databases().contains(&"shop".to_owned()), "{screen}");
    let (code, screen) = at_a_terminal(&site, &restore, "y\n");
    assert_eq!(code, Some(0), "{screen}");
    assert_eq!(site.sql("shop", "SELECT count(*) FROM item"), "50000");
}
