//! A database out of a backup, beside the live one, then in its place.
//!
//! Four steps that can be seen and stopped between: [`plan`] checks what must hold before anything is touched;
//! [`execute`] builds a new database under a scratch name; the caller verifies it; [`swap`] renames the live one away
//! and the new one in, in one transaction. A drill is the same without the swap.
//!
//! It promises: the live database is not written to, ever, and not renamed before `swap`; the first failure stops and
//! drops the scratch database; a scratch database whose maker died is found by [`list_leftovers`].

mod build;
mod checks;
mod definitions;
mod load;
mod plan;
mod scratch;
mod swap;

pub use build::execute;
pub use plan::{Finding, RestoreOptions, RestorePlan, Severity, plan};
pub use scratch::{Leftover, Purpose, RestoreReport, Restored, drop_leftover, list_leftovers};
pub use swap::{SwapOptions, Swapped, swap};
