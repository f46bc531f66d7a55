use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use treaty_listen::Listener;
use treaty_memory::GuestMemory;
use treaty_vhost_backend::{Endpoint, Stop, serve};
use treaty_vhost_frontend::{ConfigSource, Kind, VhostUserDevice};
use treaty_virtio_device::{Features, RingConfig, VirtioDevice};

use super::{DirectRig, Rig, RigHost, RigKind, Wait};

/// Our vhost-user front-end as the device of a direct rig, and our back-end behind it with the real one.
///
/// It does not save: the back-end has no way to hand a device's state out.
pub struct VhostUserRig {
    /// Before the daemon: the front-end goes first.
    front: DirectRig,
    _daemon: Daemon,
}

pub(super) struct VhostUser;

impl RigKind for VhostUser {
    fn name(&self) -> &'static str {
        "vhost-user"
    }

    fn build(&self, device: Box<dyn VirtioDevice>, memory: GuestMemory) -> Box<dyn Rig> {
        Box::new(VhostUserRig::new(device, memory))
    }
}

impl VhostUserRig {
    /// Serves the device on a socket of its own and connects to it.
    pub fn new(device: Box<dyn VirtioDevice>, memory: GuestMemory) -> Self {
        let description = device.description();
        let sizes = description.queues.iter().map(|queue| queue.max_size);
        let kind = Kind {
            id: description.id,
            queues: description.queues.len() as u16,
            unsaid_queues: description.queues.len() as u16,
            queue_size: sizes.min().unwrap_or(0),
            features: description.features,
            own_features: Features::NONE,
            config: ConfigSource::Backend {
                len: description.config_len,
                queues_at: None,
            },
        };
        let path = socket_path();
        let daemon = Daemon::start(&path, device);
        let device = VhostUserDevice::connect(path, kind).expect("the daemon listens");
        let ring = device.ring_features();
        Self {
            front: DirectRig::offering(Box::new(device), memory, ring),
            _daemon: daemon,
        }
    }
}

fn socket_path() -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("treaty-rig-{}-{count}", std::process::id()))
}

/// A device in a thread, as `treaty serve` runs it. Ends when dropped.
pub struct Daemon {
    stop: Stop,
    thread: Option<JoinHandle<()>>,
}

impl Daemon {
    /// Serves `device` on a socket at `path`.
    pub fn start(path: &std::path::Path, mut device: Box<dyn VirtioDevice>) -> Self {
        let stop = Stop::new().expect("eventfd");
        let listener = Listener::bind(path).expect("a socket");
        let thread = std::thread::spawn({
            let stop = stop.clone();
            move || serve(Endpoint::Listen(listener), &mut *device, &stop).expect("the daemon serves")
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop.stop();
        let ended = self.thread.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            assert!(matches!(ended, Some(Ok(()))), "the daemon's thread panicked");
        }
    }
}

impl Rig for VhostUserRig {
    fn device_id(&mut self) -> u16 {
        self.front.device_id()
    }
    fn offered(&mut self) -> Features {
        self.front.offered()
    }
    fn write_features(&mut self, accepted: Features) {
        self.front.write_features(accepted);
    }
    fn status(&mut self) -> u8 {
        self.front.status()
    }
    fn write_status(&mut self, value: u8) {
        self.front.write_status(value);
    }
    fn queue_max_size(&mut self, index: u16) -> u16 {
        self.front.queue_max_size(index)
    }
    fn enable_queue(&mut self, index: u16, config: &RingConfig) {
        self.front.enable_queue(index, config);
    }
    fn reset_queue(&mut self, index: u16) -> bool {
        self.front.reset_queue(index)
    }
    fn notify(&mut self, index: u16, data: Option<u16>) {
        self.front.notify(index, data);
    }
    fn wait_interrupt(&mut self, which: Wait, limit: Duration) -> bool {
        self.front.wait_interrupt(which, limit)
    }
    fn read_config(&mut self, offset: u32, dst: &mut [u8]) {
        self.front.read_config(offset, dst);
    }
    fn write_config(&mut self, offset: u32, src: &[u8]) {
        self.front.write_config(offset, src);
    }
}

impl RigHost for VhostUserRig {
    fn pause(&mut self) {
        self.front.pause();
    }
    fn resume(&mut self) {
        self.front.resume();
    }
    fn save(&mut self) -> Option<Result<String, String>> {
        None
    }
    fn restore(&mut self, _state: &str) -> Result<(), String> {
        Err("a vhost-user device takes no state".to_owned())
    }
}
