//! Mapping what lies above 4 GiB: 64-bit BARs. The tables are ordinary memory to CPL 3, and an entry that goes from absent
//! to present needs no flush.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

const GIB: u64 = 1 << 30;
const LARGE: u64 = 2 << 20;
/// One table of third level maps this much.
const REACH: u64 = 512 * GIB;
/// Present, writable, user.
const TABLE: u64 = 0x7;
/// Present, writable, user, write-through, uncached, large.
const DEVICE_PAGE: u64 = 0x9f;

/// GiB that can be mapped beyond the first four. BARs lie close together.
const SPARE: usize = 4;

#[repr(C, align(4096))]
struct Table([AtomicU64; 512]);

static SPARE_TABLES: [Table; SPARE] = [const { Table([const { AtomicU64::new(0) }; 512]) }; SPARE];
static USED: AtomicUsize = AtomicUsize::new(0);

unsafe extern "C" {
    safe static page_table_3: [AtomicU64; 512];
}

/// Makes `[base, base + len)` accessible. False if it cannot be: beyond 512 GiB, or too many GiB apart.
pub fn map(base: u64, len: u64) -> bool {
    let Some(end) = base.checked_add(len).filter(|end| *end <= REACH) else {
        return false;
    };
    (base / GIB..end.div_ceil(GIB)).all(map_gib)
}

fn map_gib(gib: u64) -> bool {
    let entry = &page_table_3[gib as usize];
    if entry.load(Ordering::Relaxed) != 0 {
        return true;
    }
    let Some(table) = SPARE_TABLES.get(USED.fetch_add(1, Ordering::Relaxed)) else {
        return false;
    };
    for (index, page) in table.0.iter().enumerate() {
        page.store(
            (gib * GIB + index as u64 * LARGE) | DEVICE_PAGE,
            Ordering::Relaxed,
        );
    }
    entry.store(table.0.as_ptr() as u64 | TABLE, Ordering::Release);
    true
}
