/// Places in the list; a power of two.
const PLACES: usize = 256;

/// No part of a disk has this number.
const NOTHING: u64 = u64::MAX;

/// Pages of L2 tables that were used lately, by the part of the guest's disk that they describe: the way to a page without
/// its L1 entry and without a search. Forgotten as a whole when the [shape](super::pages::Pages::shape) of the pages changes.
pub(crate) struct Near {
    shape: u64,
    places: Box<[(u64, u32)]>,
}

impl Default for Near {
    fn default() -> Self {
        Self {
            shape: 0,
            places: vec![(NOTHING, 0); PLACES].into_boxed_slice(),
        }
    }
}

impl Near {
    /// The page of a part, if it is known.
    #[inline]
    pub(crate) fn find(&self, part: u64, shape: u64) -> Option<u32> {
        let (known, place) = *self.places.get(part as usize & (PLACES - 1))?;
        (known == part && self.shape == shape).then_some(place)
    }

    /// Remembers the page of a part.
    pub(crate) fn keep(&mut self, part: u64, place: u32, shape: u64) {
        if self.shape != shape {
            self.shape = shape;
            self.places.fill((NOTHING, 0));
        }
        if let Some(entry) = self.places.get_mut(part as usize & (PLACES - 1)) {
            *entry = (part, place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Near;

    #[test]
    fn what_is_known_is_forgotten_with_the_shape() {
        let mut near = Near::default();
        assert_eq!(near.find(0, 0), None);
        near.keep(0, 7, 0);
        near.keep(3, 8, 0);
        assert_eq!((near.find(0, 0), near.find(3, 0)), (Some(7), Some(8)));
        // Another part has the same place in the list.
        assert_eq!(near.find(256, 0), None);
        near.keep(256, 9, 0);
        assert_eq!((near.find(0, 0), near.find(256, 0)), (None, Some(9)));
        assert_eq!(near.find(3, 1), None);
        near.keep(0, 1, 1);
        assert_eq!((near.find(0, 1), near.find(3, 1)), (Some(1), None));
    }
}
