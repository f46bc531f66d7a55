mod active;
mod control;
mod image;
mod link;
mod negotiation;
mod queue;
mod receive;

pub use control::list;
pub use image::NbdImage;
