//! A database named by a libpq service, from the first look to the restored database: essrun's own connections and those
//! of the `pg_dump` it runs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use essrun_testkit::site::Site;

const CONFIG: i32 = 3;

#[test]
fn a_service_is_connected_to_backed_up_and_restored() {
    let mut site = Site::create();
    let shop = site.database("shop");
    site.fill(
        "shop",
        "CREATE TABLE item (id int PRIMARY KEY); INSERT INTO item SELECT generate_series(1, 1000);",
    );
    // All that is needed stands in the file, the password too; the other section must not be taken.
    let services = format!(
        "# ours\n[other]\nhost=127.0.0.1\nport=1\ndbname=nothing\n\n[the-shop]\nhost={}\nport={}\ndbname={}\nuser={}\npassword={}\n",
        shop.host, shop.port, shop.name, shop.user, shop.password
    );
    let file = site.path().join("pg_service.conf");
    std::fs::write(&file, services).unwrap();
    site.set_env("PGSERVICEFILE", file.to_str().unwrap());
    site.prepare("[components.shop]\nuse = \"generic\"\ndatabases.main = { service = \"the-shop\" }\n");
    site.essrun().run(&["validate", "pipeline.toml"]).expect_success();
    site.back_up().expect_success();

    site.drop_database("shop");
    site.with_identity("restore", &["--yes"]).expect_success();
    assert_eq!(site.sql("shop", "SELECT count(*), max(id) FROM item"), "1000|1000");

    // One that is not there is said by its name.
    let text = std::fs::read_to_string(site.path().join("pipeline.toml")).unwrap();
    std::fs::write(site.path().join("pipeline.toml"), text.replace("the-shop", "no-shop")).unwrap();
    site.essrun()
        .run(&["validate", "pipeline.toml"])
        .expect_code(CONFIG)
        .expect_stderr(&["no-shop", "PGSERVICEFILE"]);
}
