use treaty_device_rng::{Rng, RngConfig};

use crate::error::named;
use crate::{Built, Opened};

/// An entropy device that draws from the host's system call.
pub fn rng(name: &str) -> Opened {
    let of_device = name.to_owned();
    Opened::new(name, move |pool| {
        let worker = pool.one(&of_device).map_err(named(&of_device))?;
        let device = Rng::new(RngConfig::default(), worker);
        Ok(Built {
            counters: device.counters(),
            device: Box::new(device),
        })
    })
}
