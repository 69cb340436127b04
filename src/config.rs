//! The agent's configuration: command line and environment, turned into types and checked before anything starts.
//!
//! The flags are those of Rancher Desktop's own agent, so that this one can take its place, and a few of ours (those
//! that `--help` writes with two dashes). Nothing here does I/O.

pub mod commands;
pub mod mode;
mod sinks;
pub mod usage;

use std::ffi::OsString;
use std::fmt;
use std::net::Ipv4Addr;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::time::Duration;

use log::LevelFilter;
use nix::unistd::Uid;

use crate::cidr::Cidr;
use crate::flags::{FlagError, Parsed, shown};
use crate::logging::{self, Format};
use crate::policy::{Policy, RULE_FORM, Rule};
use crate::port::{Binding, Protocol};
use mode::{Given, NoMode};
pub use sinks::{SinkConfig, Sinks};
use usage::USAGE;

/// The kernel's limit for the path of a unix socket.
pub(crate) const UNIX_PATH_BYTES_MAX: usize = 107;

/// The shortest `--nat-interval` and `--socket-interval`.
const INTERVAL_MIN: Duration = Duration::from_millis(10);

/// Where the engine listens unless `DOCKER_HOST` says otherwise.
const DOCKER_SOCKET: &str = "/var/run/docker.sock";

/// Where scripts and people ask an agent that runs as root.
const CONTROL_SOCKET: &str = "/run/rancher-desktop-guestagent/control.sock";

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
    /// The API server itself, on the host's loopback: wsl-proxy is told of it. host-switch forwards it unasked.
    pub api_server: Binding,
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
    /// How often to look at sockets, where that source is on.
    pub socket_interval: Option<Duration>,
    /// Kubernetes, where its source is on.
    pub kubernetes: Option<KubernetesConfig>,
    /// The sinks, at least one, each with the sources it is told of.
    pub sinks: Sinks,
    /// What may be exposed.
    pub policy: Policy,
    /// How long the claims of a lost engine stay.
    pub grace: Duration,
    /// The interface whose addresses the host connects to, but for host-switch.
    pub interface: String,
    /// This VM's address on host-switch's network.
    pub tap_ip: Ipv4Addr,
    /// Who may use the relay; empty: the default gateway.
    pub relay_peers: Vec<Cidr>,
    /// Where the control socket is to be; `None`: nowhere.
    pub control_socket: Option<PathBuf>,
    /// A file with more rules, behind those of the policy's that are not the agent's own.
    pub rules_file: Option<PathBuf>,
    /// The least serious lines that are logged.
    pub log_level: LevelFilter,
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
    /// Only sockets to watch, and only listeners to open for them.
    SocketsForListeners,
    /// More than one host-switch: there is one state file.
    TwoHostSwitches,
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
                "nothing to watch: give at least one source: -docker, -containerd, -iptables, -kubernetes or -sockets",
            ),
            ConfigError::SocketsForListeners => {
                f.write_str("-sockets: what listens already needs no listener: name another --sink, or another source")
            }
            ConfigError::TwoHostSwitches => {
                f.write_str("--sink: only one host-switch (http://… or http+unix://…) can be told")
            }
            ConfigError::TooManySources => {
                f.write_str("-docker, -containerd and -iptables cannot all be on: choose two at most")
            }
            ConfigError::Environment { name, value, expected } => {
                write!(f, "{name}={}: expected {expected}", shown(value))
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
        }
    }
}

/// Reads the command line (without the program's name) and the environment.
pub fn read(
    words: impl IntoIterator<Item = OsString>,
    environment: impl Fn(&str) -> Option<OsString>,
) -> Result<Wish, ConfigError> {
    read_all(words.into_iter().collect(), &environment)
}

/// Made once, for all kinds of words and environments.
fn read_all(words: Vec<OsString>, environment: &dyn Fn(&str) -> Option<OsString>) -> Result<Wish, ConfigError> {
    let flags = USAGE.parse(words)?;
    if flags.on("help") {
        return Ok(Wish::Help);
    }
    if flags.on("version") {
        return Ok(Wish::Version);
    }
    let given = Given {
        docker: flags.on("docker"),
        containerd: flags.on("containerd"),
        kubernetes: flags.on("kubernetes"),
        iptables: flags.given("iptables").then(|| flags.on("iptables")),
        privileged_service: flags.on("privilegedService"),
        sockets: flags.given("sockets").then(|| flags.on("sockets")),
        sink: !flags.values("sink").is_empty(),
        host_switch_sink: flags.values("sink").iter().any(|url| url.starts_with("http")),
    };
    let mode = mode::choose(given)?;
    let containerd = containerd(&flags)?;
    let kubernetes = kubernetes(&flags)?;
    let nat_interval = interval(&flags, "nat-interval")?;
    let socket_interval = interval(&flags, "socket-interval")?;
    let tap_ip = value(&flags, "tap-interface-ip", "an IPv4 address", sinks::tap_ip)?;
    let sinks = sinks::sinks(&flags, &mode, tap_ip)?;
    let sockets_alone = !(given.docker || given.containerd || given.kubernetes || mode.nat);
    if sockets_alone && sinks.iter().all(|(sink, _)| *sink == SinkConfig::Listener) {
        return Err(ConfigError::SocketsForListeners);
    }
    let policy = policy(&flags, kubernetes.api_server, &sinks)?;
    let config = Config {
        docker: if given.docker { Some(docker_socket(environment("DOCKER_HOST"))?) } else { None },
        containerd: given.containerd.then_some(containerd),
        kubernetes: given.kubernetes.then_some(kubernetes),
        nat_interval: mode.nat.then_some(nat_interval),
        socket_interval: mode.sockets.then_some(socket_interval),
        sinks,
        policy,
        grace: value(&flags, "engine-grace", "a duration such as 500ms, 10s or 2m", duration)?,
        interface: value(&flags, "connect-interface", "an interface name of 1 to 15 characters", interface)?,
        tap_ip,
        relay_peers: values(&flags, "relay-peer", "ADDRESS[/PREFIX]", Cidr::parse)?,
        control_socket: control_socket(&flags, &environment)?,
        rules_file: value(&flags, "rules-file", "an absolute path", optional(absolute))?,
        log_level: log_level(&flags)?,
        log_format: value(&flags, "log-format", "text or json", Format::parse)?,
    };
    if flags.on("check") { Ok(Wish::Check(config)) } else { Ok(Wish::Run(config)) }
}

/// The rules of the command line, in its order, and those of the agent's own.
fn policy(flags: &Parsed, api_server: Binding, sinks: &Sinks) -> Result<Policy, ConfigError> {
    let mut rules = Vec::new();
    for (flag, text) in flags.repeated() {
        let allow = match *flag {
            "allow" => true,
            "deny" => false,
            _ => continue,
        };
        let expected = format_args!("expected {RULE_FORM}");
        rules.push(Rule::parse(text, allow).ok_or_else(|| FlagError::bad_value(flag, text, expected))?);
    }
    let mut policy = Policy::new(flags.on("adminInstall"), rules);
    if flags.on("kubernetes") && sinks.iter().any(|(sink, _)| matches!(sink, SinkConfig::WslProxy(_))) {
        // Rancher Desktop's host-switch forwards the API server by itself.
        let port = api_server.host_port.get();
        policy.rules.push(Rule::not_sockets(Protocol::Tcp, (port, port)));
    }
    Ok(policy)
}

/// `-debug` is the name that Rancher Desktop has for the level `debug`.
fn log_level(flags: &Parsed) -> Result<LevelFilter, ConfigError> {
    let level = value(flags, "log-level", "error, warn, info or debug", logging::level)?;
    Ok(if flags.on("debug") { LevelFilter::Debug } else { level })
}

fn interval(flags: &Parsed, name: &'static str) -> Result<Duration, ConfigError> {
    let long_enough = |text: &str| duration(text).filter(|d| *d >= INTERVAL_MIN);
    value(flags, name, "a duration of at least 10ms, such as 250ms", long_enough)
}

fn absolute(text: &str) -> Option<PathBuf> {
    text.starts_with('/').then(|| PathBuf::from(text))
}

/// An absolute path that the kernel takes for a unix socket.
fn socket_path(text: &str) -> Option<PathBuf> {
    absolute(text).filter(|_| text.len() <= UNIX_PATH_BYTES_MAX)
}

/// The value, or nothing where the text is empty.
fn optional<T>(read: impl Fn(&str) -> Option<T>) -> impl Fn(&str) -> Option<Option<T>> {
    move |text| if text.is_empty() { Some(None) } else { read(text).map(Some) }
}

/// The socket of an agent that runs as root, and of one that does not.
fn control_socket(
    flags: &Parsed,
    environment: &dyn Fn(&str) -> Option<OsString>,
) -> Result<Option<PathBuf>, ConfigError> {
    if flags.given("control-socket") {
        return value(flags, "control-socket", "an absolute path of 107 bytes at most", optional(socket_path));
    }
    Ok(default_control_socket(environment))
}

/// Where the control socket of an agent that runs as this user is, unless it was told otherwise.
pub fn default_control_socket(environment: &dyn Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    if Uid::effective().is_root() {
        return Some(PathBuf::from(CONTROL_SOCKET));
    }
    let dir = environment("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty())?;
    Some(PathBuf::from(dir).join("rancher-desktop-guestagent/control.sock"))
}

fn containerd(flags: &Parsed) -> Result<ContainerdConfig, ConfigError> {
    Ok(ContainerdConfig {
        socket: value(flags, "containerdSock", "the absolute path of a socket, of 107 bytes at most", socket_path)?,
        ctr: value(flags, "ctr", "an absolute path", optional(absolute))?,
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

fn interface(name: &str) -> Option<String> {
    let valid = (1..=15).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic() && b != b'/');
    valid.then(|| name.to_owned())
}

/// A duration such as `500ms`, `10s` or `2m`, of a day at most.
pub(crate) fn duration(text: &str) -> Option<Duration> {
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
