//! How a snapshot reaches the workers: control publishes, each worker adopts between passes.
//!
//! Control keeps every published snapshot until all workers have adopted a newer one, so the last
//! reference, and with it the freeing, is always control's.

use std::collections::VecDeque;
use std::sync::Arc;

use arc_swap::{ArcSwap, Cache};

use crate::sync::{Ordering, fence};
use crate::tables::Tables;

/// The control thread's side.
#[derive(Debug)]
pub struct Publisher {
    current: Arc<ArcSwap<Tables>>,
    kept: VecDeque<Arc<Tables>>,
}

impl Publisher {
    /// Starts with `tables`.
    #[must_use]
    pub fn new(tables: Tables) -> Publisher {
        let tables = Arc::new(tables);
        Publisher {
            current: Arc::new(ArcSwap::from(tables.clone())),
            kept: VecDeque::from([tables]),
        }
    }

    /// A worker's side.
    #[must_use]
    pub fn subscribe(&self) -> Subscription {
        Subscription { cache: Cache::new(self.current.clone()) }
    }

    /// Makes `tables` the newest snapshot. Its generation must be higher than the last one's.
    pub fn publish(&mut self, tables: Tables) {
        let newest = self.kept.back().map_or(0, |kept| kept.generation());
        assert!(tables.generation() > newest, "generations rise");
        let tables = Arc::new(tables);
        self.kept.push_back(tables.clone());
        self.current.store(tables);
    }

    /// Frees snapshots that no worker uses: all are at `adopted` or beyond.
    pub fn retire(&mut self, adopted: u64) {
        // Acquire: pairs with the workers' release fence between letting go of a snapshot and
        // counting the newer generation, which the caller has read.
        fence(Ordering::Acquire);
        while self.kept.len() > 1 && self.kept[0].generation() < adopted {
            self.kept.pop_front();
        }
    }

    /// Snapshots kept, the newest included.
    #[must_use]
    pub fn kept(&self) -> usize {
        self.kept.len()
    }
}

/// A worker's side.
#[derive(Debug)]
pub struct Subscription {
    cache: Cache<Arc<ArcSwap<Tables>>, Arc<Tables>>,
}

impl Subscription {
    /// The newest snapshot: one load and a comparison when nothing is new.
    #[inline]
    pub fn adopt(&mut self) -> &Arc<Tables> {
        self.cache.load()
    }
}
