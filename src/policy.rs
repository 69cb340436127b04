//! Where a published binding may appear on the host. Never wider than what the user published.
//!
//! | published on | with `-adminInstall` | without |
//! |---|---|---|
//! | a loopback address | that loopback address | that loopback address |
//! | every address (`0.0.0.0`, `::`) | every address | the loopback address of the family |
//! | one address of the guest | the loopback address of the family | the loopback address of the family |
//!
//! Rancher Desktop's own agent turns the last row into `0.0.0.0`, which exposes more than was asked for.

use crate::port::{Binding, loopback_like};

/// The exposure policy of one run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Policy {
    /// The host end runs with admin rights (`-adminInstall`), and so may bind every address.
    pub admin: bool,
}

impl Policy {
    /// The binding as the host is to bind it.
    pub fn expose(self, published: Binding) -> Binding {
        let keep = published.is_loopback() || (self.admin && published.host_ip.is_unspecified());
        if keep { published } else { published.on(loopback_like(published.host_ip)) }
    }

    /// Whether the user named one address of the guest, which means nothing on the host.
    pub fn narrows(self, published: Binding) -> bool {
        !published.is_loopback() && !published.host_ip.is_unspecified()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::Protocol;

    #[test]
    fn s12_never_widens() {
        let port = std::num::NonZeroU16::new(80).unwrap();
        for (published, admin, exposed) in [
            ("127.0.0.1", true, "127.0.0.1"),
            ("127.0.0.1", false, "127.0.0.1"),
            ("127.1.2.3", true, "127.1.2.3"),
            ("::1", true, "::1"),
            ("0.0.0.0", true, "0.0.0.0"),
            ("0.0.0.0", false, "127.0.0.1"),
            ("::", true, "::"),
            ("::", false, "::1"),
            ("192.168.1.5", true, "127.0.0.1"),
            ("fd00::5", true, "::1"),
        ] {
            let binding = Binding { protocol: Protocol::Tcp, host_ip: published.parse().unwrap(), host_port: port };
            let got = Policy { admin }.expose(binding);
            assert_eq!(got, binding.on(exposed.parse().unwrap()), "{published} admin={admin}");
        }
    }
}
