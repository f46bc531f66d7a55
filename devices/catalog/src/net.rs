use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use treaty_device_net::{Net, NetConfig, random_mac};
use treaty_net::{
    BackendError, Capabilities, Loopback, Null, Offloads, PacketBackend, PacketReceiver, PacketSender,
    Socket, Tap, User, UserOptions,
};
use treaty_plan::{NetBackend, NetPlan};

use crate::error::named;
use crate::{Built, CatalogError, Opened};

/// A network card's back-end for a device that is not virtio: open once, taken anew at each boot.
/// With the card's address.
pub fn packets(
    name: &str,
    plan: &NetPlan,
) -> Result<(impl PacketBackend + Clone + 'static, [u8; 6]), CatalogError> {
    let mac = match plan.mac_bytes() {
        Ok(Some(given)) => given,
        _ => random_mac().map_err(named(name))?,
    };
    Ok((Kept::new(open(plan).map_err(named(name))?), mac))
}

/// A network card on the back-end that the plan names. Its address stays the same if it is built again.
pub fn net(name: &str, plan: &NetPlan) -> Result<Opened, CatalogError> {
    let of_device = name.to_owned();
    let kept = Kept::new(open(plan).map_err(named(name))?);
    let address: OnceLock<[u8; 6]> = OnceLock::new();
    if let Ok(Some(given)) = plan.mac_bytes() {
        let _first = address.set(given);
    }
    let (mtu, virtqueues, workers) = (plan.mtu, plan.virtqueues(), plan.workers());
    Ok(Opened::new(name, move |pool| {
        let workers = pool
            .for_queues(&of_device, virtqueues, &workers)
            .map_err(named(&of_device))?;
        let config = NetConfig {
            mac: address.get().copied(),
            mtu,
            ..NetConfig::default()
        };
        let device = Net::new(&config, Box::new(kept.clone()), workers).map_err(named(&of_device))?;
        let _made_up_once = address.set(device.mac());
        Ok(Built {
            counters: device.counters(),
            device: Box::new(device),
        })
    }))
}

fn open(plan: &NetPlan) -> Result<Box<dyn PacketBackend>, BackendError> {
    Ok(match plan.backend() {
        Some(NetBackend::Tap(name)) => Box::new(Tap::open(&name, plan.queues)?),
        Some(NetBackend::User) => {
            let mut options = UserOptions::default();
            // What the device tells the guest, passt must tell it too.
            options.mtu = plan.mtu.unwrap_or(options.mtu);
            Box::new(User::start(&options)?)
        }
        Some(NetBackend::Socket(path)) => Box::new(Socket::shared(&path)?),
        Some(NetBackend::Null) => Box::new(Null::new(plan.queues)),
        Some(NetBackend::Loopback) => Box::new(Loopback::echo(plan.queues)?),
        None => return Err(BackendError::Refused("name one back-end".into())),
    })
}

/// A back-end that stays open while the devices over it come and go.
#[derive(Clone)]
struct Kept {
    capabilities: Capabilities,
    backend: Arc<Mutex<Box<dyn PacketBackend>>>,
}

impl Kept {
    fn new(backend: Box<dyn PacketBackend>) -> Self {
        Self {
            capabilities: *backend.capabilities(),
            backend: Arc::new(Mutex::new(backend)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Box<dyn PacketBackend>> {
        self.backend.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PacketBackend for Kept {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn set_receive_offloads(&mut self, offloads: Offloads) -> Result<(), BackendError> {
        self.lock().set_receive_offloads(offloads)
    }

    fn set_pairs(&mut self, count: u16) -> Result<(), BackendError> {
        self.lock().set_pairs(count)
    }

    fn sender(&mut self, pair: u16) -> Result<Box<dyn PacketSender>, BackendError> {
        self.lock().sender(pair)
    }

    fn receiver(&mut self, pair: u16) -> Result<Box<dyn PacketReceiver>, BackendError> {
        self.lock().receiver(pair)
    }
}
