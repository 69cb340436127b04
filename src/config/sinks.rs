//! The sinks of a command line: those that `--sink` names, or those of the mode.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use super::mode::{Mode, ModeSink};
use super::{ConfigError, absolute, optional, socket_path, value, values};
use crate::event::Source;
use crate::flags::{FlagError, Parsed};
use crate::ordered::Set;
use crate::sink::host_switch::{Base, HostSwitchConfig};
use crate::sink::vtunnel::Address;
use crate::wire::vtunnel::DOCUMENTS_PORT;

/// Where Rancher Desktop's host-switch serves its API.
const HOST_SWITCH: &str = "192.168.127.1:80";

/// Where Rancher Desktop's wsl-proxy listens.
const WSL_PROXY: &str = "/run/wsl-proxy.sock";

/// Sinks, each with the sources it is told of.
pub type Sinks = Vec<(SinkConfig, &'static [Source])>;

/// A sink to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SinkConfig {
    /// Listeners in the guest, for WSL to notice.
    Listener,
    /// JSON documents on standard output.
    Stdout,
    /// PortMapping documents to that address.
    Vtunnel(Address),
    /// Requests to an expose API.
    HostSwitch(HostSwitchConfig),
    /// PortMapping documents to wsl-proxy, at that unix socket.
    WslProxy(PathBuf),
}

impl SinkConfig {
    /// What it is called on the control socket: its kind, and where it is, as in `host-switch:http://192.168.127.1:80`.
    pub fn name(&self) -> String {
        let kind = match self {
            SinkConfig::Listener | SinkConfig::Stdout | SinkConfig::WslProxy(_) => "",
            SinkConfig::Vtunnel(_) => "vtunnel:",
            SinkConfig::HostSwitch(_) => "host-switch:",
        };
        format!("{kind}{self}")
    }
}

impl fmt::Display for SinkConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SinkConfig::Listener => f.write_str("listener:"),
            SinkConfig::Stdout => f.write_str("stdout:"),
            SinkConfig::Vtunnel(address) => address.fmt(f),
            SinkConfig::HostSwitch(config) => config.base.fmt(f),
            SinkConfig::WslProxy(path) => write!(f, "wsl-proxy://{}", path.display()),
        }
    }
}

/// Reads them all; each can be there once.
pub(super) fn sinks(flags: &Parsed, mode: &Mode, tap_ip: Ipv4Addr) -> Result<Sinks, ConfigError> {
    let vtunnel = value(flags, "vtunnelAddr", "HOST:PORT", host_port)?;
    let host_switch = HostSwitchConfig {
        base: Base::Tcp(HOST_SWITCH.to_owned()),
        tap_ip,
        token_file: value(flags, "api-token-file", "an absolute path", optional(absolute))?,
        state_file: value(flags, "state-file", "an absolute path", absolute)?,
    };
    let urls = "stdout:, listener:, unix://PATH, tcp://HOST:PORT, vsock://CID[:PORT], http://HOST[:PORT], \
                http+unix://PATH or wsl-proxy:[//PATH]";
    let named = values(flags, "sink", urls, |url| sink(url, &host_switch))?;
    let distinct: Set<String> = named.iter().map(ToString::to_string).collect();
    if distinct.len() < named.len() {
        let all = flags.values("sink").join(" ");
        return Err(FlagError::bad_value("sink", &all, "each sink can be given once").into());
    }
    if named.iter().filter(|sink| matches!(sink, SinkConfig::HostSwitch(_))).count() > 1 {
        return Err(ConfigError::TwoHostSwitches);
    }
    let feeds = |sink: &SinkConfig| match sink {
        SinkConfig::WslProxy(_) => Source::WITH_AGENT,
        _ => Source::ALL,
    };
    let mut sinks = Sinks::new();
    for sink in named {
        let feeds = feeds(&sink);
        sinks.push((sink, feeds));
    }
    for (sink, feeds) in &mode.sinks {
        let sink = match sink {
            ModeSink::Vtunnel => SinkConfig::Vtunnel(Address::Tcp(vtunnel.clone())),
            ModeSink::Listener => SinkConfig::Listener,
            ModeSink::HostSwitch => SinkConfig::HostSwitch(host_switch.clone()),
            ModeSink::WslProxy => SinkConfig::WslProxy(WSL_PROXY.into()),
        };
        sinks.push((sink, *feeds));
    }
    Ok(sinks)
}

/// One that host-switch can reach; 127.0.0.0/8 is for trying it out on one machine.
pub(super) fn tap_ip(text: &str) -> Option<Ipv4Addr> {
    text.parse().ok().filter(|ip: &Ipv4Addr| !ip.is_unspecified() && !ip.is_broadcast() && !ip.is_multicast())
}

fn sink(url: &str, host_switch: &HostSwitchConfig) -> Option<SinkConfig> {
    match url {
        "stdout:" => return Some(SinkConfig::Stdout),
        "listener:" => return Some(SinkConfig::Listener),
        "wsl-proxy:" => return Some(SinkConfig::WslProxy(WSL_PROXY.into())),
        _ => {}
    }
    let (scheme, rest) = url.split_once("://")?;
    let address = match scheme {
        "tcp" => Address::Tcp(host_port(rest)?),
        "unix" => Address::Unix(socket_path(rest)?),
        "http" | "http+unix" => {
            let base = if scheme == "http" { Base::Tcp(http_host(rest)?) } else { Base::Unix(socket_path(rest)?) };
            return Some(SinkConfig::HostSwitch(HostSwitchConfig { base, ..host_switch.clone() }));
        }
        "wsl-proxy" => return Some(SinkConfig::WslProxy(socket_path(rest)?)),
        "vsock" => {
            let (cid, port) = match rest.split_once(':') {
                Some((cid, port)) => (cid, port.parse().ok()?),
                None => (rest, DOCUMENTS_PORT),
            };
            Address::Vsock { cid: cid.parse().ok()?, port }
        }
        _ => return None,
    };
    Some(SinkConfig::Vtunnel(address))
}

/// `127.0.0.1:3040`, `[::1]:3040` or `name:3040`; names are looked up when they are used.
fn host_port(text: &str) -> Option<String> {
    let (host, port) = text.rsplit_once(':')?;
    let is_name = || !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'));
    let valid = port.parse::<u16>().is_ok_and(|p| p != 0) && (text.parse::<SocketAddr>().is_ok() || is_name());
    valid.then(|| text.to_owned())
}

/// `HOST`, with HTTP's own port, or `HOST:PORT`; a slash behind it means the same.
fn http_host(text: &str) -> Option<String> {
    let text = text.strip_suffix('/').unwrap_or(text);
    host_port(text).or_else(|| host_port(&format!("{text}:80")))
}
