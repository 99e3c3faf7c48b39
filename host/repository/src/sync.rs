//! Bringing the local chunk index up to what the store holds.
//!
//! Only packs that the store lists under their full name, size included, and that have an index, may be relied on. A
//! pack that was deleted or truncated is therefore stored anew by the next backup: the repository mends itself as far
//! as the sources still have the data.

use crate::RepositoryError;
use crate::core::Core;
use crate::envelope::{self, Header};
use crate::index_object::{self, INDEX_LIMIT, PackIndex};
use crate::names::{Hash, IndexName, PackName};
use bytes::Bytes;
use essrun_store::Cause;
use futures_util::{StreamExt, TryStreamExt};
use std::collections::{HashMap, HashSet};

/// Index objects entered in one transaction.
const BATCH: usize = 16;

/// Fetches, opens and checks one index object.
pub(crate) async fn read_index(core: &Core, name: &IndexName) -> Result<PackIndex, RepositoryError> {
    Ok(read_index_sealed(core, name).await?.0)
}

/// The same, and the header of the envelope it lies in.
pub(crate) async fn read_index_sealed(
    core: &Core,
    name: &IndexName,
) -> Result<(PackIndex, Result<Header, String>), RepositoryError> {
    let object = name.object()?;
    let bytes = core.get_summed(&object).await?;
    let (identities, id, trusted) = (core.identities.clone(), core.config.id.clone(), core.trusted.clone());
    let wanted = name.clone();
    let text = object.to_string();
    core.compute(move || {
        let plain = Bytes::from(envelope::open(&text, &identities, &bytes, INDEX_LIMIT)?);
        let writers: Vec<_> = trusted.into_iter().filter(|w| w.id() == wanted.writer).collect();
        let index = index_object::decode(&text, &plain, &id, &writers)?;
        if !index.is_for(&wanted.pack) {
            return Err(RepositoryError::damaged(&text, "it is the index of another pack"));
        }
        Ok((index, Header::parse(&bytes)))
    })
    .await
}

/// Enters index objects in the local index. `strict`: one that cannot be read is an error rather than a warning.
async fn take_in(core: &Core, names: Vec<IndexName>, strict: bool) -> Result<(), RepositoryError> {
    let index = core.index()?;
    let mut found = futures_util::stream::iter(names)
        .map(|name| async move {
            match read_index(core, &name).await {
                Ok(index) => Ok(Some((index, name.object()?.to_string()))),
                Err(e) if !strict && leaves_the_rest(&e) => {
                    tracing::warn!(error = %e, "an index is left out; what it names is stored anew");
                    Ok(None)
                }
                Err(e) => Err(e),
            }
        })
        .buffer_unordered(8)
        .try_filter_map(|found| futures_util::future::ready(Ok(found)))
        .try_chunks(BATCH);
    while let Some(batch) = found.next().await {
        let batch = batch.map_err(|e| e.1)?;
        let index = index.clone();
        core.compute(move || index.add(&batch).map(drop)).await?;
    }
    Ok(())
}

/// Whether an index that cannot be read says nothing of the others.
fn leaves_the_rest(e: &RepositoryError) -> bool {
    match e {
        RepositoryError::Damaged { .. } | RepositoryError::Key { .. } => true,
        RepositoryError::Store(e) => e.cause == Cause::Missing,
        _ => false,
    }
}

/// The packs a new backup may rely on, by their number in the local index.
pub(crate) async fn own_packs(core: &Core) -> Result<HashSet<u32>, RepositoryError> {
    core.writer()?;
    let index = core.index()?;
    // Before the store is looked at: what another run enters meanwhile must not be taken for gone.
    let mut known = index.numbers()?;
    // About to be deleted, or found damaged: still known, for readers, but not to be relied on.
    let marked = crate::prune::marked(core).await?;
    let mut indexed: HashMap<Hash, Vec<(String, IndexName)>> = HashMap::new();
    for writer in core.own_writers() {
        for info in core.store.list(&format!("index/{writer}")).await? {
            if let Some(name) = IndexName::parse(info.name.as_str())
                && name.sum.bytes == info.bytes
            {
                indexed
                    .entry(name.pack)
                    .or_default()
                    .push((info.name.to_string(), name));
            }
        }
    }
    let mut there: HashSet<Hash> = HashSet::new();
    for domain in ["data", "meta"] {
        for info in core.store.list(domain).await? {
            if let Some(pack) = PackName::parse(info.name.as_str())
                && pack.sum.bytes == info.bytes
            {
                there.insert(pack.sum.hash);
            }
        }
    }
    // Those not marked first: where a damaged index was made again, that one is read.
    for names in indexed.values_mut() {
        names.sort_by_key(|(object, _)| marked.contains(object));
    }
    let whole = |pack: &Hash, number: u32| -> Result<bool, RepositoryError> {
        let Some(names) = indexed.get(pack).filter(|_| there.contains(pack)) else {
            return Ok(false);
        };
        // A repair may have put another index in the place of the one this host learnt of the pack from.
        let known = match index.pack(number) {
            Ok(pack) => pack.index,
            // Another run took it out meanwhile.
            Err(_) => return Ok(false),
        };
        let outdated = marked.contains(&known) && names.iter().any(|(object, _)| !marked.contains(object));
        Ok(!outdated && names.iter().any(|(object, _)| object == &known))
    };
    let mut gone: HashMap<Hash, u32> = HashMap::new();
    for (pack, number) in &known {
        if !whole(pack, *number)? {
            gone.insert(*pack, *number);
        }
    }
    index.remove(&gone)?;
    known.retain(|pack, _| !gone.contains_key(pack));
    let fresh = indexed
        .iter()
        .filter(|(pack, _)| there.contains(*pack) && !known.contains_key(*pack))
        .filter_map(|(_, names)| names.first().map(|(_, name)| name.clone()));
    take_in(core, fresh.collect(), false).await?;
    let all = index.numbers()?;
    let given_up: HashSet<Hash> = marked
        .iter()
        .filter_map(|name| PackName::parse(name).map(|pack| pack.sum.hash))
        .collect();
    let reliable = |pack: &Hash| {
        let names = indexed
            .get(pack)
            .filter(|_| there.contains(pack) && !given_up.contains(pack));
        names.is_some_and(|names| names.iter().any(|(object, _)| !marked.contains(object)))
    };
    Ok(all
        .into_iter()
        .filter(|(pack, _)| reliable(pack))
        .map(|(_, number)| number)
        .collect())
}

/// The packs on a backup's list, by their number in the local index, entered where they were not known.
pub(crate) async fn listed_packs(core: &Core, list: &[String]) -> Result<HashSet<u32>, RepositoryError> {
    let index = core.index()?;
    let known = index.numbers()?;
    let names: Vec<IndexName> = list.iter().filter_map(|n| IndexName::parse(n)).collect();
    let fresh = names.iter().filter(|n| !known.contains_key(&n.pack)).cloned().collect();
    // Not strict: what is missing is said by name when it is needed, and the rest can still be restored.
    take_in(core, fresh, false).await?;
    let mut numbers = HashSet::new();
    for name in names {
        numbers.extend(index.number(&name.pack)?);
    }
    Ok(numbers)
}
