//! A disk over vhost-user that ends itself with SIGKILL at one step of a request's life. The crash tests run it.
//!
//! `crash-daemon SOCKET DISK QUEUES [STEP COUNT]`: dies when it reaches STEP for the COUNTth time.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use treaty_device_blk::{Blk, BlkConfig};
use treaty_listen::Listener;
use treaty_storage::{
    BlockImage, BlockQueue, Capabilities, Finished, OpenOptions, Request, StorageError, open,
};
use treaty_tests::{CrashStep, die_with_parent, kill_self};
use treaty_vhost_backend::{Endpoint, Stop, serve};
use treaty_virtio_device::{
    Description, DeviceEvents, DeviceQueue, Features, QueueState, Reply, RestoreError, SaveError, SavedState,
    StartError, Step, VirtioDevice, Witness,
};
use treaty_worker::{ReactorKind, Turn, Worker};

/// When to die.
#[derive(Clone)]
struct Fate(Option<(CrashStep, Arc<AtomicU64>)>);

impl Fate {
    fn reached(&self, step: CrashStep) {
        if let Some((fatal, left)) = &self.0
            && *fatal == step
            && left.fetch_sub(1, Ordering::Relaxed) == 1
        {
            kill_self();
        }
    }
}

impl Witness for Fate {
    fn reached(&self, step: Step) {
        Fate::reached(self, CrashStep::of_ring(step));
    }
}

/// The disk's image, whose requests are counted.
struct Image(Arc<dyn BlockImage>, Fate);

impl BlockImage for Image {
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    fn queue(&self) -> Result<Box<dyn BlockQueue>, StorageError> {
        Ok(Box::new(Queue(self.0.queue()?, self.1.clone())))
    }
}

struct Queue(Box<dyn BlockQueue>, Fate);

impl BlockQueue for Queue {
    fn submit(&mut self, turn: &mut Turn<'_>, request: Request) {
        self.0.submit(turn, request);
        self.1.reached(CrashStep::Submitted);
    }

    fn poll(&mut self, turn: &mut Turn<'_>, done: &mut Vec<Finished>) {
        let before = done.len();
        self.0.poll(turn, done);
        (before..done.len()).for_each(|_| self.1.reached(CrashStep::HostDone));
    }

    fn in_flight(&self) -> usize {
        self.0.in_flight()
    }
}

/// The disk, whose rings are watched.
struct Watched(Blk, Fate);

impl VirtioDevice for Watched {
    fn description(&self) -> &Description {
        self.0.description()
    }

    fn attach(&mut self, events: DeviceEvents) {
        self.0.attach(events);
    }

    fn negotiate(&mut self, accepted: Features) -> bool {
        self.0.negotiate(accepted)
    }

    fn read_config(&self, offset: u32, dst: &mut [u8]) {
        self.0.read_config(offset, dst);
    }

    fn write_config(&mut self, offset: u32, src: &[u8]) {
        self.0.write_config(offset, src);
    }

    fn start_queue(
        &mut self,
        index: u16,
        mut queue: DeviceQueue,
        accepted: Features,
    ) -> Result<(), StartError> {
        queue.watch(Box::new(self.1.clone()));
        self.0.start_queue(index, queue, accepted)
    }

    fn stop_queue(&mut self, index: u16, reply: Reply<Option<QueueState>>) {
        self.0.stop_queue(index, reply);
    }

    fn reset(&mut self) {
        self.0.reset();
    }

    fn save(&self) -> Result<SavedState, SaveError> {
        self.0.save()
    }

    fn restore(&mut self, state: SavedState) -> Result<(), RestoreError> {
        self.0.restore(state)
    }
}

/// The image, as soon as the kernel has put away what the daemon before had: a busy machine takes its time over that, and whoever
/// starts daemons again would try again.
fn open_in_time(disk: &str) -> Result<Arc<dyn BlockImage>> {
    let deadline = Instant::now() + LOCK_LIMIT;
    loop {
        match open(&OpenOptions::raw(disk)) {
            Err(StorageError::Refused { .. }) if Instant::now() < deadline => {}
            result => return Ok(result?),
        }
    }
}

const LOCK_LIMIT: Duration = Duration::from_secs(30);

fn main() -> Result<()> {
    die_with_parent();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (socket, disk, queues, fate) = match &arguments[..] {
        [socket, disk, queues] => (socket, disk, queues, None),
        [socket, disk, queues, step, count] => (socket, disk, queues, Some((step, count))),
        _ => bail!("crash-daemon SOCKET DISK QUEUES [STEP COUNT]"),
    };
    let fate = Fate(match fate {
        Some((step, count)) => {
            let step = CrashStep::named(step).with_context(|| format!("no step {step}"))?;
            Some((step, Arc::new(AtomicU64::new(count.parse()?))))
        }
        None => None,
    });
    let queues = queues.parse()?;
    let image = Arc::new(Image(open_in_time(disk)?, fate.clone()));
    let config = BlkConfig {
        queues,
        ..BlkConfig::default()
    };
    let workers = (0..2).map(|index| Worker::start(&format!("crash-{index}"), ReactorKind::Auto));
    let workers = workers.collect::<Result<Vec<_>, _>>()?;
    let handles = workers.iter().map(Worker::handle).collect();
    let mut device = Watched(Blk::new(config, image, handles)?, fate);
    let listener = Listener::bind(Path::new(socket))?;
    serve(Endpoint::Listen(listener), &mut device, &Stop::new()?)?;
    Ok(())
}
