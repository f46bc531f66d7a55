use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::sync::Arc;

use crate::IoBuffers;

/// A zeroed heap block with a chosen alignment (for `O_DIRECT` bounce buffers and image metadata).
///
/// It is shared: [`buffers`](Self::buffers) hands it to an operation, and the caller reads it again afterwards
/// with [`IoBuffers::copy_to`].
#[derive(Clone)]
pub struct AlignedBlock(Arc<Block>);

struct Block {
    ptr: *mut u8,
    layout: Layout,
}

// SAFETY: the block is plain memory; it is reached only through `IoBuffers` copies and the kernel.
unsafe impl Send for Block {}
// SAFETY: as above; no method of `Block` touches the bytes.
unsafe impl Sync for Block {}

impl AlignedBlock {
    /// Allocates `len` zero bytes aligned to `align`.
    ///
    /// # Panics
    /// If `len` is zero or `align` is not a power of two: both are constants of the caller.
    pub fn new(len: usize, align: usize) -> Self {
        assert!(len > 0, "an I/O block has at least one byte");
        let layout = Layout::from_size_align(len, align).expect("alignment is a power of two");
        // SAFETY: the layout's size is not zero.
        let ptr = unsafe { alloc_zeroed(layout) };
        if ptr.is_null() {
            handle_alloc_error(layout);
        }
        Self(Arc::new(Block { ptr, layout }))
    }

    /// The whole block as buffers of an operation.
    pub fn buffers(&self) -> IoBuffers {
        let mut list = IoBuffers::with_capacity(1);
        // SAFETY: the range is exactly the allocation, which lives as long as the owner set here.
        unsafe { list.push_raw(self.0.ptr, self.0.layout.size()) };
        list.set_owner(self.0.clone());
        list
    }

    /// The bytes, if nobody else has the block: no operation that it was given to is under way.
    pub fn bytes(&mut self) -> Option<&mut [u8]> {
        let block = Arc::get_mut(&mut self.0)?;
        // SAFETY: the allocation has that length and was zeroed, and this is its only owner: lists made from it hold
        // the block too, and whoever may write to it (the kernel) does so on behalf of such a list.
        Some(unsafe { std::slice::from_raw_parts_mut(block.ptr, block.layout.size()) })
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.0.layout.size()
    }

    /// Always false: a block has at least one byte.
    pub fn is_empty(&self) -> bool {
        false
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: allocated by `AlignedBlock::new` with this layout, freed once.
        unsafe { dealloc(self.ptr, self.layout) };
    }
}

#[cfg(test)]
mod tests {
    use super::AlignedBlock;

    #[test]
    fn bytes_are_for_the_only_owner() {
        let mut block = AlignedBlock::new(8, 4096);
        let mut list = block.buffers();
        list.copy_from(&[1, 2, 3]);
        assert!(block.bytes().is_none());
        drop(list);
        assert_eq!(block.bytes().unwrap()[..4], [1, 2, 3, 0]);
    }
}
