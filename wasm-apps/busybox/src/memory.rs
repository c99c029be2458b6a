//! Where the WASI adapter gets its memory from.
//!
//! Without this export it takes a page beyond the heap, and Debian's C library, which measures its
//! heap at the first allocation, would take that page for its own.

use std::alloc::{Layout, alloc, realloc};

/// The canonical ABI's allocator.
///
/// # Safety
///
/// As `realloc` of the canonical ABI: `old` is null with a length of 0, or came from here with this
/// length and alignment.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cabi_realloc(
    old: *mut u8,
    old_len: usize,
    align: usize,
    new_len: usize,
) -> *mut u8 {
    let (Ok(had), Ok(wanted)) =
        (Layout::from_size_align(old_len, align), Layout::from_size_align(new_len, align))
    else {
        return std::ptr::null_mut();
    };
    if new_len == 0 {
        return std::ptr::without_provenance_mut(align);
    }
    // SAFETY: the size is not 0, and the caller keeps the promise above.
    unsafe { if old_len == 0 { alloc(wanted) } else { realloc(old, had, new_len) } }
}
