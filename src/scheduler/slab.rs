//! Things with small numbers for names: the numbers are used again.

/// No thing has this number.
pub(super) const NONE: u32 = u32::MAX;

/// A list with holes, filled again by what comes next.
#[derive(Debug, Clone)]
pub(super) struct Slab<T> {
    items: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { items: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slab<T> {
    /// Keeps `item`; its number. [`NONE`] once all numbers are given, which no memory allows.
    pub(super) fn insert(&mut self, item: T) -> u32 {
        if let Some(id) = self.free.pop()
            && let Some(place) = self.items.get_mut(at(id))
        {
            *place = Some(item);
            return id;
        }
        let id = u32::try_from(self.items.len()).unwrap_or(NONE);
        self.items.push(Some(item));
        id
    }

    pub(super) fn remove(&mut self, id: u32) -> Option<T> {
        let item = self.items.get_mut(at(id))?.take()?;
        self.free.push(id);
        Some(item)
    }

    pub(super) fn get(&self, id: u32) -> Option<&T> {
        self.items.get(at(id))?.as_ref()
    }

    pub(super) fn get_mut(&mut self, id: u32) -> Option<&mut T> {
        self.items.get_mut(at(id))?.as_mut()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        (0_u32..).zip(&self.items).filter_map(|(id, item)| Some((id, item.as_ref()?)))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (u32, &mut T)> {
        (0_u32..).zip(&mut self.items).filter_map(|(id, item)| Some((id, item.as_mut()?)))
    }

    /// One more than the largest number ever given.
    pub(super) fn slots(&self) -> usize {
        self.items.len()
    }

    pub(super) fn len(&self) -> usize {
        self.items.len() - self.free.len()
    }
}

/// A number as an index.
pub(super) fn at(id: u32) -> usize {
    usize::try_from(id).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_used_again() {
        let mut slab = Slab::default();
        let ids: Vec<_> = ["a", "b", "c"].into_iter().map(|name| slab.insert(name)).collect();
        assert_eq!(slab.remove(ids[1]), Some("b"));
        assert_eq!((slab.get(ids[1]), slab.len(), slab.slots()), (None, 2, 3));
        assert_eq!(slab.insert("d"), ids[1]);
        assert_eq!(slab.iter().map(|(_, name)| *name).collect::<Vec<_>>(), ["a", "d", "c"]);
    }
}
