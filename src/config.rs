//! The agent's configuration: command line and environment, turned into types and checked before anything starts.
//!
//! The flags are those of Rancher Desktop's own agent, so that this one can take its place, and a few of ours (those
//! that `--help` writes with two dashes). Nothing here does I/O.

pub mod mode;
pub mod usage;

use std::ffi::OsString;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::time::Duration;

use crate::cidr::Cidr;
use crate::event::Source;
use crate::flags::{FlagError, Parsed};
use crate::logging::Format;
use crate::ordered::Set;
use crate::policy::Policy;
use crate::port::{Binding, Protocol};
use crate::sink::vtunnel::Address;
use crate::wire::vtunnel::DOCUMENTS_PORT;
use mode::{Given, Mode, ModeSink, NoMode};
use usage::USAGE;

/// The kernel's limit for the path of a unix socket.
const UNIX_PATH_BYTES_MAX: usize = 107;

/// The shortest `--nat-interval`.
const NAT_INTERVAL_MIN: Duration = Duration::from_millis(10);

/// Where the engine listens unless `DOCKER_HOST` says otherwise.
const DOCKER_SOCKET: &str = "/var/run/docker.sock";

/// Where `ctr` talks to containerd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerdConfig {
    /// containerd's socket.
    pub socket: PathBuf,
    /// The program `ctr`; `None`: the first on the path.
    pub ctr: Option<PathBuf>,
}

/// How to reach Kubernetes, and where its Services are to appear.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KubernetesConfig {
    /// The kubeconfig: the server, and how to prove who we are.
    pub kubeconfig: PathBuf,
    /// Where Services are published: `0.0.0.0` or `127.0.0.1`. For IPv6 Services its counterpart, `::` or `::1`.
    pub listener_ip: Ipv4Addr,
    /// A kubeconfig may turn the check of the server's certificate off.
    pub insecure_tls: bool,
    /// The API server itself, on the host's loopback: for wsl-proxy, a sink that is not in this version.
    pub api_server: Binding,
}

/// A sink to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SinkConfig {
    /// Listeners in the guest, for WSL to notice.
    Listener,
    /// JSON documents on standard output.
    Stdout,
    /// PortMapping documents to that address.
    Vtunnel(Address),
}

impl fmt::Display for SinkConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SinkConfig::Listener => f.write_str("listener:"),
            SinkConfig::Stdout => f.write_str("stdout:"),
            SinkConfig::Vtunnel(address) => address.fmt(f),
        }
    }
}

/// What is asked of the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    /// Run the agent.
    Run(Config),
    /// Say what would run, and exit.
    Check(Config),
    /// Print the help.
    Help,
    /// Print the version.
    Version,
}

/// A checked configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The engine's socket, where the docker source is on.
    pub docker: Option<PathBuf>,
    /// containerd, where its source is on.
    pub containerd: Option<ContainerdConfig>,
    /// How often to look whether NAT rules have changed where the kernel does not say so, where that source is on.
    pub nat_interval: Option<Duration>,
    /// Kubernetes, where its source is on.
    pub kubernetes: Option<KubernetesConfig>,
    /// The sinks, at least one, each with the sources it is told of.
    pub sinks: Vec<(SinkConfig, &'static [Source])>,
    /// What may be exposed.
    pub policy: Policy,
    /// How long the claims of a lost engine stay.
    pub grace: Duration,
    /// The interface whose addresses the host connects to.
    pub interface: String,
    /// Who may use the relay; empty: the default gateway.
    pub relay_peers: Vec<Cidr>,
    /// Log everything.
    pub debug: bool,
    /// How log lines look.
    pub log_format: Format,
}

/// Why a configuration is refused. All of them are for exit code 2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConfigError {
    /// A flag is wrong.
    Flag(FlagError),
    /// The flag is known, but what it turns on was left out of this build.
    NotInThisBuild(&'static str),
    /// Nothing to watch.
    NoSource,
    /// Nobody to tell.
    NoSink,
    /// `-docker`, `-containerd` and `-iptables` together.
    TooManySources,
    /// An environment variable is wrong.
    Environment {
        /// Its name.
        name: &'static str,
        /// Its value.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConfigError::Flag(error) => error.fmt(f),
            ConfigError::NotInThisBuild(flag) => write!(
                f,
                "-{flag}: this program was built without it (cargo's feature {flag}): leave it out, or give -{flag}=false"
            ),
            ConfigError::NoSource => f.write_str(
                "nothing to watch: give at least one source: -docker, -containerd, -iptables or -kubernetes",
            ),
            ConfigError::NoSink => f.write_str(
                "nobody to tell: give -privilegedService, or --sink URL (for a first look: --sink stdout:). \
                 The host-switch and wsl-proxy sinks, which an engine alone would choose, are not in this version",
            ),
            ConfigError::TooManySources => {
                f.write_str("-docker, -containerd and -iptables cannot all be on: choose two at most")
            }
            ConfigError::Environment { name, value, expected } => {
                write!(f, "{name}={}: expected {expected}", value.escape_debug())
            }
        }
    }
}

impl std::error::Error for ConfigError {}

impl From<FlagError> for ConfigError {
    fn from(error: FlagError) -> ConfigError {
        ConfigError::Flag(error)
    }
}

impl From<NoMode> for ConfigError {
    fn from(error: NoMode) -> ConfigError {
        match error {
            NoMode::TooManySources => ConfigError::TooManySources,
            NoMode::NoSource => ConfigError::NoSource,
            NoMode::NoSink => ConfigError::NoSink,
        }
    }
}

/// Reads the command line (without the program's name) and the environment.
pub fn read(
    words: impl IntoIterator<Item = OsString>,
    environment: impl Fn(&str) -> Option<OsString>,
) -> Result<Wish, ConfigError> {
    let flags = USAGE.parse(words)?;
    if flags.on("help") {
        return Ok(Wish::Help);
    }
    if flags.on("version") {
        return Ok(Wish::Version);
    }
    check_unused(&flags)?;
    let given = Given {
        docker: flags.on("docker"),
        containerd: flags.on("containerd"),
        kubernetes: flags.on("kubernetes"),
        iptables: flags.given("iptables").then(|| flags.on("iptables")),
        privileged_service: flags.on("privilegedService"),
        sink: !flags.values("sink").is_empty(),
    };
    let mode = mode::choose(given)?;
    let containerd = containerd(&flags)?;
    let kubernetes = kubernetes(&flags)?;
    let nat_interval = value(&flags, "nat-interval", "a duration of at least 10ms, such as 250ms", |text| {
        duration(text).filter(|d| *d >= NAT_INTERVAL_MIN)
    })?;
    let config = Config {
        docker: if given.docker { Some(docker_socket(environment("DOCKER_HOST"))?) } else { None },
        containerd: given.containerd.then_some(containerd),
        kubernetes: given.kubernetes.then_some(kubernetes),
        nat_interval: mode.nat.then_some(nat_interval),
        sinks: sinks(&flags, &mode)?,
        policy: Policy { admin: flags.on("adminInstall") },
        grace: value(&flags, "engine-grace", "a duration such as 500ms, 10s or 2m", duration)?,
        interface: value(&flags, "connect-interface", "an interface name of 1 to 15 characters", interface)?,
        relay_peers: values(&flags, "relay-peer", "ADDRESS[/PREFIX]", Cidr::parse)?,
        debug: flags.on("debug"),
        log_format: value(&flags, "log-format", "text or json", Format::parse)?,
    };
    if flags.on("check") { Ok(Wish::Check(config)) } else { Ok(Wish::Run(config)) }
}

/// Values that belong to what is not built yet: wrong ones are refused all the same.
fn check_unused(flags: &Parsed) -> Result<(), ConfigError> {
    value(flags, "tap-interface-ip", "an IPv4 address", |text| text.parse::<Ipv4Addr>().ok())?;
    Ok(())
}

fn sinks(flags: &Parsed, mode: &Mode) -> Result<Vec<(SinkConfig, &'static [Source])>, ConfigError> {
    let vtunnel = value(flags, "vtunnelAddr", "HOST:PORT", host_port)?;
    let urls = "stdout:, listener:, unix://PATH, tcp://HOST:PORT or vsock://CID[:PORT]";
    let named = values(flags, "sink", urls, sink)?;
    let distinct: Set<String> = named.iter().map(ToString::to_string).collect();
    if distinct.len() < named.len() {
        let all = flags.values("sink").join(" ");
        return Err(FlagError::bad_value("sink", &all, "each sink can be given once").into());
    }
    let mut sinks: Vec<_> = named.into_iter().map(|sink| (sink, Source::ALL)).collect();
    for (sink, feeds) in &mode.sinks {
        let sink = match sink {
            ModeSink::Vtunnel => SinkConfig::Vtunnel(Address::Tcp(vtunnel.clone())),
            ModeSink::Listener => SinkConfig::Listener,
        };
        sinks.push((sink, *feeds));
    }
    Ok(sinks)
}

fn containerd(flags: &Parsed) -> Result<ContainerdConfig, ConfigError> {
    let absolute = |text: &str| text.starts_with('/').then(|| PathBuf::from(text));
    let socket = |text: &str| absolute(text).filter(|_| text.len() <= UNIX_PATH_BYTES_MAX);
    let ctr = |text: &str| if text.is_empty() { Some(None) } else { absolute(text).map(Some) };
    Ok(ContainerdConfig {
        socket: value(flags, "containerdSock", "the absolute path of a socket, of 107 bytes at most", socket)?,
        ctr: value(flags, "ctr", "an absolute path", ctr)?,
    })
}

/// Wrong values are refused also where Kubernetes is off: a typing error would show only later.
fn kubernetes(flags: &Parsed) -> Result<KubernetesConfig, ConfigError> {
    if flags.on("kubernetes") && !cfg!(feature = "kubernetes") {
        return Err(ConfigError::NotInThisBuild("kubernetes"));
    }
    let path = |text: &str| (!text.is_empty()).then(|| PathBuf::from(text));
    let listener =
        |text: &str| text.parse().ok().filter(|ip: &Ipv4Addr| ip.is_unspecified() || *ip == Ipv4Addr::LOCALHOST);
    let host_port = value(flags, "k8sAPIPort", "a port, 1 to 65535", |text| text.parse::<NonZeroU16>().ok())?;
    Ok(KubernetesConfig {
        kubeconfig: value(flags, "kubeconfig", "a path", path)?,
        listener_ip: value(flags, "k8sServiceListenerAddr", "0.0.0.0 or 127.0.0.1", listener)?,
        insecure_tls: flags.on("insecure-kubernetes-tls"),
        api_server: Binding { protocol: Protocol::Tcp, host_ip: Ipv4Addr::LOCALHOST.into(), host_port },
    })
}

fn sink(url: &str) -> Option<SinkConfig> {
    match url {
        "stdout:" => return Some(SinkConfig::Stdout),
        "listener:" => return Some(SinkConfig::Listener),
        _ => {}
    }
    let (scheme, rest) = url.split_once("://")?;
    let address = match scheme {
        "tcp" => Address::Tcp(host_port(rest)?),
        "unix" => {
            let valid = rest.starts_with('/') && rest.len() <= UNIX_PATH_BYTES_MAX;
            Address::Unix(valid.then(|| PathBuf::from(rest))?)
        }
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

fn interface(name: &str) -> Option<String> {
    let valid = (1..=15).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic() && b != b'/');
    valid.then(|| name.to_owned())
}

fn duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at_checked(digits)?;
    let number: u32 = number.parse().ok()?;
    let unit = match unit {
        "ms" => Duration::from_millis(1),
        "s" => Duration::from_secs(1),
        "m" => Duration::from_secs(60),
        _ => return None,
    };
    unit.checked_mul(number).filter(|d| *d <= Duration::from_secs(86_400))
}

fn docker_socket(host: Option<OsString>) -> Result<PathBuf, ConfigError> {
    let Some(host) = host.filter(|host| !host.is_empty()) else { return Ok(PathBuf::from(DOCKER_SOCKET)) };
    let path = host.to_str().and_then(|host| host.strip_prefix("unix://")).filter(|path| path.starts_with('/'));
    path.map(PathBuf::from).ok_or_else(|| ConfigError::Environment {
        name: "DOCKER_HOST",
        value: host.to_string_lossy().into_owned(),
        expected: "unix:///path/of/the/socket (the engine must be in this VM)",
    })
}

fn value<T>(
    flags: &Parsed,
    name: &'static str,
    expected: &'static str,
    read: impl Fn(&str) -> Option<T>,
) -> Result<T, ConfigError> {
    let text = flags.value(name).unwrap_or_default();
    read(text).ok_or_else(|| FlagError::bad_value(name, text, format_args!("expected {expected}")).into())
}

fn values<T>(
    flags: &Parsed,
    name: &'static str,
    expected: &'static str,
    read: impl Fn(&str) -> Option<T>,
) -> Result<Vec<T>, ConfigError> {
    let bad = |text: &String| FlagError::bad_value(name, text, format_args!("expected {expected}")).into();
    flags.values(name).iter().map(|text| read(text).ok_or_else(|| bad(text))).collect()
}

#[cfg(test)]
mod tests;
