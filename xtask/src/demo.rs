//! (room under construction)
use crate::shell::{Problem, Result};
pub fn run() -> Result {
    Err(Problem::Other("not there yet".into()))
}
