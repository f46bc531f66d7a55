mod image;
mod queue;
mod step;

pub(crate) use image::{RawFile, RawImage};
