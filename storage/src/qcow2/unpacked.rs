//! Contents of compressed clusters: those that were wanted last, and those that somebody is unpacking now.

use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use super::image::Image;

/// Clusters that were unpacked last and are kept.
const KEPT: usize = 8;

/// A layer of the chain, and the byte of its file where a compressed cluster begins.
pub(crate) type Key = (usize, u64);

/// The most recently unpacked clusters, and those on the way.
#[derive(Default)]
pub(crate) struct Unpacked {
    kept: VecDeque<(Key, Arc<Vec<u8>>)>,
    wanted: HashMap<Key, Arc<Wanted>>,
}

/// A cluster that somebody unpacks, and others wait for.
#[derive(Default)]
pub(crate) struct Wanted(Mutex<State>);

#[derive(Default)]
struct State {
    plain: Option<Arc<Vec<u8>>>,
    over: bool,
    waiters: Vec<Waker>,
}

/// Where a cluster's contents come from.
pub(crate) enum Source {
    Kept(Arc<Vec<u8>>),
    /// Somebody else is at it.
    Other(Arc<Wanted>),
    /// The asker unpacks it.
    Mine(Mine),
}

impl Unpacked {
    pub(crate) fn clear(&mut self) {
        self.kept.clear();
    }

    /// How many are being unpacked.
    pub(crate) fn under_way(&self) -> usize {
        self.wanted.len()
    }
}

impl Wanted {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until it is unpacked; `None` if that failed.
    pub(crate) async fn wait(&self) -> Option<Arc<Vec<u8>>> {
        poll_fn(|context| {
            let mut state = self.state();
            if state.over {
                return Poll::Ready(state.plain.clone());
            }
            state.waiters.push(context.waker().clone());
            Poll::Pending
        })
        .await
    }
}

/// Finds a cluster's contents, or who is to bring them.
pub(crate) fn find(image: &Arc<Image>, key: Key) -> Source {
    let mut unpacked = image.unpacked();
    if let Some((_, plain)) = unpacked.kept.iter().find(|(kept, _)| *kept == key) {
        return Source::Kept(plain.clone());
    }
    if let Some(wanted) = unpacked.wanted.get(&key) {
        return Source::Other(wanted.clone());
    }
    let wanted = Arc::new(Wanted::default());
    unpacked.wanted.insert(key, wanted.clone());
    Source::Mine(Mine {
        image: image.clone(),
        key,
        wanted,
    })
}

/// The task to unpack a cluster. Whatever becomes of it, whoever waits goes on.
pub(crate) struct Mine {
    image: Arc<Image>,
    key: Key,
    wanted: Arc<Wanted>,
}

impl Mine {
    /// It is done.
    pub(crate) fn finish(self, plain: &Arc<Vec<u8>>) {
        self.wanted.state().plain = Some(plain.clone());
        let mut unpacked = self.image.unpacked();
        if unpacked.kept.len() >= KEPT {
            unpacked.kept.pop_front();
        }
        unpacked.kept.push_back((self.key, plain.clone()));
    }
}

impl Drop for Mine {
    fn drop(&mut self) {
        self.image.unpacked().wanted.remove(&self.key);
        let waiters = {
            let mut state = self.wanted.state();
            state.over = true;
            std::mem::take(&mut state.waiters)
        };
        for waker in waiters {
            waker.wake();
        }
    }
}
