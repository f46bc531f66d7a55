//! Devices that are not virtio: opened once, built for each boot.

use treaty_catalog::{CatalogError, packets};
use treaty_e1000::{Config, E1000, E1000Error, Model, Parts};
use treaty_net::PacketBackend;

use crate::plan::{NetModel, NetPlan};

/// A network card of that kind, with its back-end open.
pub(crate) struct Card {
    name: String,
    model: Model,
    mac: [u8; 6],
    backend: Box<dyn Fn() -> Box<dyn PacketBackend> + Send>,
}

impl Card {
    /// Opens what the plan names.
    pub(crate) fn open(name: &str, plan: &NetPlan) -> Result<Self, CatalogError> {
        let (kept, mac) = packets(name, plan)?;
        let model = match plan.model {
            NetModel::E1000Em5 => Model::I82545em,
            _ => Model::I82540em,
        };
        Ok(Self {
            name: name.to_owned(),
            model,
            mac,
            backend: Box::new(move || Box::new(kept.clone())),
        })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The card, in its place. `parts` lacks only the back-end.
    pub(crate) fn build(
        &self,
        parts: impl FnOnce(Box<dyn PacketBackend>) -> Parts,
    ) -> Result<E1000, E1000Error> {
        let config = Config {
            model: self.model,
            mac: self.mac,
            clock: None,
        };
        E1000::new(&config, parts((self.backend)()))
    }
}
