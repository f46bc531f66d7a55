//! The memory functions that the compiler calls and that no C library provides here.

use core::arch::asm;

/// `memcpy`. Short copies by two overlapping words, long ones by the string instruction.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcpy(dst: *mut u8, src: *const u8, len: usize) -> *mut u8 {
    // SAFETY: all accesses lie in `[0, len)` of both; the ranges do not overlap.
    unsafe {
        match len {
            0 => {}
            1..4 => {
                let (first, last) = (src.read(), src.add(len - 1).read());
                let middle = src.add(len / 2).read();
                dst.write(first);
                dst.add(len / 2).write(middle);
                dst.add(len - 1).write(last);
            }
            4..8 => ends::<u32>(dst, src, len),
            8..16 => ends::<u64>(dst, src, len),
            16..=32 => ends::<u128>(dst, src, len),
            _ => {
                asm!("rep movsb", inout("rcx") len => _, inout("rdi") dst => _, inout("rsi") src => _, options(nostack, preserves_flags));
            }
        }
    }
    dst
}

/// Copies the first and the last `T` of a range of at least `size_of::<T>()` and at most twice that.
///
/// # Safety
/// Both ranges are `len` long, which is at least the size of `T`.
unsafe fn ends<T>(dst: *mut u8, src: *const u8, len: usize) {
    let tail = len - size_of::<T>();
    // SAFETY: by the caller.
    unsafe {
        let first = src.cast::<T>().read_unaligned();
        let last = src.add(tail).cast::<T>().read_unaligned();
        dst.cast::<T>().write_unaligned(first);
        dst.add(tail).cast::<T>().write_unaligned(last);
    }
}

/// `memmove`.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memmove(dst: *mut u8, src: *const u8, len: usize) -> *mut u8 {
    if (dst as usize).wrapping_sub(src as usize) >= len {
        // SAFETY: copying forwards never overwrites what is still to be read.
        return unsafe { memcpy(dst, src, len) };
    }
    for index in (0..len).rev() {
        // SAFETY: inside both ranges; backwards, as the destination is ahead of the source.
        unsafe { dst.add(index).write_volatile(src.add(index).read_volatile()) };
    }
    dst
}

/// `memset`.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memset(dst: *mut u8, value: i32, len: usize) -> *mut u8 {
    // SAFETY: writes `[0, len)`.
    unsafe {
        asm!("rep stosb", inout("rcx") len => _, inout("rdi") dst => _, in("al") value as u8, options(nostack, preserves_flags));
    }
    dst
}

/// `memcmp`.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcmp(left: *const u8, right: *const u8, len: usize) -> i32 {
    for index in 0..len {
        // SAFETY: inside both ranges. Volatile, so that this loop is not turned into a call of itself.
        let (l, r) = unsafe { (left.add(index).read_volatile(), right.add(index).read_volatile()) };
        if l != r {
            return i32::from(l) - i32::from(r);
        }
    }
    0
}

/// `bcmp`.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bcmp(left: *const u8, right: *const u8, len: usize) -> i32 {
    // SAFETY: the same contract.
    unsafe { memcmp(left, right, len) }
}

/// Referenced by the precompiled `core` and `alloc`; never called, because panics end the probe.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// As [`rust_eh_personality`].
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    crate::exit::leave(crate::exit::FAILURE)
}
