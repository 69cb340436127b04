//! What a process may do: keeps to itself, gives up the privileges it no longer needs once its sockets are open, and takes
//! all the descriptors it is allowed. SECURITY.md has the table of what is left to whom, and a test reads it.
//!
//! Capabilities belong to threads: [`drop_to`] must run before any other thread is started. What it gives up is gone; what
//! it only lays aside can be taken up by one thread for one job ([`with`]), and by no program that is started.

use std::fmt;
use std::fs;

use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask};
use nix::unistd::close;

/// The last of the standard descriptors.
const STANDARD_ERROR: i32 = 2;

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

/// What both programs do first, before they open anything: whatever was left open for them is closed, nothing that they make
/// has any right of `mask`, and their memory, where tokens and keys are, is neither dumped nor read by others of their user.
pub fn isolate(mask: Mode) -> Result<(), PrivilegeError> {
    close_inherited();
    umask(mask);
    // Not by a limit: what the kernel pipes to a program, as WSL has it do, heeds none.
    prctl::set_dumpable(false).map_err(failed("keep its memory to itself"))
}

/// Closes every descriptor but the standard ones. Only for a process that has opened nothing yet.
pub fn close_inherited() {
    let open = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let open: Vec<i32> = open.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for fd in open.into_iter().filter(|fd| *fd > STANDARD_ERROR) {
        // That of the directory just read is closed by now.
        let _ = close(fd);
    }
}

/// Gives up every capability of the calling thread but those of `keep` that it has, in the bounding set too where that
/// is allowed, and makes sure that no program it starts gains any (`no_new_privs`). Those of `aside` are laid aside: they
/// stay permitted, but are not in effect.
pub fn drop_to(keep: &[Capability], aside: &[Capability]) -> Result<(), PrivilegeError> {
    prctl::set_no_new_privs().map_err(failed("set no_new_privs"))?;
    let mut permitted = caps::read(None, CapSet::Permitted).map_err(failed("read the permitted capabilities"))?;
    let kept: CapsHashSet = permitted.iter().copied().filter(|cap| keep.contains(cap)).collect();
    // Without those laid aside: a program that root starts gets what is both permitted and bounding.
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
    permitted.retain(|cap| keep.contains(cap) || aside.contains(cap));
    caps::set(None, CapSet::Permitted, &permitted).map_err(failed("shrink the permitted set"))?;
    caps::clear(None, CapSet::Inheritable).map_err(failed("clear the inheritable set"))
}

/// Does something with those capabilities in effect, on this thread alone, as far as they were laid aside.
pub fn with<T>(capabilities: &[Capability], job: impl FnOnce() -> T) -> T {
    let _laid_aside_again = Raised::of(capabilities);
    job()
}

/// Does something without any capability in effect, on this thread alone: with no more rights over files than its user has.
pub fn without<T>(job: impl FnOnce() -> T) -> T {
    let _in_effect_again = Raised(caps::read(None, CapSet::Effective).ok());
    // Where there are none, and where that is refused, there is nothing to put back either.
    let _ = caps::clear(None, CapSet::Effective);
    job()
}

/// Puts the effective set back as it was.
struct Raised(Option<CapsHashSet>);

impl Raised {
    /// What cannot be raised is done without.
    fn of(capabilities: &[Capability]) -> Raised {
        let sets = caps::read(None, CapSet::Effective).and_then(|before| {
            let permitted = caps::read(None, CapSet::Permitted)?;
            let mut raised = before.clone();
            raised.extend(capabilities.iter().filter(|cap| permitted.contains(cap)));
            caps::set(None, CapSet::Effective, &raised)?;
            Ok(before)
        });
        Raised(sets.ok())
    }
}

impl Drop for Raised {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            if let Err(error) = caps::set(None, CapSet::Effective, before) {
                log::error!("cannot lay capabilities aside again error={:?}", error.to_string());
            }
        }
    }
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
            drop_to(&[Capability::CAP_NET_BIND_SERVICE], &[]).unwrap();
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

    /// In a thread of its own as well.
    #[test]
    fn what_is_laid_aside_is_taken_up_for_one_job_alone() {
        const ASIDE: Capability = Capability::CAP_SYS_PTRACE;
        let check = || {
            let had = caps::has_cap(None, CapSet::Permitted, ASIDE).unwrap();
            drop_to(&[Capability::CAP_NET_BIND_SERVICE], &[ASIDE]).unwrap();
            let sets = || [CapSet::Permitted, CapSet::Effective].map(|set| caps::has_cap(None, set, ASIDE).unwrap());
            assert_eq!(sets(), [had, false]);
            assert_eq!(with(&[ASIDE, Capability::CAP_SYS_ADMIN], || (sets(), 7)), ([had, had], 7));
            assert_eq!(sets(), [had, false]);
            assert!(!caps::has_cap(None, CapSet::Permitted, Capability::CAP_SYS_ADMIN).unwrap());
            let unwound = std::panic::catch_unwind(|| with(&[ASIDE], || panic!("on purpose")));
            assert!(unwound.is_err());
            assert_eq!(sets(), [had, false], "also after a panic");
            // Nothing that is started from here has it.
            let status = std::process::Command::new("cat").arg("/proc/self/status").output().unwrap().stdout;
            let status = String::from_utf8(status).unwrap();
            let permitted = status.lines().find_map(|line| line.strip_prefix("CapPrm:")).unwrap();
            let permitted = u64::from_str_radix(permitted.trim(), 16).unwrap();
            let bounding = caps::has_cap(None, CapSet::Bounding, ASIDE).unwrap();
            assert!(permitted & ASIDE.bitmask() == 0 || bounding, "{permitted:x}");
            assert!(!had || !bounding);
        };
        std::thread::spawn(check).join().unwrap();
    }
}
