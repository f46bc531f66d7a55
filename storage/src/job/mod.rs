//! Requests that take several steps, as futures that one queue runs. They own their buffers, wait only for operations
//! of the stores below and for each other, and are drained, never dropped, while an operation is in flight.

mod io;
mod jobs;
mod mail;
mod stores;

pub(crate) use io::{Io, IoFuture};
pub(crate) use jobs::Jobs;
pub(crate) use mail::Mail;
pub(crate) use stores::Stores;

use std::future::Future;
use std::pin::Pin;

/// A request in several steps.
pub(crate) type Job = Pin<Box<dyn Future<Output = ()> + Send>>;
