//! The instruments' figures for Prometheus and other programs.
//!
//! Owns: the OpenMetrics text of a [`Snapshot`](treaty_telemetry::snapshot::Snapshot) ([`openmetrics`]), and a server that gives
//! it to whoever asks ([`Server`]), for daemons that have no control API.
//! Must not know: where snapshots come from.

mod names;
mod server;
mod text;

pub use names::{METRICS, Metric};
pub use server::{Address, CONTENT_TYPE, Server, ServerError};
pub use text::openmetrics;
