//! ioctls of tap interfaces and of network interfaces at large.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;

use crate::Offloads;
use crate::sys::check;

// <linux/if_tun.h>
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNGETIFF: libc::c_ulong = 0x8004_54d2;
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;
const TUNSETQUEUE: libc::c_ulong = 0x4004_54d9;
const TUN_F_CSUM: libc::c_uint = 0x01;
const TUN_F_TSO4: libc::c_uint = 0x02;
const TUN_F_TSO6: libc::c_uint = 0x04;
const TUN_F_TSO_ECN: libc::c_uint = 0x08;
const TUN_F_UFO: libc::c_uint = 0x10;
const TUN_F_USO4: libc::c_uint = 0x20;
const TUN_F_USO6: libc::c_uint = 0x40;

/// What every tap that we use is.
const TAP_FLAGS: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

type Name = [libc::c_char; libc::IFNAMSIZ];

/// `name` as the kernel takes it, or `None` if no interface can be called that.
pub(super) fn name_field(name: &str) -> Option<Name> {
    let allowed = |byte: u8| byte.is_ascii_graphic() && byte != b'/' && byte != b'%' && byte != b':';
    if name.is_empty() || name.len() >= libc::IFNAMSIZ || !name.bytes().all(allowed) {
        return None;
    }
    let mut field = [0; libc::IFNAMSIZ];
    for (slot, byte) in field.iter_mut().zip(name.bytes()) {
        *slot = byte.cast_signed();
    }
    Some(field)
}

fn request(name: &Name) -> libc::ifreq {
    libc::ifreq {
        ifr_name: *name,
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_ifindex: 0 },
    }
}

fn flags(request: &libc::ifreq) -> libc::c_int {
    // SAFETY: every bit pattern is a valid integer; the union was zeroed or filled by the kernel.
    unsafe { request.ifr_ifru.ifru_flags }.into()
}

fn set_flags(request: &mut libc::ifreq, flags: libc::c_int) {
    // The field is 16 bits wide; no flag used here is above.
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
}

/// Makes `file` a queue of the interface, which is created if it does not exist.
pub(super) fn attach(file: &File, name: &Name, multi_queue: bool) -> io::Result<()> {
    let mut request = request(name);
    let multi = if multi_queue { libc::IFF_MULTI_QUEUE } else { 0 };
    set_flags(&mut request, TAP_FLAGS | multi);
    // SAFETY: the request lives across the call, which reads and writes no more than an ifreq.
    check(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) })?;
    Ok(())
}

/// The name of the interface that `file` is a queue of; `None` if it is not set up as we need it.
pub(super) fn interface(file: &File) -> io::Result<Option<String>> {
    let mut request = request(&[0; libc::IFNAMSIZ]);
    // SAFETY: as in `attach`.
    check(unsafe { libc::ioctl(file.as_raw_fd(), TUNGETIFF, &raw mut request) })?;
    let right = flags(&request) & TAP_FLAGS == TAP_FLAGS;
    let bytes = request.ifr_name.map(libc::c_char::cast_unsigned);
    let name = CStr::from_bytes_until_nul(&bytes).map(|name| name.to_string_lossy().into_owned());
    Ok(name.ok().filter(|_| right))
}

/// Attaches a queue to its interface again, or detaches it: packets go to attached queues only.
pub(super) fn set_attached(file: &File, attached: bool) -> io::Result<()> {
    let mut request = request(&[0; libc::IFNAMSIZ]);
    let change = if attached {
        libc::IFF_ATTACH_QUEUE
    } else {
        libc::IFF_DETACH_QUEUE
    };
    set_flags(&mut request, change);
    // SAFETY: as in `attach`.
    check(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETQUEUE, &raw mut request) })?;
    Ok(())
}

pub(super) fn set_header_size(file: &File, size: libc::c_int) -> io::Result<()> {
    // SAFETY: the integer lives across the call, which reads it.
    check(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETVNETHDRSZ, &raw const size) })?;
    Ok(())
}

/// What the interface may leave to us in packets that it brings.
pub(super) fn set_offloads(file: &File, offloads: Offloads) -> io::Result<()> {
    let mut bits = 0;
    if offloads.csum {
        let table = [
            (true, TUN_F_CSUM),
            (offloads.tso4, TUN_F_TSO4),
            (offloads.tso6, TUN_F_TSO6),
            (offloads.ecn && (offloads.tso4 || offloads.tso6), TUN_F_TSO_ECN),
            (offloads.ufo, TUN_F_UFO),
            (offloads.uso, TUN_F_USO4 | TUN_F_USO6),
        ];
        bits = table.iter().filter(|row| row.0).map(|row| row.1).sum();
    }
    // SAFETY: the argument is an integer, no pointer.
    check(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETOFFLOAD, libc::c_ulong::from(bits)) })?;
    Ok(())
}

/// A request about an interface; any socket of the network namespace takes it.
fn interface_request(name: &str) -> io::Result<(UnixDatagram, libc::ifreq)> {
    let field = name_field(name).ok_or(io::ErrorKind::InvalidInput)?;
    Ok((UnixDatagram::unbound()?, request(&field)))
}

/// The interface's MTU in bytes.
pub(super) fn mtu(name: &str) -> io::Result<u16> {
    let (socket, mut request) = interface_request(name)?;
    // SAFETY: as in `attach`.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFMTU, &raw mut request) })?;
    // SAFETY: filled by the kernel; any bit pattern is an integer.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    Ok(u16::try_from(mtu).unwrap_or(u16::MAX))
}

/// Sets the interface up, unless it is.
pub(super) fn set_up(name: &str) -> io::Result<()> {
    let (socket, mut request) = interface_request(name)?;
    // SAFETY: as in `attach`.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) })?;
    let now = flags(&request);
    if now & libc::IFF_UP != 0 {
        return Ok(());
    }
    set_flags(&mut request, now | libc::IFF_UP);
    // SAFETY: as in `attach`.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::name_field;

    #[test]
    fn interface_names_are_checked() {
        assert!(name_field("tap0").is_some());
        assert!(name_field("fifteen-chars-x").is_some());
        for bad in ["", "sixteen-chars-xx", "a/b", "tap%d", "a b", "t\0"] {
            assert!(name_field(bad).is_none(), "{bad:?}");
        }
    }
}
