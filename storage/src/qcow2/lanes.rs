//! Threads that unpack compressed clusters beside the queues' own: unpacking is all work and no waiting.

use std::future::poll_fn;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::thread::JoinHandle;

use super::compress::unpack;
use super::header::Compression;

/// Threads of one image at most.
const MAX_THREADS: usize = 4;

/// Clusters that wait for a thread; with more, whoever wants one unpacks it.
const MAX_WAITING: usize = 32;

/// The threads of one image, started when two clusters are wanted at a time.
#[derive(Default)]
pub(crate) struct Lanes(Mutex<Threads>);

#[derive(Default)]
struct Threads {
    work: Option<SyncSender<Work>>,
    threads: Vec<JoinHandle<()>>,
}

/// A cluster to unpack.
pub(crate) struct Packed {
    pub(crate) kind: Compression,
    pub(crate) bytes: Vec<u8>,
    /// Bytes of the contents.
    pub(crate) cluster: usize,
}

impl Packed {
    /// Unpacks it here; `None` if it is damaged.
    pub(crate) fn unpack(&self) -> Option<Vec<u8>> {
        unpack(self.kind, &self.bytes, self.cluster)
    }
}

struct Work {
    packed: Packed,
    answer: Arc<Mutex<Answer>>,
}

#[derive(Default)]
struct Answer {
    over: bool,
    plain: Option<Vec<u8>>,
    waiter: Option<Waker>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Work {
    /// Whatever has become of it, it is over.
    fn drop(&mut self) {
        let waiter = {
            let mut answer = lock(&self.answer);
            answer.over = true;
            answer.waiter.take()
        };
        if let Some(waker) = waiter {
            waker.wake();
        }
    }
}

impl Lanes {
    /// Unpacks a cluster on another thread, or here if all have enough to do; `None` if it is damaged.
    pub(crate) async fn unpack(&self, packed: Packed) -> Option<Vec<u8>> {
        let answer = Arc::new(Mutex::new(Answer::default()));
        let work = Work {
            packed,
            answer: answer.clone(),
        };
        if let Err(work) = self.send(work) {
            return work.packed.unpack();
        }
        poll_fn(|context| {
            let mut answer = lock(&answer);
            if answer.over {
                return Poll::Ready(answer.plain.take());
            }
            answer.waiter = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    fn send(&self, work: Work) -> Result<(), Box<Work>> {
        let mut threads = lock(&self.0);
        if threads.work.is_none() {
            threads.start();
        }
        let Some(sender) = &threads.work else {
            return Err(Box::new(work));
        };
        sender.try_send(work).map_err(|error| match error {
            TrySendError::Full(work) | TrySendError::Disconnected(work) => Box::new(work),
        })
    }
}

impl Threads {
    /// Two threads for a CPU, as other programs may hold one up; without any, everything is done by whoever asks.
    fn start(&mut self) {
        let (sender, receiver) = sync_channel(MAX_WAITING);
        let receiver = Arc::new(Mutex::new(receiver));
        let count = std::thread::available_parallelism().map_or(1, usize::from);
        for _ in 0..(2 * count).min(MAX_THREADS) {
            let receiver = receiver.clone();
            let builder = std::thread::Builder::new().name("unpack".to_owned());
            if let Ok(thread) = builder.spawn(move || serve(&receiver)) {
                self.threads.push(thread);
            }
        }
        if !self.threads.is_empty() {
            self.work = Some(sender);
        }
    }
}

fn serve(receiver: &Mutex<Receiver<Work>>) {
    loop {
        let next = lock(receiver).recv();
        let Ok(work) = next else { return };
        let plain = work.packed.unpack();
        lock(&work.answer).plain = plain;
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        let mut threads = lock(&self.0);
        threads.work = None;
        for thread in threads.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::Arc;
    use std::sync::mpsc::{Sender, channel};
    use std::task::{Context, Poll, Wake, Waker};

    use super::super::compress::pack;
    use super::{Compression, Lanes, Packed};

    struct Bell(Sender<()>);

    impl Wake for Bell {
        fn wake(self: Arc<Self>) {
            let _ = self.0.send(());
        }
    }

    #[test]
    fn what_a_thread_unpacks_comes_back_and_damage_is_told() {
        let plain: Vec<u8> = (0..65536u32).map(|at| (at / 300) as u8).collect();
        let good = pack(Compression::Zlib, &plain).unwrap();
        let lanes = Lanes::default();
        for (bytes, wanted) in [(good, Some(plain)), (vec![0xff; 600], None)] {
            let packed = Packed {
                kind: Compression::Zlib,
                bytes,
                cluster: 65536,
            };
            let (sender, rung) = channel();
            let waker = Waker::from(Arc::new(Bell(sender)));
            let mut future = pin!(lanes.unpack(packed));
            let got = loop {
                match future.as_mut().poll(&mut Context::from_waker(&waker)) {
                    Poll::Ready(got) => break got,
                    Poll::Pending => rung.recv().unwrap(),
                }
            };
            assert_eq!(got, wanted);
        }
    }
}
