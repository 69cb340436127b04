//! What a configuration needs of this VM: sockets, programs, files, addresses, privileges.

use std::fmt::Display;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use caps::Capability;
use nix::fcntl::OFlag;
use nix::unistd::{AccessFlags, access};

use super::{Checks, Verdict, WSL_PROXY};
use crate::agent::{needed_capabilities, outward};
use crate::config::{Config, SinkConfig};
use crate::net::{Outward, connect_unix};
use crate::private_file::{self, Problem, WRITABLE};
use crate::rules_file;
use crate::sink::host_switch::{self, HostSwitchConfig};
use crate::sink::vtunnel::Address;
use crate::source::child::{Privileges, Tool};
use crate::source::nat;
use crate::wire::expose::STATE_BYTES_MAX;

/// Fewer open files than this are few: each listener, relayed connection and client takes some.
const FILES_MIN: u64 = 1024;

const VSOCK: &str = "/dev/vsock";

/// The process itself, by its `status` and `limits` in /proc: the agent's, or else this one's.
pub(super) fn process(checks: &mut Checks, config: Option<&Config>, is_agent: bool, status: &str, limits: &str) {
    if status.is_empty() {
        let remedy = "ask as root: /proc is mounted so that it hides the agent (hidepid)";
        return checks.warn("privileges", "the agent's process cannot be looked at", remedy);
    }
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    let uid = field("Uid:").get(1).cloned().unwrap_or_default();
    let held = field("CapEff:").first().and_then(|mask| u64::from_str_radix(mask, 16).ok()).unwrap_or_default();
    let needed = config.map(needed_capabilities).unwrap_or_default();
    let lacks = |capability: Capability| needed.contains(&capability) && held & capability.bitmask() == 0;
    let detail = |capability: Capability, what: &str| format!("user {uid} without {capability}: {what}");
    if lacks(Capability::CAP_NET_ADMIN) {
        checks.fail(
            "privileges",
            &detail(Capability::CAP_NET_ADMIN, "NAT rules cannot be read"),
            "run the agent as root, or give it that",
        );
    } else if lacks(Capability::CAP_NET_BIND_SERVICE) {
        let what = detail(Capability::CAP_NET_BIND_SERVICE, "ports below 1024 cannot be listened on");
        checks.warn("privileges", &what, "run the agent as root, or give it that");
    } else {
        checks.ok("privileges", &format!("user {uid} has what its flags need"));
    }
    // The agent sets it itself; this program has no need to.
    if is_agent && field("NoNewPrivs:") != ["1"] {
        checks.warn("no-new-privs", "not set", "restart the agent: what it starts could gain privileges");
    }
    let files = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    // The agent raises the first, soft limit to the second.
    match files.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()) {
        Some(files) if files < FILES_MIN => {
            let remedy = "raise it for the service: rc_ulimit=\"-n 65536\" in /etc/conf.d/rancher-desktop-guestagent";
            checks.warn("open-files", &format!("at most {files}"), remedy);
        }
        Some(files) => checks.ok("open-files", &format!("at most {files}")),
        None => checks.ok("open-files", "no limit is known"),
    }
}

/// What is watched can be.
pub(super) fn sources(checks: &mut Checks, config: &Config) {
    if let Some(path) = &config.docker {
        socket(checks, "docker-socket", path, "start the engine, or name its socket: DOCKER_HOST=unix://PATH");
    }
    if let Some(containerd) = &config.containerd {
        let elsewhere = "start containerd, or name its socket: -containerdSock PATH";
        socket(checks, "containerd-socket", &containerd.socket, elsewhere);
        let problem = match &containerd.ctr {
            Some(path) => access(path, AccessFlags::X_OK).err().map(|errno| at(path, &errno.desc())),
            None => Tool::find("ctr", Privileges::None).err().map(|error| error.to_string()),
        };
        let remedy = "install it (it comes with containerd), or name it: --ctr PATH";
        found(checks, "ctr", problem.map_or(Ok("found".to_owned()), Err), remedy);
    }
    if config.nat_interval.is_some() {
        let (missing, any) = nat::missing_tools();
        let verdict = match (missing.is_empty(), any) {
            (true, _) => Verdict::Ok,
            (false, true) => Verdict::Warn,
            (false, false) => Verdict::Fail,
        };
        let missing = missing.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        let detail = if missing.is_empty() { "found" } else { &missing };
        let remedy = if missing.is_empty() { "" } else { "install the packages iptables and nftables" };
        checks.add("nat-tools", verdict, detail, remedy);
    }
    #[cfg(feature = "kubernetes")]
    if let Some(kubernetes) = &config.kubernetes {
        let read = crate::source::kubernetes::check(kubernetes);
        let detail = read.map(|()| shown(&kubernetes.kubeconfig)).map_err(|error| error.to_string());
        found(
            checks,
            "kubeconfig",
            detail,
            "wait for the cluster to write it, correct it, or name another: -kubeconfig PATH",
        );
    }
    if let Some(path) = &config.rules_file {
        let rules = rules_file::read(path).map(|rules| at(path, &format_args!("{} rules", rules.len())));
        found(
            checks,
            "rules-file",
            rules,
            "correct it, and send the agent SIGHUP: it keeps the rules that it has until then",
        );
    }
}

/// What the host is to reach, and what is told of it.
pub(super) fn sinks(checks: &mut Checks, config: &Config) {
    for outward in outward(config) {
        let addrs = outward.addrs().map_err(|error| error.to_string());
        let shown = addrs.map(|addrs| addrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "));
        let (name, remedy) = match &outward {
            Outward::Interface(_) => ("connect-interface", "ip addr shows which there are: --connect-interface NAME"),
            Outward::Address(_) => {
                ("tap-address", "ip addr shows this VM's; on another network: -tap-interface-ip ADDRESS")
            }
        };
        // An address is its own name.
        let detail = |addrs: String| match &outward {
            Outward::Interface(_) => format!("{outward}: {addrs}"),
            Outward::Address(_) => addrs,
        };
        found(checks, name, shown.map(detail), remedy);
    }
    for (sink, _) in &config.sinks {
        match sink {
            SinkConfig::HostSwitch(config) => host_switch_files(checks, config),
            SinkConfig::WslProxy(path) => match fs::metadata(path) {
                Ok(file) if file.file_type().is_socket() => checks.ok("wsl-proxy", &shown(path)),
                other => {
                    let why = other.map_or_else(|error| error.to_string(), |_| "it is no socket".to_owned());
                    checks.warn("wsl-proxy", &at(path, &why), WSL_PROXY);
                }
            },
            SinkConfig::Vtunnel(Address::Vsock { .. }) => {
                let device = fs::metadata(VSOCK).map(|_| VSOCK.to_owned()).map_err(|error| format!("{VSOCK}: {error}"));
                found(
                    checks,
                    "vsock-device",
                    device,
                    "give the VM a vsock device, and load its driver (modprobe vmw_vsock_virtio_transport)",
                );
            }
            SinkConfig::Listener | SinkConfig::Stdout | SinkConfig::Vtunnel(_) => {}
        }
    }
}

fn host_switch_files(checks: &mut Checks, config: &HostSwitchConfig) {
    let path = &config.state_file;
    let dirs = path.ancestors().skip(1);
    // Those that are not there yet are made by the agent.
    let writable = dirs.map(|dir| (dir, access(dir, AccessFlags::W_OK | AccessFlags::X_OK)));
    let dir = writable.into_iter().find(|(_, result)| *result != Err(nix::errno::Errno::ENOENT));
    let problem = match dir {
        Some((dir, Err(errno))) => Some(at(dir, &errno.desc())),
        _ => match private_file::read(path, OFlag::O_NOFOLLOW, STATE_BYTES_MAX, WRITABLE) {
            Err(Problem::Io(error)) if error.kind() == ErrorKind::NotFound => None,
            other => other.err().map(|problem| at(path, &problem)),
        },
    };
    let remedy = "let the agent's user write there, or name another place: --state-file PATH";
    found(checks, "state-file", problem.map_or_else(|| Ok(shown(path)), Err), remedy);
    if let Some(path) = &config.token_file {
        let token = host_switch::token(path).map(|_| shown(path));
        found(checks, "token-file", token, "one line, the token alone, of mode 0600 and the agent's user");
    }
}

/// Whether somebody listens at that unix socket, and we may connect. Says nothing there.
fn socket(checks: &mut Checks, name: &str, path: &Path, elsewhere: &str) {
    let Err(error) = connect_unix(path) else { return checks.ok(name, &shown(path)) };
    let remedy = match error.kind() {
        ErrorKind::PermissionDenied => {
            "run the agent as the socket's owner, or in its group; root counts as any other user, as the agent gives up \
             the right to pass over permissions"
        }
        ErrorKind::WouldBlock => "restart that program: it is stuck",
        _ => elsewhere,
    };
    checks.fail(name, &at(path, &error), remedy);
}

fn found(checks: &mut Checks, name: &str, result: Result<String, String>, remedy: &str) {
    match result {
        Ok(detail) => checks.ok(name, &detail),
        Err(why) => checks.fail(name, &why, remedy),
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// That path, and what is wrong with it.
fn at(path: &Path, why: &dyn Display) -> String {
    format!("{}: {why}", path.display())
}
