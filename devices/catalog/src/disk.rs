use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use treaty_device_blk::{Blk, BlkConfig, Serial};
use treaty_http::HttpStore;
use treaty_nbd::{Export, NbdStore};
use treaty_plan::{CacheChoice, DiskFormat, DiskPlan, LockChoice, OnError, ThrottlePlan};
use treaty_storage::qcow2::{Backing, Qcow2Options};
use treaty_storage::{
    BlockImage, CacheMode, Format, LiveHandle, LiveImage, LockTime, NullImage, OpenOptions, Rate, ReadAhead,
    StopHandle, StopImage, StorageError, Stores, Throttle, ThrottleCounts, ThrottleGroup, ThrottleLimits,
};
use treaty_virtio_device::{CounterSet, DeviceCounters};

use crate::error::named;
use crate::{Built, CatalogError, Opened};

/// What the disks of one machine or daemon share.
pub struct DiskContext {
    groups: HashMap<String, ThrottleGroup>,
    stores: Stores,
}

impl Default for DiskContext {
    fn default() -> Self {
        Self {
            groups: HashMap::new(),
            stores: stores(),
        }
    }
}

/// Every kind of image that is no file of this host.
pub fn stores() -> Stores {
    Stores::new(vec![Arc::new(NbdStore), Arc::new(HttpStore)])
}

/// An image with everything that its plan puts on top of it.
struct Stack {
    image: Arc<dyn BlockImage>,
    live: Option<LiveHandle>,
    stop: Option<StopHandle>,
    throttle: Option<Arc<ThrottleCounts>>,
}

/// A disk over the image that the plan names. Held, the image stays locked until the last use of it is gone.
pub fn disk(name: &str, plan: &DiskPlan, context: &mut DiskContext) -> Result<Opened, CatalogError> {
    let of_device = name.to_owned();
    let Stack {
        image,
        live,
        stop,
        throttle,
    } = stack(plan, context).map_err(named(name))?;
    let workers = plan.workers();
    let config = BlkConfig {
        queues: plan.queues,
        serial: Serial::new(plan.serial.as_deref().unwrap_or_default()).map_err(named(name))?,
        block_size: plan.block_size,
        read_only: plan.readonly,
        writeback: !cache_mode(plan).writes_through(),
        ..BlkConfig::default()
    };
    let of_stop = stop.clone();
    let mut opened = Opened::new(name, move |pool| {
        let workers = pool
            .for_queues(&of_device, config.queues, &workers)
            .map_err(named(&of_device))?;
        let device = Blk::new(config.clone(), image.clone(), workers).map_err(named(&of_device))?;
        let mut counters = device.counters();
        count_filters(&mut counters, of_stop.as_ref(), throttle.as_ref());
        Ok(Built {
            counters,
            device: Box::new(device),
        })
    });
    opened.stop = stop;
    opened.live = live;
    Ok(opened)
}

/// The image that a plan names, with its limits, for a drive that is not virtio; and what takes snapshots of it.
pub fn image(
    name: &str,
    plan: &DiskPlan,
    context: &mut DiskContext,
) -> Result<(Arc<dyn BlockImage>, Option<LiveHandle>), CatalogError> {
    let stack = stack(plan, context).map_err(named(name))?;
    Ok((stack.image, stack.live))
}

/// The image that a plan names, with its limits, for clients of a server instead of a guest.
pub fn export(name: &str, plan: &DiskPlan, context: &mut DiskContext) -> Result<Export, CatalogError> {
    let shown = format!("export {name:?}");
    Ok(Export {
        name: name.to_owned(),
        image: stack(plan, context).map_err(named(&shown))?.image,
        read_only: plan.readonly,
        writes_through: cache_mode(plan).writes_through(),
    })
}

fn stack(plan: &DiskPlan, context: &mut DiskContext) -> Result<Stack, StorageError> {
    let (mut image, live) = open(plan, &context.stores)?;
    if let Some(window) = plan.read_ahead {
        image = Arc::new(ReadAhead::new(image, u32::try_from(window.0).unwrap_or(u32::MAX)));
    }
    let mut stop = None;
    if plan.on_error == OnError::Stop {
        let stopping = StopImage::new(image);
        stop = Some(stopping.handle());
        image = Arc::new(stopping);
    }
    let mut throttle = None;
    if let Some(group) = context.group(plan)? {
        let limited = Throttle::new(image, group);
        throttle = Some(limited.counts());
        image = Arc::new(limited);
    }
    Ok(Stack {
        image,
        live,
        stop,
        throttle,
    })
}

impl DiskContext {
    /// The group whose limits hold for a disk, if any do.
    fn group(&mut self, plan: &DiskPlan) -> Result<Option<ThrottleGroup>, StorageError> {
        let limits = plan.throttle().map(|plan| limits(&plan));
        let Some(name) = &plan.group else {
            return Ok(limits.map(ThrottleGroup::new));
        };
        let refused = |reason: String| StorageError::Refused {
            path: plan.path.clone(),
            reason,
        };
        match (self.groups.get(name), limits) {
            (None, None) => Err(refused(format!(
                "group={name}: give the group's limits with its first disk"
            ))),
            (None, Some(limits)) => {
                let group = ThrottleGroup::new(limits);
                self.groups.insert(name.clone(), group.clone());
                Ok(Some(group))
            }
            (Some(group), limits) if limits.is_none_or(|limits| limits == group.limits()) => {
                Ok(Some(group.clone()))
            }
            (Some(_), _) => Err(refused(format!(
                "group={name}: the group has other limits already"
            ))),
        }
    }
}

fn limits(plan: &ThrottlePlan) -> ThrottleLimits {
    let rate = |(average, burst)| Rate { average, burst };
    let ([iops, iops_rd, iops_wr], [bps, bps_rd, bps_wr]) = (plan.iops.map(rate), plan.bps.map(rate));
    ThrottleLimits {
        iops,
        iops_rd,
        iops_wr,
        bps,
        bps_rd,
        bps_wr,
    }
}

fn cache_mode(plan: &DiskPlan) -> CacheMode {
    match plan.cache_mode() {
        CacheChoice::None => CacheMode::None,
        CacheChoice::Writeback => CacheMode::Writeback,
        CacheChoice::Writethrough => CacheMode::Writethrough,
        CacheChoice::Directsync => CacheMode::DirectSync,
        CacheChoice::Unsafe => CacheMode::Unsafe,
    }
}

fn qcow2(plan: &DiskPlan) -> Qcow2Options {
    let usual = Qcow2Options::default();
    Qcow2Options {
        backing: if plan.backing {
            Backing::Tree
        } else {
            Backing::Refused
        },
        cache_bytes: plan.cache_size.map_or(usual.cache_bytes, |size| size.bytes()),
        ..usual
    }
}

type Image = (Arc<dyn BlockImage>, Option<LiveHandle>);

fn open(plan: &DiskPlan, stores: &Stores) -> Result<Image, StorageError> {
    let format = match plan.format {
        DiskFormat::Raw => Format::Raw,
        DiskFormat::Qcow2 => Format::Qcow2,
        DiskFormat::Null => {
            let blocks = plan.size.map_or(0, |size| size.bytes() / 512);
            let image = NullImage::new(u32::try_from(blocks).unwrap_or(u32::MAX));
            return Ok((Arc::new(image), None));
        }
    };
    let image = LiveImage::open(OpenOptions {
        format,
        read_only: plan.readonly,
        cache: cache_mode(plan),
        lock: match plan.lock {
            LockChoice::Held => LockTime::Held,
            LockChoice::Running => LockTime::Running,
        },
        stores: stores.clone(),
        qcow2: qcow2(plan),
        ..OpenOptions::raw(PathBuf::from(&plan.path))
    })?;
    let live = image.handle();
    Ok((Arc::new(image), Some(live)))
}

/// What the filters count, under the disk's first queue.
fn count_filters(
    counters: &mut DeviceCounters,
    stop: Option<&StopHandle>,
    throttle: Option<&Arc<ThrottleCounts>>,
) {
    if let Some(counts) = throttle {
        counters.push(0, Arc::new(Throttled(counts.clone())));
    }
    if let Some(handle) = stop {
        counters.push(0, Arc::new(Stopped(handle.clone())));
    }
}

struct Throttled(Arc<ThrottleCounts>);

impl CounterSet for Throttled {
    fn visit(&self, each: &mut dyn FnMut(&'static str, u64)) {
        each("throttled_requests", self.0.requests());
        each("throttled_ns", self.0.ns());
    }
}

struct Stopped(StopHandle);

impl CounterSet for Stopped {
    fn visit(&self, each: &mut dyn FnMut(&'static str, u64)) {
        each("stopped_requests", self.0.stops());
    }
}
