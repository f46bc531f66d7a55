mod listener;
mod negotiation;
mod options;
mod session;
mod status;
mod work;

pub use listener::{Endpoint, Server};
pub use options::{Export, ServerOptions};
