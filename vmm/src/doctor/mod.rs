//! What this host offers, each with what to do about it.
//!
//! Every check looks, measures or tries; none changes the host. A check that cannot be made says so as its finding.

mod host;
mod kvm;

pub use kvm::{KernelSpeed, kernel_speed};

/// One thing that was looked at.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Check {
    /// A short, stable name.
    pub name: &'static str,
    /// How it is.
    pub status: Status,
    /// What was found, in one line.
    pub found: String,
    /// What to do about it, if anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It is there and usable.
    Ok,
    /// It is there, with a limit that `found` names.
    Limited,
    /// It is not there or not usable.
    Missing,
}

/// All checks, and the one verdict that programs ask for.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Report {
    /// True if a stock Linux kernel can run on this host's KVM.
    pub stock_kernels: bool,
    /// The checks, most important first.
    pub checks: Vec<Check>,
}

/// Looks at this host; takes well under a second.
pub fn examine() -> Report {
    let (kvm, stock_kernels) = kvm::check();
    let mut checks = vec![kvm];
    checks.extend(host::checks());
    Report {
        stock_kernels,
        checks,
    }
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self {
            name,
            status: Status::Ok,
            found: found.into(),
            advice: None,
        }
    }

    fn limited(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            name,
            status: Status::Limited,
            found: found.into(),
            advice: Some(advice.into()),
        }
    }

    fn missing(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            name,
            status: Status::Missing,
            found: found.into(),
            advice: Some(advice.into()),
        }
    }
}
