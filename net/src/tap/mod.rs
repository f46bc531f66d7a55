//! The kernel's tap interfaces.

mod ioctl;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use treaty_buffers::IoBuffers;
use treaty_virtio_spec::net::{HEADER_SIZE, Header};
use zerocopy::{FromBytes, IntoBytes};

use crate::sys::Gather;
use crate::{
    BackendError, Capabilities, MAX_FRAME, Offloads, PacketBackend, PacketReceiver, PacketSender, Received,
    Sent, sys,
};

/// The device through which tap interfaces are made and opened.
const TUN_DEVICE: &str = "/dev/net/tun";
/// The most queues of one interface (the kernel's MAX_TAP_QUEUES).
const MAX_PAIRS: u16 = 256;

/// A tap interface of the host: Ethernet frames with the virtio header, one descriptor per queue pair.
pub struct Tap {
    name: String,
    queues: Vec<Arc<File>>,
    capabilities: Capabilities,
    pairs: u16,
}

impl Tap {
    /// Opens the interface `name`, or makes it (then it goes when the back-end goes). It is set up if it is down.
    ///
    /// Without CAP_NET_ADMIN only an interface made for this user can be opened; more than one pair needs one made
    /// with `multi_queue`.
    pub fn open(name: &str, pairs: u16) -> Result<Self, BackendError> {
        if !(1..=MAX_PAIRS).contains(&pairs) {
            return Err(BackendError::Refused(format!(
                "tap {name}: 1 to {MAX_PAIRS} queue pairs, not {pairs}"
            )));
        }
        let name_field = ioctl::name_field(name).ok_or_else(|| {
            BackendError::Refused(format!(
                "{name:?} cannot be an interface name: 1 to 15 characters without '/' and spaces"
            ))
        })?;
        let multi = pairs > 1;
        let mut queues = Vec::new();
        for index in 0..pairs {
            let file = open_device()?;
            let mut attached = ioctl::attach(&file, &name_field, multi);
            let mismatch = matches!(&attached, Err(error) if error.raw_os_error() == Some(libc::EINVAL));
            if mismatch && !multi {
                // An interface made with `multi_queue` takes this flag even for one queue.
                attached = ioctl::attach(&file, &name_field, true);
            }
            attached.map_err(|error| attach_error(name, index, pairs, error))?;
            queues.push(file);
        }
        let tap = Self::from_queues(name.to_owned(), queues)?;
        if let Err(error) = ioctl::set_up(&tap.name) {
            tracing::warn!(tap = %tap.name, %error, "the interface is down and cannot be set up");
        }
        Ok(tap)
    }

    /// Takes queues opened by somebody else: one descriptor per pair, all of one tap interface with IFF_VNET_HDR and
    /// IFF_NO_PI.
    pub fn from_fds(fds: Vec<OwnedFd>) -> Result<Self, BackendError> {
        let queues: Vec<File> = fds.into_iter().map(File::from).collect();
        let mut names = Vec::new();
        for file in &queues {
            let name = ioctl::interface(file)
                .map_err(BackendError::host("use the descriptor as a tap interface"))?
                .ok_or_else(|| {
                    BackendError::Refused(
                        "the descriptor's interface is not a tap with IFF_VNET_HDR and IFF_NO_PI".into(),
                    )
                })?;
            names.push(name);
        }
        let Some(name) = names.first().cloned() else {
            return Err(BackendError::Refused("a tap back-end needs a descriptor".into()));
        };
        if names.iter().any(|other| *other != name) {
            return Err(BackendError::Refused(format!(
                "the descriptors belong to different interfaces: {}",
                names.join(", ")
            )));
        }
        for file in &queues {
            sys::set_nonblocking(file).map_err(BackendError::host("make the tap descriptor non-blocking"))?;
        }
        Self::from_queues(name, queues)
    }

    fn from_queues(name: String, queues: Vec<File>) -> Result<Self, BackendError> {
        let host = |what: &str| BackendError::host(format!("{what} of tap {name}"));
        let header_size = libc::c_int::try_from(HEADER_SIZE).unwrap_or(libc::c_int::MAX);
        for file in &queues {
            ioctl::set_header_size(file, header_size).map_err(host("set the header size"))?;
        }
        let first = queues
            .first()
            .ok_or_else(|| BackendError::Refused("a tap back-end needs at least one queue".into()))?;
        // Older kernels do not know USO; none tells but by trying.
        let usable = [
            Offloads::ALL,
            Offloads {
                uso: false,
                ..Offloads::ALL
            },
        ]
        .into_iter()
        .find(|offloads| ioctl::set_offloads(first, *offloads).is_ok())
        .unwrap_or(Offloads::NONE);
        ioctl::set_offloads(first, Offloads::NONE).map_err(host("clear the offloads"))?;
        let mtu = ioctl::mtu(&name).map_err(host("read the MTU"))?;
        let pairs = u16::try_from(queues.len()).unwrap_or(MAX_PAIRS);
        let mut tap = Self {
            name,
            queues: queues.into_iter().map(Arc::new).collect(),
            capabilities: Capabilities {
                // The kernel takes UFO packets although it makes none of its own any more.
                send: usable,
                receive: usable,
                max_pairs: pairs,
                mtu: Some(mtu),
            },
            pairs,
        };
        tap.set_pairs(1)?;
        Ok(tap)
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn queue(&self, pair: u16) -> Result<Arc<File>, BackendError> {
        let missing = || BackendError::Refused(format!("tap {} has no queue pair {pair}", self.name));
        self.queues.get(usize::from(pair)).cloned().ok_or_else(missing)
    }
}

fn open_device() -> Result<File, BackendError> {
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(TUN_DEVICE);
    opened.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => BackendError::Refused(format!(
            "{TUN_DEVICE} does not exist: the host has no tap driver (try `modprobe tun`)"
        )),
        io::ErrorKind::PermissionDenied => BackendError::Refused(format!(
            "no permission to open {TUN_DEVICE}: ask the administrator, or use user networking"
        )),
        _ => BackendError::host(format!("open {TUN_DEVICE}"))(error),
    })
}

fn attach_error(name: &str, index: u16, pairs: u16, error: io::Error) -> BackendError {
    let multi = if pairs > 1 { " multi_queue" } else { "" };
    match error.raw_os_error() {
        Some(libc::EPERM) => BackendError::Refused(format!(
            "no permission to use tap {name}: as root, run `ip tuntap add dev {name} mode tap user USER{multi}`, or use \
             user networking"
        )),
        Some(libc::EBUSY) => BackendError::Refused(format!(
            "tap {name} is in use by another process, or is an interface of another kind"
        )),
        Some(libc::EINVAL) if pairs > 1 => BackendError::Refused(format!(
            "tap {name} is not a tap interface with several queues: make it with `ip tuntap add dev {name} mode tap \
             multi_queue`, or use queues=1"
        )),
        Some(libc::EINVAL) => BackendError::Refused(format!(
            "{name} is not a tap interface that can be opened (a tun, perhaps)"
        )),
        Some(libc::E2BIG) => {
            BackendError::Refused(format!("tap {name} has no more than {index} free queues"))
        }
        _ => BackendError::host(format!("attach to tap {name}"))(error),
    }
}

impl PacketBackend for Tap {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn set_receive_offloads(&mut self, offloads: Offloads) -> Result<(), BackendError> {
        let queue = self.queue(0)?;
        ioctl::set_offloads(&queue, offloads).map_err(BackendError::host(format!(
            "set the offloads of tap {}",
            self.name
        )))
    }

    fn set_pairs(&mut self, count: u16) -> Result<(), BackendError> {
        let count = count.clamp(1, self.capabilities.max_pairs);
        let had = self.pairs;
        for pair in had.min(count)..had.max(count) {
            let queue = self.queue(pair)?;
            ioctl::set_attached(&queue, pair < count).map_err(BackendError::host(format!(
                "switch queue {pair} of tap {}",
                self.name
            )))?;
        }
        self.pairs = count;
        Ok(())
    }

    fn sender(&mut self, pair: u16) -> Result<Box<dyn PacketSender>, BackendError> {
        Ok(Box::new(Out {
            file: self.queue(pair)?,
            gather: Gather::default(),
        }))
    }

    fn receiver(&mut self, pair: u16) -> Result<Box<dyn PacketReceiver>, BackendError> {
        Ok(Box::new(In(self.queue(pair)?)))
    }
}

struct Out {
    file: Arc<File>,
    gather: Gather,
}

impl PacketSender for Out {
    fn send(&mut self, header: &Header, frame: &IoBuffers) -> Sent {
        match self.gather.write(self.file.as_raw_fd(), header.as_bytes(), frame) {
            Ok(_) => Sent::Taken,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Sent::Later,
            // The interface is down, or the kernel does not like the packet.
            Err(_) => Sent::Dropped,
        }
    }

    fn output_fd(&self) -> Option<RawFd> {
        Some(self.file.as_raw_fd())
    }
}

struct In(Arc<File>);

impl PacketReceiver for In {
    fn receive(&mut self, frame: &mut [u8]) -> Received {
        let mut header = [0; HEADER_SIZE];
        let room = frame.len().min(MAX_FRAME);
        let result = sys::read_split(
            self.0.as_raw_fd(),
            &mut header,
            frame.get_mut(..room).unwrap_or_default(),
        );
        match result {
            Ok(count) if count > HEADER_SIZE => Received::Frame {
                header: Header::read_from_bytes(&header).unwrap_or_default(),
                len: count - HEADER_SIZE,
            },
            Ok(_) => Received::Lost,
            Err(error) => match error.raw_os_error() {
                Some(libc::EAGAIN | libc::EINTR) => Received::Nothing,
                _ => Received::Down(error.to_string()),
            },
        }
    }

    fn input_fd(&self) -> Option<RawFd> {
        Some(self.0.as_raw_fd())
    }
}
