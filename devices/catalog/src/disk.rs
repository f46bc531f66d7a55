use std::sync::Arc;

use treaty_device_blk::{Blk, BlkConfig, Serial};
use treaty_plan::{DiskFormat, DiskPlan, LockChoice};
use treaty_storage::{BlockImage, Format, LockTime, NullImage, OpenOptions, StorageError};

use crate::error::named;
use crate::{Built, CatalogError, Opened};

/// A disk over the image that the plan names. Held, the image stays locked until the last use of it is gone.
pub fn disk(name: &str, plan: &DiskPlan) -> Result<Opened, CatalogError> {
    let of_device = name.to_owned();
    let image = open(plan).map_err(named(name))?;
    let workers = plan.workers();
    let config = BlkConfig {
        queues: plan.queues,
        serial: Serial::new(plan.serial.as_deref().unwrap_or_default()).map_err(named(name))?,
        block_size: plan.block_size,
        read_only: plan.readonly,
        ..BlkConfig::default()
    };
    Ok(Opened::new(name, move |pool| {
        let workers = pool
            .for_queues(&of_device, config.queues, &workers)
            .map_err(named(&of_device))?;
        let device = Blk::new(config.clone(), image.clone(), workers).map_err(named(&of_device))?;
        Ok(Built {
            counters: device.counters(),
            device: Box::new(device),
        })
    }))
}

fn open(plan: &DiskPlan) -> Result<Arc<dyn BlockImage>, StorageError> {
    let format = match plan.format {
        DiskFormat::Raw => Format::Raw,
        DiskFormat::Null => {
            let blocks = plan.size.map_or(0, |size| size.bytes() / 512);
            return Ok(Arc::new(NullImage::new(
                u32::try_from(blocks).unwrap_or(u32::MAX),
            )));
        }
    };
    treaty_storage::open(&OpenOptions {
        path: plan.path.clone(),
        format,
        read_only: plan.readonly,
        direct: plan.direct,
        lock: match plan.lock {
            LockChoice::Held => LockTime::Held,
            LockChoice::Running => LockTime::Running,
        },
    })
}
