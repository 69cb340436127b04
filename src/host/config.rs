//! The command line of `rancher-desktop-hostagent`: words in, a [`Config`] out. Opens nothing and prints nothing.

use std::ffi::OsString;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use crate::flags::{Flag, FlagError, Parsed, Section, Takes, Usage};
use crate::host::policy::{ALLOW_DEFAULT, Policy, parse_cidr};
use crate::logging::Format;
use crate::wire::vtunnel::DOCUMENTS_PORT;

/// The longest path that a unix socket can have on Linux, in bytes.
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// `VMADDR_CID_ANY`: a listener that takes connections to any CID of this machine.
const CID_ANY: u32 = u32::MAX;

/// The command line.
pub static USAGE: Usage = Usage {
    synopsis: "rancher-desktop-hostagent (--listen URL | --uds PATH) [flag...]",
    about: "Opens on this host the ports that containers of a virtual machine publish. The agent in the machine \
            (rancher-desktop-guestagent) sends what is published; TCP connections and UDP datagrams that arrive here are \
            passed on to the machine. What was opened and closed is written to stdout, one JSON object a line.",
    commands: &[],
    sections: &[
        Section {
            title: "Where documents come in (at least one of --listen and --uds)",
            flags: &[
                Flag {
                    name: "listen",
                    takes: Takes::Values("URL"),
                    default: "",
                    help: "unix://PATH, tcp://IP:PORT, vsock://PORT or vsock://CID:PORT (CID: a number, or any)",
                },
                Flag {
                    name: "uds",
                    takes: Takes::Value("PATH"),
                    default: "",
                    help: "the vsock socket of Firecracker, Cloud Hypervisor or vhost-device-vsock: listens on \
                           PATH_17381, and tells an agent that is running already to announce everything again",
                },
                Flag {
                    name: "guest-cid",
                    takes: Takes::Value("CID"),
                    default: "",
                    help: "with a vsock:// URL: take documents from this guest only, and tell its agent to announce \
                           everything again",
                },
            ],
        },
        Section {
            title: "What a guest may ask for",
            flags: &[
                Flag {
                    name: "allow",
                    takes: Takes::Values("RULE"),
                    default: "127.0.0.0/8:1024-65535 and [::1]:1024-65535",
                    help: "what may be bound: ADDR[/PREFIX]:PORT[-PORT], an IPv6 ADDR[/PREFIX] in brackets, as in \
                           [fd00::/64]:80. 0.0.0.0 and :: need a rule for just that address, or for /0",
                },
                Flag {
                    name: "connect",
                    takes: Takes::Values("CIDR"),
                    default: "any unicast address that is not link-local or the host's own",
                    help: "which addresses a guest may name to be connected to. The host's own need a rule for just that \
                           address, or for loopback",
                },
                Flag {
                    name: "connect-address",
                    takes: Takes::Values("IP"),
                    default: "",
                    help: "connect to this address whatever documents say; at most one for IPv4 ports and one for \
                           IPv6 ports (::ffff:A.B.C.D there reaches a guest that has only IPv4)",
                },
                Flag {
                    name: "ports-max",
                    takes: Takes::Value("N"),
                    default: "16384",
                    help: "ports that may be open, or waiting to be, at once",
                },
            ],
        },
        Section {
            title: "Other",
            flags: &[
                Flag {
                    name: "log-format",
                    takes: Takes::Value("FORMAT"),
                    default: "text",
                    help: "of the messages on stderr: text or json",
                },
                Flag { name: "debug", takes: Takes::Bool, default: "", help: "say more on stderr" },
                Flag {
                    name: "check",
                    takes: Takes::Bool,
                    default: "",
                    help: "look at the command line only: exit 0 when it is good, 2 when it is not",
                },
                Flag { name: "help", takes: Takes::Bool, default: "", help: "show this" },
                Flag { name: "version", takes: Takes::Bool, default: "", help: "show the version" },
            ],
        },
    ],
    operands_max: 0,
    footer: "Examples:
  rancher-desktop-hostagent --uds /run/vm/vsock.sock
  rancher-desktop-hostagent --listen vsock://17381 --guest-cid 3 --connect 192.168.122.0/24
  rancher-desktop-hostagent --listen unix:///run/vm/ports.sock --allow 0.0.0.0:8000-8999

Exit codes: 0 stopped by SIGTERM or SIGINT, 1 failed, 2 bad command line.",
};

/// An address that documents come in on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// A unix socket.
    Unix(PathBuf),
    /// A TCP port.
    Tcp(SocketAddr),
    /// A vsock port of this machine.
    Vsock {
        /// The CID to listen on, or `VMADDR_CID_ANY`.
        cid: u32,
        /// The port.
        port: u32,
    },
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listen::Unix(path) => write!(f, "unix://{}", path.display()),
            Listen::Tcp(addr) => write!(f, "tcp://{addr}"),
            Listen::Vsock { cid: CID_ANY, port } => write!(f, "vsock://any:{port}"),
            Listen::Vsock { cid, port } => write!(f, "vsock://{cid}:{port}"),
        }
    }
}

/// A good command line.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where documents come in, the hypervisor's socket included; never empty.
    pub listen: Vec<Listen>,
    /// The hypervisor's socket for connections to the guest.
    pub uds: Option<PathBuf>,
    /// The only guest that vsock connections are taken from.
    pub guest_cid: Option<u32>,
    /// What a guest may ask for.
    pub policy: Policy,
    /// Ports open, or waiting to be, at once.
    pub ports_max: usize,
    /// The format of the messages on stderr.
    pub log_format: Format,
    /// Whether to say more.
    pub debug: bool,
}

/// What a command line asks for.
#[derive(Debug, Clone)]
pub enum Action {
    /// To run.
    Run(Config),
    /// To say whether it is good, which it is.
    Check,
    /// The help text.
    Help,
    /// The version.
    Version,
}

/// Why a command line is not accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UsageError {
    /// A flag or its value.
    Flag(FlagError),
    /// Neither `--listen` nor `--uds`.
    NothingToListenOn,
    /// `--guest-cid` without a vsock URL.
    CidWithoutVsock,
}

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UsageError::Flag(error) => error.fmt(f),
            UsageError::NothingToListenOn => f.write_str(
                "nothing to listen on: give --listen or --uds, for example --listen unix:///run/vm/ports.sock",
            ),
            UsageError::CidWithoutVsock => {
                write!(f, "--guest-cid goes with a vsock URL, for example --listen vsock://{DOCUMENTS_PORT}")
            }
        }
    }
}

impl std::error::Error for UsageError {}

impl From<FlagError> for UsageError {
    fn from(error: FlagError) -> UsageError {
        UsageError::Flag(error)
    }
}

/// Reads the words behind the program's name.
pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Action, UsageError> {
    let parsed = USAGE.parse(words)?;
    if parsed.on("help") {
        return Ok(Action::Help);
    }
    if parsed.on("version") {
        return Ok(Action::Version);
    }
    let config = config(&parsed)?;
    Ok(if parsed.on("check") { Action::Check } else { Action::Run(config) })
}

fn config(parsed: &Parsed) -> Result<Config, UsageError> {
    let mut listen = each(parsed, "listen", parse_listen)?;
    let uds = one(parsed, "uds", parse_uds)?;
    if let Some(path) = &uds {
        listen.push(Listen::Unix(documents_path(path)));
    }
    if listen.is_empty() {
        return Err(UsageError::NothingToListenOn);
    }
    let guest_cid = one(parsed, "guest-cid", parse_cid)?;
    if guest_cid.is_some() && !listen.iter().any(|l| matches!(l, Listen::Vsock { .. })) {
        return Err(UsageError::CidWithoutVsock);
    }
    let log_format =
        one(parsed, "log-format", |text| Format::parse(text).ok_or_else(|| "use text or json".to_owned()))?;
    let ports_max = one(parsed, "ports-max", |text| {
        let number = text.parse().ok().filter(|n| (1..=65_535).contains(n));
        number.ok_or_else(|| "use a number from 1 to 65535".to_owned())
    })?;
    Ok(Config {
        listen,
        uds,
        guest_cid,
        policy: policy(parsed)?,
        ports_max: ports_max.unwrap_or(1),
        log_format: log_format.unwrap_or_default(),
        debug: parsed.on("debug"),
    })
}

fn policy(parsed: &Parsed) -> Result<Policy, UsageError> {
    let mut allow = each(parsed, "allow", str::parse)?;
    if allow.is_empty() {
        allow.extend(ALLOW_DEFAULT.iter().filter_map(|rule| rule.parse().ok()));
    }
    let mut policy = Policy { allow, connect: each(parsed, "connect", parse_cidr)?, ..Policy::default() };
    for text in parsed.values("connect-address") {
        let bad = |reason: &str| FlagError::bad_value("connect-address", text, reason);
        let taken = match text.parse().map_err(|_| bad("not an IP address"))? {
            ip if IpAddr::is_unspecified(&ip) || ip.is_multicast() => Err(bad("not an address of one machine"))?,
            IpAddr::V4(ip) => policy.connect_v4.replace(ip).is_some(),
            IpAddr::V6(ip) => policy.connect_v6.replace(ip).is_some(),
        };
        if taken {
            return Err(bad("a second address of this family").into());
        }
    }
    Ok(policy)
}

fn each<T>(parsed: &Parsed, flag: &'static str, parse: fn(&str) -> Result<T, String>) -> Result<Vec<T>, FlagError> {
    parsed.values(flag).iter().map(|text| parse(text).map_err(|e| FlagError::bad_value(flag, text, e))).collect()
}

fn one<T>(parsed: &Parsed, flag: &'static str, parse: fn(&str) -> Result<T, String>) -> Result<Option<T>, FlagError> {
    parsed.value(flag).map(|text| parse(text).map_err(|e| FlagError::bad_value(flag, text, e))).transpose()
}

/// The socket on which a hypervisor passes on the guest's connections to [`DOCUMENTS_PORT`].
fn documents_path(uds: &std::path::Path) -> PathBuf {
    let mut path = uds.as_os_str().to_owned();
    path.push(format!("_{DOCUMENTS_PORT}"));
    path.into()
}

fn parse_listen(text: &str) -> Result<Listen, String> {
    const WANTED: &str = "use unix://PATH, tcp://IP:PORT, vsock://PORT or vsock://CID:PORT";
    let (scheme, rest) = text.split_once("://").ok_or(WANTED)?;
    match scheme {
        "unix" => Ok(Listen::Unix(parse_path(rest)?)),
        "tcp" => match rest.parse::<SocketAddr>() {
            Ok(addr) if addr.port() != 0 => Ok(Listen::Tcp(addr)),
            Ok(_) | Err(_) => Err("use tcp://IP:PORT, as in tcp://127.0.0.1:3040 or tcp://[::1]:3040".to_owned()),
        },
        "vsock" => {
            let (cid, port) = rest.split_once(':').unwrap_or(("any", rest));
            let cid = if cid == "any" { CID_ANY } else { cid.parse().map_err(|_| WANTED)? };
            let port = port.parse().ok().filter(|port| *port != 0 && *port != u32::MAX).ok_or(WANTED)?;
            Ok(Listen::Vsock { cid, port })
        }
        _ => Err(WANTED.to_owned()),
    }
}

fn parse_uds(text: &str) -> Result<PathBuf, String> {
    let path = parse_path(text)?;
    parse_path(&format!("{text}_{DOCUMENTS_PORT}")).map(|_| path)
}

fn parse_path(text: &str) -> Result<PathBuf, String> {
    match text.len() {
        0 => Err("the path is empty".to_owned()),
        _ if text.contains('\0') => Err("the path has a NUL byte".to_owned()),
        1..=SOCKET_PATH_BYTES_MAX => Ok(text.into()),
        _ => Err(format!("the path of a socket has at most {SOCKET_PATH_BYTES_MAX} bytes")),
    }
}

fn parse_cid(text: &str) -> Result<u32, String> {
    // 0 to 2 are the hypervisor, the machine itself and the host: no guest has them.
    let cid = text.parse().ok().filter(|cid| (3..u32::MAX).contains(cid));
    cid.ok_or_else(|| "use the CID of a guest, a number from 3".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(line: &str) -> Result<Config, String> {
        match parse(line.split_whitespace().map(OsString::from)) {
            Ok(Action::Run(config)) => Ok(config),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn listens_where_it_is_told_to() {
        let config = run("--listen unix:///a --listen tcp://[::1]:1 --listen vsock://9 --listen vsock://2:9 --uds /v");
        let shown: Vec<_> = config.unwrap().listen.iter().map(Listen::to_string).collect();
        assert_eq!(shown, ["unix:///a", "tcp://[::1]:1", "vsock://any:9", "vsock://2:9", "unix:///v_17381"]);
    }

    #[test]
    fn defaults() {
        let config = run("--uds /v").unwrap();
        assert_eq!(config.policy.allow.len(), 2);
        assert_eq!((config.ports_max, config.log_format, config.debug), (16384, Format::Text, false));
        assert!(config.policy.connect.is_empty() && config.policy.connect_v4.is_none() && config.guest_cid.is_none());
    }

    #[test]
    fn bad_values_are_named() {
        let long = format!("--uds /{}", "x".repeat(101));
        for (line, want) in [
            ("", "nothing to listen on"),
            ("--lisen x", "did you mean --listen?"),
            ("--listen /a", "--listen \"/a\": use unix://PATH"),
            ("--listen tcp://localhost:1", "tcp://IP:PORT"),
            ("--listen tcp://127.0.0.1:0", "tcp://IP:PORT"),
            ("--listen vsock://x:1", "vsock://CID:PORT"),
            ("--listen unix://", "empty"),
            (&long, "at most 107 bytes"),
            ("--uds /v --guest-cid 3", "--guest-cid goes with a vsock URL"),
            ("--listen vsock://1 --guest-cid 2", "--guest-cid \"2\""),
            ("--uds /v --allow 80", "--allow \"80\": use ADDR"),
            ("--uds /v --connect 10.0.0.0/99", "--connect \"10.0.0.0/99\""),
            ("--uds /v --connect-address ::", "not an address of one machine"),
            ("--uds /v --connect-address 10.0.0.1 --connect-address 10.0.0.2", "a second address of this family"),
            ("--uds /v --ports-max 0", "--ports-max \"0\""),
            ("--uds /v --log-format xml", "use text or json"),
        ] {
            let error = run(line).unwrap_err();
            assert!(error.contains(want), "{line}: {error}");
        }
    }

    #[test]
    fn other_actions() {
        let action = |line: &str| parse(line.split_whitespace().map(OsString::from)).unwrap();
        assert!(matches!(action("--check --uds /v"), Action::Check));
        assert!(matches!(action("-h"), Action::Help));
        assert!(matches!(action("-version"), Action::Version));
    }
}
