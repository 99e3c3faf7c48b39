//! One value on its way to or from a guest.

use bytes::BytesMut;
use serde::{Deserialize, Serialize};
use tokio_postgres::types::{Format, IsNull, ToSql, Type};

/// One value. Other types are given as text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cell {
    Null,
    Boolean(bool),
    /// smallint, integer, bigint, oid
    Integer(i64),
    /// real, double precision
    Real(f64),
    /// text, varchar, char, name, uuid, json, jsonb, numeric, date and time types, as text
    Text(String),
    /// bytea
    Bytes(Vec<u8>),
}

impl Cell {
    /// About how many bytes it holds.
    pub fn size(&self) -> usize {
        match self {
            Cell::Null | Cell::Boolean(_) => 1,
            Cell::Integer(_) | Cell::Real(_) => 8,
            Cell::Text(text) => text.len(),
            Cell::Bytes(bytes) => bytes.len(),
        }
    }
}

/// Parameters go as text, so that the server reads them as whatever type the query needs: a text for a timestamp.
impl ToSql for Cell {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        let text = match self {
            Cell::Null => return Ok(IsNull::Yes),
            Cell::Boolean(b) => (if *b { "t" } else { "f" }).to_owned(),
            Cell::Integer(i) => i.to_string(),
            Cell::Real(r) if r.is_nan() => "NaN".to_owned(),
            Cell::Real(r) if r.is_infinite() => (if *r > 0.0 { "Infinity" } else { "-Infinity" }).to_owned(),
            Cell::Real(r) => format!("{r:?}"),
            Cell::Text(text) => text.clone(),
            Cell::Bytes(bytes) => bytes.iter().fold(String::from("\\x"), |mut text, b| {
                use std::fmt::Write;
                let _ = write!(text, "{b:02x}");
                text
            }),
        };
        out.extend_from_slice(text.as_bytes());
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        Format::Text
    }

    fn to_sql_checked(
        &self,
        ty: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        self.to_sql(ty, out)
    }
}
