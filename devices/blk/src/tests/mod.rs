//! The queue's loop against a driver ring and a scripted image, turn by turn on one thread.

mod chains;
mod device;
mod disk;
mod durability;
mod faults;
mod hostile;
mod lifecycle;
mod model;
mod noise;
mod rig;
