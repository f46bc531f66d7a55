//! The vhost-user front-end against a back-end whose answers are the fuzzer's.
#![no_main]

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use treaty_fuzz::{Bytes, message};
use treaty_memory::{GuestMemory, Region};
use treaty_vhost_frontend::{Kind, Link, Peer, VhostUserDevice};
use treaty_vhost_protocol::table::{Reply as Answer, backend, frontend as code};
use treaty_vhost_protocol::{Channel, Message};
use treaty_virtio_device::{
    DeviceEvents, DeviceQueue, Doorbell, EventSink, Interrupt, InterruptSink, QueueParts, QueueState, Reply,
    VirtioDevice,
};
use treaty_virtio_spec::feature;

const PATIENCE: Duration = Duration::from_millis(5);
const LIMIT: Duration = Duration::from_secs(60);

struct Quiet;

impl InterruptSink for Quiet {
    fn signal(&self) {}
}

impl EventSink for Quiet {
    fn config_changed(&self) {}
    fn needs_reset(&self, _: &str) {}
}

/// What the back-end says to one request. `None` once there is nothing more to say.
fn answer(channel: &Channel, raw: &UnixStream, message: Message, bytes: &mut Bytes) -> Option<()> {
    let row = message.row;
    if row.code == code::SET_BACKEND_REQ_FD
        && let Some(fd) = message.fds.into_iter().next()
    {
        return request(&UnixStream::from(fd), bytes);
    }
    if row.reply == Answer::Ack && !message.need_reply {
        return Some(());
    }
    let honest: Vec<u8> = match row.code {
        code::GET_FEATURES => (1u64 << 32 | 1 << 30).to_ne_bytes().to_vec(),
        code::GET_PROTOCOL_FEATURES => u64::MAX.to_ne_bytes().to_vec(),
        code::GET_QUEUE_NUM => 1u64.to_ne_bytes().to_vec(),
        code::GET_CONFIG | code::GET_VRING_BASE => message.payload,
        _ => vec![0; 8],
    };
    let choice = bytes.u8()?;
    let (mut payload, mut code) = (honest, row.code);
    match choice {
        0..=199 => {}
        200..=219 => {
            for byte in &mut payload {
                *byte ^= bytes.u8()?;
            }
        }
        220..=229 => payload.resize(usize::from(bytes.u16()? % 4097), 1),
        230..=236 => code = u32::from(bytes.u8()?),
        237..=243 => {
            let header = [row.code, u32::from(bytes.u8()?), u32::from(bytes.u16()?)];
            let header: Vec<u8> = header.iter().flat_map(|word| word.to_ne_bytes()).collect();
            return (&*raw).write_all(&header).ok();
        }
        244..=249 => return (&*raw).write_all(&payload).ok(),
        250..=253 => {
            let fds: Vec<OwnedFd> = (0..choice - 249)
                .map(|_| Doorbell::new().unwrap().as_fd().try_clone_to_owned().unwrap())
                .collect();
            let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            return channel.reply(&message::row_of(code), &payload, &fds).ok();
        }
        _ => return None,
    }
    channel.reply(&message::row_of(code), &payload, &[]).ok()
}

/// Messages on the back-end's own channel.
fn request(stream: &UnixStream, bytes: &mut Bytes) -> Option<()> {
    let channel = Channel::new(stream.try_clone().ok()?, &[]);
    for _ in 0..bytes.u8()? % 8 {
        let row = &backend::ROWS[usize::from(bytes.u8()?) % backend::ROWS.len()];
        let payload = vec![bytes.u8()?; *row.payload.start()];
        channel.send(row, bytes.u8()? & 1 != 0, &payload, &[]).ok()?;
    }
    Some(())
}

/// One connection after the other, until the bytes are used up.
fn back_end(listener: UnixListener, data: Vec<u8>, ready: mpsc::Receiver<()>) {
    let mut bytes = Bytes(&data);
    for stream in listener.incoming() {
        let Ok(stream) = stream else { return };
        // The last connection is the fuzz target's own, to wake this thread.
        if ready.try_recv().is_ok() || bytes.0.is_empty() {
            return;
        }
        stream.set_nonblocking(true).unwrap();
        let raw = stream.try_clone().unwrap();
        let mut channel = Channel::new(stream, code::ROWS);
        loop {
            match channel.try_receive() {
                Ok(Some(message)) => {
                    if answer(&channel, &raw, message, &mut bytes).is_none() {
                        break;
                    }
                }
                Ok(None) if ready.try_recv().is_ok() => return,
                Ok(None) => std::thread::yield_now(),
                Err(_) => break,
            }
        }
    }
}

fn drive(mut device: VhostUserDevice, memory: &GuestMemory) {
    device.attach(DeviceEvents::new(Arc::new(Quiet)));
    for _ in 0..2 {
        let config = message::ring_config();
        let parts = QueueParts {
            index: 0,
            memory: memory.clone(),
            doorbell: Doorbell::new().unwrap(),
            interrupt: Interrupt::new(Arc::new(Quiet)),
            events: DeviceEvents::new(Arc::new(Quiet)),
        };
        let queue = DeviceQueue::start(parts, &config, QueueState::fresh(config.layout)).unwrap();
        device.start_queue(0, queue, feature::VERSION_1).unwrap();
        device.write_config(32, &[1]);
        device.read_config(0, &mut [0; 64]);
        let (sender, state) = mpsc::channel();
        device.stop_queue(
            0,
            Reply::new(move |answer| {
                let _ = sender.send(answer);
            }),
        );
        state.recv_timeout(LIMIT).expect("a stop is answered");
        device.reset();
    }
}

fuzz_target!(|data: &[u8]| {
    let path = std::env::temp_dir().join(format!("treaty-fuzz-{}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).unwrap();
    let (over, ready) = mpsc::channel();
    let data = data.to_vec();
    let thread = std::thread::spawn(move || back_end(listener, data, ready));
    let memory = GuestMemory::new(vec![Region::memfd(0, 1 << 16).unwrap()]).unwrap();
    if let Ok(link) = Link::open_within(Peer::Connect(path.clone()), Kind::blk(1), PATIENCE, PATIENCE) {
        drive(VhostUserDevice::new(Arc::new(link)), &memory);
    }
    let _ = over.send(());
    let _ = UnixStream::connect(&path);
    thread.join().unwrap();
});
