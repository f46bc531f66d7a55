//! Port I/O. The I/O bitmap opens every port to CPL 3; a port that nobody answers reads as ones.

use core::arch::asm;

macro_rules! port_read {
    ($name:ident $ty:ty, $reg:tt) => {
        #[doc = concat!("Reads a ", stringify!($ty), " from a port.")]
        pub fn $name(port: u16) -> $ty {
            let value: $ty;
            // SAFETY: port reads do not touch memory of the program.
            unsafe {
                asm!(concat!("in ", $reg, ", dx"), in("dx") port, out($reg) value,
                    options(nomem, nostack, preserves_flags));
            }
            value
        }
    };
}

macro_rules! port_write {
    ($name:ident $ty:ty, $reg:tt) => {
        #[doc = concat!("Writes a ", stringify!($ty), " to a port.")]
        pub fn $name(port: u16, value: $ty) {
            // SAFETY: only devices are reached; none of those written here does DMA because of a port.
            unsafe {
                asm!(concat!("out dx, ", $reg), in("dx") port, in($reg) value,
                    options(nomem, nostack, preserves_flags));
            }
        }
    };
}

port_read!(read8 u8, "al");
port_read!(read16 u16, "ax");
port_read!(read32 u32, "eax");
port_write!(write8 u8, "al");
port_write!(write16 u16, "ax");
port_write!(write32 u32, "eax");
