//! Opens the sources and asks every component for its plan; begins again when a table vanished under the snapshot.
//!
//! Synapse drops tables of its own while it runs (its background updates keep notes in some), and a migration may be
//! under way. Between a snapshot and its locks such a table can go. Then nothing is wrong with the source or the plan,
//! only with the moment: the whole group's snapshots are taken again, a few times.

use super::open::{self, Sources};
use super::plan;
use crate::config::Pipeline;
use crate::error::PipelineError;
use crate::load::Loaded;
use crate::peers;
use crate::report::Reporter;
use std::time::Duration;

const TRIES: u32 = 5;

/// Sources open, plans made, tables locked for reading.
pub async fn all(
    pipeline: &Pipeline,
    mut loaded: Vec<Loaded>,
    reporter: &dyn Reporter,
) -> Result<Sources, PipelineError> {
    for tried in 1.. {
        let mut sources = open::sources(pipeline, loaded, reporter).await?;
        let mut again = false;
        for one in sources.components.iter_mut().filter(|c| c.failed.is_none()) {
            match plan::ask(one, &sources.groups, pipeline.run.takers).await {
                Ok(()) => peers::record(one, pipeline, &sources.instants),
                Err(PipelineError::Changed { what, problem }) if tried < TRIES => {
                    tracing::info!("{what}: {problem}");
                    again = true;
                    break;
                }
                Err(e) => one.fail(&e, reporter),
            }
        }
        if !again {
            return Ok(sources);
        }
        loaded = sources.components.into_iter().map(|c| c.loaded).collect();
        tokio::time::sleep(Duration::from_millis(200) * tried).await;
    }
    Err(PipelineError::Internal("tries ended without a result".into()))
}
