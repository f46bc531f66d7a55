use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use treaty_storage::{BlockImage, Extent, StorageError};
use treaty_worker::{TaskId, WorkerHandle};

/// What a range of an image consists of, for a connection.
pub(crate) struct Answer {
    /// What the client called its question.
    pub(crate) cookie: u64,
    /// The range asked for, in bytes.
    pub(crate) offset: u64,
    pub(crate) len: u64,
    /// Only the first extent is wanted.
    pub(crate) one: bool,
    pub(crate) extents: Result<Vec<Extent>, StorageError>,
}

/// A connection's letter box, and how to tell it that there is something in it.
pub(crate) struct Inbox {
    answers: Mutex<Vec<Answer>>,
    worker: WorkerHandle,
    task: OnceLock<TaskId>,
}

impl Inbox {
    pub(crate) fn new(worker: WorkerHandle) -> Self {
        Self {
            answers: Mutex::default(),
            worker,
            task: OnceLock::new(),
        }
    }

    /// Says which task the connection is. Once, right after it was added.
    pub(crate) fn belongs_to(&self, task: TaskId) {
        let _ = self.task.set(task);
    }

    pub(crate) fn take(&self) -> Vec<Answer> {
        std::mem::take(&mut *self.answers.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn put(&self, answer: Answer) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.push(answer);
        drop(answers);
        self.worker.wake(*self.task.wait());
    }
}

/// A question about a range.
pub(crate) struct Question {
    pub(crate) image: Arc<dyn BlockImage>,
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) len: u64,
    pub(crate) one: bool,
    pub(crate) inbox: Arc<Inbox>,
}

/// Sends questions to the thread that answers them: looking for holes may wait for a disk. The thread ends when the last
/// sender has gone.
pub(crate) fn start() -> std::io::Result<Sender<Question>> {
    let (sender, receiver) = channel();
    std::thread::Builder::new()
        .name("nbd-map".into())
        .spawn(move || serve(&receiver))?;
    Ok(sender)
}

fn serve(questions: &Receiver<Question>) {
    while let Ok(question) = questions.recv() {
        let Question {
            image,
            cookie,
            offset,
            len,
            one,
            inbox,
        } = question;
        let extents = image.map(offset, len);
        drop(image);
        inbox.put(Answer {
            cookie,
            offset,
            len,
            one,
            extents,
        });
    }
}
