//! A vhost-user front-end made of single messages, for tests of what a back-end does with each.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use treaty_memory::{FaultWatch, GuestMemory, Region};
use treaty_vhost_protocol::payload::{MemoryRegion, VringAddr, VringState};
use treaty_vhost_protocol::table::{Row, frontend as code, row};
use treaty_vhost_protocol::{Channel, Message, ProtocolError, features};
use treaty_virtio_device::{Doorbell, Features, QueueMemory, RingConfig, ring_features, ring_layout};
use treaty_virtio_ring::{DriverRing, Segment};
use treaty_virtio_spec::feature;
use zerocopy::IntoBytes;

use crate::WAIT_LIMIT;

/// Bytes of memory that a [`WireFrontEnd`] shares.
pub const WIRE_MEMORY: u64 = 4 << 20;
/// Where it says that it has mapped them.
pub const WIRE_USER: u64 = 0x7000_0000_0000;
/// Guest addresses below this are the rings', [`RING_BYTES`] each.
pub const WIRE_BUFFERS: u64 = 1 << 20;
/// Bytes of guest memory for one ring.
pub const RING_BYTES: u64 = 0x1_0000;
/// Entries of its rings.
pub const WIRE_RING: u16 = 16;

const DRIVER_AREA: u64 = 0x4000;
const DEVICE_AREA: u64 = 0x8000;

/// Protocol features that it negotiates if they are offered.
const WANTED: u64 = features::MQ
    | features::LOG_SHMFD
    | features::REPLY_ACK
    | features::BACKEND_REQ
    | features::CONFIG
    | features::INFLIGHT_SHMFD
    | features::RESET_DEVICE
    | features::CONFIGURE_MEM_SLOTS
    | features::STATUS
    | features::DEVICE_STATE
    | features::INBAND_NOTIFICATIONS
    | features::PAGEFAULT;

/// A front-end that keeps to the rules as long as the test wants it to.
pub struct WireFrontEnd {
    channel: Channel,
    /// The shared file; not sealed, so that a test can truncate it.
    pub file: File,
    /// Our own mapping of it, which survives that.
    pub memory: GuestMemory,
    /// Protocol features that were negotiated.
    pub protocol: u64,
    /// Features that were accepted.
    pub accepted: Features,
}

/// A ring that a back-end runs for us.
pub struct WireRing {
    index: u16,
    /// The driver's half.
    pub driver: DriverRing<QueueMemory>,
    /// Rung to start the back-end's work.
    pub kick: Doorbell,
    /// Rung by the back-end.
    pub call: Doorbell,
    /// Rung by the back-end when the ring has failed.
    pub err: Doorbell,
}

/// A memfd without seals.
#[allow(unsafe_code)]
pub fn plain_memfd(len: u64) -> File {
    // SAFETY: a constant name; the result is checked below.
    let fd = unsafe { libc::memfd_create(c"treaty-wire".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0, "memfd_create: {}", std::io::Error::last_os_error());
    // SAFETY: just created, no other owner.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(len).expect("a size");
    file
}

/// The row of one of the front-end's requests.
pub fn request(code: u32) -> &'static Row {
    row(code::ROWS, code).expect("a known request")
}

impl WireFrontEnd {
    /// Over a socket that a back-end serves: owner, protocol features (without `avoid`), features `accepted`.
    pub fn start(stream: UnixStream, accepted: Features, avoid: u64) -> Self {
        let file = plain_memfd(WIRE_MEMORY);
        let watch = FaultWatch::new().expect("a watch");
        let region = Region::of_peer(0, WIRE_MEMORY as usize, file.try_clone().expect("dup"), 0, &watch);
        let memory = GuestMemory::new(vec![region.expect("mapped")]).expect("one region");
        let mut front = Self {
            channel: Channel::new(stream, &[]),
            file,
            memory,
            protocol: 0,
            accepted,
        };
        let offered = front.get(code::GET_FEATURES);
        let wanted = accepted.0 | features::PROTOCOL_FEATURES;
        assert_eq!(wanted & !offered, 0, "features that are not on offer");
        let protocol = front.get(code::GET_PROTOCOL_FEATURES) & WANTED & !avoid;
        front.send(code::SET_PROTOCOL_FEATURES, protocol.as_bytes(), &[]);
        front.protocol = protocol;
        front.set(code::SET_OWNER, &[], &[]);
        front.set(code::SET_FEATURES, wanted.as_bytes(), &[]);
        front
    }

    /// Sends and does not wait.
    pub fn send(&self, code: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) {
        self.channel
            .send(request(code), false, payload, fds)
            .expect("sent");
    }

    /// Sends and waits for the request's own answer.
    pub fn ask(&mut self, code: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Message {
        self.send(code, payload, fds);
        self.channel
            .receive_reply(request(code), WAIT_LIMIT)
            .unwrap_or_else(|error| panic!("{}: {error}", request(code).name))
    }

    /// A number that the back-end is asked for.
    pub fn get(&mut self, code: u32) -> u64 {
        self.ask(code, &[], &[]).read().expect("a number")
    }

    /// Sends with need-reply; the acknowledgement.
    pub fn acknowledged(
        &mut self,
        code: u32,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<u64, ProtocolError> {
        self.channel.send(request(code), true, payload, fds)?;
        self.channel.receive_reply(request(code), WAIT_LIMIT)?.read()
    }

    /// Sends, and the back-end says that it has done so.
    pub fn set(&mut self, code: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) {
        if self.protocol & features::REPLY_ACK == 0 {
            return self.send(code, payload, fds);
        }
        let answer = self.acknowledged(code, payload, fds);
        assert_eq!(answer.expect("an answer"), 0, "{}", request(code).name);
    }

    /// The region that it shares.
    pub fn region(&self) -> MemoryRegion {
        MemoryRegion {
            guest_address: 0,
            size: WIRE_MEMORY,
            user_address: WIRE_USER,
            mmap_offset: 0,
        }
    }

    /// Shares the memory.
    pub fn share_memory(&mut self) {
        let mut table = 1u64.as_bytes().to_vec();
        table.extend_from_slice(self.region().as_bytes());
        let file = self.file.try_clone().expect("dup");
        self.set(code::SET_MEM_TABLE, &table, &[file.as_fd()]);
    }

    /// Where ring `index` lies, in guest addresses.
    pub fn ring_config(&self, index: u16) -> RingConfig {
        let base = u64::from(index) * RING_BYTES;
        RingConfig {
            layout: ring_layout(self.accepted),
            size: WIRE_RING,
            descriptor_area: base,
            driver_area: base + DRIVER_AREA,
            device_area: base + DEVICE_AREA,
            features: ring_features(self.accepted),
            max_chain: WIRE_RING,
        }
    }

    /// The message that tells where ring `index` is, if its addresses are `base` and on.
    pub fn ring_address(&self, index: u16, base: u64) -> VringAddr {
        let config = self.ring_config(index);
        VringAddr {
            index: u32::from(index),
            flags: 0,
            descriptor: base + config.descriptor_area,
            used: base + config.device_area,
            available: base + config.driver_area,
            log: config.device_area,
        }
    }

    /// Sets up a fresh ring and lets it run.
    pub fn start_ring(&mut self, index: u16) -> WireRing {
        let address = self.ring_address(index, WIRE_USER);
        self.start_ring_at(index, address)
    }

    /// The same with addresses of the test's choice.
    pub fn start_ring_at(&mut self, index: u16, address: VringAddr) -> WireRing {
        let config = self.ring_config(index);
        let driver = DriverRing::start(QueueMemory(self.memory.clone()), &config, None).expect("a ring");
        let eventfd = || Doorbell::new().expect("eventfd");
        let ring = WireRing {
            index,
            driver,
            kick: eventfd(),
            call: eventfd(),
            err: eventfd(),
        };
        let state = |num| VringState {
            index: u32::from(index),
            num,
        };
        let word = u64::from(index);
        // virtio 1.3 §2.8.1: both wrap counters of a packed ring begin at 1.
        let base = if self.accepted.has(feature::RING_PACKED) {
            0x8000_8000
        } else {
            0
        };
        self.set(code::SET_VRING_NUM, state(u32::from(WIRE_RING)).as_bytes(), &[]);
        self.set(code::SET_VRING_BASE, state(base).as_bytes(), &[]);
        self.set(code::SET_VRING_ADDR, address.as_bytes(), &[]);
        self.set(code::SET_VRING_CALL, word.as_bytes(), &[ring.call.as_fd()]);
        self.set(code::SET_VRING_ERR, word.as_bytes(), &[ring.err.as_fd()]);
        self.set(code::SET_VRING_KICK, word.as_bytes(), &[ring.kick.as_fd()]);
        self.set(code::SET_VRING_ENABLE, state(1).as_bytes(), &[]);
        ring
    }

    /// True once the back-end has closed the connection; waits for that.
    pub fn is_closed(&mut self) -> bool {
        let deadline = Instant::now() + WAIT_LIMIT;
        while Instant::now() < deadline {
            match self.channel.try_receive() {
                Ok(None) => std::thread::sleep(Duration::from_millis(1)),
                Err(ProtocolError::Closed | ProtocolError::Socket(_)) => return true,
                Ok(Some(_)) | Err(_) => {}
            }
        }
        false
    }

    /// Gives the back-end a channel of its own; our end.
    pub fn open_backend_channel(&mut self, rows: &'static [Row]) -> Channel {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        self.set(code::SET_BACKEND_REQ_FD, &[], &[theirs.as_fd()]);
        Channel::new(ours, rows)
    }
}

impl WireRing {
    /// Index of the ring.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Offers a chain and rings.
    pub fn offer(&mut self, readable: &[Segment], writable: &[Segment], token: u64) {
        self.driver.offer(readable, writable, token).expect("room");
        self.driver.publish();
        self.kick.ring();
    }

    /// Waits for a used chain; its token and what was written. `None` if none comes within the limit.
    pub fn reap(&mut self, limit: Duration) -> Option<(u64, u32)> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(used) = self.driver.reap().expect("a sane device") {
                return Some((used.token, used.written));
            }
            if self.driver.arm() {
                continue;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            wait_readable(&self.call, left);
            self.call.clear();
        }
    }
}

/// Waits until the descriptor is readable; false if it is not in time.
#[allow(unsafe_code)]
pub fn wait_readable(fd: &impl AsFd, limit: Duration) -> bool {
    let mut poll = libc::pollfd {
        fd: fd.as_fd().as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let limit_ms = i32::try_from(limit.as_millis()).unwrap_or(i32::MAX).max(1);
    // SAFETY: one pollfd on the stack, alive during the call.
    unsafe { libc::poll(&mut poll, 1, limit_ms) > 0 }
}

/// Duplicates a descriptor for a message that takes it away.
pub fn dup(fd: &impl AsFd) -> OwnedFd {
    fd.as_fd().try_clone_to_owned().expect("dup")
}

/// Sends bytes and descriptors as they are, more of them than a message may have, too. Never waits.
///
/// # Errors
/// If the socket is full or closed.
#[allow(unsafe_code)]
pub fn send_bytes(stream: &UnixStream, bytes: &[u8], fds: &[&OwnedFd]) -> std::io::Result<()> {
    let mut control = [0u64; 16];
    let mut iov = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    let data = (fds.len() * 4) as u32;
    // SAFETY: all-zero is a valid msghdr; it points to live buffers, and 128 bytes hold the header and up to 16 descriptors.
    let sent = unsafe {
        let mut header: libc::msghdr = std::mem::zeroed();
        header.msg_iov = &mut iov;
        header.msg_iovlen = 1;
        if !fds.is_empty() {
            assert!(libc::CMSG_SPACE(data) as usize <= size_of_val(&control));
            header.msg_control = control.as_mut_ptr().cast();
            header.msg_controllen = libc::CMSG_SPACE(data) as usize;
            let first = libc::CMSG_FIRSTHDR(&header);
            (*first).cmsg_level = libc::SOL_SOCKET;
            (*first).cmsg_type = libc::SCM_RIGHTS;
            (*first).cmsg_len = libc::CMSG_LEN(data) as usize;
            for (index, fd) in fds.iter().enumerate() {
                libc::CMSG_DATA(first)
                    .cast::<i32>()
                    .add(index)
                    .write_unaligned(fd.as_raw_fd());
            }
        }
        libc::sendmsg(
            stream.as_raw_fd(),
            &header,
            libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT,
        )
    };
    if sent < 0 {
        Err(std::io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Writes an eventfd. Never waits, whoever has made it blocking.
#[allow(unsafe_code)]
pub fn poke(fd: &OwnedFd, count: u64) {
    // SAFETY: eight bytes of a live array; the other call takes no pointers.
    unsafe {
        libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK);
        libc::write(fd.as_raw_fd(), count.to_ne_bytes().as_ptr().cast(), 8);
    }
}

/// Makes an eventfd full, and blocking for everybody who shares it.
#[allow(unsafe_code)]
pub fn hold(fd: &OwnedFd) {
    let mut count = [0u8; 8];
    // SAFETY: eight bytes of a live array; the other calls take no pointers.
    unsafe {
        libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK);
        libc::read(fd.as_raw_fd(), count.as_mut_ptr().cast(), 8);
        poke(fd, u64::MAX - 1);
        libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, 0);
    }
}
