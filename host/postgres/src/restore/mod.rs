//! A database out of a backup, beside the live one, then in its place.
//!
//! Four steps that can be seen and stopped between: [`plan`] checks what must hold before anything is touched;
//! [`execute`] builds a new database under a scratch name; the caller verifies it; [`swap`] renames the live one away
//! and the new one in, in one transaction. A drill is the same without the swap.
//!
//! It promises: the live database is not written to, ever, and not renamed before `swap`; the first failure stops; a
//! scratch database whose maker died is found by [`list_leftovers`]. A stopped restore can be gone on with
//! ([`RestoreOptions::resume`]): what it did is proved against the backup, not believed.

mod build;
mod checks;
mod define;
mod definitions;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use definitions::fuzz_definitions;
#[cfg(any(test, feature = "fuzzing"))]
mod facts_fuzz;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use facts_fuzz::run as fuzz_facts;
mod journal;
mod leftovers;
mod load;
mod lock;
#[cfg(any(test, feature = "fuzzing"))]
mod marks_fuzz;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use marks_fuzz::run as fuzz_marks;
mod plan;
mod pool;
mod proof;
mod restored;
mod scratch;
mod service;
mod swap;

pub use build::execute;
pub use journal::Origin;
pub use leftovers::{Leftover, drop_leftover, list_leftovers};
pub use plan::{Finding, RestoreOptions, RestorePlan, Severity, plan};
pub use restored::{RestoreReport, Restored};
pub use scratch::Purpose;
pub use swap::{SwapOptions, Swapped, swap, swap_ready};
