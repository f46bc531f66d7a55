mod image;
mod manage;
mod queue;
mod step;

pub use image::PlainFile;
pub(crate) use image::{RawFile, RawImage};
pub use manage::{RawSpace, create_raw, resize_raw};
