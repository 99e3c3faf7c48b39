//! A MAS without MAS: its database with the real tables, and its configuration. The server itself is not on any package
//! registry tests could install it from; what a backup sees of it is this.

use crate::postgres::Cluster;
use crate::python::Environment;
use crate::synapse::Database;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A database and a configuration folder.
pub struct Mas {
    pub database: Database,
    pub config: PathBuf,
}

impl Mas {
    /// Makes both; the client secret in the database is sealed with the key in the configuration.
    pub fn create(cluster: &Cluster, root: &Path) -> Mas {
        let database = Database {
            host: "127.0.0.1".to_owned(),
            port: cluster.port(),
            user: "mas_user".to_owned(),
            password: hex::encode(rand::random::<[u8; 8]>()),
            name: "mas".to_owned(),
        };
        let role = format!("CREATE ROLE mas_user LOGIN CREATEDB PASSWORD '{}'", database.password);
        cluster.psql("postgres", &role).expect("creating MAS's role");
        cluster
            .psql(
                "postgres",
                "CREATE DATABASE mas OWNER mas_user ENCODING 'UTF8' LOCALE 'C' TEMPLATE template0",
            )
            .expect("creating MAS's database");
        let key = hex::encode(rand::random::<[u8; 32]>());
        let schema = format!(
            "SET ROLE mas_user;\n{}\nINSERT INTO oauth2_clients (oauth2_client_id, client_name, encrypted_client_secret) \
             VALUES (gen_random_uuid(), 'confidential', '{}');\n",
            include_str!("mas.sql"),
            seal(&key, "the client's secret")
        );
        cluster.psql_script("mas", &schema).expect("making MAS's tables");
        let config = root.join("config");
        std::fs::create_dir_all(&config).expect("a folder for MAS's configuration");
        std::fs::write(
            config.join("config.yaml"),
            format!(
                "database:\n  uri: {}\nsecrets:\n  encryption: {key}\nmatrix:\n  kind: synapse\n  secret: shared\n",
                database.url()
            ),
        )
        .expect("writing MAS's configuration");
        Mas { database, config }
    }
}

/// ChaCha20-Poly1305 as MAS does it: base64 of nonce and ciphertext.
fn seal(key: &str, plain: &str) -> String {
    let program = "import base64, os, sys\n\
         from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305\n\
         nonce = os.urandom(12)\n\
         sealed = ChaCha20Poly1305(bytes.fromhex(sys.argv[1])).encrypt(nonce, sys.argv[2].encode(), None)\n\
         print(base64.b64encode(nonce + sealed).decode())";
    let output = Command::new(Environment::Synapse.python())
        .args(["-c", program, key, plain])
        .output()
        .expect("python");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
