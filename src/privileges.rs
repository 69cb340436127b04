//! What a process may do: gives up the privileges it no longer needs once its sockets are open, and takes all the
//! descriptors it is allowed.
//!
//! Capabilities belong to threads: this must run before any other thread is started. Never gives anything back.

use std::fmt;

use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// A step of [`drop_to`] that the kernel refused.
#[derive(Debug)]
pub struct PrivilegeError {
    step: &'static str,
    reason: String,
}

impl fmt::Display for PrivilegeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}: {}", self.step, self.reason)
    }
}

impl std::error::Error for PrivilegeError {}

fn failed<E: fmt::Display>(step: &'static str) -> impl FnOnce(E) -> PrivilegeError {
    move |error| PrivilegeError { step, reason: error.to_string() }
}

/// Gives up every capability of the calling thread but those of `keep` that it has, in the bounding set too where that
/// is allowed, and makes sure that no program it starts gains any (`no_new_privs`).
pub fn drop_to(keep: &[Capability]) -> Result<(), PrivilegeError> {
    prctl::set_no_new_privs().map_err(failed("set no_new_privs"))?;
    let permitted = caps::read(None, CapSet::Permitted).map_err(failed("read the permitted capabilities"))?;
    let kept: CapsHashSet = permitted.iter().copied().filter(|cap| keep.contains(cap)).collect();
    if permitted.contains(&Capability::CAP_SETPCAP) {
        for cap in caps::read(None, CapSet::Bounding).map_err(failed("read the bounding set"))? {
            if !kept.contains(&cap) {
                caps::drop(None, CapSet::Bounding, cap).map_err(failed("shrink the bounding set"))?;
            }
        }
    }
    caps::clear(None, CapSet::Ambient).map_err(failed("clear the ambient set"))?;
    // In this order: the effective set must never hold what the permitted one lacks.
    caps::set(None, CapSet::Effective, &kept).map_err(failed("shrink the effective set"))?;
    caps::set(None, CapSet::Permitted, &kept).map_err(failed("shrink the permitted set"))?;
    caps::clear(None, CapSet::Inheritable).map_err(failed("clear the inheritable set"))
}

/// Raises the limit on open descriptors as far as it may go, and returns it: each listener, connection and flow is one.
pub fn raise_file_limit() -> nix::Result<usize> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(usize::try_from(hard).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In a thread of its own, since what is given up stays so. Holds for root and for everyone else.
    #[test]
    fn keeps_only_what_it_is_told_to() {
        let check = || {
            let before = caps::read(None, CapSet::Permitted).unwrap();
            drop_to(&[Capability::CAP_NET_BIND_SERVICE]).unwrap();
            for set in [CapSet::Permitted, CapSet::Effective] {
                for cap in caps::read(None, set).unwrap() {
                    assert_eq!(cap, Capability::CAP_NET_BIND_SERVICE, "{set:?}");
                }
            }
            assert_eq!(
                caps::has_cap(None, CapSet::Effective, Capability::CAP_NET_BIND_SERVICE).unwrap(),
                before.contains(&Capability::CAP_NET_BIND_SERVICE)
            );
            assert!(caps::read(None, CapSet::Inheritable).unwrap().is_empty());
            assert!(prctl::get_no_new_privs().unwrap());
        };
        std::thread::spawn(check).join().unwrap();
    }
}
