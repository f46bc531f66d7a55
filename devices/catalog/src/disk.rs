use treaty_device_blk::{Blk, BlkConfig, Serial};
use treaty_plan::{DiskFormat, DiskPlan};
use treaty_storage::{Format, OpenOptions};

use crate::error::named;
use crate::{Built, CatalogError, Opened};

/// A disk over the image that the plan names. The image stays locked until the last use of it is gone.
pub fn disk(name: &str, plan: &DiskPlan) -> Result<Opened, CatalogError> {
    let of_device = name.to_owned();
    let image = treaty_storage::open(&OpenOptions {
        path: plan.path.clone(),
        format: match plan.format {
            DiskFormat::Raw => Format::Raw,
        },
        read_only: plan.readonly,
        direct: plan.direct,
    })
    .map_err(named(name))?;
    let config = BlkConfig {
        queues: plan.queues,
        serial: Serial::new(plan.serial.as_deref().unwrap_or_default()).map_err(named(name))?,
        block_size: plan.block_size,
        read_only: plan.readonly,
        ..BlkConfig::default()
    };
    Ok(Opened::new(name, move |pool| {
        let workers = pool
            .per_queue(&of_device, config.queues)
            .map_err(named(&of_device))?;
        let device = Blk::new(config.clone(), image.clone(), workers).map_err(named(&of_device))?;
        Ok(Built {
            counters: device.counters(),
            device: Box::new(device),
        })
    }))
}
