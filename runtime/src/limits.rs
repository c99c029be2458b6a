//! Counts linear memory and tables against the limits of a container, of its pod, and of all pods.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use wasmtime::ResourceLimiter;

use crate::engine::{CORE_INSTANCES_PER_COMPONENT, TABLE_ELEMENTS_MAX};

/// Tables and memories that one store may hold; a store holds one component.
const TABLES_MAX: usize = 64;

/// What one element of a table takes, in bytes.
const TABLE_ELEMENT_BYTES: u64 = size_of::<usize>() as u64;

/// Bytes of a store that the limit of all pods does not see. Guests come with that much and hardly
/// touch it: a stack of a MiB, and data that is shared until it is written. A thousand of them fit
/// into a machine whose memory they would fill twice by their sizes.
const STORE_BYTES_FREE: u64 = 20 << 16;

/// Bytes in use, with a limit.
#[derive(Debug)]
pub(crate) struct Gauge {
    used: AtomicU64,
    max: Option<u64>,
}

impl Gauge {
    pub(crate) fn new(max: Option<u64>) -> Arc<Self> {
        Arc::new(Self { used: AtomicU64::new(0), max })
    }

    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    pub(crate) fn max(&self) -> Option<u64> {
        self.max
    }

    fn try_add(&self, bytes: u64) -> bool {
        let limit = self.max.unwrap_or(u64::MAX);
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(bytes).filter(|sum| *sum <= limit)
            })
            .is_ok()
    }

    fn sub(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// What a store's memory counts against.
#[derive(Debug, Clone)]
pub(crate) struct Gauges {
    pub(crate) container: Arc<Gauge>,
    pub(crate) pod: Arc<Gauge>,
    /// Of all pods: without it a guest that has no limit could take what the node itself needs, and
    /// the kernel would end the node instead of the guest.
    pub(crate) node: Arc<Gauge>,
}

/// The limiter of one store. Gives everything back when it is dropped.
#[derive(Debug)]
pub(crate) struct MemoryLimiter {
    gauges: Gauges,
    /// What one memory can grow to on this engine, in bytes.
    memory_bytes_max: usize,
    /// Bytes this store holds; others may look.
    held: Arc<AtomicU64>,
    /// The part of it that counts for the node.
    node_held: u64,
    /// The growth that was refused, in bytes; 0 for none. If the guest dies now, memory was the
    /// reason. Smaller growth may still succeed: dying takes a little memory, too.
    refused: u64,
}

impl MemoryLimiter {
    pub(crate) fn new(gauges: Gauges, memory_bytes_max: usize) -> Self {
        Self { gauges, memory_bytes_max, held: Arc::default(), node_held: 0, refused: 0 }
    }

    /// Whether growth was refused, and none as large was granted since.
    pub(crate) fn is_hit(&self) -> bool {
        self.refused > 0
    }

    /// Bytes this store holds, as they change.
    pub(crate) fn held(&self) -> &Arc<AtomicU64> {
        &self.held
    }

    /// The limit that was hit, for people.
    pub(crate) fn describe(&self) -> String {
        let limit = |gauge: &Gauge| {
            gauge.max().map_or_else(|| "none".to_owned(), |max| format!("{max} bytes"))
        };
        format!(
            "out of memory: container limit {}, pod limit {}, in use {} bytes; \
             limit of all pods {}, in use {} bytes",
            limit(&self.gauges.container),
            limit(&self.gauges.pod),
            self.gauges.pod.used(),
            limit(&self.gauges.node),
            self.gauges.node.used()
        )
    }

    /// Grants growth, or remembers that it was refused.
    fn ask(&mut self, bytes: u64, has_room: bool) -> bool {
        if !has_room || !self.grow(bytes) {
            self.refused = bytes.max(1);
            return false;
        }
        if bytes >= self.refused {
            self.refused = 0;
        }
        true
    }

    fn grow(&mut self, bytes: u64) -> bool {
        let held = self.held.load(Ordering::Relaxed).saturating_add(bytes);
        let for_node = held.saturating_sub(STORE_BYTES_FREE).saturating_sub(self.node_held);
        let Gauges { container, pod, node } = &self.gauges;
        if !container.try_add(bytes) {
            return false;
        }
        if !pod.try_add(bytes) {
            container.sub(bytes);
            return false;
        }
        if !node.try_add(for_node) {
            container.sub(bytes);
            pod.sub(bytes);
            return false;
        }
        self.node_held = self.node_held.saturating_add(for_node);
        self.held.store(held, Ordering::Relaxed);
        true
    }
}

impl Drop for MemoryLimiter {
    fn drop(&mut self) {
        let held = self.held.load(Ordering::Relaxed);
        self.gauges.container.sub(held);
        self.gauges.pod.sub(held);
        self.gauges.node.sub(self.node_held);
    }
}

impl ResourceLimiter for MemoryLimiter {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|maximum| desired > maximum) {
            // The module's own limit, not ours: it fails, but nobody ran out of anything.
            return Ok(false);
        }
        let bytes = u64::try_from(desired.saturating_sub(current)).unwrap_or(u64::MAX);
        Ok(self.ask(bytes, desired <= self.memory_bytes_max))
    }

    /// Nothing is given back here: wasmtime also calls this for growth that it never asked about,
    /// and a guest could shrink its count with it. A grant that the kernel refused afterwards
    /// stays counted until the store is dropped.
    fn memory_grow_failed(&mut self, _error: wasmtime::Error) -> wasmtime::Result<()> {
        self.refused = self.refused.max(1);
        Ok(())
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|maximum| desired > maximum) || desired > TABLE_ELEMENTS_MAX {
            // A table that cannot grow is no lack of memory.
            return Ok(false);
        }
        let elements = u64::try_from(desired.saturating_sub(current)).unwrap_or(u64::MAX);
        Ok(self.ask(elements.saturating_mul(TABLE_ELEMENT_BYTES), true))
    }

    fn instances(&self) -> usize {
        CORE_INSTANCES_PER_COMPONENT as usize
    }

    fn tables(&self) -> usize {
        TABLES_MAX
    }

    fn memories(&self) -> usize {
        TABLES_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOT: usize = 1000;

    fn limiter(container: Arc<Gauge>, pod: Arc<Gauge>) -> MemoryLimiter {
        MemoryLimiter::new(Gauges { container, pod, node: Gauge::new(None) }, SLOT)
    }

    #[test]
    fn all_pods_share_the_node_except_for_what_each_begins_with() {
        const FREE: usize = 20 << 16;
        let node = Gauge::new(Some(100));
        let store = || {
            let (container, pod) = (Gauge::new(None), Gauge::new(None));
            MemoryLimiter::new(Gauges { container, pod, node: Arc::clone(&node) }, usize::MAX)
        };
        let (mut one, mut two) = (store(), store());
        assert!(one.memory_growing(0, FREE, None).unwrap());
        assert!(two.memory_growing(0, FREE - 10, None).unwrap());
        assert_eq!(node.used(), 0);
        assert!(one.memory_growing(FREE, FREE + 60, None).unwrap());
        assert!(!two.memory_growing(FREE - 10, FREE + 50, None).unwrap() && two.is_hit());
        assert_eq!(two.gauges.container.used(), two.held.load(Ordering::Relaxed));
        drop(one);
        assert!(two.memory_growing(FREE - 10, FREE + 50, None).unwrap());
        assert_eq!(node.used(), 50);
        drop(two);
        assert_eq!(node.used(), 0);
    }

    #[test]
    fn siblings_share_the_limit_of_their_pod() {
        let pod = Gauge::new(Some(100));
        let mut one = limiter(Gauge::new(None), Arc::clone(&pod));
        let mut two = limiter(Gauge::new(Some(80)), Arc::clone(&pod));
        assert!(one.memory_growing(0, 60, None).unwrap());
        assert!(!two.memory_growing(0, 50, None).unwrap());
        assert!(two.is_hit() && !one.is_hit());
        drop(one);
        assert!(two.memory_growing(0, 50, None).unwrap());
        assert!(!two.memory_growing(50, 90, None).unwrap(), "over its own limit");
        drop(two);
        assert_eq!(pod.used(), 0);
    }

    #[test]
    fn a_failed_growth_does_not_shrink_the_count() {
        let pod = Gauge::new(None);
        let mut one = limiter(Gauge::new(None), Arc::clone(&pod));
        assert!(one.memory_growing(0, 64, None).unwrap());
        one.memory_grow_failed(wasmtime::format_err!("beyond the type")).unwrap();
        assert_eq!(pod.used(), 64);
    }

    #[test]
    fn the_modules_own_maximum_is_not_a_memory_limit() {
        let mut one = limiter(Gauge::new(None), Gauge::new(None));
        assert!(!one.memory_growing(0, 200, Some(100)).unwrap());
        assert!(!one.is_hit());
        assert!(!one.memory_growing(0, SLOT + 1, None).unwrap());
        assert!(one.is_hit(), "the slot of the engine is");
    }

    #[test]
    fn tables_count_as_memory() {
        let pod = Gauge::new(Some(1000));
        let mut one = limiter(Gauge::new(None), Arc::clone(&pod));
        assert!(one.table_growing(0, 100, None).unwrap());
        assert_eq!(pod.used(), 100 * TABLE_ELEMENT_BYTES);
        assert!(!one.table_growing(100, TABLE_ELEMENTS_MAX + 1, None).unwrap());
        assert!(!one.is_hit(), "no table is that large");
        assert!(!one.table_growing(100, 1000, None).unwrap());
        assert!(one.is_hit());
    }
}
