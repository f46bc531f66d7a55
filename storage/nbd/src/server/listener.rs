use std::io;
use std::net::{Shutdown, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;

use treaty_listen::Listener;
use treaty_stream::{Socket, Stream};
use treaty_worker::{ReactorKind, Worker, WorkerHandle};

use super::options::ServerOptions;
use super::session::Session;
use super::status::{self, Inbox, Question};

/// A socket that clients connect to.
#[derive(Debug)]
pub enum Endpoint {
    /// TCP.
    Tcp(TcpListener),
    /// Unix.
    Unix(Listener),
}

/// Serves exports until it is dropped: then connections stop taking requests, finish those they have, and end.
pub struct Server {
    shared: Arc<Shared>,
    stopper: UnixStream,
    thread: Option<JoinHandle<()>>,
    /// After the thread, which adds to them.
    _workers: Vec<Worker>,
}

struct Shared {
    endpoint: Endpoint,
    options: Arc<ServerOptions>,
    workers: Vec<WorkerHandle>,
    asker: Sender<Question>,
    connections: AtomicUsize,
    stopping: AtomicBool,
}

impl Server {
    /// Accepts clients; connections are spread over `workers` threads (at least 1).
    pub fn start(endpoint: Endpoint, options: ServerOptions, workers: usize) -> io::Result<Self> {
        let workers = (0..workers.max(1))
            .map(|index| Worker::start(&format!("nbd-{index}"), ReactorKind::Auto))
            .collect::<Result<Vec<_>, _>>()
            .map_err(io::Error::other)?;
        let listening: OwnedFd = match &endpoint {
            Endpoint::Tcp(socket) => socket.try_clone()?.into(),
            Endpoint::Unix(listener) => listener.socket().try_clone()?.into(),
        };
        let shared = Arc::new(Shared {
            endpoint,
            options: Arc::new(options),
            workers: workers.iter().map(Worker::handle).collect(),
            asker: status::start()?,
            connections: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
        });
        let thread = std::thread::Builder::new().name("nbd-accept".into()).spawn({
            let shared = shared.clone();
            move || accept_all(&shared)
        })?;
        Ok(Self {
            shared,
            // Only for shutting the socket down, which does not care for its kind.
            stopper: UnixStream::from(listening),
            thread: Some(thread),
            _workers: workers,
        })
    }

    /// Clients at this moment.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Release);
        // Wakes the thread from `accept`.
        let _ = self.stopper.shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            // Its panic was reported when it happened.
            let _ = thread.join();
        }
    }
}

impl Endpoint {
    fn accept(&self) -> io::Result<(Socket, String)> {
        match self {
            Self::Tcp(listener) => {
                let (socket, peer) = listener.accept()?;
                Ok((Socket::Tcp(socket), peer.to_string()))
            }
            Self::Unix(listener) => {
                let (socket, _) = listener.socket().accept()?;
                Ok((Socket::Unix(socket), "local".to_owned()))
            }
        }
    }
}

fn accept_all(shared: &Arc<Shared>) {
    let mut next = 0;
    loop {
        let accepted = shared.endpoint.accept();
        if shared.stopping.load(Ordering::Acquire) {
            return;
        }
        match accepted {
            Ok((socket, peer)) => {
                let worker = &shared.workers[next % shared.workers.len()];
                next += 1;
                if let Err(error) = admit(shared, worker, socket, peer) {
                    tracing::warn!(%error, "a client was turned away");
                }
            }
            Err(error) => {
                // Out of descriptors, or a client that left at once: there will be others.
                tracing::warn!(%error, "cannot accept a client");
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
        }
    }
}

fn admit(shared: &Arc<Shared>, worker: &WorkerHandle, socket: Socket, peer: String) -> io::Result<()> {
    if shared.connections.load(Ordering::Relaxed) >= shared.options.max_connections {
        return Err(io::Error::other("there are as many clients as are allowed"));
    }
    shared.connections.fetch_add(1, Ordering::Relaxed);
    let counted = shared.clone();
    let leave = move || counted.connections.fetch_sub(1, Ordering::Relaxed);
    let stream = match Stream::new(socket) {
        Ok(stream) => stream,
        Err(error) => {
            leave();
            return Err(error);
        }
    };
    let inbox = Arc::new(Inbox::new(worker.clone()));
    let session = Session::new(
        stream,
        peer,
        shared.options.clone(),
        shared.asker.clone(),
        inbox.clone(),
    );
    let task = worker.add(
        Box::new(session),
        Box::new(move |_| {
            leave();
        }),
    );
    inbox.belongs_to(task);
    Ok(())
}
