//! Files on web servers as read-only images: for backing files, and for copying from.
//!
//! Owns: the little of HTTP/1.1 that this needs (GET with a range, kept connections, redirects when opening), TLS for
//! `https`, [`HttpStore`].
//! Must not know: image formats, guests, who runs it.

mod error;
mod head;
mod image;
mod queue;
mod source;
mod url;

pub use error::HttpError;
pub use image::{HttpImage, HttpStore};
